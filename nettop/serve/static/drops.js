// SPDX-License-Identifier: Apache-2.0
// Packets that the kernel dropped, why and where, highest current rate first.
"use strict";
import { UNKNOWN, clock, count, human, plural } from "./format.js";
import { setUpPanel, whyEmpty } from "./panel.js";
import { viewQuery } from "./stream.js";
import { createTable } from "./table.js";

const SHOWN = 50;

export const DROPS = viewQuery("drops", {
  columns: "id,reason,place,protocol,interface,packets_per_s,packets,last_seen",
  sort: "-packets_per_s",
  limit: "500",
});

const COLUMNS = [
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

export function createDrops(onToggle) {
  const panel = setUpPanel("drops", "drops", onToggle);
  const table = createTable(panel.part(".scroll"), { label: "Dropped packets", columns: COLUMNS });
  let newest = null;

  return {
    ...panel.common,
    queries: () => [DROPS],
    take(query, document) {
      panel.showProblem(null);
      newest = document;
    },
    draw() {
      if (newest === null) return;
      table.update(newest.rows.slice(0, SHOWN), newest.not_available);
      panel.showEmpty(whyEmpty(newest, "packets", "no packet was dropped"));
      panel.showAside(newest.total > SHOWN ? `${SHOWN} of ${plural("row", newest.total)}` : plural("row", newest.total));
    },
  };
}
