// SPDX-License-Identifier: Apache-2.0
// The flame graph, its root at the top. It is drawn on a canvas, only what is at least a pixel wide, so that thousands of
// stacks stay quick; zoom and choice are paths of names, which hold however the tree changes.
"use strict";
import { CATEGORIES } from "./categories.js"; // made by pages.py
import { announce, byId, canvasContext, colour, make, setText } from "./dom.js";
import { human, plural } from "./format.js";
import { setUpPanel, whyEmpty } from "./panel.js";
import { createStacks } from "./stacks.js";
import { MOST_ROWS, viewQuery } from "./stream.js";

const ROW = 19;
const NARROWEST = 1;
const FONT = '11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace';
// What takes long to draw is drawn less often: a tenth of the time at most.
const SHARE_OF_TIME = 0.1;

const STACKS = viewQuery("cpu.stacks", {
  columns: "entry,category,samples,time_ns,stack",
  filter: "samples_per_s>0",
  deltas: "true",
  sort: "-samples",
  limit: String(MOST_ROWS),
});

const compare = (one, other) => (one.name < other.name ? -1 : one.name > other.name ? 1 : 0);
const childrenOf = (node) => (node.sorted ??= [...node.children.values()].sort(compare));

function pathOf(node) {
  const names = [];
  for (let each = node; each.parent !== null; each = each.parent) names.unshift(each.name);
  return names;
}

// The node of a path, or the last one on it that there is now.
function nodeAt(root, path) {
  let node = root;
  for (const name of path) {
    const child = node.children.get(name);
    if (child === undefined) break;
    node = child;
  }
  return node;
}

const isWithin = (node, outer) => {
  let each = node;
  while (each.depth > outer.depth) each = each.parent;
  return each === outer;
};

