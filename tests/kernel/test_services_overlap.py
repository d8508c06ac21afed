# SPDX-License-Identifier: Apache-2.0
"""The services lens tells requests that overlap from requests in parts by the order of bytes and acknowledgements, and
marks a connection where the order cannot tell.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from .lab import Lab
from .services import ANSWER, REQUEST, SERVED, USED, Host, Watched, opened, receive_each, send_each
from .test_services_turns import allow_delay, ask, check_both, reply, send_in_two
from .traffic import Memory, receive, spin

pytestmark = pytest.mark.kernel

LATER_S, SETTLED_S = 0.01, 1.05
"""Longer than parts that are sent at once are apart, and longer than it takes until a connection alternates again."""
MARKED: dict[str, Any] = {"pattern": "overlapping", "timed": None, "waiting": None}
TARGETS = pytest.mark.parametrize("target", ["127.0.0.1", "::1"])


@pytest.fixture
def host(lab: Lab) -> Host:
    """Return a server and its client."""
    return Host(lab)


# --- requests that overlap ------------------------------------------------------------------------------------


@TARGETS
@pytest.mark.parametrize("open_at_once", [2, 3, 8])
def test_a_steady_rhythm_of_overlapping_requests_is_marked(
    watches: list[Watched], host: Host, target: str, open_at_once: int
) -> None:
    """Mark requests of which several are always open, though each answer is followed by exactly one request."""
    count = 20
    with opened(host.client, host.server, host.port, target) as names:
        for _ in range(open_at_once - 1):
            ask(host, names)
            spin(LATER_S)
        for _ in range(count):
            ask(host, names)
            reply(host, names)
        for _ in range(open_at_once - 1):
            spin(LATER_S)
            reply(host, names)
    check_both(watches, host, **MARKED)


@TARGETS
def test_answers_without_a_request_between_are_marked(
    watches: list[Watched], host: Host, target: str
) -> None:
    """Mark a connection on which a second answer follows two requests: it may be the first one's."""
    with opened(host.client, host.server, host.port, target) as names:
        host.exchange(names, 3)
        for step in (ask, ask, reply, reply):
            step(host, names)
            spin(LATER_S)
    check_both(watches, host, answers=5, overlaps=1, **MARKED)


def test_a_request_behind_an_unread_one_is_marked(watches: list[Watched], host: Host) -> None:
    """Mark, where it is served, a connection whose client sends on while the service has left data unread."""
    with opened(host.client, host.server, host.port, "::1") as names:
        host.exchange(names, 4)
        host.client.call(send_each, names, 2 * REQUEST)
        for _ in range(5):
            host.server.call(receive_each, names, REQUEST)
            reply(host, names)
            host.client.call(send_each, names, REQUEST)
    for watched in watches:
        watched.until(host.namespace, host.port, SERVED, **MARKED)


def answer_each_later(memory: Memory, count: int, seconds: Sequence[float]) -> None:
    """Answer each request this long after it was read, whatever else is open."""
    due: list[float] = []
    has_more = threading.Condition()

    def run() -> None:
        for _ in range(count):
            with has_more:
                has_more.wait_for(lambda: due)
                while (left := due[0] - time.monotonic()) > 0:
                    has_more.wait(left)
                heapq.heappop(due)
            memory[0].sendall(b"a" * ANSWER)

    writer = threading.Thread(target=run)
    writer.start()
    for number in range(count):
        receive(memory[0], REQUEST)
        with has_more:
            heapq.heappush(due, time.monotonic() + seconds[number])
            has_more.notify()
    writer.join()


def ask_on_time(memory: Memory, gaps: Sequence[float]) -> float:
    """Send a request after each of these gaps, whatever was answered; return the mean ms until its answer."""
    sent: list[float] = []
    waited: list[float] = []

    def run() -> None:
        for number in range(len(gaps)):
            receive(memory[0], ANSWER)
            waited.append(time.monotonic() - sent[number])

    reader, clock = threading.Thread(target=run), threading.Event()
    reader.start()
    at = time.monotonic()
    for gap in gaps:
        at += gap
        clock.wait(max(0, at - time.monotonic()))
        sent.append(time.monotonic())
        memory[0].sendall(b"q" * REQUEST)
    reader.join()
    return 1e3 * sum(waited) / len(waited)


