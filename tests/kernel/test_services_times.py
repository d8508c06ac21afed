# SPDX-License-Identifier: Apache-2.0
"""The services lens's times agree with servers' and clients' own clocks, and it knows waiting requests."""

from __future__ import annotations

import select
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from nettop.query.query import text_query
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots.services import BUCKETS, CONNECTIONS, STUCK_LEAST_S, WAITING
from nettop.snapshots.snapshot import Frame

from .lab import Lab, until
from .services import (
    ERROR,
    MECHANISMS,
    REQUEST,
    SERVED,
    SIZES,
    USED,
    Host,
    Row,
    Watched,
    WatchedByEach,
    connect_each,
    opened,
    quantile,
    receive_each,
    send_each,
)
from .test_events import decoded
from .traffic import Memory, receive, spin

pytestmark = pytest.mark.kernel

MS = 1_000_000


@dataclass
class Durations:
    """Bounds of medians in ns, by the process's own clock."""

    least: float
    most: float

    def check(self, actual: float) -> None:
        """Assert that the measured times lie within these bounds, give or take a bucket's width."""
        assert self.least * (1 - ERROR) <= actual <= self.most * (1 + ERROR)


def medians(pairs: Sequence[tuple[int, int]]) -> Durations:
    """Return the median of each pair's numbers."""
    return Durations(*(statistics.median(numbers) for numbers in zip(*pairs, strict=True)))


# --- times ----------------------------------------------------------------------------------------------------


def answer_late(memory: Memory, names: Sequence[int], count: int, delay_s: float) -> Durations:
    """Answer after a delay; return bounds of the time from reading to the response's first byte."""
    times = []
    for _ in range(count):
        for name in names:
            receive(memory[name], SIZES[0])
            read_at = time.monotonic_ns()
            spin(delay_s)
            sent_at = time.monotonic_ns()
            memory[name].sendall(b"a" * SIZES[1])
            # The read ended before its caller saw that, by a switch to another process perhaps.
            times.append((sent_at - read_at, time.monotonic_ns() - read_at))
    return medians(times)


def request_and_measure(memory: Memory, names: Sequence[int], count: int) -> Durations:
    """Request `count` times; return upper bounds of the time from the request to the response's first byte."""
    times = []
    for _ in range(count):
        for name in names:
            began = time.monotonic_ns()
            memory[name].sendall(b"q" * SIZES[0])
            sent_at = time.monotonic_ns()
            select.select([memory[name]], [], [])
            times.append((0, time.monotonic_ns() - began))
            receive(memory[name], SIZES[1])
            assert sent_at > began
    return medians(times)


@pytest.mark.parametrize(("delay_s", "count"), [(0.0002, 501), (0.005, 101), (0.05, 21)])
def test_fixed_delays(watched: Watched, host: Host, delay_s: float, count: int) -> None:
    """The time of service is the server's delay; the response time at both ends is at least that."""
    with opened(host.client, host.server, host.port, "::1") as names:
        host.server.start(answer_late, names, count, delay_s)
        at_client = host.client.call(request_and_measure, names, count)
        service = host.server.result()
    served = watched.until(host.namespace, host.port, SERVED, responses=count)
    used = watched.until(host.namespace, host.port, USED, responses=count)
    # A system call's way back to the process takes microseconds that the lens does not see.
    Durations(service.least, service.most + 20_000).check(quantile(served, "service_time", 0.5))
    Durations(service.least, at_client.most).check(quantile(served, "response", 0.5))
    Durations(service.least, at_client.most).check(quantile(used, "response", 0.5))
    assert quantile(served, "response", 1) <= used["response_ns"]


def leave_and_answer(memory: Memory, name: object, count: int, delay_s: float) -> list[tuple[int, int]]:
    """Leave requests unread for a while, then answer at once; return for each how long it was unread at least, and when
    the read had ended."""
    reads = []
    for _ in range(count):
        select.select([memory[name]], [], [])
        arrived_at = time.monotonic_ns()
        spin(delay_s)
        began = time.monotonic_ns()
        receive(memory[name], SIZES[0])
        reads.append((began - arrived_at, time.monotonic_ns()))
        memory[name].sendall(b"a" * SIZES[1])
    return reads


def request_in_turn(memory: Memory, name: object, count: int) -> list[int]:
    """Request `count` times; return when each request began to be sent."""
    times = []
    for _ in range(count):
        times.append(time.monotonic_ns())
        memory[name].sendall(b"q" * SIZES[0])
        receive(memory[name], SIZES[1])
    return times


@pytest.mark.core
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_queue_of_a_connection(
    mechanism: str, all_watches: WatchedByEach, host: Host, record: Callable[..., None]
) -> None:
    """A connection's time in the queue is within the bounds of both processes' clocks, and agrees with the histogram of
    its service; a client has none."""
    watched = all_watches.by(mechanism, record)
    count = 31
    with opened(host.client, host.server, host.port, "::1") as (name,):
        host.server.start(leave_and_answer, name, count, 0.003)
        sent = host.client.call(request_in_turn, name, count)
        reads = host.server.result()
        service = watched.until(host.namespace, host.port, SERVED, responses=count)
        snapshot = watched.read()
    rows = {
        row["side"]: row
        for row in decoded(snapshot.tables[CONNECTIONS.name], host.namespace.inode)
        if host.port in (row["local_port"], row["remote_port"])
    }
    queued_ns = rows[SERVED]["queued_ns"]
    assert sum(least for least, _ in reads) <= queued_ns <= sum(end for _, end in reads) - sum(sent)
    assert rows[SERVED]["queued_responses"] == rows[SERVED]["responses"] == sum(service["queued"]) == count
    assert float(np.array(service["queued"]) @ BUCKETS.middles) == pytest.approx(queued_ns, rel=ERROR)
    assert rows[SERVED]["queued_ns"] <= rows[SERVED]["response_ns"]
    view = View(Frame(snapshot), text_query(CONNECTIONS))
    means = dict(
        zip(values_of(view, "id", view.order), values_of(view, "queued_mean", view.order), strict=True)
    )
    assert means[rows[SERVED]["id"]] == queued_ns / count
    assert rows[USED]["queued_ns"] is rows[USED]["queued_responses"] is means[rows[USED]["id"]] is None
    record(verdict="same")


