#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/screenshots/tour-*.svg: nettop during real incidents. Needs root.

    python scripts/tour.py                  draw all
    python scripts/tour.py feed syn-flood   draw these

Most incidents are faults of tests/kernel/faults.py, with one screenshot each. Two are told at length: `feed`, a slow
consumer behind a link that drops every third data segment until it is repaired, and `held`, a single-threaded server
that occasionally computes for seconds. A screenshot is taken when the screen shows what docs/tour.md describes, and
no finding of anything else on this machine.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.engine.session import Session  # noqa: E402 - the checkout comes first
from nettop.engine.source import probe_of  # noqa: E402
from nettop.kernel.host.facts import Host  # noqa: E402
from nettop.kernel.net.nf_rules import open_asker  # noqa: E402
from nettop.screens.context import ScreenContext  # noqa: E402
from nettop.screens.export import tidy_svg  # noqa: E402
from nettop.screens.nettop_app import NettopApp  # noqa: E402
from nettop.settings import Settings  # noqa: E402
from nettop.widgets.cells import WARNING  # noqa: E402
from nettop.widgets.themes import DARK  # noqa: E402
from tests.kernel import traffic  # noqa: E402
from tests.kernel.faults import FAULTS, made  # noqa: E402
from tests.kernel.lab import Lab  # noqa: E402
from tests.kernel.test_owners import control_group  # noqa: E402

FOLDER = ROOT / "docs" / "screenshots"
SIZE, LARGE = (120, 30), (160, 40)
PORT = 5044
DEADLINE_S = 60
READ_BYTES, PAUSE_S = 1 << 16, 0.05
LOST_EVERY = 3
WINDOW = 1 << 17
"""The consumer's receive buffer: in a large one, minutes of data fit before it limits the producer."""


class Step(NamedTuple):
    """The keys to press, what must then appear and disappear in time, and the name of the screenshot.

    `findings` is the number of lines above the rows. With `changes`, the incident changes before the keys are pressed.
    """

    keys: tuple[str, ...]
    shows: str
    screenshot: str = ""
    findings: int = 1
    lacks: str = "nothing is read yet"
    changes: bool = False


NEXT_FINDING = ("exclamation_mark",)
LAGGING = (
    Step((), "of its segments to", "tour-1-start"),
    Step(NEXT_FINDING, "1 of ", "tour-2-trouble"),
    Step(("right",), "what limits it", "tour-3-details"),
    Step(("5",), "mostly NOT_SPECIFIED", "tour-4-drops"),
    Step(("1", "escape", "escape"), "receiver", "tour-5-mended", findings=0, changes=True),
)

SERVICE_PORT, CONNECTIONS = 8000, 12
REQUEST, ANSWER = 200, 1_000
WORK_S, HELD_S = 0.002, 8.0
HELD_AFTER_S, HELD_EVERY_S = 16, 20
SLOW = (
    Step(("7",), "has not answered a request", "tour-slow-1-services"),
    Step((*NEXT_FINDING, "right"), "not read 11", "tour-slow-2-waiting"),
)


def first_screen(fault: str, sentence: str) -> tuple[Step, ...]:
    """Return the step that draws the first screen with this finding."""
    return (Step((), sentence, f"tour-{fault}"),)


def evidence(fault: str, sentence: str, rows: str, findings: int = 1) -> tuple[Step, ...]:
    """Return the steps that draw the rows that show this finding."""
    return (
        Step((), sentence, findings=findings),
        Step(NEXT_FINDING, rows, f"tour-{fault}", findings=findings),
    )


FROM_FAULTS = {
    "slow-reader": first_screen("slow-reader", "ordersvc waits for it"),
    "accept-queue-full": first_screen("accept-queue-full", "9 of 8 connections wait"),
    "no-local-port": evidence("no-local-port", "no local port, 26/s", "1 of "),
    "connect-silent": first_screen("connect-silent", "9099: 8 waiting"),
    "udp-overflow": evidence("udp-overflow", "its receive buffer is full", "1 of "),
    "firewall-drop": evidence("firewall-drop", "nftables drops", "no payments"),
    "slow-service": (
        Step(("7",), "last 30 s", findings=0),
        Step((), "answers in 1.5", "tour-slow-service", changes=True),
    ),
    "syn-flood": first_screen("syn-flood", "half-open connections"),
    "mtu-black-hole": evidence("mtu-black-hole", "full segments of", "3 of "),
    "close-wait-leak": evidence("close-wait-leak", "their peers have closed", "CLOSE_WAIT"),
    "time-wait": evidence("time-wait", "of 200 in use", "net.ipv4.ip_l"),
    "udp-no-listener": evidence("udp-no-listener", "where nobody listens", "at UDP port 8125"),
}
"""The steps of the incidents whose fault is made in the lab."""


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
    """Answer requests immediately, one at a time; later, occasionally compute for seconds."""
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


