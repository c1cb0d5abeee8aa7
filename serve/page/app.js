// The page: what is asked of which database, and what is shown of it.

import { Answer } from "./answer.js";
import { call, isUp } from "./api.js";
import { askForKey, setUpHelp, setUpKeyDialog, setUpKeys, setUpTheme } from "./dialogs.js";
import { byId, el } from "./dom.js";
import { History } from "./history.js";
import { showSchema } from "./schema.js";
import { load, loadKey, save } from "./storage.js";

const AGAIN_MS = 3000;

const state = { me: null, running: null, waiting: false, recalled: -1 };
const question = byId("question");
const history = new History((entry) => recall(entry));

// Who asks, and which databases there are. Without a valid key the page asks for one.
async function connect() {
  try {
    state.me = await call("GET", "v1/me");
    const { data } = await call("GET", "v1/databases");
    banner(null);
    welcome(data);
  } catch (error) {
    state.me = null;
    byId("open-key").hidden = false;
    byId("send").disabled = byId("database").disabled = true;
    if (error.status === 401) {
      banner(loadKey() ? error.message : "This server wants a key.", "Enter the key", () => askForKey());
      askForKey(loadKey() ? "This key is not valid here." : "");
    } else {
      banner(error.message, "Try again", connect);
      if (error.code === "unreachable") waitForServer();
    }
  }
}

function welcome(databases) {
  const select = byId("database");
  select.replaceChildren(...databases.map(({ id }) => el("option", { value: id }, id)));
  const last = load("database");
  if (databases.some(({ id }) => id === last)) select.value = last;
  select.disabled = databases.length === 0;
  byId("model").textContent = state.me.model;
  byId("model").title = "The model that answers";
  byId("model").hidden = false;
  byId("open-key").hidden = loadKey() === null; // nobody asked for one
  byId("description").hidden = loadKey() !== null; // a link sends no key
  for (const choice of document.querySelectorAll("[name=n]")) choice.parentElement.hidden = Number(choice.value) > state.me.max_candidates;
  const mayAsk = state.me.scopes.includes("ask");
  byId("send").disabled = !mayAsk || !databases.length;
  if (!mayAsk) banner("This key may not ask questions (it lacks the scope “ask”).", "Use another key", () => askForKey());
  else if (!databases.length) banner("This key may read no database.", "Use another key", () => askForKey());
  changeDatabase();
}

async function changeDatabase() {
  const name = byId("database").value;
  if (!name) return;
  save("database", name);
  try {
    const schema = await call("GET", `v1/databases/${encodeURIComponent(name)}`);
    if (name !== byId("database").value) return; // changed again meanwhile
    showSchema(schema, state.me.scopes.includes("query") ? preview : null);
  } catch (error) {
    byId("schema").replaceChildren(el("p", { class: "note problem" }, error.message));
    byId("schema-count").textContent = "";
  }
}

async function ask() {
  const text = question.value.trim();
  if (!text || state.running || byId("send").disabled) return;
  const asked = { database: byId("database").value, question: text, evidence: byId("hint").value.trim() };
  const n = Number(new FormData(byId("composer")).get("n"));
  const agreement = byId("agreement").value;
  const options = n > 1 && agreement ? { n, abstain_below: Number(agreement) } : { n };
  state.recalled = -1;
  const answer = put(new Answer(state.me, asked, whileRunning));
  await whileRunning(answer, async (signal) => {
    const { sql, verdict, rows } = await answer.ask(options, signal);
    history.add({ ...asked, sql, status: verdict.status, rows: rows.length });
    if (question.value.trim() === text) write(""); // it stands above the answer, and one key away
    if (matchMedia("(pointer: coarse)").matches) question.blur(); // the keyboard would hide the answer
  });
}

async function preview(table) {
  if (state.running) return;
  const answer = put(new Answer(state.me, { database: byId("database").value }, whileRunning));
  const sql = `SELECT * FROM "${table.replaceAll('"', '""')}" LIMIT 50`;
  await whileRunning(answer, (signal) => answer.run(sql, signal));
}

function recall(entry) {
  if (state.running) return;
  const known = [...byId("database").options].some((option) => option.value === entry.database);
  if (known && byId("database").value !== entry.database) {
    byId("database").value = entry.database;
    changeDatabase();
  }
  write(entry.question);
  byId("hint").value = entry.evidence ?? "";
  if (!state.me || !known) return;
  const asked = { database: entry.database, question: entry.question, evidence: entry.evidence ?? "" };
  put(new Answer(state.me, asked, whileRunning)).recall(entry);
  question.focus();
}

function put(answer) {
  byId("welcome").hidden = true;
  byId("answer").hidden = false;
  byId("answer").replaceChildren(answer.element);
  return answer;
}

async function whileRunning(answer, work) {
  if (state.running) return;
  state.running = new AbortController();
  byId("send").hidden = true;
  byId("stop").hidden = false;
  byId("answer").setAttribute("aria-busy", "true");
  try {
    await work(state.running.signal);
    banner(null);
  } catch (error) {
    answer.fail(error);
    if (error.status === 401) askForKey("This key is not valid here any more.");
    if (error.code === "unreachable") waitForServer();
  } finally {
    state.running = null;
    if (document.activeElement === byId("stop")) question.focus();
    byId("send").hidden = false;
    byId("stop").hidden = true;
    byId("answer").removeAttribute("aria-busy");
  }
}

// After a restart the page goes on by itself.
async function waitForServer() {
  if (state.waiting) return;
  state.waiting = true;
  banner("The server cannot be reached. This page waits for it.", "Try now", connect);
  while (!(await isUp())) await new Promise((done) => setTimeout(done, AGAIN_MS));
  state.waiting = false;
  await connect();
}

function banner(text, title = "", action = null) {
  byId("banner").hidden = text === null;
  if (text === null) return;
  byId("banner-text").textContent = text;
  byId("banner-action").textContent = title;
  byId("banner-action").onclick = action;
}

function write(text) {
  question.value = text;
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, 320)}px`;
}

// As in a shell: up and down go through earlier questions, from a question that is empty or such a one.
function browse(step) {
  const { entries } = history;
  const next = Math.min(Math.max(state.recalled + step, -1), entries.length - 1);
  if (next === state.recalled) return;
  state.recalled = next;
  write(next < 0 ? "" : entries[next].question);
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
question.addEventListener("input", () => {
  state.recalled = -1;
  write(question.value);
});
question.addEventListener("keydown", (event) => {
  const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  } else if (step && (question.value === "" || state.recalled >= 0)) {
    event.preventDefault();
    browse(step);
  }
});
byId("stop").addEventListener("click", () => state.running?.abort());
byId("database").addEventListener("change", changeDatabase);
byId("hint-toggle").addEventListener("click", () => {
  const row = byId("hint-row");
  row.hidden = !row.hidden;
  byId("hint-toggle").setAttribute("aria-expanded", String(!row.hidden));
  if (!row.hidden) byId("hint").focus();
});
setUpKeyDialog(connect);
setUpHelp();
setUpTheme();
setUpKeys(() => state.running?.abort());
connect();
