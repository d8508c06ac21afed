// SPDX-License-Identifier: Apache-2.0
// The page: its panels, the stream that feeds them, and the keys.
import { createBandwidth } from "./bandwidth.js";
import { createConnections } from "./connections.js";
import { byId, setText } from "./dom.js";
import { createFindings } from "./findings.js";
import { createFlame } from "./flame.js";
import { clock, count, human, utc } from "./format.js";
import { createLatency } from "./latency.js";
import { createDrops, createEvents } from "./lists.js";
import { problemText } from "./panel.js";
import { recall, remember } from "./store.js";
import { createStream, lensOf, viewQuery } from "./stream.js";
import { createTotals } from "./totals.js";

const COST = viewQuery("self", { columns: "time_ns_per_s,memory", filter: "kind=total" });
const LENSES = { connections: "connections", bandwidth: "bandwidth", cpu: "CPU", latency: "latency", drops: "drops" };
const THEMES = ["auto", "dark", "light"];
const STATES = { connecting: "connecting", live: "live", waiting: "reconnecting", stopped: "paused" };
const STALE_MS = 5000;
const LOSSES_EVERY_MS = 15_000;

function main() {
  const renew = () => stream.renew();
  const connections = createConnections(renew);
  const flame = createFlame(renew);
  const panels = [
    createFindings(), createTotals(), createBandwidth(renew), connections, flame, createLatency(renew), createEvents(renew),
    createDrops(renew), createFooter(),
  ];
  const changed = new Set(), lost = new Map(), trouble = new Map();
  let lenses = [], state = { state: "connecting" }, read = null, recording = null, isDrawing = false;

  // --- the stream ---

  const stream = createStream({ prepare, onView, onProblem, onState });

  const fetchHealth = async () => (await fetch("health", { cache: "no-store" })).json();

  async function prepare() {
    const health = await fetchHealth();
    lenses = Object.keys(health.lenses);
    showHealth(health);
    for (const panel of panels) panel.showServed(lenses);
    if (lenses.includes("connections")) await connections.check();
    const wanted = panels.filter((panel) => panel.isOpen()).flatMap((panel) => panel.queries());
    return [...new Set(wanted)].filter((query) => lenses.includes(lensOf(query)));
  }

  function onView(document) {
    read = { at: performance.now(), time: document.time, intervalS: document.interval_s };
    const lens = lensOf(document.query);
    lost.set(lens, document.lost);
    trouble.delete(lens);
    for (const panel of panels) {
      if (!panel.queries().includes(document.query)) continue;
      panel.take(document.query, document);
      changed.add(panel);
    }
    drawSoon();
  }

  function onProblem(problem) {
    trouble.set(lensOf(problem.query), problemText(problem));
    for (const panel of panels) if (panel.queries().includes(problem.query)) panel.fail(problem.query, problem);
    drawSoon();
  }

  function onState(next) {
    state = next;
    showState();
  }

  // Draw at most once per frame: a page in the background draws nothing, then once when it becomes visible.
  function drawSoon() {
    if (isDrawing) return;
    isDrawing = true;
    requestAnimationFrame(() => {
      isDrawing = false;
      for (const panel of changed) if (panel.isOpen()) panel.draw();
      changed.clear();
      showReading();
      showLost();
      showTrouble();
    });
  }

  function redraw() {
    for (const panel of panels) changed.add(panel);
    drawSoon();
  }

  // --- the header ---

  function showState() {
    const left = state.state === "waiting" ? Math.max(Math.ceil((state.until - Date.now()) / 1000), 0) : 0;
    const age = read === null ? 0 : performance.now() - read.at;
    const isStale = state.state === "live" && age > Math.max(STALE_MS, 3000 * (read?.intervalS ?? 1));
    const isOver = recording !== null && isStale;
    setText(byId("state"), isOver ? "no later reading" : isStale ? "no new reading" : stateText());
    setText(byId("countdown"), left > 0 ? ` in ${left} s` : isStale && !isOver ? ` for ${Math.round(age / 1000)} s` : "");
    byId("status").dataset.state = isStale ? "stale" : recording !== null && state.state === "live" ? "replay" : state.state;
    byId("status").title = state.why ?? "";
  }

  const stateText = () => (recording !== null && state.state === "live" ? "replay" : STATES[state.state]);

  function showReading() {
    setText(byId("reading"), read === null || recording !== null ? "" : `read ${clock(read.time)}`);
    showRecording();
  }

  function showRecording() {
    byId("recording").hidden = recording === null;
    if (recording === null) return;
    const { host, moment, begin, end } = recording;
    setText(byId("recording"), `Recording of ${host}, not live: ${utc(read?.time ?? moment)}, of ${utc(begin)} to ${utc(end)} UTC`);
  }

  function showHealth({ host: server, version, lenses: states, recording: served = null }) {
    recording = served;
    const host = recording === null ? server : recording.host;
    setText(byId("host"), host);
    document.title = recording === null ? `${host} – nettop` : `${host} (recording) – nettop`;
    byId("metrics").hidden = recording !== null;
    showRecording();
    setText(byId("version"), `nettop ${version}`);
    trouble.clear();
    for (const [lens, { state: word, reason }] of Object.entries(states)) {
      if (word !== "ok") trouble.set(lens, reason);
    }
    showTrouble();
    takeLosses(states);
    const absent = Object.keys(LENSES).filter((name) => !lenses.includes(name));
    const names = absent.map((name) => LENSES[name]).join(", ");
    const why = recording === null ? "not served" : "not recorded, or not served";
    setText(byId("not-served"), names === "" ? "" : `${why}: ${names} (--lenses)`);
  }

  // Show each failing lens until a reading of it arrives.
  function showTrouble() {
    const words = [...trouble].map(([lens, why]) => (why.startsWith(lens) ? why : `${lens}: ${why}`));
    byId("trouble").hidden = words.length === 0;
    setText(byId("trouble"), words.length === 0 ? "" : `▲ ${words.join("; ")}`);
  }

  // Update the losses of every lens, including lenses without a panel, and when the recording ends so far.
  function takeLosses(states) {
    for (const [lens, state] of Object.entries(states)) lost.set(lens, state.lost);
    showLost();
  }

  async function renewLosses() {
    if (state.state !== "live") return;
    try {
      const health = await fetchHealth();
      recording = health.recording ?? null;
      takeLosses(health.lenses);
    } catch {
      // The stream reports an unreachable server.
    }
  }

  function showLost() {
    const all = [...lost].flatMap(([lens, losses]) => Object.entries(losses).map(([what, number]) => ({ lens, what, number })));
    const words = all.filter(({ number }) => number > 0).map(({ lens, what, number }) => `${count(number)} ${what} (${lens})`);
    byId("lost").hidden = words.length === 0;
    setText(byId("lost"), words.length === 0 ? "" : `▲ lost since nettop started: ${words.join(", ")}`);
  }

  // --- buttons and keys ---

  function togglePause() {
    const isPaused = state.state !== "stopped";
    byId("pause").setAttribute("aria-pressed", String(isPaused));
    setText(byId("pause"), isPaused ? "Resume" : "Pause");
    if (isPaused) stream.stop();
    else stream.start();
  }

  function showTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    setText(byId("theme"), `Theme: ${theme}`);
    redraw();
  }

  function nextTheme() {
    const theme = THEMES[(THEMES.indexOf(recall("theme", "auto")) + 1) % THEMES.length];
    remember("theme", theme);
    showTheme(theme);
  }

  const KEYS = {
    "/": () => connections.focusFilter(),
    "?": () => byId("keys").showModal(),
    " ": togglePause,
    t: nextTheme,
  };

  document.addEventListener("keydown", (event) => {
    const isTaken = event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") !== null;
    const isTyping = event.target.closest("input, select, textarea") !== null;
    const isPressing = event.key === " " && event.target.closest("button, summary, a") !== null;
    if (isTaken || isTyping || isPressing || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  byId("pause").addEventListener("click", togglePause);
  byId("theme").addEventListener("click", nextTheme);
  byId("help").addEventListener("click", KEYS["?"]);
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(byId("main"));
  setInterval(showState, 1000);
  setInterval(renewLosses, LOSSES_EVERY_MS);

  showTheme(THEMES.includes(recall("theme", "auto")) ? recall("theme", "auto") : "auto");
  stream.start();
}

// nettop's own cost.
function createFooter() {
  let newest = null;
  return {
    isOpen: () => true,
    queries: () => [COST],
    take: (query, document) => (newest = document),
    draw() {
      const row = newest?.rows[0];
      if (row === undefined) return;
      setText(byId("cost"), `uses ${human(row.time_ns_per_s, "ns/s")} of one CPU, ${human(row.memory, "bytes")}`);
    },
    fail: () => setText(byId("cost"), ""),
    showServed: () => {},
  };
}

main();
