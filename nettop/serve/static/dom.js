// SPDX-License-Identifier: Apache-2.0
// DOM helpers without markup: data from the network is only ever inserted as text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function makeSvg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

// Skip unchanged text: writing it would cost a layout and clear a selection.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// Announce a user's action to screen readers; periodic readings are not announced.
export function announce(text) {
  byId("announcer").textContent = text;
}

// Return a CSS colour, such as var(--text), for a canvas.
const probe = make("span", { hidden: "" });
export function colour(value) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = value;
  return getComputedStyle(probe).color;
}

// Return a cleared canvas context in CSS pixels, resized to the displayed size.
export function canvasContext(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== across) canvas.width = across;
  if (canvas.height !== down) canvas.height = down;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
