// SPDX-License-Identifier: Apache-2.0
// The bandwidth chart of the last minutes: received above the axis, sent below it, on one scale.
import { byId, make, makeSvg, setText } from "./dom.js";
import { clock, human, sum } from "./format.js";
import { setUpPanel } from "./panel.js";
import { recall, remember } from "./store.js";
import { viewQuery } from "./stream.js";
import { followCursor, joined, lines, pathOf, readingOf, timeAxis, timeline } from "./timeline.js";

// Queried once for both the totals and the chart.
export const TRAFFIC = viewQuery("bandwidth", {
  columns:
    "interface,kind,namespace,backing,speed,bytes_received_per_s,bytes_sent_per_s,packets_received_per_s,packets_sent_per_s",
  sort: "-bytes_per_s",
  limit: "200",
});
export const uplinkSum = (rows, column) => sum(rows.filter((row) => row.backing === "uplink"), column);

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
    const unit = room / (above + below) / step, axis = MARGIN.top + above * step * unit;
    return { width, step, above, below, axis, y: (value) => axis - value * unit, ...axisOfTime() };
  }

  const axisOfTime = () => timeAxis(svg.clientWidth, MARGIN, past.readings.at(-1).time);

  function drawWay(at, way, name) {
    const valueOf = (reading) => valuesOf(reading)[way];
    const found = lines(past.readings, valueOf, at.x, (value) => at.y(way === 0 ? value : -value));
    const onAxis = ([x]) => `${x.toFixed(1)} ${at.axis}`;
    const fill = found.map((line) => `M${onAxis(line[0])}L${joined(line)}L${onAxis(line.at(-1))}Z`);
    return [
      makeSvg("path", { class: `area ${name}`, d: fill.join("") }),
      makeSvg("path", { class: `line ${name}`, d: pathOf(found) }),
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
    for (const { x, text, align } of at.labels) parts.push(makeSvg("text", { x, y: HEIGHT - 5, class: align }, text));
    return parts;
  }

  function draw() {
    panel.showEmpty(past.readings.length === 0 ? "waiting for the first reading" : "");
    svg.classList.toggle("off", past.readings.length === 0);
    if (past.readings.length === 0 || svg.clientWidth === 0) return;
    const at = layout();
    svg.setAttribute("viewBox", `0 0 ${at.width} ${HEIGHT}`);
    svg.replaceChildren(...drawGrid(at), ...drawWay(at, 0, "received"), ...drawWay(at, 1, "sent"), ...drawCursor(at));
    setText(readout, describe());
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

  followCursor(svg, past, (event) => ({ time: axisOfTime().timeAt(event.offsetX) }), (place) => {
    under = place?.time ?? null;
    draw();
    return describe();
  });

  return {
    ...panel.common,
    queries: () => [TRAFFIC],
    take,
    draw,
  };
}
