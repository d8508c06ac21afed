// SPDX-License-Identifier: Apache-2.0
// The flame graph as SVG, in files of `nettop export` and on the served page. A node has a `parent` (null for the root),
// `children` from left to right, a `name`, a `depth`, `samples` and a `category` (`label`, `letter`, `background`), and begins
// `at` samples from the left. Zoom and selection are paths of names, which stay valid when the tree changes.
"use strict";

const NAMESPACE = "http://www.w3.org/2000/svg";

function pathOf(node) {
  const names = [];
  for (let each = node; each.parent !== null; each = each.parent) names.unshift(each.name);
  return names;
}

// Return the node of a path, or its last existing ancestor.
function nodeAt(root, path) {
  let node = root;
  for (const name of path) {
    const child = node.children.find((each) => each.name === name);
    if (child === undefined) break;
    node = child;
  }
  return node;
}

const isWithin = (node, outer) => node === outer || (node.depth > outer.depth && isWithin(node.parent, outer));

// Return where the frames of a zoomed node, its callers and its callees are; narrower ones are left out.
function layout(zoomed, width, narrowest) {
  const frames = [], scale = width / Math.max(zoomed.samples, 1);
  for (let node = zoomed.parent; node !== null; node = node.parent) frames.push({ node, x: 0, width, isAbove: true });
  const place = (node) => {
    const wide = node.samples * scale;
    if (wide < narrowest) return;
    frames.push({ node, x: (node.at - zoomed.at) * scale, width: wide, isAbove: false });
    node.children.forEach(place);
  };
  place(zoomed);
  return frames;
}

// Return the samples of the nodes that pass the test, with nested ones counted once.
function samplesOf(node, test) {
  return test(node) ? node.samples : node.children.reduce((all, child) => all + samplesOf(child, test), 0);
}

// Shorten a label to this number of characters. Its first one, the category's letter, is meaningful alone.
function fitting(label, room) {
  if (label.length <= room) return label;
  return room > 4 ? `${label.slice(0, room - 1)}…` : label.slice(0, Math.max(Math.min(room, 1), 0));
}

