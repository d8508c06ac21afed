#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/screenshots/demo.svg: some moments of `nettop --demo`, one after the other; reproducible.

A viewer without animations shows the first of them.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.screens.export import tidy_svg  # noqa: E402 - the checkout comes first
from tests.screens.demo import playing  # noqa: E402

ANIMATION = ROOT / "docs" / "screenshots" / "demo.svg"
SIZE = (100, 26)
SHOWN_S = 4


class Moment(NamedTuple):
    """A second of the demo, and the keys that are pressed then."""

    second: int
    keys: tuple[str, ...] = ()


MOMENTS = (
    Moment(33, ("down",)),
    Moment(39),
    Moment(44),
    Moment(45, ("0", "down", "down")),
    Moment(46, ("right",)),
)
"""A service that works well, slows down and is found."""


async def frames() -> list[str]:
    """Return the screen at each moment, as SVG; what came before has been read."""
    drawn = []
    async with playing(SIZE, "services") as demo:
        for moment in MOMENTS:
            await demo.play_until(moment.second)
            await demo.press(*moment.keys)
            drawn.append(tidy_svg(demo.app.export_screenshot(title="nettop --demo")))
    return drawn


def animated(drawn: list[str]) -> str:
    """Return one SVG that shows these, each for SHOWN_S seconds, again and again."""
    head = drawn[0][: drawn[0].index(">") + 1]
    whole_s = SHOWN_S * len(drawn)
    style = f"""<style>
@keyframes shown {{ 0% {{ visibility: visible }} {100 / len(drawn):g}%, 100% {{ visibility: hidden }} }}
.frame {{ visibility: hidden; animation: shown {whole_s}s step-end infinite }}
.frame:first-of-type {{ visibility: visible }}
@media (prefers-reduced-motion: reduce) {{ .frame {{ animation: none }} }}
</style>"""
    groups = [
        f'<g class="frame" style="animation-delay: {number * SHOWN_S}s">\n{_inside(svg, number)}</g>'
        for number, svg in enumerate(drawn)
    ]
    return "\n".join([head, style, *groups, "</svg>\n"])


def _inside(svg: str, number: int) -> str:
    """Return the content of an SVG, with names of its own."""
    return svg[svg.index(">") + 1 : svg.rindex("</svg>")].replace("nettop-", f"f{number}-")


if __name__ == "__main__":
    ANIMATION.write_text(animated(asyncio.run(frames())), encoding="utf-8")
