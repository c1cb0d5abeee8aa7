// Tabs: one panel of several, chosen by click or arrow keys.

import { el } from "./dom.js";

let numbers = 0;

// `entries` are `{title, content}`; a content that is a function is called when its tab is first opened.
export function tabs(label, entries) {
  const id = `tabs-${(numbers += 1)}`;
  const panels = entries.map((_, index) => el("div", { role: "tabpanel", id: `${id}-panel-${index}`, "aria-labelledby": `${id}-${index}`, hidden: index > 0, class: "tab-panel" }));
  const buttons = entries.map(({ title }, index) =>
    el("button", { type: "button", role: "tab", id: `${id}-${index}`, "aria-controls": `${id}-panel-${index}`, on: { click: () => open(index) } }, title),
  );
  const opened = new Set();

  function open(index) {
    buttons.forEach((button, place) => {
      button.setAttribute("aria-selected", String(place === index));
      button.tabIndex = place === index ? 0 : -1;
      panels[place].hidden = place !== index;
    });
    if (opened.has(index)) return;
    opened.add(index);
    const { content } = entries[index];
    if (typeof content === "function") content(panels[index]);
    else panels[index].append(content);
  }

  const list = el(
    "div",
    {
      role: "tablist",
      "aria-label": label,
      on: {
        keydown: (event) => {
          const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (!step) return;
          const next = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
          open(next);
          buttons[next].focus();
          event.preventDefault();
        },
      },
    },
    buttons,
  );
  open(0);
  return el("div", { class: "tabs" }, list, panels);
}
