// A statement: coloured text, or a field over coloured text while it is edited.

import { el } from "./dom.js";
import { coloured } from "./sql.js";

export class Statement {
  constructor(name = "SQL") {
    this.code = el("code");
    this.text = el("pre", { class: "sql", tabindex: "0", role: "region", "aria-label": name }, this.code);
    this.element = el("div", { class: "statement" }, this.text);
    this.field = null;
    this.sql = "";
  }

  show(sql, isGrowing = false) {
    this.sql = sql;
    this.code.replaceChildren(...coloured(sql));
    this.text.classList.toggle("growing", isGrowing);
  }

  // Opens the field. `run` and `leave` are called for Ctrl+Enter and Escape.
  edit({ run, leave }) {
    if (this.field) return;
    this.field = el("textarea", { class: "sql", spellcheck: "false", autocapitalize: "off", autocomplete: "off", "aria-label": "SQL, to be edited" });
    this.field.value = this.sql;
    this.field.addEventListener("input", () => this.follow());
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        run();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      }
    });
    this.text.setAttribute("aria-hidden", "true");
    this.text.removeAttribute("tabindex");
    this.element.classList.add("editing");
    this.element.append(this.field);
    this.follow();
    this.field.focus();
    this.field.setSelectionRange(this.field.value.length, this.field.value.length);
  }

  get isEdited() {
    return this.field !== null;
  }

  get value() {
    return this.field ? this.field.value : this.sql;
  }

  close() {
    this.field?.remove();
    this.field = null;
    this.element.classList.remove("editing");
    this.text.removeAttribute("aria-hidden");
    this.text.setAttribute("tabindex", "0");
  }

  follow() {
    // A last line that is empty has its height too.
    this.code.replaceChildren(...coloured(`${this.field.value}\n`));
  }
}
