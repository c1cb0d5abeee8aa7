// One answer on the page: its SQL as it grows, the verdict, rows, chart, candidates and plan, and what people say of it.

import { call, events, Failure } from "./api.js";
import { chart, chartOf } from "./chart.js";
import { csv, download } from "./csv.js";
import { count, el, fill, icon, say } from "./dom.js";
import { Statement } from "./editor.js";
import { Feedback } from "./feedback.js";
import { planTree } from "./plan.js";
import { laidOut } from "./sql.js";
import { table } from "./table.js";
import { tabs } from "./tabs.js";
import { time, verdictLine, worded } from "./verdict.js";

const MORE_ROWS = 1000;
const WIDE = 4; // columns beside which a chart has room

export class Answer {
  // `me` says what this key may do; `asked` is `{database, question, evidence}`, without a question for SQL alone.
  // `during(answer, work)` does what takes time, and gives it a signal to stop by.
  constructor(me, asked, during) {
    this.me = me;
    this.during = during;
    this.asked = asked;
    this.mayRun = me.scopes.includes("query");
    this.written = ""; // the model's own SQL
    this.statement = new Statement();
    this.state = el("p", { class: "state" }, el("span", { class: "pulse", "aria-hidden": "true" }), el("span", { class: "state-text" }));
    this.result = el("div", { class: "result" });
    this.actions = el("div", { class: "actions" });
    this.editing = el("div", { class: "actions", hidden: true });
    this.feedback = new Feedback(this);
    this.element = el(
      "article",
      { class: "answer" },
      asked.question && el("h2", { class: "asked" }, asked.question),
      el("div", { class: "card" }, el("div", { class: "card-head" }, el("span", { class: "card-title" }, "SQL"), el("span", { class: "dim" }, asked.database), el("span", { class: "space" }), this.actions), this.statement.element, this.editing),
      this.state,
      this.result,
      this.feedback.element,
    );
    this.state.hidden = true;
  }

  // Asks the model; returns `{sql, verdict, rows}` for the history. Raises as `events`.
  async ask(options, signal) {
    this.wait(options.n > 1 ? `Writing ${options.n} candidates` : "Writing SQL");
    this.statement.show("", true);
    let sql = "";
    const answer = {};
    for await (const { name, data } of events("v1/sql", { ...this.asked, ...options, stream: true }, signal)) {
      if (name === "token") {
        if (data.index === 0) this.statement.show((sql += data.text), true);
      } else if (name === "repair") {
        sql = "";
        this.statement.show("", true);
        this.wait(`The database said “${data.reason}”; writing it once more`);
      } else {
        Object.assign(answer, data);
        if (name === "verdict") this.statement.show(laidOut(data.sql));
      }
    }
    if (!answer.timings) throw new Failure("The answer broke off. Try again.");
    this.written = answer.sql;
    const { generate_ms, execute_ms, total_ms } = answer.timings;
    const notes = [`${time(total_ms)} in all`, `model ${time(generate_ms)}`, `database ${time(execute_ms)}`, count(answer.usage.completion_tokens, "token")];
    this.show(answer, notes.join(" · "));
    return answer;
  }

  // Runs a statement of the reader’s own, in the same sandbox.
  async run(sql, signal, maxRows = null) {
    const wasEdited = this.statement.isEdited;
    this.leaveEditor();
    this.statement.show(sql);
    if (wasEdited) this.statement.text.focus(); // the field that had it is gone
    this.wait("Executing");
    const body = { database: this.asked.database, sql };
    const answer = await call("POST", "v1/query", maxRows ? { ...body, max_rows: maxRows } : body, signal);
    this.show({ ...answer, candidates: [] }, `${time(answer.verdict.elapsed_ms)} in the database`);
    return answer;
  }

  // An entry of the history: its SQL, and nothing of its rows.
  recall(entry) {
    this.written = entry.written ?? entry.sql;
    this.statement.show(laidOut(entry.sql));
    this.showActions();
    if (this.mayRun) this.result.replaceChildren(el("p", { class: "note" }, "Rows are not kept. ", this.button("play", "Run it again", () => this.tryRun(this.statement.value))));
    this.feedback.show(entry.status === "ran");
  }

  wait(text) {
    this.state.hidden = false;
    this.state.querySelector(".state-text").textContent = text;
    this.result.replaceChildren();
    this.actions.replaceChildren();
    this.feedback.hide();
    say(text);
  }

  fail(error) {
    this.state.hidden = true;
    this.statement.show(this.statement.sql);
    if (this.statement.sql) this.showActions();
    const stopped = error.name === "AbortError";
    const text = stopped ? "Stopped." : error instanceof Failure ? error.message : "Something went wrong on this page. Reload it.";
    if (!stopped && !(error instanceof Failure)) console.error(error);
    this.result.replaceChildren(el("p", { class: stopped ? "note" : "note problem", role: stopped ? null : "alert" }, text));
    say(stopped ? "Stopped" : "");
  }

