// SPDX-License-Identifier: Apache-2.0
// The connections table, sorted and filtered by the server, and a dialog with all details of a row.
import { byId, make, setText } from "./dom.js";
import { UNKNOWN, clock, count, human, spread, unitOf } from "./format.js";
import { createTable, problemText, setUpPanel, whyEmpty } from "./panel.js";
import { recall, remember } from "./store.js";
import { read, viewQuery } from "./stream.js";

const RETRANSMITS_WARN_ABOVE = 0.01;
const PAUSE_OF_TYPING_MS = 300;
const BOTH_DIRECTIONS = "-bytes_per_s";
const SHOWN_COLUMNS = [
  "id", "process", "pid", "container", "protocol", "local", "remote", "bytes_sent_per_s", "bytes_received_per_s",
  "rtt_us", "rtt_var_us", "retransmit_ratio", "state",
].join(",");
// Columns of the details: all but those that only combine others, plus the rates.
const ALL_COLUMNS = [
  "process", "pid", "container", "cgroup", "uid", "namespace", "netns", "owner_source", "protocol", "family", "direction",
  "state", "local", "remote", "device", "opened_at", "bytes_sent_per_s", "bytes_received_per_s", "bytes_sent", "bytes_acked", "bytes_received",
  "delivery_rate", "packets_sent", "packets_received", "data_packets_sent", "retransmits", "spurious", "spurious_ratio", "retransmit_ratio",
  "retransmits_per_s", "messages_sent", "messages_received", "last_sent_ms", "last_received_ms", "rtt_us", "rtt_var_us", "rtt_min_us", "limited_by",
  "limited_share", "busy_us", "receiver_limited_us", "send_buffer_limited_us", "application_limited",
  "congestion_limited", "send_buffer_full", "cwnd", "mss", "congestion_control", "pacing_rate", "peer_window", "bytes_in_flight",
  "send_queue", "receive_queue", "backlog", "accept_queue", "send_size", "descriptor", "descriptors_max", "descriptor_use", "accept_queue_use", "syn_queue", "syn_queue_use", "lost", "reordered", "probes",
  "drops", "responses", "response_mean", "waiting_since", "id",
].join(",");

const text = (name) => (row) => row[name] ?? UNKNOWN;
const isHigh = (row) => row.retransmit_ratio !== null && row.retransmit_ratio > RETRANSMITS_WARN_ABOVE;
const rate = (name, title, help, tone) => ({
  name, title, help, sort: name, alsoSortedBy: "bytes_per_s", isNumber: true,
  text: (row) => human(row[name], "bytes/s"),
  tone: (row) => (row[name] ? tone : "faint"),
});

const COLUMNS = [
  {
    name: "process", title: "Process", sort: "process", isElided: true,
    help: "the process that owns the socket, and its container or unit",
    text: (row) => `${row.process ?? UNKNOWN}${row.container === null ? "" : ` @${row.container}`}`,
  },
  { name: "pid", title: "PID", sort: "pid", isNumber: true, text: text("pid"), tone: () => "dim" },
  { name: "protocol", title: "Proto", sort: "protocol", text: text("protocol"), tone: () => "dim" },
  { name: "local", title: "Local", sort: "local", text: text("local"), tone: () => "dim", isElided: true },
  { name: "remote", title: "Remote", sort: "remote", text: text("remote"), isElided: true },
  rate("bytes_sent_per_s", "Out", "payload sent", "sent"),
  rate("bytes_received_per_s", "In", "payload received", "received"),
  {
    name: "rtt", title: "RTT ±var", field: "rtt_us", sort: "rtt_us", isNumber: true,
    help: "smoothed round-trip time and its deviation",
    text: (row) => spread(row.rtt_us, row.rtt_var_us, "us"),
  },
  {
    name: "retransmit_ratio", title: "Retr", sort: "retransmit_ratio", isNumber: true,
    help: "share of data segments retransmitted",
    text: (row) => (isHigh(row) ? "▲ " : "") + human(row.retransmit_ratio, "ratio"),
    tone: (row) => (isHigh(row) ? "bad" : "dim"),
  },
  { name: "state", title: "State", sort: "state", text: text("state"), tone: () => "dim" },
];

