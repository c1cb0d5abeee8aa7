// The two dialogs, the theme, and the keys that work everywhere.

import { byId } from "./dom.js";
import { load, loadKey, save, saveKey, saveText } from "./storage.js";

const READABLE = /^[\x20-\x7e]{1,400}$/;

// Asks for the key; `use` is called when it was changed.
export function setUpKeyDialog(use) {
  const [dialog, field, problem] = [byId("key-dialog"), byId("key"), byId("key-error")];
  const done = (key, remember) => {
    saveKey(key, remember);
    dialog.close();
    use();
  };
  byId("open-key").addEventListener("click", () => askForKey());
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-forget").addEventListener("click", () => done(null, false));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = field.value.trim();
    problem.hidden = READABLE.test(key);
    problem.textContent = key ? "A key has letters, digits and signs only." : "Enter the key.";
    if (problem.hidden) done(key, byId("key-remember").checked);
    else field.focus();
  });
}

export function askForKey(text = "") {
  const [dialog, problem] = [byId("key-dialog"), byId("key-error")];
  byId("key").value = "";
  byId("key-forget").hidden = loadKey() === null;
  problem.hidden = !text;
  problem.textContent = text;
  if (!dialog.open) dialog.showModal();
}

export function setUpHelp() {
  const [dialog, singles] = [byId("help-dialog"), byId("single-keys")];
  singles.checked = load("singleKeys") !== false;
  singles.addEventListener("change", () => save("singleKeys", singles.checked));
  byId("open-help").addEventListener("click", () => dialog.showModal());
  byId("help-close").addEventListener("click", () => dialog.close());
}

// Dark where it is light, and the other way round; back on the system’s theme, nothing is kept.
export function setUpTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const name = () => byId("theme").setAttribute("aria-label", isDark() ? "Theme: dark; change to light" : "Theme: light; change to dark");
  byId("theme").addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    const isSystem = (next === "dark") === system.matches;
    if (isSystem) delete root.dataset.theme;
    else root.dataset.theme = next;
    saveText("theme", isSystem ? null : next);
    name();
  });
  system.addEventListener("change", name);
  name();
}

// `stop` is called for Escape where nothing else takes it.
export function setUpKeys(stop) {
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return stop();
    const inField = event.target.closest?.("input, textarea, select");
    if (inField || !byId("single-keys").checked) return;
    if (event.key === "/") {
      event.preventDefault();
      byId("question").focus();
    } else if (event.key === "?") {
      byId("help-dialog").showModal();
    }
  });
}
