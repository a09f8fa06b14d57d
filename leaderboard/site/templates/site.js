"use strict";
/* The interactive leaderboard. It shows and sorts what data/*.js hold: texts as tables print them, and the place of each row
   in the order of each column. It computes no figure. */
(() => {
const MANY = 4000; // cells above which only the rows in view are in the page
const MARGIN = 20; // rows above and below the view
const DEFAULTS = { board: "1", protocol: "", metric: "auroc", columns: "means", q: "", interval: "", sort: "", worst: "" };
const boards = {}, figures = {}, asked = {};
window.oodbench = {
  board(number, data) { boards[number] = data; },
  figures(number, metric, data) { figures[number + metric] = data; },
};

const section = document.getElementById("board"), form = document.getElementById("controls");
const table = document.getElementById("table"), view = table.parentElement, status = document.getElementById("status");
let state = read(), shown = null;

function read() {
  const found = { ...DEFAULTS };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (name in found) found[name] = value;
  return found;
}

function write() {
  const changed = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  const hash = new URLSearchParams(changed).toString();
  history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
}

function load(path) {
  return asked[path] ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = resolve;
    script.onerror = () => reject(new Error("cannot load " + path));
    document.head.append(script);
  });
}

function element(name, text, classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function options(select, groups, value) {
  select.replaceChildren();
  for (const [title, choices] of groups) {
    const parent = title ? select.appendChild(element("optgroup")) : select;
    if (title) parent.label = title;
    for (const [name, text] of choices) parent.append(new Option(text, name));
  }
  select.value = value;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
  return select.value;
}

/* What is shown: entries (lines of the table) and columns, each with the place of its row by entry. */
function build(board, data) {
  const together = state.protocol === "*";
  const protocols = together ? board.protocols : [state.protocol];
  const entries = new Map();
  board.rows.forEach(([detector, protocol, href, control], row) => {
    if (!protocols.includes(protocol)) return;
    if (!entries.has(detector)) entries.set(detector, { detector, href, control, rows: {} });
    entries.get(detector).rows[protocol] = row;
  });
  const chosen = board.columns.map((column, place) => ({ ...column, place })).filter((column) =>
    state.columns === "means" ? column.mean
    : state.columns === "all" ? true
    : state.columns.startsWith("kind ") ? column.kind === state.columns.slice(5)
    : state.columns === "set " + column.text);
  const columns = chosen.flatMap((column) => protocols.map((protocol) => {
    const of = data.columns[column.place], best = new Set(of.best);
    return {
      id: column.place + (together ? "-" + protocol : ""), heads: [column.mean ? "mean" : column.kind, column.text, together ? protocol : column.cells],
      href: column.href, text: (row) => of.texts[row] ?? "", interval: (row) => of.intervals ? of.intervals[row] : "",
      best: (row) => best.has(row), rank: (row) => of.ranks[row], row: (entry) => entry.rows[protocol],
    };
  })).filter((column) => [...entries.values()].some((entry) => column.text(column.row(entry) ?? -1)));
  for (const [place, name] of ["ms/image", "overhead"].entries()) if (board.cost_ranks.length) columns.push({
    id: name, heads: ["cost", name, ""], text: (row) => board.rows[row][4][place], interval: () => "", best: () => false,
    rank: (row) => board.cost_ranks[place][row], row: (entry) => Object.values(entry.rows)[0],
  });
  const all = [...entries.values()], query = state.q.trim().toLowerCase();
  return {
    columns, controls: all.filter((entry) => entry.control), total: all.length,
    entries: sorted(all.filter((entry) => !entry.control && entry.detector.toLowerCase().includes(query)), columns),
  };
}

function sorted(entries, columns) {
  const by = columns.find((column) => column.id === state.sort);
  const key = (entry) => { const row = by.row(entry); return row === undefined ? Infinity : by.rank(row); };
  const order = by ? entries.map((entry) => [key(entry), entry]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1])
    : state.sort === "detector" ? [...entries].sort((a, b) => a.detector < b.detector ? -1 : 1) : entries;
  return state.worst && (by || state.sort === "detector") ? order.reverse() : order;
}

function heading(column, id) {
  const cell = element("th");
  cell.scope = "col";
  const direction = state.sort === id ? (state.worst ? "descending" : "ascending") : "none";
  cell.setAttribute("aria-sort", direction);
  const button = cell.appendChild(element("button", undefined, "sort"));
  button.type = "button";
  button.dataset.sort = id;
  const [group, name, below] = column.heads;
  if (group) button.append(element("span", group, "group"), " ");
  button.append(element("span", name));
  if (below) button.append(" ", element("span", below, "cells"));
  if (column.href) {
    const link = element("a", "↗");
    link.href = column.href;
    link.title = "page of " + name;
    link.setAttribute("aria-label", "page of " + name);
    cell.append(link);
  }
  return cell;
}

function line(entry) {
  const row = element("tr", undefined, entry.control ? "control" : "");
  const head = element("th"), link = element("a", entry.detector);
  head.scope = "row";
  link.href = entry.href;
  head.append(link);
  row.append(head);
  for (const column of shown.columns) {
    const cell = element("td"), at = column.row(entry);
    if (at !== undefined) {
      const text = column.text(at);
      cell.append(column.best(at) ? element("b", text) : text);
      if (state.interval && column.interval(at)) cell.append(" ", element("small", column.interval(at)));
    }
    row.append(cell);
  }
  return row;
}