export function createFlame(onToggle) {
  const panel = setUpPanel("flame", "cpu", onToggle);
  const canvas = panel.part("canvas"), readout = panel.part(".readout"), legend = panel.part(".legend");
  const [search, matched, unzoom] = ["search", "matched", "unzoom"].map(byId);
  const stacks = createStacks();
  const palette = new Map();
  let root = stacks.tree(), shown = [], rows = 0, isStale = false;
  let zoomed = [], chosen = null, hovered = null, picked = null;
  let why = "waiting for the first samples", omitted = 0, drawnAt = 0, cost = 0, later = 0, character = 0;

  function take(query, document) {
    panel.showProblem(null);
    isStale = stacks.push(document) || isStale;
    omitted = document.total - document.shown;
    why = whyEmpty(document, "stacks", "no samples in the last minute");
  }

  function draw() {
    const wait = drawnAt + cost / SHARE_OF_TIME - performance.now();
    clearTimeout(later);
    if (isStale && wait > 0) {
      later = setTimeout(() => requestAnimationFrame(draw), wait);
      return;
    }
    const began = performance.now();
    if (isStale) root = stacks.tree();
    isStale = false;
    paint();
    showLegend();
    drawnAt = performance.now();
    cost = drawnAt - began;
  }

  // --- the frames ---

  function layout(width) {
    const frames = [], outer = nodeAt(root, zoomed);
    for (let node = outer.parent; node !== null; node = node.parent) frames.push({ node, x: 0, width, isAbove: true });
    const place = (node, x, scale) => {
      frames.push({ node, x, width: node.samples * scale, isAbove: false });
      let left = x;
      for (const child of childrenOf(node)) {
        const wide = child.samples * scale;
        if (wide >= NARROWEST) place(child, left, scale);
        left += wide;
      }
    };
    if (outer.samples > 0) place(outer, 0, width / outer.samples);
    return frames;
  }

  function paint() {
    const width = canvas.parentElement.clientWidth;
    panel.showEmpty(root.samples > 0 ? "" : why);
    unzoom.hidden = zoomed.length === 0;
    shown = width === 0 ? [] : layout(width);
    // The height only grows while the zoom is the same, so that what is below does not jump with each reading.
    rows = Math.max(rows, ...shown.map((frame) => frame.node.depth + 1), 1);
    canvas.style.height = `${rows * ROW}px`;
    const context = canvasContext(canvas, width, rows * ROW);
    context.font = FONT;
    context.textBaseline = "middle";
    character = context.measureText("m").width;
    for (const frame of shown) paintFrame(context, frame);
    outline(context);
    showMatched();
    showReadout();
  }

  function inks() {
    if (palette.size > 0) return palette;
    for (const { letter } of CATEGORIES) palette.set(letter, colour(letter === "·" ? "frame-other" : `frame-${letter}`));
    for (const name of ["on-frame", "screen", "text"]) palette.set(name, colour(name));
    return palette;
  }

  function paintFrame(context, { node, x, width, isAbove }) {
    const { letter } = stacks.category(node), y = node.depth * ROW;
    context.globalAlpha = isAbove || (picked !== null && !picked(node)) ? 0.35 : 1;
    context.fillStyle = inks().get(letter);
    context.fillRect(x, y, Math.max(width - 0.5, 0.5), ROW - 1);
    const label = fitting(node.depth < 2 ? node.name : `${letter} ${node.name}`, width);
    if (label === "") return;
    context.globalAlpha = isAbove ? 0.8 : context.globalAlpha === 1 ? 1 : 0.6;
    context.fillStyle = inks().get("on-frame");
    context.fillText(label, x + 4, y + ROW / 2);
  }

  function fitting(label, width) {
    const room = Math.trunc((width - 7) / character);
    if (label.length <= room) return label;
    return room > 3 ? `${label.slice(0, room - 1)}…` : "";
  }

  // Round the frame that the keyboard or the pointer is at.
  function outline(context) {
    const node = hovered ?? chosenNode();
    const frame = node === null ? undefined : shown.find((each) => each.node === node);
    if (frame === undefined) return;
    context.globalAlpha = 1;
    context.strokeStyle = inks().get("text");
    context.lineWidth = 2;
    context.strokeRect(frame.x + 1, frame.node.depth * ROW + 1, Math.max(frame.width - 2.5, 1), ROW - 3);
  }

  const chosenNode = () => (chosen === null ? null : nodeAt(root, chosen));

  // --- words ---

  function describe(node) {
    const elapsed = stacks.elapsedMs(), share = node.samples / Math.max(root.samples, 1);
    const words = [node.name, `${human(share, "ratio")} of all`, plural("sample", node.samples)];
    if (node.depth > 1) words.splice(1, 0, stacks.category(node).label);
    if (elapsed > 0) words.push(`${human((node.timeNs / elapsed) * 1e3, "ns/s")} of one CPU`);
    return words.join(" · ");
  }

  function showReadout() {
    setText(readout, root.samples === 0 ? "" : describe(hovered ?? chosenNode() ?? nodeAt(root, zoomed)));
    const words = [`${plural("sample", root.samples)} of the last ${Math.round(stacks.elapsedMs() / 1000)} s`];
    if (omitted > 0) words.push(`without ${plural("rare stack", omitted)}`);
    panel.showAside(root.samples === 0 ? "" : words.join(", "));
  }

  // Samples of the highlighted frames; a frame inside another one is not counted twice.
  function showMatched() {
    if (picked === null) {
      setText(matched, "");
      return;
    }
    const outer = nodeAt(root, zoomed);
    const inside = (node) => {
      if (picked(node)) return node.samples;
      return childrenOf(node).reduce((all, child) => all + inside(child), 0);
    };
    setText(matched, `matched: ${human(inside(outer) / Math.max(outer.samples, 1), "ratio")}`);
  }

  function showLegend() {
    const shares = stacks.shares(), all = Math.max(root.samples, 1);
    while (legend.children.length > shares.length) legend.lastChild.remove();
    while (legend.children.length < shares.length) legend.append(makeEntry());
    shares.forEach(({ category, samples }, number) => {
      const entry = legend.children[number], { letter } = category;
      entry.dataset.category = category.label;
      entry.title = category.help;
      entry.firstChild.className = `swatch frame-${letter === "·" ? "other" : letter}`;
      setText(entry.firstChild, letter);
      setText(entry.lastChild, `${category.label} ${human(samples / all, "ratio")}`);
      entry.setAttribute("aria-pressed", String(picked?.category === category.label));
    });
  }

  function makeEntry() {
    const entry = make("button", { type: "button" }, make("span", { "aria-hidden": "true" }), make("span"));
    entry.addEventListener("click", () => {
      const { category } = entry.dataset;
      search.value = "";
      const test = (node) => node.depth > 1 && stacks.category(node).label === category;
      pick(picked?.category === category ? null : test, category);
    });
    return entry;
  }

  // --- what the user does ---

  function pick(test, category) {
    picked = test;
    if (test !== null) test.category = category;
    paint();
    showLegend();
  }

  function zoom(node) {
    zoomed = pathOf(node);
    rows = 0;
    paint();
    announce(zoomed.length === 0 ? "not zoomed" : `zoomed: ${describe(node)}`);
  }

  function choose(node) {
    chosen = pathOf(node);
    hovered = null;
    paint();
    reveal(node);
    announce(describe(node));
  }

  function reveal(node) {
    const scroller = canvas.parentElement, top = node.depth * ROW;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + ROW > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + ROW - scroller.clientHeight;
  }

  function frameAt(event) {
    const depth = Math.floor(event.offsetY / ROW);
    const isUnder = ({ node, x, width }) => node.depth === depth && event.offsetX >= x && event.offsetX < x + width;
    return shown.find(isUnder)?.node ?? null;
  }

  // The frame that is `step` further on the same row.
  function neighbour(node, step) {
    const row = shown.filter((frame) => frame.node.depth === node.depth).sort((one, other) => one.x - other.x);
    return row[row.findIndex((frame) => frame.node === node) + step]?.node ?? node;
  }

  function widest(node) {
    const visible = new Set(shown.map((frame) => frame.node));
    const inside = childrenOf(node).filter((child) => visible.has(child));
    return inside.reduce((best, child) => (child.samples > best.samples ? child : best), inside[0] ?? node);
  }

  function act(key) {
    const node = chosenNode() ?? nodeAt(root, zoomed), outer = nodeAt(root, zoomed);
    const moves = {
      ArrowUp: () => choose(node.parent ?? node),
      ArrowDown: () => choose(widest(node)),
      ArrowLeft: () => choose(neighbour(node, -1)),
      ArrowRight: () => choose(neighbour(node, 1)),
      Home: () => choose(outer),
      Enter: () => zoom(node),
      Backspace() {
        zoom(outer.parent ?? outer);
        if (!isWithin(node, outer)) choose(outer);
      },
      Escape: () => zoom(root),
    };
    moves[key]?.();
    return key in moves;
  }

  canvas.addEventListener("keydown", (event) => {
    const isPlain = !event.ctrlKey && !event.metaKey && !event.altKey;
    if (isPlain && root.samples > 0 && act(event.key)) event.preventDefault();
  });
  canvas.addEventListener("blur", () => {
    chosen = null;
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    const under = frameAt(event);
    if (under === hovered) return;
    hovered = under;
    paint();
  });
  canvas.addEventListener("pointerleave", () => {
    hovered = null;
    paint();
  });
  canvas.addEventListener("click", (event) => {
    const node = frameAt(event);
    if (node === null) return;
    chosen = pathOf(node);
    zoom(node);
  });
  unzoom.addEventListener("click", () => {
    zoom(root);
    canvas.focus();
  });
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    pick(wanted === "" ? null : (node) => node.depth > 0 && node.name.toLowerCase().includes(wanted));
  });

  return {
    ...panel.common,
    queries: () => [STACKS],
    take,
    draw,
    forgetColours: () => palette.clear(),
  };
}
