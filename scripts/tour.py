#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/screenshots/tour-*.svg: nettop during real incidents. Needs root.

One incident is a slow consumer behind a lossy link: two processes in two network namespaces, with a link that drops
every third data segment until it is repaired. The other is a single-threaded server that occasionally computes for a
second. Each screenshot is taken when the screen shows what docs/tour.md describes.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
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
from tests.kernel.lab import Lab  # noqa: E402
from tests.kernel.test_owners import control_group  # noqa: E402

FOLDER = ROOT / "docs" / "screenshots"
SIZE = (160, 40)
PORT = 5044
DEADLINE_S = 60
READ_BYTES, PAUSE_S = 1 << 16, 0.05
LOST_EVERY = 3


class Step(NamedTuple):
    """The keys to press, the texts that must appear and disappear in time, and whether to repair the link first."""

    name: str
    keys: tuple[str, ...]
    shows: str
    lacks: str = "nothing is read yet"
    mended: bool = False


LAGGING = (
    Step("start", (), "! ▲ retransmitting 1   retrans ▲"),
    Step("trouble", ("exclamation_mark",), "1 of "),
    Step("details", ("down", "right"), "CWND"),
    Step("drops", ("5",), "mostly NOT_SPECIFIED"),
    Step("mended", ("1", "escape", "escape"), "receiver", "retransmitting", mended=True),
)

SERVICE_PORT, CONNECTIONS = 8000, 12
REQUEST, ANSWER = 200, 2_000
WORK_S, HELD_S = 0.002, 1.3
HELD_AFTER_S, HELD_EVERY_S = 16, 4
SLOW = (
    Step("services", ("7",), "stuck"),
    Step("waiting", ("p", "p", "p"), "not read 11"),
)


def produce(_: dict[Any, Any], to: tuple[str, int]) -> None:
    """Send forever."""
    with socket.create_connection(to) as connection:
        while True:
            connection.sendall(bytes(1 << 16))


def consume(memory: dict[Any, Any]) -> None:
    """Read a little, process it, and repeat."""
    accepted, _ = memory["listener"].accept()
    with accepted:
        while accepted.recv(READ_BYTES):
            traffic.spin(PAUSE_S)


def serve(memory: dict[Any, Any]) -> None:
    """Answer requests immediately, one at a time; later, occasionally compute for a second."""
    poll, began = select.epoll(), time.monotonic()
    next_s = began + HELD_AFTER_S
    accepted = {}
    for _ in range(CONNECTIONS):
        connection = memory["listener"].accept()[0]
        accepted[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
    while True:
        for descriptor, _ in poll.poll():
            traffic.receive(accepted[descriptor], REQUEST)
            is_held = time.monotonic() > next_s
            traffic.spin(HELD_S if is_held else WORK_S)
            accepted[descriptor].sendall(bytes(ANSWER))
            if is_held:
                next_s = time.monotonic() + HELD_EVERY_S


def use(_: dict[Any, Any], to: tuple[str, int]) -> None:
    """Send requests on several connections, each some time after the previous response."""
    poll = select.epoll()
    opened = {}
    for _ in range(CONNECTIONS):
        connection = socket.create_connection(to)
        opened[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
        connection.sendall(bytes(REQUEST))
    while True:
        for descriptor, _ in poll.poll():
            traffic.receive(opened[descriptor], ANSWER)
            traffic.spin(WORK_S)
            opened[descriptor].sendall(bytes(REQUEST))


def is_on(app: NettopApp, step: Step) -> bool:
    """Return whether the screen matches the step."""
    text = "\n".join(strip.text for strip in app.screen._compositor.render_strips())
    return step.shows in text and step.lacks not in text


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; raise SystemExit at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"not within {DEADLINE_S} s: {what}")
        await asyncio.sleep(0.1)


async def walk(session: Session, name: str, steps: Sequence[Step], mend: Callable[[], None]) -> None:
    """Perform the steps and draw a screenshot after each."""
    app = NettopApp(ScreenContext(Settings(), session, host="feeder-1"), DARK.name)
    async with app.run_test(size=SIZE) as pilot:
        for number, step in enumerate(steps, 1):
            if step.mended:
                mend()
            await pilot.press(*step.keys)
            await until(partial(is_on, app, step), f"{step.name} shows {step.shows!r}")
            svg = tidy_svg(app.export_screenshot(title="nettop"))
            (FOLDER / f"{name}-{number}-{step.name}.svg").write_text(svg, encoding="utf-8")
            print(f"{name}, {number} of {len(steps)}: {step.name}")


def draw_lagging_feed() -> None:
    """Stage and draw the incident of the slow consumer."""
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
        asyncio.run(walk(session, "tour", LAGGING, link.nothing))


def draw_slow_service() -> None:
    """Stage and draw the incident of the slow server."""
    with Lab() as lab, Session(1.0, probe_of) as session:
        near, far = lab.pair()
        shop, orders = lab.worker(near.namespace, "shop"), lab.worker(far.namespace, "orders")
        orders.call(traffic.listen, "listener", far.v4, SERVICE_PORT)
        orders.start(serve)
        shop.start(use, (far.v4, SERVICE_PORT))
        asyncio.run(walk(session, "tour-slow", SLOW, lambda: None))


if __name__ == "__main__":
    draw_lagging_feed()
    draw_slow_service()
