// SQL as tokens: coloured, and broken into lines where it comes in one.

import { el } from "./dom.js";

const KEYWORDS = new Set(
  `all and any as asc between both by case cast collate cross current_date current_time current_timestamp desc distinct
  else end escape except exists false fetch filter first following from full glob group having ilike in inner intersect
  interval into is isnull join last lateral leading left like limit natural next not notnull null nulls offset on only or
  order outer over partition preceding qualify range recursive regexp right row rows select similar some then ties to
  trailing true unbounded union unique unnest using values when where window with within without`.split(/\s+/),
);
const WRITES = new Set("alter attach create delete drop insert pragma replace set table truncate update vacuum".split(" "));
const TOKEN = new RegExp(
  [
    String.raw`(?<comment>--[^\n]*|/\*[\s\S]*?(?:\*/|$))`,
    String.raw`(?<string>'(?:[^']|'')*'?)`,
    String.raw`(?<name>"(?:[^"]|"")*"?|${"`"}[^${"`"}]*${"`"}?)`,
    String.raw`(?<number>\d[\w.]*|\.\d+)`,
    String.raw`(?<word>[\p{L}_][\p{L}\p{N}_$]*)`,
    String.raw`(?<space>\s+)`,
    String.raw`(?<symbol>[\s\S])`,
  ].join("|"),
  "gu",
);
const JOINS = new Set("left right inner cross full natural".split(" "));
const LONG = 56; // characters that are left in one line

export function tokens(sql) {
  return [...sql.matchAll(TOKEN)].map((match) => {
    const [kind] = Object.entries(match.groups).find(([, text]) => text !== undefined);
    return { kind, text: match[0] };
  });
}

// The coloured text of a statement, to be put into a `code`.
export function coloured(sql) {
  const all = tokens(sql);
  return all.map((token, index) => {
    const kind = token.kind === "word" ? wordKind(token.text, all[index + 1]) : token.kind;
    return kind ? el("span", { class: `t-${kind}` }, token.text) : document.createTextNode(token.text);
  });
}

// A statement of one long line with a line for each of its clauses. Only white space changes.
export function laidOut(sql) {
  if (sql.includes("\n") || sql.length <= LONG) return sql;
  const all = tokens(sql);
  const words = all.map(({ kind, text }) => (kind === "word" ? text.toLowerCase() : ""));
  let depth = 0;
  let text = "";
  all.forEach((token, index) => {
    if (token.text === "(") depth += 1;
    if (token.text === ")") depth -= 1;
    const breaks = token.kind === "space" && depth === 0 && index > 0 && beginsClause(words, index + 1);
    text += breaks ? "\n" : token.text;
  });
  return text;
}

function beginsClause(words, at) {
  const word = words[at];
  const next = words.slice(at + 1).find(Boolean) ?? "";
  const before = words.slice(0, at).findLast(Boolean) ?? "";
  if (word === "from") return before !== "distinct";
  if (word === "group" || word === "order") return next === "by";
  if (word === "join") return !JOINS.has(before) && before !== "outer";
  if (JOINS.has(word)) return next === "join" || next === "outer";
  return ["where", "having", "limit", "union", "except", "intersect"].includes(word);
}

function wordKind(text, next) {
  const word = text.toLowerCase();
  if (KEYWORDS.has(word)) return "keyword";
  if (next?.text === "(") return "function";
  return WRITES.has(word) ? "keyword" : "";
}
