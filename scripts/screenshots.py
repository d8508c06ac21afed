#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/screenshots/*.svg: the screens over example rows, through Textual's pilot, the same in each run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.screens.export import tidy_svg  # noqa: E402 - the checkout comes first
from nettop.settings import Settings, ViewSettings  # noqa: E402
from nettop.snapshots import lenses  # noqa: E402
from nettop.snapshots.own_cost import SELF  # noqa: E402
from tests.screens import (  # noqa: E402
    example_bandwidth,
    example_cpu,
    example_drops,
    example_flows,
    example_latency,
    example_self,
)
from tests.screens.example_events import eventful_host  # noqa: E402
from tests.screens.harness import Harness, Script  # noqa: E402


class Screenshot(NamedTuple):
    """A view, the terminal's columns and rows, and the readings and then the keys before the screenshot."""

    view: str
    size: tuple[int, int]
    keys: tuple[str, ...] = ()
    ticks: int = 3


SIZE = (120, 30)
SCREENSHOTS = {
    "connections": Screenshot("connections", SIZE, ("down", "down", "down", "down")),
    "events": Screenshot("connections.events", SIZE, ("down", "down")),
    "cpu": Screenshot("cpu", (120, 36)),
    "bandwidth": Screenshot("bandwidth", (120, 30), ("down",), ticks=25),
    "latency": Screenshot("latency", (120, 40), ("down",) * 6, ticks=90),
    "drops": Screenshot("drops", (120, 20), ("down",)),
    "flows": Screenshot("flows", (120, 20), ("down", "down")),
    "self": Screenshot("self", (120, 20), ("down",)),
}


def example_sources() -> dict[str, Script]:
    """A source for each lens, all on one host."""
    steps, batches = eventful_host()
    return {
        "connections": Script(steps, batches=batches),
        "cpu": Script(example_cpu.example_steps()),
        "bandwidth": Script(example_bandwidth.example_steps(25, apart_s=5)),
        "latency": Script(example_latency.example_steps(90)),
        "drops": Script(example_drops.example_steps()),
        "flows": Script(example_flows.example_steps()),
        SELF.id: Script(example_self.example_steps()),
    }


async def draw(shot: Screenshot) -> str:
    """The screen after its keys, as SVG."""
    harness = Harness(example_sources().__getitem__)
    harness.session._source = example_sources().__getitem__  # type: ignore[method-assign]
    app = harness.app(Settings(view=ViewSettings(view=shot.view)), lens_set=lenses())
    async with app.run_test(size=shot.size) as pilot:
        for key in (*["tick"] * shot.ticks, *shot.keys):
            if key == "tick":
                harness.tick()
            else:
                await pilot.press(key)
                await pilot.pause()
                harness.run_tasks()
            await pilot.pause()
        return tidy_svg(app.export_screenshot(title="nettop"))


def main() -> None:
    """Draw all, or those that are named."""
    folder = ROOT / "docs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or SCREENSHOTS:
        (folder / f"{name}.svg").write_text(asyncio.run(draw(SCREENSHOTS[name])), encoding="utf-8")


if __name__ == "__main__":
    main()
