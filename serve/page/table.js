// Rows as a table.

import { el } from "./dom.js";

const SHOWN = 1000; // rows that are put on the page; a download has them all
const LONGEST = 600; // characters of a cell

// Whether every value of a column is a number (and there is one).
export function isNumeric(rows, column) {
  let some = false;
  for (const row of rows) {
    if (row[column] === null) continue;
    if (!["number", "bigint"].includes(typeof row[column])) return false;
    some = true;
  }
  return some;
}

export function table(columns, rows) {
  const numeric = columns.map((_, index) => isNumeric(rows, index));
  const kind = (index) => (numeric[index] ? "number" : null);
  const head = columns.map((name, index) => el("th", { scope: "col", class: kind(index) }, name));
  const body = rows.slice(0, SHOWN).map((row) => el("tr", {}, row.map((cell, index) => shown(cell, kind(index)))));
  return el(
    "div",
    { class: "rows", role: "region", tabindex: "0", "aria-label": "Rows" },
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)),
  );
}

export function shortened(text, longest = LONGEST) {
  return text.length > longest ? `${text.slice(0, longest)}…` : text;
}

function shown(cell, kind) {
  if (cell === null) return el("td", { class: kind }, el("span", { class: "null" }, "NULL"));
  if (cell === "") return el("td", { class: kind }, el("span", { class: "null" }, "empty"));
  return el("td", { class: kind }, shortened(String(cell)));
}
