// SPDX-License-Identifier: Apache-2.0
// The bandwidth chart of the last minutes: received above the axis, sent below it, on one scale.
"use strict";
import { announce, byId, make, makeSvg, setText } from "./dom.js";
import { clock, human } from "./format.js";
import { setUpPanel } from "./panel.js";
import { recall, remember } from "./store.js";
import { WINDOW_MS, gapMs, minutesShown, readingOf, timeline } from "./timeline.js";
import { TRAFFIC, uplinkSum } from "./traffic.js";

const UPLINKS = "all uplinks";
const HEIGHT = 220;
const MARGIN = { left: 74, right: 10, top: 8, bottom: 22 };
const TICKS = 5;
const LEAST_SCALE = 1250; // bytes/s: 10 kb/s, so that noise does not fill an idle chart

// Return the tick step for a length: 1, 2 or 5 times a power of ten, in bits.
function niceStep(length) {
  const rough = (length * 8) / TICKS, power = 10 ** Math.floor(Math.log10(rough));
  const factor = [1, 2, 5, 10].find((each) => each * power >= rough);
  return (factor * power) / 8;
}

// Label interfaces by name, and by namespace if the name is not unique.
function labelled(rows) {
  const times = new Map();
  for (const row of rows) times.set(row.interface, (times.get(row.interface) ?? 0) + 1);
  return rows.map((row) => [times.get(row.interface) > 1 ? `${row.interface} @${row.namespace}` : row.interface, row]);
}

function amountsOf(rows) {
  const amounts = new Map();
  amounts.set(UPLINKS, [uplinkSum(rows, "bytes_received_per_s"), uplinkSum(rows, "bytes_sent_per_s")]);
  for (const [label, row] of labelled(rows)) amounts.set(label, [row.bytes_received_per_s, row.bytes_sent_per_s]);
  return amounts;
}

