"use strict";
/* The interactive leaderboard. It shows and sorts what data/*.js hold: texts as tables print them, and the place of each row
   in the order of each column. It computes no figure. */
(() => {
const MANY = 4000; // cells above which only the rows in view are in the page
const MARGIN = 8; // rows above and below the view
const NAME = "detector"; // the column of names
const DEFAULTS = { board: "1", protocol: "", metric: "auroc", columns: "means", q: "", interval: "", sort: "", worst: "" };
const boards = {}, figures = {}, asked = {};
window.oodbench = {
  board(number, data) { boards[number] = data; },
  figures(number, metric, data) { figures[number + metric] = data; },
};

const section = document.getElementById("board"), form = document.getElementById("controls");
const table = document.getElementById("table"), view = table.parentElement, status = document.getElementById("status");
let state = read(), shown = null, turn = 0;

function read() {
  const found = { ...DEFAULTS };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (Object.hasOwn(DEFAULTS, name)) found[name] = value;
  return found;
}

function write() {
  const changed = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  const hash = new URLSearchParams(changed).toString();
  if (hash || !target()) history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
}

/* The part of the page that the address names, if it does. */
function target() { return document.getElementById(location.hash.slice(1)); }

function load(path) {
  return asked[path] ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = resolve;
    script.onerror = () => { delete asked[path]; reject(new Error("Cannot load " + path)); };
    document.head.append(script);
  });
}

