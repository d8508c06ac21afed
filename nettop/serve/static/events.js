// SPDX-License-Identifier: Apache-2.0
// Connections opened, closed and failed, newest first.
"use strict";
import { byId } from "./dom.js";
import { UNKNOWN, clock, human, identifier, plural } from "./format.js";
import { setUpPanel, whyEmpty } from "./panel.js";
import { recall, remember } from "./store.js";
import { viewQuery } from "./stream.js";
import { createTable } from "./table.js";

const SHOWN = 50;
const GRACEFUL = ["closed by us", "closed by peer", "closed by both"];
const FAILURES_ONLY = GRACEFUL.map((reason) => `reason!="${reason}"`).join(" ");

const isFailure = (row) => row.event === "fail" || (row.reason !== null && !GRACEFUL.includes(row.reason));
const reasonTone = (row) => (isFailure(row) ? "bad" : "dim");

const COLUMNS = [
  { name: "time", title: "Time", text: (row) => clock(row.time, { hasMillis: true }), tone: () => "dim" },
  {
    name: "event",
    title: "Event",
    text: (row) => (isFailure(row) ? `▲ ${row.event}` : row.event),
    tone: (row) => (isFailure(row) ? "bad" : ""),
  },
  { name: "reason", title: "Reason", text: (row) => row.reason ?? UNKNOWN, tone: reasonTone },
  { name: "process", title: "Process", text: (row) => row.process ?? UNKNOWN, isElided: true },
  { name: "pid", title: "PID", isNumber: true, text: (row) => identifier(row.pid), tone: () => "dim" },
  { name: "remote", title: "Remote", text: (row) => row.remote ?? UNKNOWN, isElided: true },
  { name: "duration_us", title: "Lasted", isNumber: true, text: (row) => human(row.duration_us, "us") },
];

export function createEvents(onToggle, onChange) {
  const panel = setUpPanel("events", "connections", onToggle);
  const table = createTable(panel.part(".scroll"), { label: "Connection events", columns: COLUMNS });
  const box = byId("failures");
  let newest = null;

  box.checked = recall("failures", false);
  box.addEventListener("change", () => {
    remember("failures", box.checked);
    onChange();
  });

  const query = () =>
    viewQuery("connections.events", {
      columns: "event_id,time,event,reason,process,pid,remote,duration_us",
      filter: box.checked ? FAILURES_ONLY : "",
      limit: String(SHOWN),
    });

  return {
    ...panel.common,
    queries: () => [query()],
    take(_, document) {
      panel.showProblem(null);
      newest = document;
    },
    draw() {
      if (newest === null) return;
      table.update(newest.rows, newest.not_available);
      panel.showEmpty(whyEmpty(newest, "events", box.checked ? "no connection failed" : "no connection opened or closed"));
      panel.showAside(newest.total > newest.shown ? `newest ${newest.shown}` : plural("event", newest.total));
    },
  };
}
