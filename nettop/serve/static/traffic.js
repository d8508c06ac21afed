// SPDX-License-Identifier: Apache-2.0
// Traffic of the interfaces, queried once for both the totals and the chart.
"use strict";
import { viewQuery } from "./stream.js";

const MOST_INTERFACES = 200;

export const TRAFFIC = viewQuery("bandwidth", {
  columns:
    "interface,kind,namespace,backing,speed,bytes_received_per_s,bytes_sent_per_s,packets_received_per_s,packets_sent_per_s",
  sort: "-bytes_per_s",
  limit: String(MOST_INTERFACES),
});

// Return the sum of the known values of uplinks; null if none is known.
export function uplinkSum(rows, column) {
  const values = rows.filter((row) => row.backing === "uplink").map((row) => row[column]);
  const known = values.filter((value) => value !== null);
  return known.length === 0 && values.length > 0 ? null : known.reduce((total, value) => total + value, 0);
}
