// The schema of the chosen database: tables that open, columns with types and keys.

import { byId, count, el, icon } from "./dom.js";
import { shortened } from "./table.js";

const FILTER_FROM = 6; // tables

// `preview`, where this key may run statements, shows the first rows of a table.
export function showSchema(schema, preview) {
  const keys = new Map(schema.foreign_keys.map((key) => [`${key.table}\n${key.column}`, `${key.target}.${key.target_column}`]));
  const tables = schema.tables.map((table) => tableEntry(table, keys, preview, schema.tables.length === 1));
  byId("schema").replaceChildren(...(tables.length ? tables : [el("p", { class: "empty" }, "There are no tables.")]));
  byId("schema-count").textContent = count(tables.length, "table");
  const filter = byId("schema-filter");
  filter.hidden = tables.length < FILTER_FROM;
  filter.value = "";
  filter.oninput = () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const entry of tables) {
      entry.hidden = wanted !== "" && !entry.dataset.words.includes(wanted);
      entry.open = wanted !== "" && !entry.hidden;
    }
  };
}

function tableEntry(table, keys, preview, open) {
  const columns = table.columns.map((column) => columnEntry(column, keys.get(`${table.name}\n${column.name}`)));
  const button =
    preview &&
    el("button", { type: "button", class: "quiet small", on: { click: () => preview(table.name) } }, icon("table"), "First rows", el("span", { class: "hidden" }, ` of ${table.name}`));
  return el(
    "details",
    { class: "table-entry", open, "data-words": [table.name, ...table.columns.map((column) => column.name)].join("\n").toLowerCase() },
    el("summary", {}, el("span", { class: "table-name" }, table.name), el("span", { class: "dim" }, count(table.rows, "row"))),
    table.comment && el("p", { class: "comment" }, table.comment),
    el("ul", { class: "column-list" }, columns),
    button,
  );
}

function columnEntry(column, target) {
  const notes = [column.comment, column.samples.length && `e.g. ${column.samples.join(", ")}`].filter(Boolean).join(" · ");
  return el(
    "li",
    {},
    el(
      "div",
      { class: "column-line" },
      el("span", { class: "column-name" }, column.name),
      column.primary_key && el("span", { class: "tag", title: "primary key" }, "key"),
      el("span", { class: "type" }, shortened(column.type.toLowerCase(), 24)),
    ),
    target && el("div", { class: "column-note" }, `→ ${target}`),
    notes && el("div", { class: "column-note" }, shortened(notes, 120)),
  );
}
