"use strict";
// The table of labels. Its rows are made here, a page at a time, from columns of values, so that thousands of labels
// are sorted and searched at once. Names go in as text and never as HTML.
const { names, columns } = JSON.parse(document.getElementById("label-data").textContent);
const ROWS = 100;
const table = document.getElementById("labels");
const search = document.getElementById("search");
const detail = document.getElementById("detail");
const lowered = names.map((name) => name.toLowerCase());
const { compare } = new Intl.Collator("en", { numeric: true });
const titles = columns.map((column) => column.title);
const heads = Array.from(table.tHead.rows[0].cells);

let order = names.map((_, label) => label);
let shown = order;
let first = 0;
let chosen = 0;

function written(value, kind) {
  if (value === null || (kind === "interval" && value[0] === null)) return "–";
  if (kind === "count") return value.toLocaleString("en");
  if (kind === "interval") return `${value[0].toFixed(3)}–${value[1].toFixed(3)}`;
  return typeof value === "string" ? value : value.toFixed(4);
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function row(label) {
  const line = document.createElement("tr");
  const head = element("th", detail ? "" : names[label]);
  head.scope = "row";
  if (detail) {
    const button = element("button", names[label]);
    button.type = "button";
    button.setAttribute("aria-pressed", String(label === chosen));
    button.addEventListener("click", () => choose(label, button));
    head.append(button);
  }
  line.append(head);
  for (const { kind, values } of columns) {
    const cell = element("td", written(values[label], kind));
    if (kind === "words") cell.className = "words";
    line.append(cell);
  }
  return line;
}

function show() {
  const last = Math.min(first + ROWS, shown.length);
  table.tBodies[0].replaceChildren(...shown.slice(first, last).map(row));
  const total = names.length.toLocaleString("en");
  const found = shown.length === names.length ? total : `${shown.length.toLocaleString("en")} of ${total}`;
  document.getElementById("count").textContent = `${found} labels`;
  document.getElementById("pages").hidden = shown.length <= ROWS;
  document.getElementById("place").textContent = `${(first + 1).toLocaleString("en")}–${last.toLocaleString("en")}`;
  document.getElementById("previous").disabled = first === 0;
  document.getElementById("next").disabled = last === shown.length;
}

function filter() {
  const wanted = search.value.trim().normalize("NFC").toLowerCase();
  shown = wanted ? order.filter((label) => lowered[label].includes(wanted)) : order;
  first = 0;
  show();
}

const INFINITE = { "∞": Infinity, "-∞": -Infinity };

function key(value, kind) {
  if (kind === "interval") return value && value[0];
  return kind === "number" && typeof value === "string" ? INFINITE[value] : value;
}

// Numbers descend first, words ascend first; labels without a value stay last either way.
function sort(column, ascending) {
  const sign = ascending ? 1 : -1;
  const kind = column === 0 ? "words" : columns[column - 1].kind;
  const keys = column === 0 ? names : columns[column - 1].values.map((value) => key(value, kind));
  const between = kind === "words" ? compare : (x, y) => x - y;
  order = names.map((_, label) => label).sort((a, b) => {
    const x = keys[a], y = keys[b];
    if (x === null || y === null) return (x === null) - (y === null);
    return x === y ? 0 : sign * between(x, y);
  });
  filter();
}

heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
  const before = head.getAttribute("aria-sort");
  const words = column === 0 || columns[column - 1].kind === "words";
  const ascending = before ? before === "descending" : words;
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  sort(column, ascending);
}));

// What was decided of one label: its 2 x 2 table.
function choose(label, button) {
  chosen = label;
  table.querySelector('[aria-pressed="true"]')?.setAttribute("aria-pressed", "false");
  button?.setAttribute("aria-pressed", "true");
  document.getElementById("detail-name").textContent = names[label];
  for (const title of ["TP", "FP", "FN", "TN"]) {
    const { values, kind } = columns[titles.indexOf(title)];
    document.getElementById(`detail-${title}`).textContent = written(values[label], kind);
  }
}

function turn(rows) {
  first += rows;
  show();
}

search.addEventListener("input", filter);
document.getElementById("previous").addEventListener("click", () => turn(-ROWS));
document.getElementById("next").addEventListener("click", () => turn(ROWS));
show();
if (detail) choose(0, table.querySelector("tbody button"));
