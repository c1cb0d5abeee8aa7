// Earlier questions, kept in this browser: the question, its SQL and what became of it, never rows.

import { byId, count, el } from "./dom.js";
import { load, save } from "./storage.js";

const KEPT = 100;
const LOOKS = { ran: "ran", unsure: "unsure", error: "error", timeout: "error", truncated: "ran" };

export class History {
  // `open` is called with an entry that was chosen.
  constructor(open) {
    this.open = open;
    this.sure = false;
    byId("history-clear").addEventListener("click", () => this.clear());
    byId("history").addEventListener("keydown", (event) => this.move(event));
    addEventListener("storage", (event) => event.key === "spftsql.history" && this.show()); // from another tab
    this.show();
  }

  get entries() {
    const kept = load("history");
    return Array.isArray(kept) ? kept.filter((entry) => typeof entry?.question === "string" && typeof entry?.sql === "string") : [];
  }

  // The newest first; a question about the same database takes the place of itself.
  add(entry) {
    const others = this.entries.filter((other) => other.question !== entry.question || other.database !== entry.database);
    save("history", [{ ...entry, at: Date.now() }, ...others].slice(0, KEPT));
    this.show();
  }

  clear() {
    const button = byId("history-clear");
    if (!this.sure) {
      this.sure = true;
      button.textContent = "Clear all?";
      setTimeout(() => this.unsure(), 4000);
      return;
    }
    this.unsure();
    save("history", null);
    this.show();
    byId("question").focus();
  }

  unsure() {
    this.sure = false;
    byId("history-clear").textContent = "Clear";
  }

  show() {
    const { entries } = this;
    byId("history-clear").hidden = !entries.length;
    const items = entries.map((entry, index) => el("li", {}, this.button(entry, index)));
    byId("history").replaceChildren(items.length ? el("ol", { class: "history-list" }, items) : el("p", { class: "empty" }, "What you ask is listed here, in this browser only."));
  }

  button(entry, index) {
    const said = entry.status === "ran" && Number.isInteger(entry.rows) ? count(entry.rows, "row") : entry.status;
    return el(
      "button",
      { type: "button", tabindex: index === 0 ? "0" : "-1", on: { click: () => this.open(entry) } },
      el("span", { class: `dot ${LOOKS[entry.status] ?? "error"}`, "aria-hidden": "true" }),
      el("span", { class: "history-question" }, entry.question),
      el("span", { class: "dim" }, `${entry.database} · ${said} · ${ago(entry.at)}`),
    );
  }

  // One stop for Tab; the arrow keys go along the list.
  move(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    const buttons = [...byId("history").querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const next = buttons[Math.min(Math.max(at + steps[event.key], 0), buttons.length - 1)];
    buttons.forEach((button) => (button.tabIndex = button === next ? 0 : -1));
    next?.focus();
    event.preventDefault();
  }
}

function ago(at) {
  const minutes = Math.max(0, Math.round((Date.now() - at) / 60_000));
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${minutes} min ago`;
  if (minutes < 60 * 24) return `${Math.round(minutes / 60)} h ago`;
  return new Date(at).toLocaleDateString();
}
