// What execution says, in words.

import { count, el, icon } from "./dom.js";

// `{look, icon, title, text}`; `look` is ran, unsure or error.
export function worded(verdict, rows) {
  const reason = verdict.reason;
  if (verdict.status === "ran") {
    const repaired = reason.startsWith("repaired: ") && `Repaired once: ${reason.slice("repaired: ".length)}`;
    return { look: "ran", icon: "check", title: "Executed", text: [rows !== null && count(rows, "row"), repaired].filter(Boolean).join(" · ") };
  }
  if (verdict.status === "unsure") return { look: "unsure", icon: "split", title: "Unsure", text: `${reason}. Choose one of the candidates.` };
  if (verdict.status === "timeout") return { look: "error", icon: "clock", title: "Too slow", text: `The statement was stopped: ${reason}.` };
  if (verdict.status === "truncated") return { look: "unsure", icon: "table", title: "Cut", text: "The result is larger than the sandbox lets through." };
  if (reason.startsWith("refused: ")) {
    return { look: "error", icon: "shield", title: "Refused", text: `The sandbox does not allow this (${reason.slice("refused: ".length)}). Nothing was changed.` };
  }
  return { look: "error", icon: "cross", title: "Failed", text: reason };
}

export function verdictLine(said, notes) {
  return el(
    "p",
    { class: `verdict ${said.look}` },
    el("span", { class: "badge" }, icon(said.icon), said.title),
    said.text && el("span", { class: "verdict-text" }, said.text),
    notes && el("span", { class: "dim" }, notes),
  );
}

export function time(milliseconds) {
  if (milliseconds < 1) return "under 1 ms";
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 1)} s`;
}
