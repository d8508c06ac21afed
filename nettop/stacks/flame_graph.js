// SPDX-License-Identifier: Apache-2.0
// The flame graph itself: the served page draws it on a canvas, files of `nettop export` as SVG. A node has a `parent` (null
// for the root), `children` from left to right, `depth` and `samples`, and begins `at` samples from the left.
"use strict";

// Return where the frames of a zoomed node, its callers and its callees are; narrower ones are left out.
export function layout(zoomed, width, narrowest) {
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
export function samplesOf(node, test) {
  return test(node) ? node.samples : node.children.reduce((all, child) => all + samplesOf(child, test), 0);
}

// Shorten a label to this number of characters. Its first one, the category's letter, is meaningful alone.
export function fitting(label, room) {
  if (label.length <= room) return label;
  return room > 4 ? `${label.slice(0, room - 1)}…` : label.slice(0, Math.max(Math.min(room, 1), 0));
}

// Return a test for functions whose text contains the words, or null without any.
export function search(words, textOf) {
  const wanted = words.trim().toLowerCase();
  return wanted === "" ? null : (node) => node.depth > 0 && textOf(node).toLowerCase().includes(wanted);
}
