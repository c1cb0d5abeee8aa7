// What people say of an answer. A confirmed or corrected one is a label that the next run learns from.

import { call } from "./api.js";
import { el, fill, icon, say } from "./dom.js";

export class Feedback {
  constructor(answer) {
    this.answer = answer;
    this.may = answer.me.keeps_feedback && answer.me.scopes.includes("feedback") && Boolean(answer.asked.question);
    this.element = el("div", { class: "feedback", hidden: true });
  }

  hide() {
    this.element.hidden = true;
  }

  // Only what ran can be right.
  show(ran) {
    if (!this.may) return;
    const isOther = this.answer.statement.value.trim() !== "" && this.isEdited();
    this.element.hidden = false;
    fill(
      this.element,
      el("span", { class: "feedback-title" }, !ran ? "What should it have been?" : isOther ? "Is your SQL the right answer?" : "Is this right?"),
      ran && !isOther && this.thumb("up", "Yes", () => this.rate("up")),
      ran && !isOther && this.thumb("down", "No", () => this.rate("down")),
      ran && isOther && this.thumb("up", "Yes, keep it as the answer", () => this.correct(this.answer.statement.value)),
      el("button", { type: "button", class: "quiet small", on: { click: () => this.open() } }, icon("edit"), el("span", {}, "Correct it")),
    );
  }

  isEdited() {
    const bare = (sql) => sql.replace(/\s+/g, " ").trim();
    return bare(this.answer.statement.value) !== bare(this.answer.written);
  }

  open() {
    this.answer.edit((sql) => this.correct(sql));
  }

  thumb(name, title, click) {
    return el("button", { type: "button", class: "quiet small", on: { click } }, icon(name), el("span", {}, title));
  }

  async rate(rating) {
    if (!(await this.send({ rating }))) return;
    if (rating === "up") this.thank("Thank you. It is kept as a label for the next training.");
    else {
      this.thank("Thank you. What should it have been?");
      this.element.append(el("button", { type: "button", class: "quiet small", on: { click: () => this.open() } }, icon("edit"), el("span", {}, "Correct it")));
    }
  }

  async correct(sql) {
    if (!sql.trim() || !(await this.send({ rating: "down", corrected: sql }))) return;
    if (this.answer.statement.isEdited) await this.answer.take(sql);
    this.thank("Thank you. Your SQL is kept as the right answer for the next training.");
  }

  async send(said) {
    const { database, question, evidence = "" } = this.answer.asked;
    try {
      await call("POST", "v1/feedback", { database, question, evidence, sql: this.answer.written || this.answer.statement.value, ...said });
      return true;
    } catch (error) {
      this.element.hidden = false;
      this.element.querySelector(".problem")?.remove();
      this.element.append(el("span", { class: "problem", role: "alert" }, error.message));
      return false;
    }
  }

  thank(text) {
    const thanks = el("span", { class: "thanks", tabindex: "-1" }, icon("check"), text);
    this.element.hidden = false;
    this.element.replaceChildren(thanks);
    thanks.focus(); // the button that had it is gone
    say(text);
  }
}
