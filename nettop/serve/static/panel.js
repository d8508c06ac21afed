// SPDX-License-Identifier: Apache-2.0
// Common behaviour of panels: they open and close, show problems and a note beside the title, and are hidden if their
// lens is not served; and their tables.
import { byId, make, setAttribute, setText } from "./dom.js";
import { NOT_AVAILABLE } from "./format.js";
import { recall, remember } from "./store.js";

export function setUpPanel(id, lens, onToggle) {
  const root = byId(id);
  const part = (selector) => root.querySelector(selector);
  const notice = part(".notice"), aside = part(".aside"), empty = part(".empty");
  root.open = recall(`open.${id}`, true);
  let isOpen = root.open;
  root.addEventListener("toggle", () => {
    if (root.open === isOpen) return;
    isOpen = root.open;
    remember(`open.${id}`, isOpen);
    onToggle();
  });

  function showProblem(problem) {
    notice.hidden = problem === null;
    if (problem !== null) setText(notice, problemText(problem));
  }

  return {
    root,
    part,
    showProblem,
    showAside: (text) => setText(aside, text),
    showEmpty(text) {
      empty.hidden = text === "";
      setText(empty, text);
    },
    // Defaults of the interface to the dashboard.
    common: {
      isOpen: () => isOpen,
      fail: (query, problem) => showProblem(problem),
      showServed: (lenses) => (root.hidden = !lenses.includes(lens)),
    },
  };
}

// Return why a table has no rows: unavailable on this kernel or host, or empty.
export function whyEmpty(document, table, otherwise) {
  if (document.rows.length > 0) return "";
  return table in document.not_available ? `n/a here: ${document.not_available[table]}` : otherwise;
}

export function problemText({ title, detail, remedy }) {
  const sentences = [detail ?? title, remedy].filter((text) => text !== undefined && text !== "");
  return sentences.join(" — ");
}

// --- tables ---

// Tables are updated every second: cells keep their elements, and a selected row stays selected when it moves.
let tables = 0;

// A column has a name, a title and `text(row)`; optionally `help`, `tone(row)`, `sort` (the server's column),
// `alsoSortedBy`, `isNumber`, `isElided` and `field` (the document's column, if not the name). With `onOpen`, rows are
// selectable.
export function createTable(host, { label, columns, keyOf, onSort, onOpen }) {
  tables += 1;
  const prefix = `table${tables}`;
  const lines = [];
  let selected = null, pressed = null;

  const headings = columns.map((column) => makeHeading(column, onSort));
  const head = make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...headings));
  const body = make("tbody", { role: "rowgroup" });
  const table = make("table", { role: onOpen ? "grid" : "table", "aria-label": label }, head, body);
  host.append(table);
  // Make the scrollable element focusable: the grid, or the region around the table.
  if (onOpen) setUpGrid();
  else setUpRegion();

  function makeHeading(column, sort) {
    const isSortable = sort !== undefined && column.sort !== undefined;
    const heading = make("th", { role: "columnheader", scope: "col", "data-column": column.name });
    heading.className = column.isNumber ? "number" : "";
    heading.title = column.help ?? "";
    if (isSortable) {
      const button = make("button", { type: "button" }, column.title);
      button.addEventListener("click", () => sort(column));
      heading.append(button);
    } else {
      heading.append(column.title);
    }
    return heading;
  }

  function setUpRegion() {
    host.tabIndex = 0;
    host.setAttribute("role", "region");
    host.setAttribute("aria-label", label);
  }

  function setUpGrid() {
    table.tabIndex = 0;
    table.addEventListener("keydown", (event) => {
      if (event.target !== table) return;
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
      if (step !== undefined) move(step);
      else if (event.key === "Enter" && selectedAt() >= 0) onOpen(lines[selectedAt()].row);
      else return;
      event.preventDefault();
    });
    // Rows may move between press and release: use the row that was pressed.
    body.addEventListener("pointerdown", (event) => (pressed = rowAt(event.target)));
    body.addEventListener("click", () => {
      if (pressed === null || !window.getSelection().isCollapsed) return;
      select(keyOf(pressed));
      onOpen(pressed);
    });
  }

  function rowAt(element) {
    const line = element.closest("tr");
    return lines.find((each) => each.tr === line)?.row ?? null;
  }

  const selectedAt = () => (selected === null ? -1 : lines.findIndex((line) => keyOf(line.row) === selected));

  function move(step) {
    if (lines.length === 0) return;
    const at = Math.min(Math.max(selectedAt() + step, 0), lines.length - 1);
    select(keyOf(lines[at].row));
    lines[at].tr.scrollIntoView({ block: "nearest" });
  }

  function select(key) {
    selected = key;
    showSelected();
  }

  function showSelected() {
    if (onOpen === undefined) return;
    const at = selectedAt();
    lines.forEach((line, number) => setAttribute(line.tr, "aria-selected", String(number === at)));
    if (at >= 0) setAttribute(table, "aria-activedescendant", lines[at].tr.id);
    else table.removeAttribute("aria-activedescendant");
  }

  function makeLine() {
    const cells = columns.map((column) => {
      const td = make("td", { role: onOpen ? "gridcell" : "cell", "data-column": column.name, "data-label": column.title.split(" ", 1)[0] });
      return { td, text: "", look: "", title: "" };
    });
    const tr = make("tr", { role: "row", id: `${prefix}-${lines.length}` }, ...cells.map((cell) => cell.td));
    lines.push({ tr, cells, row: null });
    return tr;
  }

  function resize(number) {
    const added = [];
    while (lines.length < number) added.push(makeLine());
    body.append(...added);
    for (const line of lines.splice(number)) line.tr.remove();
  }

  function fill(line, row, missing) {
    line.row = row;
    columns.forEach((column, number) => {
      const why = missing[column.field ?? column.name];
      const text = why === undefined ? column.text(row) : NOT_AVAILABLE;
      const look = `${column.isNumber ? "number " : ""}${why === undefined ? (column.tone?.(row) ?? "") : "faint"}`;
      put(line.cells[number], text, look, why ?? (column.isElided ? text : ""));
    });
  }

  function put(cell, text, look, title) {
    if (cell.text !== text) cell.td.textContent = cell.text = text;
    if (cell.look !== look) cell.td.className = cell.look = look;
    if (cell.title !== title) cell.td.title = cell.title = title;
  }

  return {
    update(rows, missing = {}) {
      resize(rows.length);
      rows.forEach((row, number) => fill(lines[number], row, missing));
      showSelected();
    },
    // `sort` is a server column, prefixed with - for descending.
    showSort(sort) {
      columns.forEach((column, number) => {
        if (column.sort === undefined) return;
        const isIt = [column.sort, column.alsoSortedBy].includes(sort.replace(/^-/, ""));
        const order = sort.startsWith("-") ? "descending" : "ascending";
        setAttribute(headings[number], "aria-sort", isIt ? order : "none");
      });
    },
    // Mark the row shown elsewhere on the page.
    mark(key) {
      for (const line of lines) {
        if (keyOf(line.row) === key) line.tr.setAttribute("aria-current", "true");
        else line.tr.removeAttribute("aria-current");
      }
    },
    focus: () => table.focus(),
  };
}
