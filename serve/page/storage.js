// What the browser keeps for this page. Where storage is not allowed, everything lasts as long as the page.

const PREFIX = "spftsql.";
const fallback = new Map();

export function load(name) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return fallback.get(name) ?? null;
  }
}

export function save(name, value) {
  fallback.set(name, value);
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Full, or not allowed: see above.
  }
}

// The theme is read by `theme.js` before anything else, as plain text.
export function saveText(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, value);
  } catch {
    // See above.
  }
}

let held = null;

// The key: for the tab, and for the browser only when that was asked for.
export function loadKey() {
  try {
    return sessionStorage.getItem(`${PREFIX}key`) ?? localStorage.getItem(`${PREFIX}key`);
  } catch {
    return held;
  }
}

export function saveKey(key, remember) {
  held = key;
  try {
    sessionStorage.removeItem(`${PREFIX}key`);
    localStorage.removeItem(`${PREFIX}key`);
    if (key !== null) (remember ? localStorage : sessionStorage).setItem(`${PREFIX}key`, key);
  } catch {
    // See above.
  }
}