  show(answer, notes) {
    this.state.hidden = true;
    this.answer = answer;
    const ran = answer.verdict.status === "ran";
    const said = worded(answer.verdict, ran ? answer.rows.length : null);
    const entries = [];
    if (answer.columns.length) entries.push({ title: "Result", content: this.rows(answer) });
    if (answer.candidates.length > 1) entries.push({ title: `Candidates (${votes(answer.candidates)})`, content: this.candidates(answer.candidates) });
    if (this.mayRun && (ran || answer.verdict.status === "unsure")) entries.push({ title: "Query plan", content: (panel) => this.plan(panel, answer.sql) });
    this.result.replaceChildren(verdictLine(said, notes), ...(entries.length ? [tabs("Parts of the answer", entries)] : []));
    this.showActions();
    this.feedback.show(ran);
    say([said.title, said.text].filter(Boolean).join(": "));
  }

  rows({ columns, rows, truncated }) {
    if (!rows.length) return el("p", { class: "note" }, "No rows: the statement is valid, and nothing in the database fits it.");
    const plan = chartOf(columns, rows);
    const more = this.mayRun && truncated && rows.length < MORE_ROWS;
    const foot = el(
      "div",
      { class: "rows-foot" },
      el("span", { class: "dim" }, truncated ? `The first ${count(rows.length, "row")}; there are more` : count(rows.length, "row")),
      more && this.button("table", `Up to ${MORE_ROWS.toLocaleString("en")}`, () => this.tryRun(this.answer.sql, MORE_ROWS)),
      el("span", { class: "space" }),
      this.button("download", "CSV", () => download(`${this.asked.database}.csv`, csv(columns, rows))),
    );
    const beside = plan && columns.length <= WIDE ? " beside" : "";
    return el("div", { class: `rows-and-chart${beside}` }, el("div", { class: "rows-side" }, table(columns, rows), foot), plan && chart(columns, rows, plan));
  }

  candidates(candidates) {
    const all = votes(candidates);
    const items = candidates.map((candidate, index) => {
      const shown = new Statement(`SQL of candidate ${index + 1}`);
      shown.show(laidOut(candidate.sql));
      const said = candidate.status === "ran" ? "" : candidate.status;
      const meter = el("meter", { min: 0, max: all, value: candidate.votes, "aria-label": "Share of the votes" });
      return el(
        "li",
        {},
        el("div", { class: "votes" }, meter, el("span", {}, `${candidate.votes} of ${all}`), said && el("span", { class: "tag" }, said), el("span", { class: "space" }), this.mayRun && this.button("play", "Run this one", () => this.tryRun(candidate.sql))),
        shown.element,
      );
    });
    return el("ol", { class: "candidates" }, items);
  }

  async plan(panel, sql) {
    panel.replaceChildren(el("p", { class: "note" }, "Asking the database…"));
    try {
      const { plan, verdict } = await call("POST", "v1/plan", { database: this.asked.database, sql });
      panel.replaceChildren(plan.length ? planTree(plan) : el("p", { class: "note" }, verdict.reason || "The database has no plan for it: nothing is read."));
    } catch (error) {
      panel.replaceChildren(el("p", { class: "note problem", role: "alert" }, error.message));
    }
  }

  showActions() {
    const copy = this.button("copy", "Copy", async () => {
      const said = (await copied(this.statement.value, this.statement.code)) ? "Copied" : "Selected";
      copy.lastChild.textContent = said;
      say(said);
      setTimeout(() => (copy.lastChild.textContent = "Copy"), 1500);
    });
    this.actions.replaceChildren(copy, ...(this.mayRun ? [this.button("edit", "Edit", () => this.edit())] : []));
  }

  // Opens the editor; `save`, where the reader wants to correct the answer, keeps what is written as the right SQL.
  edit(save = null) {
    const before = this.statement.sql;
    const leave = () => {
      this.leaveEditor();
      this.statement.show(before);
      this.actions.querySelector("button:last-child")?.focus();
    };
    const run = () => this.tryRun(this.statement.value);
    this.statement.edit({ run: save ? () => save(this.statement.value) : run, leave });
    this.actions.replaceChildren();
    this.editing.hidden = false;
    fill(
      this.editing,
      el("button", { type: "button", on: { click: leave } }, "Cancel"),
      el("span", { class: "space" }),
      this.mayRun && el("button", { type: "button", class: save ? null : "primary", on: { click: run } }, "Run", !save && el("kbd", {}, "Ctrl ↵")),
      save && el("button", { type: "button", class: "primary", on: { click: () => save(this.statement.value) } }, "Save as the right answer"),
    );
  }

  leaveEditor() {
    this.statement.close();
    this.editing.hidden = true;
    this.editing.replaceChildren();
    this.showActions();
  }

  // Shows a statement of the reader’s own, with its rows where they may be had.
  async take(sql) {
    if (this.mayRun) return this.tryRun(sql);
    this.leaveEditor();
    this.statement.show(sql);
  }

  async tryRun(sql, maxRows = null) {
    if (sql.trim()) await this.during(this, (signal) => this.run(sql, signal, maxRows));
  }

  button(name, title, click) {
    return el("button", { type: "button", class: "quiet small", on: { click } }, icon(name), el("span", {}, title));
  }
}

// Copies a text. Where the page came over plain HTTP the browser has no clipboard for it, and what is shown is taken.
async function copied(text, element) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}

function votes(candidates) {
  return candidates.reduce((sum, candidate) => sum + candidate.votes, 0);
}
