// SPDX-License-Identifier: Apache-2.0
// Where packets wait: a table of stages, and a heat map of one stage over the last minutes.
import { announce, byId, canvasContext, colour, setText } from "./dom.js";
import { clock, human } from "./format.js";
import { createTable, setUpPanel } from "./panel.js";
import { recall, remember } from "./store.js";
import { viewQuery } from "./stream.js";
import { followCursor, lines, pathOf, readingOf, timeAxis, timeline } from "./timeline.js";

const STAGES = viewQuery("latency", {
  columns: "stage,seen_per_s,p50,p90,p99,max,latency",
  deltas: "true",
});
const FIRST_STAGE = "wire-app";
const [LEAST_NS, DECADES, PARTS] = [100, 8, 8];
const LABELS = ["100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s"];
const CELLS = DECADES * PARTS;
const HEIGHT = 280;
const MARGIN = { left: 62, right: 8, top: 8, bottom: 22 };
const LEVELS = 6;
// Each lighter level begins at a quarter of the next, so that rare durations stay visible.
const shareOf = (level) => 4 ** (level - LEVELS);

const quantile = (name, title) => ({ name, title, isNumber: true, text: (row) => human(row[name], "ns") });
const COLUMNS = [
  { name: "stage", title: "Stage", text: (row) => row.stage },
  {
    name: "seen_per_s",
    title: "Seen",
    isNumber: true,
    help: "packets that reached the stage; connections for rtt",
    text: (row) => human(row.seen_per_s, "packets/s"),
    tone: () => "dim",
  },
  quantile("p50", "p50"), quantile("p90", "p90"), quantile("p99", "p99"), quantile("max", "Max"),
];

const positionOf = (ns) => Math.log10(ns / LEAST_NS) / DECADES; // 0 to 1 on the axis
const cellOf = (ns) => Math.min(Math.max(Math.floor(positionOf(ns) * CELLS), 0), CELLS - 1);
const durationOf = (cell) => LEAST_NS * 10 ** (cell / PARTS);

// Return the number of durations per second in each cell of the axis.
function amounts(histogram, intervalS) {
  const cells = new Float32Array(CELLS);
  for (const [low, high, number] of histogram) {
    cells[cellOf(high === null ? low : Math.sqrt(Math.max(low, 1) * high))] += number / (intervalS ?? 1);
  }
  return cells;
}

const stagesOf = (document) =>
  new Map(
    document.rows
      .filter((row) => row.latency !== null && row.latency !== undefined)
      .map(({ stage, latency, p50, p99, max }) => [stage, { cells: amounts(latency, document.interval_s), p50, p99, max }]),
  );

