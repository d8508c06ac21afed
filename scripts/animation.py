#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/screenshots/demo.svg: somebody uses `nettop --demo`, second by second and key by key; reproducible.

Each distinct line of the terminal is stored once. A viewer without animations shows the first frame.
"""

from __future__ import annotations

import asyncio
import html
import re
import sys
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.screens.export import tidy_svg  # noqa: E402 - the checkout comes first
from tests.builders.demo import Playing, playing  # noqa: E402

ANIMATION = ROOT / "docs" / "screenshots" / "demo.svg"
SIZE = (100, 26)
CELL, LINE = 12.2, 24.4
"""Width of a character and height of a line in the SVG of a screen."""
TYPED_S, PLAYED_S, READ_S = 0.3, 1.0, 5.0
"""How long a frame is shown: of keys in a row, of a second of the demo, and where there is much to read."""


class Step(NamedTuple):
    """Keys to press, how long to show what each leads to, and the second up to which the demo plays then."""

    keys: tuple[str, ...]
    shown_s: float = PLAYED_S
    until: int = 0


BEGIN = 34
STEPS = (
    Step((), until=36),
    Step(("7",), until=41),
    Step(("slash", *"8080"), TYPED_S),
    Step(("enter",), until=45),
    Step(("0",), until=46),
    Step(("down", "down")),
    Step(("right",), READ_S),
)
"""A service that works well slows down. All others are filtered out, and its finding says what to try."""
KEYS = {"slash": "/", "down": "↓", "right": "→", "enter": "Enter"}


class Frame(NamedTuple):
    """A screen as SVG, how long it is shown, and the key that led to it."""

    svg: str
    shown_s: float
    key: str = ""


async def frames() -> list[Frame]:
    """Return the screens of all steps; the seconds before have been read."""
    drawn = []
    async with playing(SIZE) as demo:
        await demo.play_until(BEGIN)
        second = BEGIN
        for step in STEPS:
            for key in step.keys:
                await demo.press(key)
                drawn.append(Frame(screen(demo), step.shown_s, KEYS.get(key, key)))
            while second < step.until:
                second += 1
                await demo.play_until(second)
                drawn.append(Frame(screen(demo), PLAYED_S))
    return drawn


def screen(demo: Playing) -> str:
    """Return the screen as SVG."""
    return tidy_svg(demo.app.export_screenshot(title="nettop --demo"))


class Lines:
    """The distinct lines of screens and the styles in them, each with its name."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self.styles: dict[str, str] = {}

    def of_screen(self, svg: str) -> str:
        """Return the elements that refer to the lines of a screen."""
        styles = dict(re.findall(r"\.nettop-(r\d+) \{ (.*?) \}", svg))
        lines: dict[int, str] = {}
        for element in ET.fromstring(svg).iter():  # noqa: S314 - made just before
            given, text = element.attrib, element.text or ""
            if "shape-rendering" in given:
                style, tag, size = f"fill: {given['fill']}", 'rect height="24.7"', "width"
            elif text and (style := styles.get(given.get("class", "").removeprefix("nettop-"), "")):
                tag, size = 'text y="18.5"', "textLength"
            else:
                continue
            name = self.styles.setdefault(style, f"s{len(self.styles)}")
            shown = f'<{tag} class="{name}" x="{given["x"]}" {size}="{given[size]}"'
            shown += f">{html.escape(text, quote=False)}</text>" if text.strip() else "/>"
            at = int((float(given["y"]) - 1) / LINE)
            lines[at] = lines.get(at, "") + (shown if given[size] != "0" else "")
        return "".join(
            f'<use href="#{self.lines.setdefault(line, f"l{len(self.lines)}")}" y="{at * LINE:.1f}"/>'
            for at, line in lines.items()
        )


def animated(drawn: list[Frame]) -> str:
    """Return one SVG that shows these, one after the other, again and again."""
    lines, first = Lines(), drawn[0].svg
    screens = [lines.of_screen(frame.svg) for frame in drawn]
    ends = [0.0, *accumulate(frame.shown_s for frame in drawn)]
    head = first[: first.index(">") + 1]
    window = first[first.index("</defs>") + len("</defs>") : first.index('<g transform="translate(9, 41)"')]
    timing, groups = "", ""
    for at, (frame, shown) in enumerate(zip(drawn, screens, strict=True)):
        begin, end = (f"{100 * moment / ends[-1]:.2f}%" for moment in ends[at : at + 2])
        hidden = f"{end}, 100%" if at == 0 else f"0%, {end}, 100%"
        timing += (
            f"@keyframes f{at} {{ {begin} {{ visibility: visible }} {hidden} {{ visibility: hidden }} }}\n"
        )
        groups += f'<g class="frame" style="animation-name: f{at}">{shown}'
        groups += f'<text class="key" x="{SIZE[0] * CELL:.0f}" y="-15">{html.escape(frame.key)}</text></g>\n'
    defined = "\n".join(f'<g id="{name}">{line}</g>' for line, name in lines.lines.items())
    styles = "\n".join(f".{name} {{ {style} }}" for style, name in lines.styles.items())
    return f"""{head}
<style>
text {{ font: 20px DejaVu Sans Mono, monospace; white-space: pre }}
.nettop-title {{ font: bold 18px arial; }}
.key {{ fill: #e8c547; font-weight: bold; text-anchor: end }}
rect {{ shape-rendering: crispEdges }}
.frame {{ visibility: hidden; animation: {ends[-1]:g}s step-end infinite }}
.frame:first-of-type {{ visibility: visible }}
@media (prefers-reduced-motion: reduce) {{ .frame {{ animation: none }} }}
{styles}
{timing}</style>
<defs>
{defined}
</defs>
{window}<g transform="translate(9, 42.5)">
{groups}</g>
</svg>
"""


if __name__ == "__main__":
    ANIMATION.write_text(animated(asyncio.run(frames())), encoding="utf-8")
