#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/screenshots/tour-*.svg: nettop during a real incident, a slow consumer behind a lossy link. Root.

Two processes in two network namespaces; the link drops each third segment with data, until it is mended. A picture is
taken when the screen shows what docs/tour.md says of it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.engine.session import Session  # noqa: E402 - the checkout comes first
from nettop.engine.source import probe_of  # noqa: E402
from nettop.screens.context import ScreenContext  # noqa: E402
from nettop.screens.export import tidy_svg  # noqa: E402
from nettop.screens.nettop_app import NettopApp  # noqa: E402
from nettop.settings import Settings  # noqa: E402
from nettop.widgets.themes import DARK  # noqa: E402
from tests.kernel import traffic  # noqa: E402
from tests.kernel.lab import Dropper, Lab  # noqa: E402
from tests.kernel.test_owners import control_group  # noqa: E402

SIZE = (160, 40)
PORT = 5044
DEADLINE_S = 60
READ_BYTES, PAUSE_S = 1 << 16, 0.05
LOST_EVERY = 3


class Step(NamedTuple):
    """The keys that are pressed, what the screen shows in time and no longer, and whether the link is mended before."""

    name: str
    keys: tuple[str, ...]
    shows: str
    lacks: str = "nothing is read yet"
    mended: bool = False


STEPS = (
    Step("start", (), "path loss"),
    Step("trouble", ("exclamation_mark",), "1 of "),
    Step("details", ("down", "right"), "CWND"),
    Step("drops", ("5",), "p/s   most NOT_SPECIFIED"),
    Step("mended", ("1", "escape", "escape"), "receiver", "retransmitting", mended=True),
)


def produce(_: dict[Any, Any], to: tuple[str, int]) -> None:
    """Send without end."""
    with socket.create_connection(to) as connection:
        while True:
            connection.sendall(bytes(1 << 16))


def consume(memory: dict[Any, Any]) -> None:
    """Read a little, and work on it."""
    accepted, _ = memory["listener"].accept()
    with accepted:
        while accepted.recv(READ_BYTES):
            traffic.spin(PAUSE_S)


def text_of(app: NettopApp) -> str:
    """What is on the screen."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def is_on(app: NettopApp, step: Step) -> bool:
    """Whether the screen is as the step says."""
    text = text_of(app)
    return step.shows in text and step.lacks not in text


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; raise SystemExit when it does not come true in time."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"not within {DEADLINE_S} s: {what}")
        await asyncio.sleep(0.1)


async def walk(session: Session, link: Dropper, folder: Path) -> None:
    """Go through the steps, and draw each."""
    app = NettopApp(ScreenContext(Settings(), session, host="feeder-1"), DARK.name)
    async with app.run_test(size=SIZE) as pilot:
        for number, step in enumerate(STEPS, 1):
            if step.mended:
                link.nothing()
            await pilot.press(*step.keys)
            await until(partial(is_on, app, step), f"{step.name} shows {step.shows!r}")
            svg = tidy_svg(app.export_screenshot(title="nettop"))
            (folder / f"tour-{number}-{step.name}.svg").write_text(svg, encoding="utf-8")
            print(f"{number} of {len(STEPS)}: {step.name}")


def main() -> None:
    """Make the incident, and draw it."""
    with (
        control_group("feeder.slice/feeder.service") as group,
        Lab() as lab,
        Session(1.0, probe_of) as session,
    ):
        near, far = lab.pair()
        producer, consumer = lab.worker(near.namespace, "producer"), lab.worker(far.namespace, "consumer")
        for worker in (producer, consumer):
            (group / "cgroup.procs").write_text(str(worker.pid))
        link = lab.dropper(far)
        link.rule(every=LOST_EVERY, data=True)
        consumer.call(traffic.listen, "listener", far.v4, PORT)
        consumer.start(consume)
        producer.start(produce, (far.v4, PORT))
        asyncio.run(walk(session, link, ROOT / "docs" / "screenshots"))


if __name__ == "__main__":
    main()