export function createLatency(onToggle) {
  const panel = setUpPanel("latency", "latency", onToggle);
  const canvas = panel.part("canvas"), readout = panel.part(".readout"), scale = byId("scale");
  const past = timeline();
  const table = createTable(panel.part(".scroll"), {
    label: "Stages. Enter shows a stage over time.",
    columns: COLUMNS,
    keyOf: (row) => row.stage,
    onOpen: (row) => choose(row.stage),
  });
  let stage = recall("stage", FIRST_STAGE), newest = null, under = null, inks = {};

  function choose(name) {
    stage = name;
    remember("stage", name);
    draw();
    announce(`${name} over time`);
  }

  function take(query, document) {
    panel.showProblem(null);
    newest = document;
    past.push(readingOf(document, { stages: stagesOf(document) }));
  }

  function draw() {
    panel.showEmpty(newest === null ? "waiting for the first reading" : "");
    if (newest === null) return;
    table.update(newest.rows, newest.not_available);
    table.mark(stage);
    setText(byId("stage"), stage);
    paint();
  }

  // --- the heat map ---

  function layout() {
    const width = canvas.clientWidth, down = HEIGHT - MARGIN.top - MARGIN.bottom;
    return {
      width, down,
      y: (position) => MARGIN.top + down * (1 - Math.min(Math.max(position, 0), 1)),
      cellAt: (y) => Math.floor((1 - (y - MARGIN.top) / down) * CELLS),
      ...timeAxis(width, MARGIN, past.readings.at(-1).time),
    };
  }

  const stageIn = (reading) => reading.stages.get(stage);
  const largest = () => past.readings.reduce((most, reading) => Math.max(most, ...(stageIn(reading)?.cells ?? [])), 0);

  function paint() {
    if (canvas.clientWidth === 0 || past.readings.length === 0) return;
    inks = Object.fromEntries(["dim", "line", "text", "screen", ...heatNames()].map((name) => [name, colour(`var(--${name})`)]));
    const context = canvasContext(canvas, canvas.clientWidth, HEIGHT), at = layout(), most = largest();
    context.font = "11px system-ui, sans-serif";
    paintAxes(context, at);
    if (most > 0) paintCells(context, at, most);
    paintQuantile(context, at, "p50", []);
    paintQuantile(context, at, "p99", [5, 3]);
    paintCursor(context, at);
    setText(scale, most > 0 ? `up to ${human(most, "packets/s")} per cell` : "no data for this stage in the last minutes");
    setText(readout, describe());
  }

  const heatNames = () => Array.from({ length: LEVELS }, (_, level) => `heat-${level + 1}`);

  function paintAxes(context, at) {
    context.fillStyle = inks.dim;
    context.strokeStyle = inks.line;
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    LABELS.forEach((label, decade) => {
      const y = Math.round(at.y(decade / DECADES)) + 0.5;
      context.fillText(label, MARGIN.left - 8, y);
      context.beginPath();
      context.moveTo(MARGIN.left, y);
      context.lineTo(at.width - MARGIN.right, y);
      context.stroke();
    });
    for (const { x, text, align } of at.labels) {
      context.textAlign = align;
      context.fillText(text, x, HEIGHT - 9);
    }
    context.textAlign = "left";
  }

  // A column spans the interval that ends at its reading.
  function paintCells(context, at, most) {
    const height = at.down / CELLS;
    for (const reading of past.readings) {
      const cells = stageIn(reading)?.cells;
      if (cells === undefined) continue;
      const right = Math.ceil(at.x(reading.time));
      const left = Math.max(Math.floor(at.x(reading.time - 1000 * (reading.intervalS ?? 1))), MARGIN.left);
      cells.forEach((amount, cell) => {
        if (amount === 0) return;
        context.fillStyle = inks[`heat-${levelOf(amount / most)}`];
        context.fillRect(left, at.y((cell + 1) / CELLS), Math.max(right - left, 1), height + 0.3);
      });
    }
  }

  function levelOf(share) {
    let level = LEVELS;
    while (level > 1 && share < shareOf(level - 1) * 4 ** 0.5) level -= 1;
    return level;
  }

  function paintQuantile(context, at, name, dashes) {
    const valueOf = (reading) => stageIn(reading)?.[name] ?? null;
    const found = lines(past.readings, valueOf, at.x, (value) => at.y(positionOf(Math.max(value, 1))));
    const line = new Path2D(pathOf(found));
    context.setLineDash(dashes);
    for (const [ink, wide] of [[inks.screen, 3.5], [inks.text, 1.5]]) {
      context.strokeStyle = ink;
      context.lineWidth = wide;
      context.stroke(line);
    }
    context.setLineDash([]);
  }

  function paintCursor(context, at) {
    if (under === null) return;
    const x = Math.round(at.x(past.readingAt(under.time).time)) + 0.5;
    context.strokeStyle = inks.text;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, MARGIN.top);
    context.lineTo(x, MARGIN.top + at.down);
    context.stroke();
  }

  // --- the readout ---

  function describe() {
    const reading = past.readingAt(under?.time ?? null);
    const known = stageIn(reading);
    if (known === undefined) return `${clock(reading.time)}   no data`;
    const quantiles = ["p50", "p99", "max"].map((name) => `${name} ${human(known[name], "ns")}`);
    const words = [clock(reading.time), ...quantiles];
    if (under?.cell !== undefined && under.cell >= 0 && under.cell < CELLS) {
      const [low, high] = [durationOf(under.cell), durationOf(under.cell + 1)];
      words.push(`${human(low, "ns")} to ${human(high, "ns")}: ${human(known.cells[under.cell], "packets/s")}`);
    }
    return words.join("   ");
  }

  const placeOf = (event, at = layout()) => ({ time: at.timeAt(event.offsetX), cell: at.cellAt(event.offsetY) });
  followCursor(canvas, past, placeOf, (place) => {
    under = place;
    paint();
    return describe();
  });

  return {
    ...panel.common,
    queries: () => [STAGES],
    take,
    draw,
  };
}