export function createConnections(renew) {
  const panel = setUpPanel("connections", "connections", renew);
  const [box, limit, all, problem] = ["filter", "rows", "all", "filter-problem"].map(byId);
  const details = setUpDetails();
  const table = createTable(panel.part(".scroll"), {
    label: "Connections",
    columns: COLUMNS,
    keyOf: (row) => row.id,
    onSort: sortBy,
    onOpen: details.open,
  });
  let sort = recall("sort", BOTH_DIRECTIONS), filter = recall("filter", ""), newest = null, typing = 0, attempts = 0;

  box.value = filter;
  limit.value = recall("rows", "100");
  if (limit.selectedIndex < 0) limit.value = "100";
  all.checked = recall("all", false);
  table.showSort(sort);

  const query = (chosen = filter) =>
    viewQuery("connections", { columns: SHOWN_COLUMNS, sort, filter: chosen, limit: limit.value, all: String(all.checked) });

  function sortBy(column) {
    const first = column.isNumber && column.name !== "pid" ? `-${column.sort}` : column.sort;
    const other = first.startsWith("-") ? column.sort : `-${column.sort}`;
    if (sort === first) sort = other;
    else sort = sort === other && column.alsoSortedBy !== undefined ? BOTH_DIRECTIONS : first;
    remember("sort", sort);
    table.showSort(sort);
    panel.part(".scroll").scrollTop = 0;
    change();
  }

  function showFilterProblem(document) {
    problem.hidden = document === null;
    setText(problem, document === null ? "" : problemText(document));
    box.setAttribute("aria-invalid", String(document !== null));
  }

  // Read the first response without waiting for the stream; it also validates the filter. If that is invalid, the rows of
  // the previous filter stay.
  async function change() {
    attempts += 1;
    const mine = attempts, typed = box.value.trim(), wanted = query(typed);
    let answered = null;
    try {
      const response = await read(wanted);
      if (mine !== attempts) return;
      const isInvalid = response.problem?.status === 400;
      showFilterProblem(isInvalid ? response.problem : null);
      if (isInvalid) return;
      answered = response.document;
    } catch {
      // The server is unreachable: the stream reports it, and applies the filter when it reconnects.
    }
    if (mine !== attempts) return;
    filter = typed;
    if (answered !== null) take(wanted, answered);
    draw();
    remember("filter", filter);
    renew();
  }

  box.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(change, PAUSE_OF_TYPING_MS);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      clearTimeout(typing);
      change();
    } else if (event.key === "Escape" && box.value === "") {
      table.focus();
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      table.focus();
    }
  });
  for (const [control, name, value] of [[limit, "rows", () => limit.value], [all, "all", () => all.checked]]) {
    control.addEventListener("change", () => {
      remember(name, value());
      change();
    });
  }

  function take(_, document) {
    panel.showProblem(null);
    newest = document;
    details.refresh();
  }

  function draw() {
    if (newest === null) return;
    table.update(newest.rows, newest.not_available);
    panel.showAside(`${count(newest.shown)} of ${count(newest.total)}`);
    panel.showEmpty(whyEmpty(newest, "sockets", filter === "" ? "no connections" : "no connection matches the filter"));
  }

  return {
    ...panel.common,
    queries: () => [query()],
    take,
    draw,
    focusFilter() {
      panel.root.open = true;
      box.focus();
      box.select();
    },
    // A stored filter may be invalid in another version of nettop.
    async check() {
      if (filter === "") return;
      const { problem: wrong } = await read(viewQuery("connections", { filter, limit: "1", columns: "id" }));
      if (wrong?.status !== 400) return;
      showFilterProblem(wrong);
      filter = "";
    },
  };
}

// The dialog with all details of a connection, updated while it is open.
function setUpDetails() {
  const dialog = byId("details"), list = dialog.querySelector("dl"), state = byId("details-state");
  const values = new Map();
  let id = null, isReading = false;

  const label = (name) => name.replace(/_per_s$/, "/s").replace(/_(us|ns)$/, "").replaceAll("_", " ");

  function shown(name, value) {
    if (value === null) return UNKNOWN;
    if (typeof value === "string") return name.endsWith("_at") ? `${clock(value)}, ${value.slice(0, 10)}` : value;
    const unit = unitOf(name);
    if (unit === "") return String(value);
    const exact = unit === "bytes" && value >= 1000 ? ` (${count(value)})` : "";
    return human(value, unit) + exact;
  }

  function show({ rows, not_available: missing }) {
    setText(state, rows.length > 0 ? "" : "the socket no longer exists; these are its last values");
    for (const [name, value] of Object.entries(rows[0] ?? {})) {
      if (!values.has(name)) {
        values.set(name, make("dd"));
        list.append(make("div", {}, make("dt", {}, label(name)), values.get(name)));
      }
      setText(values.get(name), name in missing ? `n/a: ${missing[name]}` : shown(name, value));
    }
  }

  async function refresh() {
    if (!dialog.open || isReading) return;
    isReading = true;
    const mine = id;
    const query = viewQuery("connections", { columns: ALL_COLUMNS, filter: `id=${id}`, all: "true", limit: "1" });
    try {
      const { document, problem } = await read(query);
      if (mine !== id) return;
      if (problem === null) show(document);
      else setText(state, problemText(problem));
    } catch {
      setText(state, "cannot reach nettop");
    } finally {
      isReading = false;
      if (mine !== id) refresh();
    }
  }

  function open(row) {
    if (dialog.open) return;
    id = row.id;
    values.clear();
    list.replaceChildren();
    setText(state, "");
    setText(byId("details-title"), `${row.process ?? UNKNOWN}  ${row.local} → ${row.remote}`);
    dialog.showModal();
    refresh();
  }

  return { open, refresh };
}