def test_a_full_accept_queue(watched: Watched, lab: Lab) -> None:
    """Requests on unaccepted connections wait, unread, at the listening process; then that time was queueing."""
    if (unowned := watched.read().hooks[1]).mechanism is None:
        pytest.skip(f"unowned: {unowned.why}")
    host, queued = Host(lab, backlog=3), 4
    host.client.call(connect_each, "127.0.0.1", host.port, queued)
    began = time.monotonic_ns()
    host.client.call(send_each, list(range(queued)), REQUEST)
    sent = time.monotonic_ns()
    until(lambda: time.monotonic_ns() > sent + 60 * MS, "they have waited")
    rows = [row for row in watched.rows(WAITING.name, host.namespace, host.port) if row["side"] == SERVED]
    assert [(row["process"], row["pid"], row["was_read"]) for row in rows] == [
        ("server", host.server.pid, "no")
    ] * queued
    accepting = time.monotonic_ns()
    host.server.call(accept_and_answer, queued)
    answered = time.monotonic_ns()
    row = watched.until(host.namespace, host.port, SERVED, responses=queued, waiting=0)
    for share in (0, 1):
        Durations(accepting - sent, answered - began).check(quantile(row, "queued", share))


def accept_and_answer(memory: Memory, count: int) -> None:
    """Answer the first request of `count` connections."""
    for name in range(count):
        memory[name] = memory["listener"].accept()[0]
        receive(memory[name], SIZES[0])
        memory[name].sendall(b"a" * SIZES[1])


def test_transfer(watched: Watched, host: Host) -> None:
    """The transfer lasts from a response's first byte to its last, at both ends."""
    count = 11
    with opened(host.client, host.server, host.port, "::1") as names:
        host.client.start(request_twofold, names, count)
        transfers = host.server.call(answer_in_two, names, count, 0.02)
        host.client.result()
    for side in (SERVED, USED):
        row = watched.until(
            host.namespace,
            host.port,
            side,
            responses=count,
            response_bytes=2 * SIZES[1] * count,
            connections=0,
        )
        assert transfers.least * count * 0.99 <= row["transfer_ns"] <= transfers.most * count * 1.5


def request_twofold(memory: Memory, names: Sequence[int], count: int) -> None:
    """Send `count` requests that are each answered in two parts."""
    for _ in range(count):
        send_each(memory, list(names), SIZES[0])
        receive_each(memory, list(names), 2 * SIZES[1])


def answer_in_two(memory: Memory, names: Sequence[int], count: int, apart_s: float) -> Durations:
    """Answer in two parts with a pause; return the pauses' lengths."""
    times = []
    for _ in range(count):
        for name in names:
            receive(memory[name], SIZES[0])
            began = time.monotonic_ns()
            memory[name].sendall(b"a" * SIZES[1])
            sent = time.monotonic_ns()
            spin(apart_s)
            between = time.monotonic_ns()
            memory[name].sendall(b"a" * SIZES[1])
            times.append((between - sent, time.monotonic_ns() - began))
    return Durations(min(least for least, _ in times), max(most for _, most in times))


# --- what waits -----------------------------------------------------------------------------------------------


def begin_to_stream(memory: Memory, name: int) -> None:
    """Send data without a pause in a background thread, until told to stop."""
    memory["stop"] = threading.Event()

    def run() -> None:
        while not memory["stop"].is_set():
            memory[name].sendall(bytes(65536))

    memory["thread"] = threading.Thread(target=run, daemon=True)
    memory["thread"].start()


def stop_streaming(memory: Memory) -> None:
    """Stop the stream."""
    memory["stop"].set()
    memory["thread"].join()


def begin_to_read(memory: Memory, name: int) -> None:
    """Read until the connection ends, in a background thread."""

    def run() -> None:
        while memory[name].recv(1 << 20):
            pass

    memory["thread"] = threading.Thread(target=run, daemon=True)
    memory["thread"].start()


def test_a_stream_is_not_stuck(watched: Watched, host: Host) -> None:
    """Data in one direction is a request that is still being sent; it is stuck once its data has stopped."""
    with opened(host.client, host.server, host.port, "127.0.0.1") as (name,):
        host.server.call(begin_to_read, name)
        host.client.call(begin_to_stream, name)
        for side in (SERVED, USED):

            def stream_of_a_second(side: str = side) -> Row | None:
                row = watched.services(host.namespace).get((side, host.port))
                return row if row and (row["oldest"] or 0) > STUCK_LEAST_S * 1e9 else None

            row = until(stream_of_a_second, "the stream is older than a second")
            assert (row["waiting"], row["speed"]) == (1, "as usual")
            assert row["stalled"] < STUCK_LEAST_S * 1e9
        host.client.call(stop_streaming)
        for side in (SERVED, USED):
            watched.until(host.namespace, host.port, side, waiting=1, speed="stuck")
