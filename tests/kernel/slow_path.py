# SPDX-License-Identifier: Apache-2.0
"""A path between two namespaces that holds each packet for a known time, and programs at its ends with known delays.

A worker forwards between a tun device in each namespace, because not every kernel has netem. All run in real time, so
that a busy machine delays nothing, and record what they really took.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .fault_outside import open_tunnel
from .lab import Lab, Namespace, enter
from .services import REQUEST
from .traffic import Memory, receive

NAMES = ("near", "far")
ADDRESSES = {4: ("10.79.0.1", "10.79.0.2"), 6: ("fd79::1", "fd79::2")}
DEVICE = "slow0"


@dataclass
class Means:
    """Sums of durations by name, and their number."""

    sums: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, ns: int) -> None:
        """Add a duration."""
        self.sums[name] = self.sums.get(name, 0) + ns
        self.counts[name] = self.counts.get(name, 0) + 1

    def by_name(self) -> dict[str, float]:
        """Return each mean, in ns."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def in_real_time(run: Callable[[], None]) -> threading.Thread:
    """Run a function in a thread that is scheduled before all ordinary ones."""

    def prepared() -> None:
        with contextlib.suppress(PermissionError):  # a container may not; there, a busy machine delays it
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
        run()

    thread = threading.Thread(target=prepared, daemon=True)
    thread.start()
    return thread


def sleep_until(ns: int) -> None:
    """Sleep until this time of the monotonic clock."""
    time.sleep(max(0, ns - time.monotonic_ns()) / 1e9)


def finish(memory: Memory) -> dict[str, float]:
    """Stop what runs in the background; return its mean times in ns."""
    memory["stop"].set()
    memory["thread"].join()
    means: Means = memory["means"]
    return means.by_name()


class SlowPath:
    """Two namespaces, and the worker that forwards between them and holds each packet for `delay_s`."""

    def __init__(self, lab: Lab, delay_s: float) -> None:
        self.near, self.far = lab.namespace(), lab.namespace()
        self.forwarder = lab.worker(None, "forwarder")
        self.forwarder.call(open_ends, self.near.name, self.far.name)
        for side, namespace in enumerate((self.near, self.far)):
            _configure(namespace, side)
        self.forwarder.call(forward, round(delay_s * 1e9))


def _configure(namespace: Namespace, side: int) -> None:
    namespace.ip_batch(
        f"addr add {ADDRESSES[4][side]}/24 dev {DEVICE}",
        f"addr add {ADDRESSES[6][side]}/64 dev {DEVICE} nodad",
        f"link set {DEVICE} up",
    )


def open_ends(memory: Memory, *namespaces: str) -> None:
    """Create a tun device in each of the two namespaces."""
    for name, namespace in zip(NAMES, namespaces, strict=True):
        enter(namespace)
        open_tunnel(memory, DEVICE)
        memory[name] = memory.pop("tunnel")


def forward(memory: Memory, delay_ns: int) -> None:
    """Forward packets in the background, each after this delay; record the mean delay of each direction."""
    memory["stop"], memory["means"] = threading.Event(), Means()
    ends = {memory["near"]: ("there", memory["far"]), memory["far"]: ("back", memory["near"])}
    held: deque[tuple[int, int, bytes]] = deque()

    def run() -> None:
        while not memory["stop"].is_set():
            wait_s = (held[0][0] + delay_ns - time.monotonic_ns()) / 1e9 if held else 0.1
            for end in select.select(list(ends), [], [], max(0.0, wait_s))[0]:
                held.append((time.monotonic_ns(), end, os.read(end, 65536)))
            while held and held[0][0] + delay_ns <= time.monotonic_ns():
                came_ns, end, packet = held.popleft()
                name, other = ends[end]
                memory["means"].add(name, time.monotonic_ns() - came_ns)
                os.write(other, packet)

    memory["thread"] = in_real_time(run)


def ask_again(memory: Memory, name: object, pause_s: float) -> None:
    """Ask in the background, again and again, this long after each answer; record the mean response and pause."""
    memory["stop"], memory["means"] = threading.Event(), Means()
    held: socket.socket = memory[name]

    def run() -> None:
        answered_ns = 0
        while not memory["stop"].is_set():
            asked_ns = time.monotonic_ns()
            held.sendall(b"q" * REQUEST)
            select.select([held], [], [])
            if answered_ns:
                memory["means"].add("client", asked_ns - answered_ns)
            answered_ns = time.monotonic_ns()
            memory["means"].add("response", answered_ns - asked_ns)
            receive(held, REQUEST)
            sleep_until(answered_ns + round(pause_s * 1e9))

    memory["thread"] = in_real_time(run)


def answer_late(memory: Memory, name: object, queue_s: float, service_s: float) -> None:
    """Answer in the background: leave each request unread for `queue_s`, and answer `service_s` after reading it.
    Record the mean of both."""
    memory["stop"], memory["means"] = threading.Event(), Means()
    held: socket.socket = memory[name]

    def run() -> None:
        while not memory["stop"].is_set():
            if not select.select([held], [], [], 0.1)[0]:
                continue
            came_ns = time.monotonic_ns()
            sleep_until(came_ns + round(queue_s * 1e9))
            receive(held, REQUEST)
            read_ns = time.monotonic_ns()
            sleep_until(read_ns + round(service_s * 1e9))
            memory["means"].add("queue", read_ns - came_ns)
            memory["means"].add("service", time.monotonic_ns() - read_ns)
            held.sendall(b"a" * REQUEST)

    memory["thread"] = in_real_time(run)
