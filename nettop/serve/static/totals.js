// SPDX-License-Identifier: Apache-2.0
// Seven key figures of the host, each with a sparkline.
import { TRAFFIC, uplinkSum } from "./bandwidth.js";
import { byId, make, makeSvg, setAttribute, setText } from "./dom.js";
import { DROPS } from "./lists.js";
import { UNKNOWN, human, plural, sum } from "./format.js";
import { MOST_ROWS, lensOf, viewQuery } from "./stream.js";
import { WINDOW_MS, lines, pathOf, readingOf, timeline } from "./timeline.js";

// One row is enough: the document has the total.
const ESTABLISHED = viewQuery("connections", {
  columns: "id",
  filter: "protocol=tcp state=ESTABLISHED",
  sort: "id",
  limit: "1",
});
// Connections that are sending, at most the busiest MOST_ROWS.
const SENDING = viewQuery("connections", {
  columns: "retransmits_per_s,data_packets_sent_per_s",
  filter: "data_packets_sent_per_s>0",
  sort: "-data_packets_sent_per_s",
  limit: String(MOST_ROWS),
});
const CPUS = viewQuery("cpu", { columns: "cpu,network_ns_per_s", limit: String(MOST_ROWS) });
const RETRANSMITS_WARN_ABOVE = 0.01;
const [WIDTH, HEIGHT] = [120, 28];

function retransmitShare(rows) {
  const [again, sent] = [sum(rows, "retransmits_per_s"), sum(rows, "data_packets_sent_per_s")];
  return sent ? again / sent : null;
}

function packets(rows) {
  const both = [uplinkSum(rows, "packets_received_per_s"), uplinkSum(rows, "packets_sent_per_s")];
  return both.includes(null) ? null : both[0] + both[1];
}

const cpuShare = (rows) => {
  const busy = sum(rows, "network_ns_per_s");
  return busy === null || rows.length === 0 ? null : busy / 1e9 / rows.length;
};

const TOTALS = [
  {
    name: "in", title: "In", about: "uplinks", tone: "received", unit: "bytes/s",
    query: TRAFFIC, of: (rows) => uplinkSum(rows, "bytes_received_per_s"),
  },
  {
    name: "out", title: "Out", about: "uplinks", tone: "sent", unit: "bytes/s",
    query: TRAFFIC, of: (rows) => uplinkSum(rows, "bytes_sent_per_s"),
  },
  { name: "packets", title: "Packets", about: "both directions", unit: "packets/s", query: TRAFFIC, of: packets },
  {
    name: "connections", title: "Connections", about: "TCP, open", unit: "",
    query: ESTABLISHED, of: (rows, total) => total,
  },
  {
    name: "retransmits", title: "Retransmits", about: "of segments", unit: "ratio", warnAbove: RETRANSMITS_WARN_ABOVE,
    query: SENDING, of: retransmitShare,
  },
  {
    name: "drops", title: "Drops", about: "kernel", unit: "packets/s",
    query: DROPS, of: (rows) => sum(rows, "packets_per_s"),
  },
  {
    name: "cpu", title: "Network CPU", about: (rows) => `of ${plural("CPU", rows.length)}`, unit: "ratio",
    query: CPUS, of: cpuShare,
  },
];

function makeTile(total) {
  const value = make("strong", { class: total.tone ?? "" }, UNKNOWN);
  const about = make("small", {}, typeof total.about === "string" ? total.about : "");
  const line = makeSvg("path", { class: `line ${total.tone ?? ""}` });
  const viewBox = `0 0 ${WIDTH} ${HEIGHT}`;
  const spark = makeSvg("svg", { viewBox, preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  const tile = make("div", { class: "tile", "data-total": total.name }, make("h2", {}, total.title), value, about, spark);
  byId("totals").append(tile);
  return { ...total, tile, value, aside: about, line, past: timeline(), isNew: false };
}

// Return the path of a sparkline from 0 to its maximum.
function sparkPath(readings) {
  const now = readings.at(-1).time;
  const most = Math.max(...readings.map((reading) => reading.value ?? 0)) || 1;
  const x = (time) => WIDTH - ((now - time) / WINDOW_MS) * WIDTH, y = (value) => HEIGHT - 1 - (value / most) * (HEIGHT - 2);
  return pathOf(lines(readings, (reading) => reading.value, x, y));
}

export function createTotals() {
  const tiles = TOTALS.map(makeTile);

  function take(query, document) {
    for (const tile of tiles.filter((each) => each.query === query)) {
      const value = tile.of(document.rows, document.total);
      if (!tile.past.push(readingOf(document, { value }))) continue;
      tile.rows = document.rows;
      tile.isNew = true;
    }
  }

  function show(tile) {
    tile.isNew = false;
    const { value } = tile.past.readings.at(-1);
    const isHigh = tile.warnAbove !== undefined && value !== null && value > tile.warnAbove;
    setText(tile.value, `${isHigh ? "▲ " : ""}${human(value, tile.unit)}`);
    tile.value.classList.toggle("bad", isHigh);
    tile.value.title = isHigh ? `above ${human(tile.warnAbove, tile.unit)}` : "";
    if (typeof tile.about === "function") setText(tile.aside, tile.about(tile.rows));
    setAttribute(tile.line, "d", sparkPath(tile.past.readings));
  }

  return {
    isOpen: () => true,
    queries: () => [...new Set(TOTALS.map((total) => total.query))],
    take,
    draw: () => tiles.filter((tile) => tile.isNew).forEach(show),
    // The numbers of a failed lens become unknown.
    fail(query) {
      for (const tile of tiles.filter((each) => each.query === query)) setText(tile.value, UNKNOWN);
    },
    showServed(lenses) {
      for (const tile of tiles) tile.tile.hidden = !lenses.includes(lensOf(tile.query));
    },
  };
}
