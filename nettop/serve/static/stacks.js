// SPDX-License-Identifier: Apache-2.0
// The stacks of the last minute and the tree that they make.
"use strict";
import { CATEGORIES } from "./categories.js"; // made by pages.py
import { readingOf, timeline } from "./timeline.js";

export const SAMPLED_MS = 60_000;
const OWN = "nettop itself";

export function createStacks() {
  const categoryOf = new Map(CATEGORIES.flatMap((category) => category.symbols.map((symbol) => [symbol, category])));
  const [own, other] = [OWN, "other"].map((label) => CATEGORIES.find((category) => category.label === label));
  const totals = new Map();
  const past = timeline({ windowMs: SAMPLED_MS, onLeave: (reading) => reading.counts.forEach((each) => add(each, -1)) });

  // Each stack is kept once, however many readings and processors have it.
  function add({ key, row, samples, timeNs }, sign) {
    const total = totals.get(key) ?? { row, samples: 0, timeNs: 0, readings: 0 };
    total.samples += sign * samples;
    total.timeNs += sign * timeNs;
    total.readings += sign;
    if (total.readings === 0) totals.delete(key);
    else totals.set(key, total);
  }

  function push(document) {
    const counts = document.rows
      .filter((row) => row.samples > 0)
      .map((row) => {
        const key = `${row.entry}\n${row.category}\n${row.stack}`;
        const kept = totals.get(key)?.row ?? { entry: row.entry, category: row.category, stack: row.stack };
        return { key, row: kept, samples: row.samples, timeNs: row.time_ns ?? 0 };
      });
    const isNew = past.push(readingOf(document, { counts }));
    if (isNew) for (const each of counts) add(each, 1);
    return isNew;
  }

  const makeNode = (name, parent, category) => ({
    name,
    parent,
    category,
    depth: parent === null ? 0 : parent.depth + 1,
    samples: 0,
    timeNs: 0,
    ownSamples: 0,
    children: new Map(),
  });

  function count(node, total) {
    node.samples += total.samples;
    node.timeNs += total.timeNs;
    if (total.row.category === OWN) node.ownSamples += total.samples;
  }

  function childOf(node, name, category) {
    let child = node.children.get(name);
    if (child === undefined) node.children.set(name, (child = makeNode(name, node, category)));
    return child;
  }

  // The root; below it the entry points, and the functions from there inwards.
  function tree() {
    const root = makeNode("all", null, other);
    for (const total of totals.values()) {
      let node = childOf(root, total.row.entry ?? "?", other);
      count(root, total);
      count(node, total);
      for (const name of total.row.stack === "" || total.row.stack === null ? [] : total.row.stack.split(";")) {
        node = childOf(node, name, categoryOf.get(name) ?? node.category);
        count(node, total);
      }
    }
    return root;
  }

  // A function's own category, or that of its caller; nettop's where all of it is nettop's.
  const category = (node) => (node.parent !== null && node.ownSamples === node.samples ? own : node.category);

  // How many samples each category has, the largest first.
  function shares() {
    const samples = new Map();
    for (const total of totals.values()) {
      samples.set(total.row.category, (samples.get(total.row.category) ?? 0) + total.samples);
    }
    const known = CATEGORIES.filter((each) => samples.has(each.label));
    return known.map((each) => ({ category: each, samples: samples.get(each.label) })).sort((a, b) => b.samples - a.samples);
  }

  // The time that the samples are of.
  function elapsedMs() {
    return past.readings.reduce((sum, reading) => sum + 1000 * (reading.intervalS ?? 0), 0);
  }

  return { push, tree, category, shares, elapsedMs };
}
