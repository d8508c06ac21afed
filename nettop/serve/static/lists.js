// SPDX-License-Identifier: Apache-2.0
// Connection events, newest first, and packets that the kernel dropped, highest current rate first.
import { byId } from "./dom.js";
import { UNKNOWN, clock, count, human, plural } from "./format.js";
import { createTable, setUpPanel, whyEmpty } from "./panel.js";
import { recall, remember } from "./store.js";
import { viewQuery } from "./stream.js";

const SHOWN = 50;

// A panel with the first rows of a table. `none` returns the text if there are none, `more` a note if there are more.
function createList(panel, { label, columns, table: name, query, none, more }) {
  const table = createTable(panel.part(".scroll"), { label, columns });
  let newest = null;
  return {
    ...panel.common,
    queries: () => [query()],
    take(_, document) {
      panel.showProblem(null);
      newest = document;
    },
    draw() {
      if (newest === null) return;
      table.update(newest.rows.slice(0, SHOWN), newest.not_available);
      panel.showEmpty(whyEmpty(newest, name, none()));
      panel.showAside(more(newest.total));
    },
  };
}

// --- connection events ---

const GRACEFUL = ["closed by us", "closed by peer", "closed by both"];
const FAILURES_ONLY = GRACEFUL.map((reason) => `reason!="${reason}"`).join(" ");

const isFailure = (row) => row.event === "fail" || (row.reason !== null && !GRACEFUL.includes(row.reason));
const reasonTone = (row) => (isFailure(row) ? "bad" : "dim");

const EVENT_COLUMNS = [
  { name: "time", title: "Time", text: (row) => clock(row.time, { hasMillis: true }), tone: () => "dim" },
  {
    name: "event",
    title: "Event",
    text: (row) => (isFailure(row) ? `▲ ${row.event}` : row.event),
    tone: (row) => (isFailure(row) ? "bad" : ""),
  },
  { name: "reason", title: "Reason", text: (row) => row.reason ?? UNKNOWN, tone: reasonTone },
  { name: "process", title: "Process", text: (row) => row.process ?? UNKNOWN, isElided: true },
  { name: "pid", title: "PID", isNumber: true, text: (row) => row.pid ?? UNKNOWN, tone: () => "dim" },
  { name: "remote", title: "Remote", text: (row) => row.remote ?? UNKNOWN, isElided: true },
  { name: "duration_us", title: "Lasted", isNumber: true, text: (row) => human(row.duration_us, "us") },
];

export function createEvents(renew) {
  const panel = setUpPanel("events", "connections", renew), box = byId("failures");
  box.checked = recall("failures", false);
  box.addEventListener("change", () => {
    remember("failures", box.checked);
    renew();
  });
  return createList(panel, {
    label: "Connection events",
    columns: EVENT_COLUMNS,
    table: "events",
    query: () =>
      viewQuery("connections.events", {
        columns: "event_id,time,event,reason,process,pid,remote,duration_us",
        filter: box.checked ? FAILURES_ONLY : "",
        limit: String(SHOWN),
      }),
    none: () => (box.checked ? "no connection failed" : "no connection opened or closed"),
    more: (total) => (total > SHOWN ? `newest ${SHOWN}` : plural("event", total)),
  });
}

// --- dropped packets ---

export const DROPS = viewQuery("drops", {
  columns: "id,reason,place,protocol,interface,packets_per_s,packets,last_seen",
  sort: "-packets_per_s",
  limit: "500",
});

const DROP_COLUMNS = [
  {
    name: "reason", title: "Reason", help: "the kernel's drop reason", isElided: true,
    text: (row) => row.reason ?? UNKNOWN,
  },
  {
    name: "place", title: "Place", help: "kernel function that dropped the packet", isElided: true,
    text: (row) => row.place ?? UNKNOWN,
    tone: () => "dim",
  },
  { name: "protocol", title: "Proto", text: (row) => row.protocol ?? UNKNOWN, tone: () => "dim" },
  { name: "interface", title: "Interface", text: (row) => row.interface ?? UNKNOWN, tone: () => "dim", isElided: true },
  {
    name: "packets_per_s",
    title: "Now",
    isNumber: true,
    text: (row) => human(row.packets_per_s, "packets/s"),
    tone: (row) => (row.packets_per_s > 0 ? "warn" : "faint"),
  },
  { name: "packets", title: "Total", isNumber: true, text: (row) => count(row.packets), help: "since nettop started" },
  { name: "last_seen", title: "Last", isNumber: true, text: (row) => clock(row.last_seen), tone: () => "dim" },
];

export function createDrops(renew) {
  return createList(setUpPanel("drops", "drops", renew), {
    label: "Dropped packets",
    columns: DROP_COLUMNS,
    table: "packets",
    query: () => DROPS,
    none: () => "no packet was dropped",
    more: (total) => (total > SHOWN ? `${SHOWN} of ${plural("row", total)}` : plural("row", total)),
  });
}