function spacer(height) {
  const row = element("tr");
  row.setAttribute("aria-hidden", "true");
  const cell = element("td", undefined, "spacer");
  cell.colSpan = shown.columns.length + 1;
  cell.style.height = height + "px";
  row.append(cell);
  return row;
}

/* The rows in view, or all where they are few or `whole`. */
function rows(whole) {
  const body = table.tBodies[table.tBodies.length - 1], { entries, columns } = shown;
  if (whole || entries.length * columns.length <= MANY) {
    body.replaceChildren(...entries.map(line));
    return;
  }
  const height = shown.height ??= measured(body);
  const room = Math.ceil(view.clientHeight / height) + 2 * MARGIN;
  const first = Math.max(0, Math.min(entries.length - room, Math.floor(view.scrollTop / height) - MARGIN));
  if (shown.first === first && body.childElementCount) return;
  shown.first = first;
  const last = Math.min(entries.length, first + room);
  body.replaceChildren(spacer(first * height), ...entries.slice(first, last).map(line), spacer((entries.length - last) * height));
}

function measured(body) {
  body.replaceChildren(...shown.entries.slice(0, 3).map(line));
  return Math.max(1, body.lastElementChild?.getBoundingClientRect().height ?? 24);
}

function draw() {
  const board = boards[state.board], data = figures[state.board + state.metric];
  shown = build(board, data);
  const head = element("thead"), top = element("tr");
  top.append(heading({ heads: ["", "detector", ""] }, "detector"), ...shown.columns.map((column) => heading(column, column.id)));
  head.append(top);
  const controls = element("tbody", undefined, "controls");
  table.replaceChildren(head, controls, element("tbody"));
  shown.columns.forEach((column, place) => {
    const widest = Math.max(...shown.entries.map((entry) => { const at = column.row(entry); return at === undefined ? 0 : column.text(at).length; }), 4);
    top.children[place + 1].style.minWidth = widest + 1 + "ch";
  });
  controls.append(...shown.controls.map(line));
  controls.style.top = head.getBoundingClientRect().height + "px";
  rows(false);
  const left = shown.total - shown.controls.length, count = shown.entries.length;
  status.textContent = (count === left ? `${left} rows` : `${count} of ${left} rows`) + (shown.controls.length ? `, and ${shown.controls.length} controls above them` : "");
  document.getElementById("caption").textContent = data.caption;
  document.getElementById("notes").replaceChildren(...data.notes.map((note) => element("li", note)));
  form.interval.disabled = !data.columns.some((column) => column.intervals);
  form.interval.parentElement.title = form.interval.disabled ? "This metric was published without intervals; see oodbench publish --interval" : "";
  for (const part of document.querySelectorAll(".of-board")) part.hidden = part.dataset.board !== state.board;
}

async function show() {
  if (!form.board.querySelector(`option[value="${CSS.escape(state.board)}"]`)) state.board = "1";
  if (!form.metric.querySelector(`option[value="${CSS.escape(state.metric)}"]`)) state.metric = DEFAULTS.metric;
  try {
    await load(`data/board-${state.board}.js`);
    await load(`data/board-${state.board}-${state.metric}.js`);
  } catch (error) {
    status.textContent = error.message + "; the tables are complete without it.";
    return;
  }
  const board = boards[state.board];
  const together = board.protocols.length > 1 ? [["*", "side by side"]] : [];
  state.protocol = options(form.protocol, [["", [...board.protocols.map((name) => [name, name]), ...together]]], state.protocol || board.protocols[0]);
  const kinds = [...new Set(board.columns.filter((column) => !column.mean).map((column) => column.kind))];
  state.columns = options(form.columns, [
    ["", [["means", "means"], ["all", "means and all sets"]]],
    ["Kind", kinds.map((kind) => ["kind " + kind, kind])],
    ["Set", board.columns.filter((column) => !column.mean).map((column) => ["set " + column.text, column.text])],
  ], state.columns);
  form.board.value = state.board;
  form.metric.value = state.metric;
  form.q.value = state.q;
  form.interval.checked = Boolean(state.interval);
  if (state.protocol === board.protocols[0]) state.protocol = "";
  write();
  state.protocol ||= board.protocols[0];
  draw();
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", () => {
  for (const name of ["board", "protocol", "metric", "columns", "q"]) state[name] = form[name].value;
  state.interval = form.interval.checked ? "1" : "";
  view.scrollTop = 0;
  show();
});
table.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-sort]");
  if (!button) return;
  const id = button.dataset.sort;
  state.worst = state.sort === id && !state.worst ? "1" : "";
  state.sort = id;
  view.scrollTop = 0;
  show().then(() => table.querySelector(`button[data-sort="${CSS.escape(id)}"]`)?.focus());
});
let waiting = false;
view.addEventListener("scroll", () => {
  if (waiting || !shown) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; rows(false); });
});
addEventListener("hashchange", () => { if (!document.getElementById(location.hash.slice(1))) { state = read(); show(); } });
addEventListener("beforeprint", () => shown && rows(true));
addEventListener("afterprint", () => { if (shown) { shown.first = undefined; rows(false); } });

section.hidden = false;
document.documentElement.classList.add("interactive");
show();
})();
