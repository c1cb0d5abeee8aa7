// The query plan as a tree.

import { count, el } from "./dom.js";

export function planTree(steps) {
  return el(
    "ul",
    { class: "plan" },
    steps.map((step) =>
      el(
        "li",
        {},
        el("div", { class: "step" }, el("span", { class: "step-name" }, step.name), step.rows !== null && el("span", { class: "dim" }, `≈ ${count(Math.round(step.rows), "row")}`)),
        step.detail && el("div", { class: "step-detail" }, step.detail),
        step.children.length > 0 && planTree(step.children),
      ),
    ),
  );
}
