// Elements from plain values. Text becomes text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

// `el("button", {class: "quiet", on: {click: go}, "aria-label": "Go"}, "Go")`; a property that is null or false is left out.
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

// Puts these in place of what an element holds.
export function fill(element, ...children) {
  element.replaceChildren(...present(children));
}

export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#icon-${name}` }));
}

export function byId(id) {
  return document.getElementById(id);
}

// Says something to those who hear the page.
export function say(text) {
  byId("status").textContent = text;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...present(children));
  return element;
}

function present(children) {
  return children.flat().filter((child) => child !== null && child !== undefined && child !== false);
}