def shown_lines(app: NettopApp) -> list[str]:
    """Return the lines of the screen."""
    return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]


def is_on(app: NettopApp, step: Step) -> bool:
    """Return whether the screen matches the step."""
    lines = shown_lines(app)
    text, findings = "\n".join(lines), sum(line[3:4] == WARNING for line in lines)
    return step.shows in text and step.lacks not in text and findings == step.findings


async def until_on(app: NettopApp, step: Step) -> None:
    """Wait until the screen matches the step; raise SystemExit at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not is_on(app, step):
        if time.monotonic() > end:
            lines = "\n".join(shown_lines(app))
            raise SystemExit(f"{lines}\nnot within {DEADLINE_S} s: {step}")
        await asyncio.sleep(0.1)


async def walk(
    session: Session, steps: Sequence[Step], size: tuple[int, int], change: Callable[[], None]
) -> None:
    """Perform the steps and draw their screenshots."""
    app = NettopApp(ScreenContext(Settings(), session, host="feeder-1"), DARK.name)
    async with app.run_test(size=size) as pilot:
        for step in steps:
            if step.changes:
                change()
            await pilot.press(*step.keys)
            await until_on(app, step)
            if step.screenshot:
                svg = tidy_svg(app.export_screenshot(title="nettop"))
                (FOLDER / f"{step.screenshot}.svg").write_text(svg, encoding="utf-8")
                print(step.screenshot, flush=True)


@contextmanager
def watching() -> Iterator[Session]:
    """Open a session like that of the screens, which asks for the rules of the firewall."""
    host = Host()
    with open_asker(host), Session(1.0, partial(probe_of, host=host)) as session:
        yield session


def draw_lagging_feed() -> None:
    """Stage and draw the incident of the slow consumer."""
    with (
        control_group("feeder.slice/feeder.service") as group,
        Lab() as lab,
        watching() as session,
    ):
        near, far = lab.pair()
        far.namespace.sysctl("net.ipv4.tcp_rmem", f"4096 {WINDOW} {WINDOW}")
        producer, consumer = lab.worker(near.namespace, "producer"), lab.worker(far.namespace, "consumer")
        for worker in (producer, consumer):
            (group / "cgroup.procs").write_text(str(worker.pid))
        link = lab.dropper(far)
        link.rule(every=LOST_EVERY, data=True)
        consumer.call(traffic.listen, "listener", far.v4, PORT)
        consumer.start(consume)
        producer.start(produce, (far.v4, PORT))
        asyncio.run(walk(session, LAGGING, LARGE, link.nothing))


def draw_held_service() -> None:
    """Stage and draw the incident of the server that occasionally computes for seconds."""
    with Lab() as lab, watching() as session:
        near, far = lab.pair()
        shop, orders = lab.worker(near.namespace, "shop"), lab.worker(far.namespace, "orders")
        orders.call(traffic.listen, "listener", far.v4, SERVICE_PORT)
        orders.start(serve)
        shop.start(use, (far.v4, SERVICE_PORT))
        asyncio.run(walk(session, SLOW, LARGE, lambda: None))


def draw_fault(name: str) -> None:
    """Make and draw a fault of the lab."""
    fault = next(entry for entry in FAULTS if entry.name == name)
    if why := fault.lacks():
        raise SystemExit(f"{name}: {why}")
    with made(fault) as scene, watching() as session:
        asyncio.run(walk(session, FROM_FAULTS[name], SIZE, scene.worsen))


INCIDENTS = {
    "feed": draw_lagging_feed,
    "held": draw_held_service,
    **{name: partial(draw_fault, name) for name in FROM_FAULTS},
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or INCIDENTS:
        INCIDENTS[chosen]()