@pytest.mark.parametrize("is_random", [False, True], ids=["fixed", "random"])
@pytest.mark.parametrize(
    ("gap_ms", "delay_ms"), [(20, 50), (20, 30), (30, 50), (25, 40), (15, 50), (30, 45), (12, 30), (6, 20)]
)
def test_times_of_requests_by_the_clock(
    watches: list[Watched], host: Host, gap_ms: int, delay_ms: int, is_random: bool
) -> None:
    """Mark requests sent by the clock, faster than the service answers: the time from a request to the next answer is
    not that of the client."""
    count, numbers = 60, random.Random(gap_ms)
    gaps, delays = (
        [mean / 1e3 * (numbers.expovariate(1) if is_random else 1) for _ in range(count)]
        for mean in (gap_ms, delay_ms)
    )
    with opened(host.client, host.server, host.port, "127.0.0.1"):
        host.server.start(answer_each_later, count, delays)
        assert host.client.call(ask_on_time, gaps) >= delay_ms / 2
        host.server.result()
    check_both(watches, host, **MARKED)


# --- requests in parts ----------------------------------------------------------------------------------------


def send_in_parts(memory: Memory, count: int) -> None:
    """Send each request in three parts with pauses, and wait for its answer."""
    for _ in range(count):
        for pause_s in (0, LATER_S, LATER_S):
            spin(pause_s)
            memory[0].sendall(b"q" * REQUEST)
        receive(memory[0], ANSWER)


def answer_parts(memory: Memory, count: int) -> None:
    """Answer the requests of `send_in_parts`."""
    for _ in range(count):
        receive(memory[0], 3 * REQUEST)
        memory[0].sendall(b"a" * ANSWER)


@TARGETS
def test_uploads_in_parts_keep_their_times(watches: list[Watched], host: Host, target: str) -> None:
    """Time requests that all come in parts from their first part."""
    count = 10
    with opened(host.client, host.server, host.port, target):
        host.server.start(answer_parts, count)
        host.client.call(send_in_parts, count)
        host.server.result()
    check_both(watches, host, pattern="alternating", answers=count, timed=count, overlaps=0)
    for watched in watches:
        for side in (SERVED, USED):
            row = watched.service(host.namespace, host.port, side)
            assert row["response_ns"] >= count * 2 * LATER_S * 1e9


@TARGETS
def test_parts_held_back_by_an_acknowledgement_are_no_requests(
    watches: list[Watched], host: Host, target: str
) -> None:
    """Time whole requests after others whose second part waited for the ACK of the first."""
    with opened(host.client, host.server, host.port, target) as names:
        host.client.call(allow_delay, names)
        for number in range(20):
            if number % 5 == 4:
                host.client.call(send_in_two, names)
                host.server.call(receive_each, names, 2 * REQUEST)
            else:
                ask(host, names)
            reply(host, names)
    check_both(watches, host, pattern="alternating", answers=20, timed=20, overlaps=0)


@TARGETS
def test_a_silence_after_parts_settles_what_they_were(
    watches: list[Watched], host: Host, target: str
) -> None:
    """Time whole requests after one in parts if the connection was silent between: no answer is missing."""
    with opened(host.client, host.server, host.port, target) as names:
        ask(host, names)
        spin(LATER_S)
        ask(host, names)
        reply(host, names)
        spin(SETTLED_S)
        host.exchange(names, 20)
    check_both(watches, host, pattern="alternating", answers=21, timed=21, overlaps=0)


# --- both ends begin exchanges --------------------------------------------------------------------------------


def exchange_sizes(host: Host, sizes: Sequence[tuple[int, int]]) -> None:
    """Exchange requests and answers of these sizes."""
    for request, answer in sizes:
        host.client.call(send_each, [0], request)
        host.server.call(receive_each, [0], request)
        host.server.call(send_each, [0], answer)
        host.client.call(receive_each, [0], answer)


@TARGETS
@pytest.mark.parametrize("ping", [17, 38, 39, 46])
def test_pings_of_both_ends_are_marked_for_good(
    watches: list[Watched], host: Host, target: str, ping: int
) -> None:
    """Mark a call during which the service and then the client send a PING, as gRPC does: all of it alternates, but the
    answers are not those of the requests."""
    call = [(342, ping), (ping, 253), (ping, ping)]
    with opened(host.client, host.server, host.port, target):
        exchange_sizes(host, [(82, 46), *call])
        spin(SETTLED_S)
        exchange_sizes(host, [(157, ping), (ping, 164), (ping, ping)])
    check_both(watches, host, answers=7, **MARKED)


@TARGETS
@pytest.mark.parametrize("sizes", [(17, 17), (17, 164), (157, 17), (39, 39), (20, 20)])
def test_small_messages_are_no_pings(
    watches: list[Watched], host: Host, target: str, sizes: tuple[int, int]
) -> None:
    """Time requests of a protocol whose messages have the size of a PING, but always the same one."""
    with opened(host.client, host.server, host.port, target):
        exchange_sizes(host, [sizes] * 10)
    check_both(watches, host, pattern="alternating", answers=10, timed=10, overlaps=0)