export function createBandwidth(onToggle) {
  const panel = setUpPanel("bandwidth", "bandwidth", onToggle);
  const svg = panel.part("svg"), readout = panel.part(".readout"), choice = byId("interface");
  const past = timeline();
  let chosen = recall("interface", UPLINKS), under = null, offered = "";

  choice.addEventListener("change", () => {
    chosen = choice.value;
    remember("interface", chosen);
    draw();
  });

  function take(query, document) {
    panel.showProblem(null);
    past.push(readingOf(document, { amounts: amountsOf(document.rows) }));
    offer(document.rows);
  }

  // Update the choices only if the interfaces changed: an open list must not change under the pointer.
  function offer(rows) {
    const names = labelled(rows).map(([label, row]) => [label, `${label} (${row.kind ?? "?"})`]);
    names.sort(([one], [other]) => (one < other ? -1 : 1));
    if (chosen !== UPLINKS && !names.some(([label]) => label === chosen)) names.push([chosen, `${chosen} (gone)`]);
    const key = JSON.stringify(names);
    if (key === offered) return;
    offered = key;
    const options = names.map(([label, title]) => make("option", { value: label }, title));
    choice.replaceChildren(make("option", { value: UPLINKS }, UPLINKS), ...options);
    choice.value = chosen;
  }

  const valuesOf = (reading) => reading.amounts.get(chosen) ?? [null, null];

  // Both directions share a scale; the axis is placed so that each fits.
  function layout() {
    const width = svg.clientWidth, room = HEIGHT - MARGIN.top - MARGIN.bottom;
    const largest = [0, 1].map((way) => Math.max(...past.readings.map((reading) => valuesOf(reading)[way] ?? 0), 0));
    const step = niceStep(Math.max(largest[0] + largest[1], LEAST_SCALE));
    const [above, below] = largest.map((most) => Math.max(Math.ceil(most / step), 1));
    const unit = room / (above + below) / step;
    const now = past.readings.at(-1).time, across = width - MARGIN.left - MARGIN.right;
    return {
      width, step, above, below, across, now,
      axis: MARGIN.top + above * step * unit,
      x: (time) => MARGIN.left + across * (1 - (now - time) / WINDOW_MS),
      y: (value) => MARGIN.top + above * step * unit - value * unit,
      timeAt: (x) => now - WINDOW_MS * (1 - (x - MARGIN.left) / across),
    };
  }

  // Return the areas between the axis and a line, a new one after each gap.
  function areas(at, way) {
    const sign = way === 0 ? 1 : -1, pieces = [[]];
    let before = null;
    for (const reading of past.readings) {
      const value = valuesOf(reading)[way];
      const isJoined = before !== null && reading.time - before <= gapMs(reading);
      if (!isJoined) pieces.push([]);
      if (value !== null) pieces.at(-1).push([at.x(reading.time), at.y(sign * value)]);
      before = value === null ? null : reading.time;
    }
    return pieces.filter((piece) => piece.length > 0);
  }

  const lineOf = (piece) => piece.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

  function drawWay(at, way, name) {
    const pieces = areas(at, way);
    const onAxis = ([x]) => `${x.toFixed(1)} ${at.axis}`;
    const fill = pieces.map((piece) => `M${onAxis(piece[0])}L${lineOf(piece)}L${onAxis(piece.at(-1))}Z`);
    return [
      makeSvg("path", { class: `area ${name}`, d: fill.join("") }),
      makeSvg("path", { class: `line ${name}`, d: pieces.map((piece) => `M${lineOf(piece)}`).join("") }),
    ];
  }

  function drawGrid(at) {
    const parts = [];
    for (let number = -at.below; number <= at.above; number += 1) {
      const y = at.y(number * at.step);
      const ends = { x1: MARGIN.left, x2: at.width - MARGIN.right, y1: y, y2: y };
      parts.push(makeSvg("line", { class: number === 0 ? "axis" : "grid", ...ends }));
      const text = human(Math.abs(number) * at.step, "bytes/s");
      parts.push(makeSvg("text", { x: MARGIN.left - 8, y: y + 4, class: "end" }, text));
    }
    for (const minute of minutesShown(at.across)) {
      const x = at.x(at.now - minute * 60_000);
      const place = minute === 0 ? "end" : x === MARGIN.left ? "begin" : "middle";
      parts.push(makeSvg("text", { x, y: HEIGHT - 5, class: place }, minute === 0 ? "now" : `−${minute} min`));
    }
    return parts;
  }

  function draw() {
    panel.showEmpty(past.readings.length === 0 ? "waiting for the first reading" : "");
    svg.classList.toggle("off", past.readings.length === 0);
    if (past.readings.length === 0 || svg.clientWidth === 0) return;
    const at = layout();
    svg.setAttribute("viewBox", `0 0 ${at.width} ${HEIGHT}`);
    svg.replaceChildren(...drawGrid(at), ...drawWay(at, 0, "received"), ...drawWay(at, 1, "sent"), ...drawCursor(at));
    showReadout();
  }

  function drawCursor(at) {
    if (under === null) return [];
    const x = at.x(past.readingAt(under).time);
    return [makeSvg("line", { class: "cursor", x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom })];
  }

  function describe() {
    const reading = past.readingAt(under);
    const [received, sent] = valuesOf(reading);
    return `${clock(reading.time)}   in ${human(received, "bytes/s")}   out ${human(sent, "bytes/s")}`;
  }

  const showReadout = () => setText(readout, describe());

  function read(time) {
    under = time;
    if (past.readings.length > 0) draw();
  }

  svg.addEventListener("pointermove", (event) => {
    if (past.readings.length > 0) read(layout().timeAt(event.offsetX));
  });
  svg.addEventListener("pointerleave", () => read(null));
  svg.addEventListener("blur", () => read(null));
  svg.addEventListener("keydown", (event) => {
    const time = past.timeByKey(event, under);
    if (time === null) return;
    event.preventDefault();
    read(time);
    announce(describe());
  });

  return {
    ...panel.common,
    queries: () => [TRAFFIC],
    take,
    draw,
  };
}
