// Requests to the endpoint that served this page, and what went wrong with them in words.

import { loadKey } from "./storage.js";

export class Failure extends Error {
  constructor(message, { status = 0, code = "", retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

export async function call(method, path, body = null, signal = null) {
  const response = await request(method, path, body, signal);
  try {
    return parsed(await response.text());
  } catch {
    throw new Failure("The server’s answer broke off. Try again.");
  }
}

// The events of a streamed answer: `{name, data}`.
export async function* events(path, body, signal) {
  const response = await request("POST", path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (waiting + value).split("\n\n");
      waiting = blocks.pop();
      for (const block of blocks) {
        const event = eventOf(block);
        if (event) yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Failure) throw error;
    throw new Failure("The answer broke off: the server went away. Try again.", { code: "unreachable" });
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Whether the server is there at all; it needs no key.
export async function isUp() {
  try {
    return (await fetch("healthz", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

async function request(method, path, body, signal) {
  const headers = { Accept: "application/json, text/event-stream" };
  const key = loadKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. It may be restarting; your question is kept.", { code: "unreachable" });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy’s page, say.
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  return new Failure(worded(response.status, error, retryAfter), { status: response.status, code: error.code, retryAfter });
}

function worded(status, error, retryAfter) {
  const later = retryAfter ? ` Try again in ${retryAfter} s.` : " Try again.";
  const message = sentence(error.message ?? "");
  if (status === 401) return "This server wants a key, and the one it was given is not valid.";
  if (status === 429) return `Too many requests with this key.${later}`;
  if (status === 413) return message || "That is too long for this server.";
  if (status === 504) return `The server took too long.${later}`;
  if (status >= 500) return message ? `${message}${/again/i.test(message) ? "" : later}` : `The server failed (${status}).${later}`;
  return message || `The server refused the request (${status}).`;
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed && `${trimmed[0].toUpperCase()}${trimmed.slice(1)}${/[.!?]$/.test(trimmed) ? "" : "."}`;
}

// JSON whose integers keep all their digits: those beyond 2^53 become BigInts.
function parsed(text) {
  return JSON.parse(text, (_, value, context) => {
    const isLarge = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    return isLarge && /^-?\d+$/.test(context?.source ?? "") ? BigInt(context.source) : value;
  });
}

function eventOf(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (!data.length) return null;
  const value = parsed(data.join("\n"));
  if (name === "error") {
    const error = value.error ?? {};
    throw new Failure(worded(error.type === "server_error" ? 503 : 400, error, 0), { code: error.code });
  }
  return { name, data: value };
}