function element(name, text, classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function options(select, groups) {
  select.replaceChildren();
  for (const [title, choices] of groups) {
    const parent = title ? select.appendChild(element("optgroup")) : select;
    if (title) parent.label = title;
    for (const [name, text] of choices) parent.append(new Option(text, name));
  }
}

/* What is shown: entries (lines of the table) and columns, each with the place of its row by entry. */
function build(board, data) {
  const together = state.protocol === "*", protocols = together ? board.protocols : [state.protocol];
  const entries = new Map();
  board.rows.forEach(([detector, protocol, href, control], row) => {
    if (!protocols.includes(protocol)) return;
    if (!entries.has(detector)) entries.set(detector, { detector, href, control, rows: {} });
    entries.get(detector).rows[protocol] = row;
  });
  const all = [...entries.values()], query = state.q.trim().toLowerCase();
  const columns = board.columns.flatMap((column, place) => protocols.map((protocol) => {
    const of = data.columns[place], best = new Set(of.best);
    return {
      ...column, ...of, id: (column.mean ? "mean " : "set ") + column.text + (together ? " " + protocol : ""),
      heads: [column.mean ? "mean" : column.kind, column.text, together ? protocol : column.cells],
      row: (entry) => entry.rows[protocol], at: (row) => of.texts[row], isBest: (row) => best.has(row),
    };
  })).filter((column) => all.some((entry) => column.at(column.row(entry))));
  const paid = board.costs.map((cost, place) => ({
    ...cost, id: "cost " + cost.text, heads: ["cost", cost.text, ""], row: (entry) => Object.values(entry.rows)[0],
    at: (row) => board.rows[row][4][place], isBest: () => false,
  }));
  const by = [...columns, ...paid].find((column) => column.id === state.sort) ?? (state.sort === NAME ? null : columns[0]);
  if (by) state.sort = by === columns[0] && !state.worst ? "" : by.id;
  return {
    by, columns: [...columns.filter(chosen), ...paid], total: all.length, controls: all.filter((entry) => entry.control),
    entries: sorted(all.filter((entry) => !entry.control && entry.detector.toLowerCase().includes(query)), by),
  };
}

function chosen(column) {
  return state.columns === "all" || (state.columns === "means" ? column.mean
    : !column.mean && (state.columns === "kind " + column.kind || state.columns === "set " + column.text));
}

/* Best first or worst first, but always whole rows before those that lack cells, and those without a figure last. */
function sorted(entries, by) {
  if (!by) {
    const order = [...entries].sort((a, b) => (a.detector < b.detector ? -1 : 1));
    return state.worst ? order.reverse() : order;
  }
  const { ranks, whole, measured } = by;
  const place = (rank) => (!state.worst || rank >= measured ? rank : rank < whole ? whole - 1 - rank : whole + measured - 1 - rank);
  const key = (row) => (row === undefined ? ranks.length : place(ranks[row]));
  return entries.map((entry) => [key(by.row(entry)), entry]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
}

function heading({ heads: [group, name, below], id, href, higher }) {
  const cell = element("th"), by = shown.by?.id ?? NAME;
  cell.scope = "col";
  cell.setAttribute("aria-sort", by !== id ? "none" : Boolean(higher) === Boolean(state.worst) ? "ascending" : "descending");
  const button = cell.appendChild(element("button", undefined, "sort"));
  button.type = "button";
  button.dataset.sort = id;
  if (group) button.append(element("span", group, "group"), " ");
  button.append(element("span", name, "name"));
  if (below) button.append(" ", element("span", below, "cells"));
  if (href) {
    const link = element("a", "↗");
    link.href = href;
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
  link.title = entry.detector;
  head.append(link);
  row.append(head);
  for (const column of shown.columns) {
    const cell = element("td"), at = column.row(entry);
    if (at !== undefined) {
      cell.append(column.isBest(at) ? element("b", column.at(at)) : column.at(at));
      if (state.interval && column.intervals?.[at]) cell.append(" ", element("small", column.intervals[at]));
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

function draw(board, data) {
  const [left, focused] = [view.scrollLeft, document.activeElement?.dataset.sort];
  const head = element("thead"), top = element("tr"), controls = element("tbody", undefined, "controls");
  top.append(heading({ heads: ["", "detector", ""], id: NAME }), ...shown.columns.map(heading));
  head.append(top);
  table.replaceChildren(head, controls, element("tbody"));
  const extra = state.interval ? 17 : 1; // characters
  shown.columns.forEach((column, place) => {
    const widest = shown.entries.reduce((most, entry) => Math.max(most, column.at(column.row(entry))?.length ?? 0), 4);
    top.children[place + 1].style.minWidth = widest + (column.intervals ? extra : 1) + "ch";
  });
  controls.append(...shown.controls.map(line));
  controls.style.top = head.getBoundingClientRect().height + "px";
  rows(false);
  view.scrollLeft = left;
  if (focused) table.querySelector(`button[data-sort="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  const among = shown.total - shown.controls.length, count = shown.entries.length;
  const bare = state.interval && !shown.columns.some((column) => column.intervals);
  status.textContent = (count === among ? `${among} row${among === 1 ? "" : "s"}` : `${count} of ${among} rows`)
    + (shown.controls.length ? `, and ${shown.controls.length === 1 ? "the control" : "the controls"} above them` : "")
    + (bare ? ". Only single sets have intervals: choose them under Columns." : "");
  document.getElementById("caption").textContent = data.caption;
  document.getElementById("notes").replaceChildren(...data.notes.map((note) => element("li", note)));
  form.interval.disabled = !data.columns.some((column) => column.intervals);
  form.interval.parentElement.title = form.interval.disabled ? "This metric was published without intervals; see oodbench publish --interval" : "";
}

/* The choices that a board has; a state that it does not have becomes its first. */
function fill(board) {
  if (form.dataset.board !== state.board) {
    form.dataset.board = state.board;
    const together = board.protocols.length > 1 ? [["*", "side by side"]] : [];
    const sets = board.columns.filter((column) => !column.mean);
    options(form.protocol, [["", [...board.protocols.map((name) => [name, name]), ...together]]]);
    options(form.columns, [
      ["", [["means", "means"], ["all", "means and all sets"]]],
      ["Kind", [...new Set(sets.map((column) => column.kind))].map((kind) => ["kind " + kind, kind])],
      ["Set", sets.map((column) => ["set " + column.text, column.text])],
    ]);
    for (const part of document.querySelectorAll(".of-board")) part.hidden = part.dataset.board !== state.board;
  }
  for (const name of ["board", "metric", "protocol", "columns"]) {
    form[name].value = state[name] || board.protocols[0];
    if (form[name].selectedIndex < 0) form[name].selectedIndex = 0;
    state[name] = form[name].value;
  }
  form.q.value = state.q;
  form.interval.checked = Boolean(state.interval);
}

async function show() {
  const mine = ++turn, known = (select, value) => [...select.options].some((option) => option.value === value);
  if (!known(form.board, state.board)) state.board = DEFAULTS.board;
  if (!known(form.metric, state.metric)) state.metric = DEFAULTS.metric;
  try {
    await Promise.all([load(`data/board-${state.board}.js`), load(`data/board-${state.board}-${state.metric}.js`)]);
  } catch (error) {
    interactive(false);
    status.textContent = error.message + ". The tables below are complete without it.";
    return;
  }
  if (mine !== turn) return; // something else was asked for in the meantime
  const board = boards[state.board], data = figures[state.board + state.metric];
  fill(board);
  shown = build(board, data);
  if (state.protocol === board.protocols[0]) state.protocol = "";
  interactive(true);
  write();
  draw(board, data);
}

/* Show the interactive table, or the static ones. */
function interactive(on) {
  view.hidden = !on;
  document.documentElement.classList.toggle("interactive", on);
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
  const again = button.dataset.sort === (shown.by?.id ?? NAME);
  state.worst = again && !state.worst ? "1" : "";
  state.sort = button.dataset.sort;
  view.scrollTop = 0;
  show();
});
let waiting = false;
view.addEventListener("scroll", () => {
  if (waiting || !shown) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; rows(false); });
});
addEventListener("hashchange", () => { if (!target()) { state = read(); show(); } });
addEventListener("beforeprint", () => shown && rows(true));
addEventListener("afterprint", () => { if (shown) { shown.first = undefined; rows(false); } });

section.hidden = false;
interactive(true);
show().then(() => target()?.scrollIntoView());
})();