// Skip unchanged attributes: most frames stay as they are.
function setChanged(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// Draw in `host`, a <g> whose children are frames. `input` is the search box, `reset` ends the zoom, and `legend` has
// elements with data-category. `row` and `char` are the height of a row and the width of a character, `left` and `top` the
// position of the root, `room()` its width, all in pixels, as is the `narrowest` frame.
// `onShow({ rows, zoomed, pointed, matched })` is told after each change: how many rows are drawn, the zoomed node, the one
// at the pointer or chosen by key, and the samples that the search or picked category matches; null for none.
// `onMove(node, isZoom)` is told which node the user zoomed or moved to.
export function createGraph(host, {
  input, reset, legend, row, char, left = 0, top = 0, narrowest, room, onShow, onMove = () => {},
}) {
  let root = null, shown = [], zoomed = [], chosen = null, hovered = null, picked = null;

  const nodeOf = (path) => (path === null ? null : nodeAt(root, path));

  function makeFrame() {
    const group = document.createElementNS(NAMESPACE, "g");
    group.classList.add("frame");
    group.append(...["rect", "text"].map((tag) => document.createElementNS(NAMESPACE, tag)));
    return group;
  }

  function draw() {
    shown = layout(nodeAt(root, zoomed), room(), narrowest);
    while (host.children.length > shown.length) host.lastElementChild.remove();
    while (host.children.length < shown.length) host.append(makeFrame());
    shown.forEach((frame, number) => place(host.children[number], frame));
    mark();
  }

  function place(group, { node, x, width, isAbove }) {
    const [box, text] = group.children, y = top + node.depth * row;
    const label = node.depth < 2 ? node.name : `${node.category.letter} ${node.name}`;
    const fitted = fitting(label, Math.trunc((width - 4) / char));
    group.classList.toggle("above", isAbove);
    setChanged(group, "data-label", label);
    const places = [[box, { x: left + x, y, width, height: row - 1 }], [text, { x: left + x + 3, y: y + 13 }]];
    for (const [element, values] of places) {
      for (const [name, value] of Object.entries(values)) setChanged(element, name, value);
    }
    if (box.dataset.background !== node.category.background) {
      box.style.fill = box.dataset.background = node.category.background;
    }
    if (text.textContent !== fitted) text.textContent = fitted;
  }

  // Mark what is picked and chosen.
  function mark() {
    const selected = nodeOf(chosen);
    host.classList.toggle("picking", picked !== null);
    shown.forEach(({ node }, number) => {
      host.children[number].classList.toggle("hit", picked !== null && picked.test(node));
      host.children[number].classList.toggle("chosen", node === selected);
    });
    legend.classList.toggle("picking", (picked?.category ?? null) !== null);
    for (const entry of legend.children) entry.setAttribute("aria-pressed", String(picked?.category === entry.dataset.category));
    report();
  }

  function report() {
    const outer = nodeAt(root, zoomed);
    onShow({
      rows: Math.max(...shown.map(({ node }) => node.depth + 1), 1),
      zoomed: outer,
      pointed: nodeOf(hovered ?? chosen),
      matched: picked === null ? null : samplesOf(outer, picked.test),
    });
  }

  function pick(test, category = null) {
    picked = test === null ? null : { test, category };
    mark();
  }

  function search() {
    const wanted = input.value.trim().toLowerCase();
    pick(wanted === "" ? null : (node) => node.depth > 0 && node.name.toLowerCase().includes(wanted));
  }

  function zoom(node) {
    zoomed = pathOf(node);
    draw();
    onMove(node, true);
  }

  function choose(node) {
    [chosen, hovered] = [pathOf(node), null];
    mark();
    host.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
    onMove(node, false);
  }

  // Return the frame `step` positions away on the same row.
  function neighbour(node, step) {
    const level = shown.filter((frame) => frame.node.depth === node.depth).sort((one, other) => one.x - other.x);
    return level[level.findIndex((frame) => frame.node === node) + step]?.node ?? node;
  }

  function widest(node) {
    const visible = new Set(shown.map((frame) => frame.node));
    const inside = node.children.filter((child) => visible.has(child));
    return inside.reduce((best, child) => (child.samples > best.samples ? child : best), inside[0] ?? node);
  }

  // Follow a key, if it is one of the flame graph's.
  function act(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || root.samples === 0) return;
    const outer = nodeAt(root, zoomed), node = nodeOf(chosen) ?? outer;
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
    if (!(event.key in moves)) return;
    moves[event.key]();
    event.preventDefault();
  }

  function nodeUnder(event) {
    const group = event.target.closest(".frame");
    return group === null ? null : (shown[[...host.children].indexOf(group)]?.node ?? null);
  }

  function hover(node) {
    hovered = node === null ? null : pathOf(node);
    report();
  }

  host.addEventListener("click", (event) => {
    const node = nodeUnder(event);
    if (node === null) return;
    chosen = pathOf(node);
    zoom(node);
  });
  host.addEventListener("pointerover", (event) => hover(nodeUnder(event)));
  host.addEventListener("pointerleave", () => hover(null));
  reset.addEventListener("click", () => zoom(root));
  input.addEventListener("input", search);
  legend.addEventListener("click", (event) => {
    const label = event.target.closest("[data-category]")?.dataset.category, isOff = picked?.category === label;
    if (label === undefined) return;
    input.value = "";
    if (isOff) pick(null);
    else pick((node) => node.depth > 1 && node.category.label === label, label);
  });

  return {
    act,
    draw,
    search,
    show(tree) {
      root = tree;
      draw();
    },
    leave() {
      chosen = null;
      mark();
    },
  };
}
