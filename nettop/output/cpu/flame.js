// SPDX-License-Identifier: Apache-2.0
// Zoom, search and details of a flame graph drawn by flame_svg.py: a frame begins at data-at and is data-of samples wide.
"use strict";
{
  const NARROWEST = 0.1;
  const svg = document.documentElement;
  const layout = JSON.parse(svg.dataset.layout);
  const byId = (id) => document.getElementById(id);
  const search = byId("search"), box = search.firstElementChild, details = byId("details");
  const entries = [...document.querySelectorAll(".entry")];
  const corners = entries.map((entry) => {
    const corner = entry.querySelector("rect");
    return [+corner.getAttribute("x"), +corner.getAttribute("y")];
  });
  const frames = [...document.querySelectorAll(".frame")].map((group) => ({
    group,
    box: group.querySelector("rect"),
    text: group.querySelector("text"),
    title: group.querySelector("title").textContent,
    at: +group.dataset.at,
    of: +group.dataset.of,
    row: +group.dataset.row,
    category: group.dataset.category,
    label: group.dataset.label,
  }));
  const root = frames[0];
  let zoomed = root, picked = null;

  const within = (inner, outer) =>
    inner.row >= outer.row && inner.at >= outer.at && inner.at + inner.of <= outer.at + outer.of;

  function fitting(label, width) {
    const room = Math.max(Math.trunc((width - 4) / layout.char), 0);
    if (label.length <= room) return label;
    return room > 4 ? label.slice(0, room - 1) + "…" : label.slice(0, Math.min(room, 1));
  }

  function place(frame, x, width, isAbove) {
    const isShown = width >= NARROWEST;
    frame.group.setAttribute("display", isShown ? "inline" : "none");
    if (!isShown) return;
    frame.group.classList.toggle("above", isAbove);
    frame.box.setAttribute("x", x);
    frame.box.setAttribute("width", width);
    frame.text.setAttribute("x", x + 3);
    frame.text.textContent = fitting(frame.label, width);
  }

  // In as many columns as fit. Returns the height of the image.
  function drawLegend(room) {
    const columns = Math.max(Math.floor(room / layout.legendColumn), 1);
    entries.forEach((entry, number) => {
      const [x, y] = corners[number];
      const left = layout.margin + (number % columns) * layout.legendColumn;
      const top = corners[0][1] + Math.floor(number / columns) * layout.legendRow;
      entry.setAttribute("transform", `translate(${left - x}, ${top - y})`);
    });
    const top = corners.length ? corners[0][1] : +svg.getAttribute("height") - layout.foot;
    return top + Math.ceil(entries.length / columns) * layout.legendRow + layout.foot;
  }

  function draw() {
    const width = Math.max(window.innerWidth - 16, 480);
    const room = width - 2 * layout.margin, height = drawLegend(room);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    search.setAttribute("x", width - layout.margin - 240);
    const scale = room / Math.max(zoomed.of, 1);
    for (const frame of frames) {
      if (within(frame, zoomed)) place(frame, layout.margin + (frame.at - zoomed.at) * scale, frame.of * scale, false);
      else if (frame.row < zoomed.row && within(zoomed, frame)) place(frame, layout.margin, room, true);
      else frame.group.setAttribute("display", "none");
    }
    byId("reset").setAttribute("visibility", zoomed === root ? "hidden" : "visible");
    showMatched();
  }

  function zoom(frame) {
    zoomed = frame;
    draw();
  }

  // Samples of the highlighted frames; a frame inside another one is not counted twice.
  function showMatched() {
    let samples = 0, end = -1;
    if (picked !== null) {
      const hits = frames.filter((frame) => picked(frame) && within(frame, zoomed));
      for (const frame of hits.sort((a, b) => a.at - b.at || b.of - a.of)) {
        if (frame.at >= end) {
          samples += frame.of;
          end = frame.at + frame.of;
        }
      }
    }
    const share = ((100 * samples) / Math.max(zoomed.of, 1)).toFixed(1);
    byId("matched").textContent = picked === null ? "" : `matched: ${share} % (${samples.toLocaleString("en")} samples)`;
  }

  function pick(test, category) {
    picked = test;
    byId("frames").classList.toggle("picking", test !== null);
    byId("legend").classList.toggle("picking", category !== undefined);
    for (const frame of frames) frame.group.classList.toggle("hit", test !== null && test(frame));
    for (const entry of entries) entry.classList.toggle("hit", entry.dataset.category === category);
    showMatched();
  }

  function searchFor(words) {
    const wanted = words.trim().toLowerCase();
    pick(wanted === "" ? null : (frame) => frame.row > 0 && frame.label.toLowerCase().includes(wanted));
  }

  function show(text) {
    const visible = svg.getBoundingClientRect();
    const bottom = Math.min(window.innerHeight, visible.bottom) - visible.top;
    details.setAttribute("transform", `translate(0, ${bottom - 26})`);
    details.querySelector("text").textContent = text;
    details.style.visibility = text === "" ? "hidden" : "visible";
  }

  for (const frame of frames) {
    frame.group.querySelector("title").remove(); // shown at once in the line below instead
    frame.group.addEventListener("click", () => zoom(frame));
    frame.group.addEventListener("mouseenter", () => show(frame.title));
    frame.group.addEventListener("mouseleave", () => show(""));
  }
  for (const entry of entries) {
    entry.addEventListener("click", () => {
      const category = entry.dataset.category, isOff = entry.classList.contains("hit");
      box.value = "";
      if (isOff) pick(null);
      else pick((frame) => frame.row > 0 && frame.category === category, category);
    });
  }
  byId("reset").addEventListener("click", () => zoom(root));
  box.addEventListener("input", () => searchFor(box.value));
  window.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "f") {
      event.preventDefault();
      box.focus();
      box.select();
    } else if (event.key === "Escape" && picked !== null) {
      box.value = "";
      pick(null);
    } else if (event.key === "Escape") {
      zoom(root);
    }
  });
  window.addEventListener("resize", draw);
  draw();
}
