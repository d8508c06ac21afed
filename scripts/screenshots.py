#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/screenshots/*.svg: screens of `nettop --demo`, and of example rows what it lacks; reproducible.

With --every-size FOLDER, draw every view with example rows at five sizes, dark and light, as SVG, and with rsvg-convert
also as PNG.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.screens.export import tidy_svg  # noqa: E402 - the checkout comes first
from nettop.settings import Settings, ViewSettings  # noqa: E402
from nettop.snapshots import lenses  # noqa: E402
from nettop.snapshots.findings import LENS as FINDINGS  # noqa: E402
from nettop.snapshots.own_cost import SELF  # noqa: E402
from nettop.widgets.themes import DARK, LIGHT  # noqa: E402
from tests.builders import (  # noqa: E402
    example_bandwidth,
    example_cpu,
    example_drops,
    example_findings,
    example_flows,
    example_latency,
    example_self,
    example_services,
)
from tests.builders.demo import playing  # noqa: E402
from tests.builders.example_events import eventful_host  # noqa: E402
from tests.builders.harness import Harness, Rules, Script  # noqa: E402


class OfDemo(NamedTuple):
    """A view, the terminal size, the second of the demo, and the keys pressed then."""

    view: str
    size: tuple[int, int]
    second: int
    keys: tuple[str, ...] = ()


class OfExamples(NamedTuple):
    """A view, the terminal size, the keys pressed after a number of reads, and the theme."""

    view: str
    size: tuple[int, int]
    keys: tuple[str, ...] = ()
    ticks: int = 3
    theme: str = DARK.name


SIZE = (120, 30)
EVERYTHING = {
    "connections": OfExamples("connections", SIZE, ("down", "down", "down", "down")),
    "events": OfExamples("connections.events", SIZE, ("down", "down")),
    "cpu": OfExamples("cpu", (120, 36)),
    "bandwidth": OfExamples("bandwidth", (120, 30), ("down",), ticks=25),
    "latency": OfExamples("latency", (120, 40), ("down",) * 6, ticks=90),
    "services": OfExamples("services", (120, 40), ("down",), ticks=90),
    "drops": OfExamples("drops", (120, 20), ("down",)),
    "collector": OfExamples("collector", (120, 20), ("down", "down")),
    "findings": OfExamples("findings", (120, 30), ("down", "right"), ticks=50),
    "self": OfExamples("self", (120, 20), ("down",)),
    "details": OfExamples("connections", SIZE, ("down", "right")),
    "groups": OfExamples("connections.groups", SIZE, ("down",)),
    "failures": OfExamples("connections.failures", SIZE, ("down",)),
    "flows-of-interfaces": OfExamples("bandwidth.flows", SIZE, ("down",), ticks=25),
    "counters": OfExamples("drops.counters", SIZE, ("down",)),
    "help": OfExamples("connections", SIZE, ("question_mark",)),
    "columns": OfExamples("connections", SIZE, ("C",)),
}
SCREENSHOTS = {
    "connections": OfDemo("connections", SIZE, 12, ("down", "down")),
    "events": OfDemo("connections.events", (120, 20), 30, ("down", "down")),
    "cpu": OfDemo("cpu", (120, 36), 30),
    "bandwidth": OfDemo("bandwidth", (120, 30), 30, ("down",)),
    "latency": OfDemo("latency", (120, 40), 60, ("down",) * 2),
    "services": OfDemo("services", (120, 40), 60, ("down",)),
    "drops": OfDemo("drops", (120, 20), 14, ("down",)),
    "collector": EVERYTHING["collector"],
    "findings": OfDemo("findings", (120, 36), 45, ("down", "right")),
    "self": EVERYTHING["self"],
}
"""Those in the documents."""
SIZES = ((80, 24), (100, 30), (120, 40), (160, 45), (220, 60))
THEMES = {"dark": DARK.name, "light": LIGHT.name}


def example_sources() -> dict[str, Script]:
    """Return a source for each lens, all on one host."""
    steps, batches = eventful_host()
    return {
        "connections": Script(steps, {"command": "nginx: worker process", "descriptors": "14"}, batches),
        "cpu": Script(example_cpu.example_steps()),
        "bandwidth": Script(example_bandwidth.example_steps(25, apart_s=5)),
        "latency": Script(example_latency.example_steps(90)),
        "services": Script(example_services.example_steps(90)),
        "drops": Script(example_drops.example_steps()),
        "collector": Script(example_flows.example_steps()),
        FINDINGS.id: Rules(),
        SELF.id: Script(example_self.example_steps()),
    }


async def draw_demo(shot: OfDemo) -> str:
    """Play the demo up to a moment, press the keys, and return the screen as SVG."""
    async with playing(shot.size, shot.view) as demo:
        await demo.play_until(shot.second)
        await demo.press(*shot.keys)
        return tidy_svg(demo.app.export_screenshot(title="nettop --demo"))


async def draw_examples(shot: OfExamples) -> str:
    """Press the keys and return the screen as SVG. Only the view of findings is of a host on a bad day."""
    sources = example_sources()
    if shot.view == FINDINGS.id:
        sources["connections"] = Script(example_findings.example_steps())
    harness = Harness(sources.__getitem__)
    harness.session._source = sources.__getitem__  # type: ignore[method-assign]
    app = harness.app(Settings(view=ViewSettings(view=shot.view)), shot.theme, lens_set=lenses())
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


def write(folder: Path, shots: Mapping[str, OfDemo | OfExamples]) -> None:
    """Write each screenshot to the file with its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shot in shots.items():
        drawn = draw_demo(shot) if isinstance(shot, OfDemo) else draw_examples(shot)
        (folder / f"{name}.svg").write_text(asyncio.run(drawn), encoding="utf-8")


def at_every_size() -> dict[str, OfExamples]:
    """Return screenshots of every view in each size and theme."""
    return {
        f"{name}-{columns}x{rows}-{theme}": shot._replace(size=(columns, rows), theme=palette)
        for name, shot in EVERYTHING.items()
        for columns, rows in SIZES
        for theme, palette in THEMES.items()
    }


def main() -> None:
    """Draw all or the named screenshots for the documents, or every view and size into a directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*SCREENSHOTS, []])
    parser.add_argument("--every-size", type=Path, metavar="FOLDER")
    wanted = parser.parse_args()
    if wanted.every_size is None:
        names = wanted.names or SCREENSHOTS
        write(ROOT / "docs" / "screenshots", {name: SCREENSHOTS[name] for name in names})
        return
    write(wanted.every_size, at_every_size())
    convert = shutil.which("rsvg-convert")
    if convert:
        for svg in sorted(wanted.every_size.glob("*.svg")):
            subprocess.run([convert, "-o", svg.with_suffix(".png"), svg], check=True)


if __name__ == "__main__":
    main()
