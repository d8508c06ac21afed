#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/screenshots/*.svg: the screens over example rows, through Textual's pilot, the same in each run."""

from __future__ import annotations

import asyncio
import html
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.screens.example_events import eventful_host  # noqa: E402 - the checkout comes first
from tests.screens.harness import stage_of  # noqa: E402

DETAILS = {
    "held by": "nginx 1813, descriptor 12",
    "also held by": "nginx 1812, descriptor 12; nginx 1814, descriptor 12",
    "command": "nginx: worker process",
    "cgroup": "/system.slice/nginx.service",
}
PICTURES = {
    "connections": ((120, 34), ("down", "down", "down", "down")),
    "details": ((160, 40), ("down", "down", "right")),
    "events": ((120, 34), ("p", "down", "down")),
}


async def draw(size: tuple[int, int], keys: tuple[str, ...]) -> str:
    """The picture of a screen after some keys, as SVG."""
    steps, batches = eventful_host()
    stage = stage_of(steps, DETAILS, batches)
    app = stage.app()
    async with app.run_test(size=size) as pilot:
        for _ in range(2):
            stage.tick()
            await pilot.pause()
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
            stage.run_tasks()
            await pilot.pause()
        return tidy(app.export_screenshot(title="nettop"))


def tidy(svg: str) -> str:
    """The picture without the number that differs from run to run, and without a font from the web."""
    svg = re.sub(r"terminal-\d+-", "nettop-", svg)
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' x="([\d.]+)"( y="[\d.]+") textLength="([\d.]+)"([^>]*)>([^<]+)<', _without_outer_spaces, svg
    )
    return re.sub(r"[ \t]+$", "", svg.replace("Fira Code", "DejaVu Sans Mono"), flags=re.MULTILINE)


def _without_outer_spaces(match: re.Match[str]) -> str:
    """A text moved to where its first visible character stands: some viewers drop the spaces before it."""
    x, length, text = float(match[1]), float(match[3]), html.unescape(match[5])
    cell = length / len(text)
    x += cell * (len(text) - len(text.lstrip()))
    shown = html.escape(text.strip(), quote=False).replace("\xa0", "&#160;")
    return f' x="{x:.1f}"{match[2]} textLength="{cell * len(text.strip()):.1f}"{match[4]}>{shown}<'


def main() -> None:
    """Draw all, or those that are named."""
    folder = ROOT / "docs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        (folder / f"{name}.svg").write_text(asyncio.run(draw(*PICTURES[name])), encoding="utf-8")


if __name__ == "__main__":
    main()
