// A chart of a result where it has one: a label (or a time) and a number. The table beside it says the same.

import { el, svg } from "./dom.js";
import { isNumeric, shortened } from "./table.js";

const MOST_BARS = 24;
const MOST_POINTS = 1000;
const TIME = /^\d{4}(-\d{2}(-\d{2}([ T]\d{2}(:\d{2})?.*)?)?)?$/;
const KEY = /^id$|_id$|[a-z]Id$/;
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

// How a result is drawn: `{kind, label, values}` with the columns’ places; null where it is not.
export function chartOf(columns, rows) {
  if (rows.length < 2 || rows.length > MOST_POINTS || columns.length < 2) return null;
  const places = columns.map((_, index) => index);
  const numbers = places.filter((index) => isNumeric(rows, index));
  const times = places.filter((index) => isTime(rows, index));
  const label = times[0] ?? places.find((index) => !numbers.includes(index));
  if (label === undefined) return null;
  const values = numbers.filter((index) => index !== label && !KEY.test(columns[index]));
  if (!values.length || rows.every((row) => row[label] === null)) return null;
  return { kind: label === times[0] && isRising(rows, label) && rows.length > 2 ? "line" : "bars", label, values };
}

export function chart(columns, rows, plan) {
  let value = plan.values[0];
  const picture = el("div", { class: "picture" });
  const draw = () => picture.replaceChildren(drawn(columns, rows, plan, value, Math.max(picture.clientWidth, 240)));
  const choice =
    plan.values.length > 1 &&
    el(
      "select",
      { "aria-label": "Value that is drawn", on: { change: (event) => ((value = Number(event.target.value)), draw()) } },
      plan.values.map((index) => el("option", { value: index }, columns[index])),
    );
  let width = 0;
  new ResizeObserver(() => {
    if (picture.clientWidth !== width) {
      width = picture.clientWidth;
      draw();
    }
  }).observe(picture);
  const title = el("figcaption", {}, choice || el("span", {}, columns[value]), el("span", { class: "dim" }, ` by ${columns[plan.label]}`));
  return el("figure", { class: "chart" }, title, picture);
}

function drawn(columns, rows, plan, value, width) {
  const points = rows
    .filter((row) => row[value] !== null)
    .map((row) => ({ label: row[plan.label] === null ? "NULL" : String(row[plan.label]), value: Number(row[value]) }));
  const picture = plan.kind === "line" ? line(points, width) : bars(points, width);
  const highest = points.reduce((best, point) => (point.value > best.value ? point : best));
  const said = `${plan.kind === "line" ? "Line" : "Bar"} chart of ${columns[value]} by ${columns[plan.label]}, ${points.length} values; the highest is ${number.format(highest.value)} for ${shortened(highest.label, 80)}. The table has all of them.`;
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", said);
  return picture;
}

function bars(points, width) {
  const shown = points.slice(0, MOST_BARS);
  const step = 30;
  const longest = Math.max(...shown.map(({ label }) => Math.min(label.length, 26)));
  const left = Math.min(Math.max(longest * 7.3 + 12, 40), width * 0.42);
  const right = 62;
  const low = Math.min(0, ...shown.map((point) => point.value));
  const high = Math.max(0, ...shown.map((point) => point.value));
  const x = (amount) => left + ((amount - low) / (high - low || 1)) * (width - left - right);
  const rest = points.length - shown.length;
  const height = shown.length * step + (rest ? 24 : 0);
  const fits = Math.max(Math.floor((left - 10) / 7.3), 3);
  const marks = shown.flatMap(({ label, value }, index) => {
    const y = index * step + step / 2;
    const from = Math.min(x(value), x(0));
    const title = svg("title", {}, `${label}: ${number.format(value)}`);
    return [
      svg("text", { x: left - 10, y: y + 4, class: "label", "text-anchor": "end" }, label.length > fits ? shortened(label, fits - 1) : label),
      svg("rect", { x: from, y: y - 9, width: Math.max(Math.abs(x(value) - x(0)), 1.5), height: 18, rx: 4, class: "bar" }, title),
      svg("text", { x: Math.max(x(value), x(0)) + 8, y: y + 4, class: "value" }, compact.format(value)),
    ];
  });
  const more = rest > 0 && svg("text", { x: left, y: height - 4, class: "label" }, `and ${rest} more in the table`);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height }, marks, more);
}

function line(points, width) {
  const [height, left, right, top, bottom] = [240, 48, 16, 14, 28];
  const ticks = rounded(Math.min(0, ...points.map((p) => p.value)), Math.max(0, ...points.map((p) => p.value)));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const x = (index) => left + (index / (points.length - 1 || 1)) * (width - left - right);
  const y = (amount) => top + (1 - (amount - low) / (high - low || 1)) * (height - top - bottom);
  const path = points.map((point, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(point.value).toFixed(1)}`).join("");
  const grid = ticks.flatMap((tick) => [
    svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: tick === 0 ? "zero" : "grid" }),
    svg("text", { x: left - 8, y: y(tick) + 4, class: "label", "text-anchor": "end" }, compact.format(tick)),
  ]);
  const every = Math.ceil(points.length / Math.max(Math.floor((width - left) / 84), 2));
  const labels = points.flatMap(({ label }, index) => {
    if (index % every) return [];
    const anchor = index === points.length - 1 ? "end" : "middle";
    return svg("text", { x: x(index), y: height - 8, class: "label", "text-anchor": anchor }, shortened(label, 11));
  });
  const dots = points.map(({ label, value }, index) =>
    svg("circle", { cx: x(index), cy: y(value), r: points.length > 60 ? 1.5 : 3.5, class: "dot" }, svg("title", {}, `${label}: ${number.format(value)}`)),
  );
  const area = svg("path", { d: `${path}L${x(points.length - 1)} ${y(0)}L${x(0)} ${y(0)}Z`, class: "area" });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height }, grid, area, svg("path", { d: path, class: "line" }), dots, labels);
}

// About four round numbers that hold the range.
function rounded(low, high) {
  const raw = (high - low || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const first = Math.floor(low / step);
  const last = Math.ceil(high / step);
  return Array.from({ length: Math.max(last - first, 1) + 1 }, (_, index) => (first + index) * step);
}

function isTime(rows, column) {
  const values = rows.map((row) => row[column]).filter((cell) => cell !== null);
  const isYear = (cell) => Number.isInteger(cell) && cell >= 1000 && cell < 3000;
  return values.length > 1 && (values.every((cell) => typeof cell === "string" && TIME.test(cell)) || (values.every(isYear) && isRising(rows, column)));
}

function isRising(rows, column) {
  return rows.every((row, index) => index === 0 || (row[column] !== null && row[column] > rows[index - 1][column]));
}
