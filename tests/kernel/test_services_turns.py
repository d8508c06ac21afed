# SPDX-License-Identifier: Apache-2.0
"""The services lens times requests and responses that do not simply alternate, or marks the service as untimed."""

from __future__ import annotations

import errno
import heapq
import itertools
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from nettop.snapshots.services import SERVICES, UNLISTED_FAILURES, WAITING

from .command import Row
from .lab import Lab, Namespace, Worker, until
from .services import (
    ANSWER,
    MECHANISMS,
    PORTS,
    REQUEST,
    SERVED,
    USED,
    Host,
    Watched,
    WatchedByEach,
    accept_each,
    answer_each,
    ask,
    check_both,
    close_each,
    connect_each,
    opened,
    receive_and_close,
    receive_each,
    receive_to_end,
    reply,
    request_each,
    send_and_close,
    send_and_wait,
    send_each,
)
from .test_events import decoded
from .traffic import Memory, listen, receive, spin

pytestmark = pytest.mark.kernel

MS = 1_000_000
SIDES = (SERVED, USED)
LATER_S, APART_S, SETTLED_S = 0.01, 0.1, 1.05
"""Longer than parts that are sent at once are apart; than parts of one message are; and than it takes until a
connection alternates again."""
TICKS_NS = 20 * MS
"""What the kernel knows in ticks only, of 1 to 10 ms, is right within two of them."""
MARKED: dict[str, Any] = {"pattern": "overlapping", "timed": None, "waiting": None}
ALTERNATING: dict[str, Any] = {"pattern": "alternating", "overlaps": 0}


@pytest.mark.core
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism_marks_the_same(
    mechanism: str, all_watches: WatchedByEach, lab: Lab, record: Callable[..., None]
) -> None:
    """Every mechanism marks overlapping requests, pushes, and a failed service alike."""
    watched = all_watches.by(mechanism, record)
    overlapping, pushing, failing = Host(lab), Host(lab), Host(lab)
    with opened(overlapping.client, overlapping.server, overlapping.port, "::1") as names:
        overlap(overlapping, names)
    with opened(pushing.client, pushing.server, pushing.port, "127.0.0.1") as names:
        ping(pushing, names, 2)
    fail_on_request(failing, 3)
    check_both([watched], overlapping, pattern="overlapping", responses=1, overlaps=1, timed=None)
    check_both([watched], pushing, pattern="pushing", responses=1, pushes=2, timed=None)
    check_both([watched], failing, unanswered=3, closed=3)
    record(verdict="same")


# --- scenarios ------------------------------------------------------------------------------------------------

Scenario = Callable[[Host, list[int]], None]
SCENARIOS: list[Any] = []
"""What the ends of a connection do, and what both have counted in the end."""


def counts(**values: Any) -> Callable[[Scenario], Scenario]:
    """Declare a scenario, with the values of the service's row at both ends."""

    def declare(act: Scenario) -> Scenario:
        SCENARIOS.append(pytest.param(act, values, id=act.__name__))
        return act

    return declare


@pytest.mark.parametrize(("act", "values"), SCENARIOS)
def test_scenario(watches: list[Watched], host: Host, act: Scenario, values: dict[str, Any]) -> None:
    """Both ends of the connection have counted the declared values."""
    with opened(host.client, host.server, host.port, "::1") as names:
        act(host, names)
    check_both(watches, host, **values)


def send_slowly(host: Host, names: list[int], size: int, parts: int, apart_s: float) -> None:
    """Send a request in parts, the next one some time after the server has read the last."""
    for part in range(parts):
        spin(apart_s if part else 0)
        host.client.call(send_each, names, size)
        host.server.call(receive_each, names, size)


def overlap(host: Host, names: list[int]) -> None:
    """Send two requests, the second after a pause, then answer both: one turn."""
    send_slowly(host, names, REQUEST, 2, APART_S)
    spin(APART_S)
    for _ in range(2):
        reply(host, names)


def ping(host: Host, names: list[int], count: int) -> None:
    """Exchange an upgrade, then have the server ping occasionally, and the client answer at once."""
    host.exchange(names, 1)
    for _ in range(count):
        spin(APART_S)
        reply(host, names)
        ask(host, names)


def allow_delay(memory: Memory, names: list[int]) -> None:
    """Have TCP delay small segments (Nagle's algorithm)."""
    for name in names:
        memory[name].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


def send_in_two(memory: Memory, names: list[int]) -> None:
    """Send a request by two calls."""
    for name in names:
        memory[name].sendall(b"q" * REQUEST)
        memory[name].sendall(b"q" * REQUEST)


@counts(**ALTERNATING, responses=20, timed=20)
def parts_held_back_by_an_acknowledgement(host: Host, names: list[int]) -> None:
    """Every fifth request has a second part, which waits for the ACK of the first; a receiver delays that by 40 ms."""
    host.client.call(allow_delay, names)
    for number in range(20):
        if number % 5 == 4:
            host.client.call(send_in_two, names)
            host.server.call(receive_each, names, 2 * REQUEST)
        else:
            ask(host, names)
        reply(host, names)


@counts(responses=19, request_bytes=19 * REQUEST, unanswered=0)
def a_server_that_speaks_first(host: Host, names: list[int]) -> None:
    """A server's greeting is no response, and the client's next message is no response to the greeting."""
    host.server.call(send_each, names, 64)
    host.client.call(receive_each, names, 64)
    host.exchange(names, 19)


@counts(**ALTERNATING, responses=1, timed=1, request_bytes=90_000)
def a_slow_upload(host: Host, names: list[int]) -> None:
    """A request larger than the initial window may arrive with pauses, and does not overlap."""
    send_slowly(host, names, 30_000, 3, APART_S)
    spin(APART_S)
    reply(host, names)


@counts(pattern="alternating", responses=101, overlaps=1, timed=100)
def after_a_silence_requests_alternate_again(host: Host, names: list[int]) -> None:
    """After an overlap a connection is untimed only until its service has spoken last for a second."""
    overlap(host, names)
    spin(SETTLED_S)
    host.exchange(names, 100)


@counts(pattern="alternating", responses=7, pushes=1, replies=0, timed=7)
def a_push_now_and_then(host: Host, names: list[int]) -> None:
    """One second after a push, as of a database's notification, the next request is timed again."""
    host.exchange(names, 2)
    spin(APART_S)
    reply(host, names)
    spin(SETTLED_S)
    host.exchange(names, 5)


@counts(unanswered=1, closed=0)
def a_client_that_gives_up(host: Host, names: list[int]) -> None:
    """A request whose client gives up is unanswered, but not closed by the service."""
    ask(host, names)
    spin(APART_S)
    host.client.call(close_each, names)
    host.server.call(close_each, names)


def rhythm(host: Host, names: list[int], open_at_once: int) -> None:
    """Keep several requests open, though each response is followed by exactly one request."""
    send_slowly(host, names, REQUEST, open_at_once - 1, LATER_S)
    spin(LATER_S)
    for _ in range(20):
        ask(host, names)
        reply(host, names)
    for _ in range(open_at_once - 1):
        spin(LATER_S)
        reply(host, names)


SCENARIOS.extend(pytest.param(partial(rhythm, open_at_once=n), MARKED, id=f"rhythm of {n}") for n in (2, 8))


@counts(**MARKED, responses=5, overlaps=1)
def answers_without_a_request_between(host: Host, names: list[int]) -> None:
    """A second response follows two requests: it may be the first one's."""
    host.exchange(names, 3)
    for step in (ask, ask, reply, reply):
        step(host, names)
        spin(LATER_S)


@counts(**ALTERNATING, responses=21, timed=21)
def a_silence_after_parts(host: Host, names: list[int]) -> None:
    """A silence after a request in parts settles what they were: no response is missing."""
    send_slowly(host, names, REQUEST, 2, LATER_S)
    reply(host, names)
    spin(SETTLED_S)
    host.exchange(names, 20)


def exchange_sizes(host: Host, names: list[int], sizes: Sequence[tuple[int, int]]) -> None:
    """Exchange requests and responses of these sizes."""
    for request, answer in sizes:
        host.client.call(send_each, names, request)
        host.server.call(receive_each, names, request)
        host.server.call(send_each, names, answer)
        host.client.call(receive_each, names, answer)


@pytest.mark.parametrize("size", [17, 38, 39, 46])
def test_pings_of_both_ends_are_marked_for_good(watches: list[Watched], host: Host, size: int) -> None:
    """Mark a call during which the service and then the client send a PING, as gRPC does: all of it alternates, but the
    responses are not those of the requests."""
    with opened(host.client, host.server, host.port, "127.0.0.1") as names:
        exchange_sizes(host, names, [(82, 46), (342, size), (size, 253), (size, size)])
        spin(SETTLED_S)
        exchange_sizes(host, names, [(157, size), (size, 164), (size, size)])
    check_both(watches, host, responses=7, **MARKED)


@pytest.mark.parametrize("sizes", [(17, 17), (17, 164), (157, 17), (39, 39), (20, 20)])
def test_small_messages_are_no_pings(watches: list[Watched], host: Host, sizes: tuple[int, int]) -> None:
    """Time requests of a protocol whose messages have the size of a PING, but always the same one."""
    with opened(host.client, host.server, host.port, "127.0.0.1") as names:
        exchange_sizes(host, names, [sizes] * 10)
    check_both(watches, host, **ALTERNATING, responses=10, timed=10)


def test_requests_that_overlap_have_no_response_times(watches: list[Watched], host: Host) -> None:
    """If several requests are open at once, their responses cannot be told apart: none has a time, and none waits."""
    with opened(host.client, host.server, host.port, "127.0.0.1") as names:
        host.exchange(names, 3)
        send_slowly(host, names, REQUEST, 2, APART_S)
        check_both(watches, host, waiting=0)
        reply(host, names)
        ask(host, names)
        reply(host, names)
        ask(host, names)
        check_both(watches, host, responses=5, overlaps=2, **MARKED)
        assert not any(waiting_on(watched, host) for watched in watches)


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


def test_pings_are_pushes(watches: list[Watched], host: Host) -> None:
    """A client's reply to a ping is no request that waits until the next ping, or is stuck."""
    with opened(host.client, host.server, host.port, "::1") as names:
        ping(host, names, 3)
        check_both(watches, host, pattern="pushing", responses=1, pushes=3, timed=None, waiting=None)
        assert not any(waiting_on(watched, host) for watched in watches)
    check_both(watches, host, connections=0, unanswered=0, replies=2)


# --- times ----------------------------------------------------------------------------------------------------


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
    """Send a request after each of these gaps, whatever was answered; return the mean ms until its response."""
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


@pytest.mark.parametrize(
    ("gap_ms", "delay_ms", "is_random"),
    [(20, 50, False), (20, 30, False), (6, 20, False), (20, 50, True), (12, 30, True)],
)
def test_times_of_requests_by_the_clock(
    watches: list[Watched], host: Host, gap_ms: int, delay_ms: int, is_random: bool
) -> None:
    """Mark requests sent by the clock, faster than the service answers: the time from a request to the next response is
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


def send_in_parts(memory: Memory, count: int) -> None:
    """Send each request in three parts with pauses, and wait for its response."""
    for _ in range(count):
        for pause_s in (0, LATER_S, LATER_S):
            spin(pause_s)
            memory[0].sendall(b"q" * REQUEST)
        receive(memory[0], ANSWER)


def test_uploads_in_parts_keep_their_times(watches: list[Watched], host: Host) -> None:
    """Time requests that all come in parts from their first part."""
    count = 10
    with opened(host.client, host.server, host.port, "127.0.0.1") as names:
        host.server.start(answer_each, names, count, (3 * REQUEST, ANSWER))
        host.client.call(send_in_parts, count)
        host.server.result()
    check_both(watches, host, **ALTERNATING, responses=count, timed=count)
    for watched in watches:
        for side in SIDES:
            row = watched.service(host.namespace, host.port, side)
            assert row["response_ns"] >= count * 2 * LATER_S * 1e9


def test_a_request_begins_when_its_call_does(watches: list[Watched], host: Host) -> None:
    """A request begins with its call, which ends only when the server has read most of it."""
    size = 8 << 20
    with opened(host.client, host.server, host.port, "127.0.0.1") as names:
        host.exchange(names, 1)
        began = time.monotonic_ns()
        host.client.start(request_each, names, 1, (size, ANSWER))
        host.server.call(receive_slowly, size, APART_S)
        host.server.call(send_each, names, ANSWER)
        host.client.result()
        took = time.monotonic_ns() - began
    for watched in watches:
        row = watched.until(host.namespace, host.port, USED, responses=2, timed=2)
        assert 5 * APART_S * 1e9 - TICKS_NS < row["response_ns"] < took + TICKS_NS


def receive_slowly(memory: Memory, size: int, pause_s: float) -> None:
    """Read `size` bytes, once they begin to arrive, in twenty parts, with a pause before each of the first five."""
    memory[0].recv(1, socket.MSG_PEEK)
    for at in range(20):
        if at < 5:
            spin(pause_s)
        receive(memory[0], size // 20 + (size % 20 if at == 19 else 0))


def test_a_request_that_the_kernel_holds_back_begins_when_it_comes(
    watches: list[Watched], host: Host
) -> None:
    """A socket reports less than SO_RCVLOWAT only to polling: the request begins when it arrives."""

    def waits_at_both_ends() -> bool:
        return all({row["side"] for row in waiting_on(watched, host)} == {*SIDES} for watched in watches)

    with opened(host.client, host.server, host.port, "::1") as names:
        host.server.call(wait_for_more, names)
        host.client.call(send_each, names, REQUEST)
        until(waits_at_both_ends, "the request waits")
        spin(APART_S)
        host.server.call(receive_unblocked, names, REQUEST)
        reply(host, names)
    for watched in watches:
        row = watched.until(host.namespace, host.port, SERVED, responses=1)
        assert row["response_ns"] >= APART_S * 1e9 - TICKS_NS


def wait_for_more(memory: Memory, names: list[int]) -> None:
    """Have the socket wake only for ten times as much as a request has."""
    for name in names:
        memory[name].setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10 * REQUEST)


def receive_unblocked(memory: Memory, names: list[int], size: int) -> None:
    """Read the available bytes."""
    for name in names:
        assert len(memory[name].recv(size, socket.MSG_DONTWAIT)) == size


# --- ends -----------------------------------------------------------------------------------------------------


def send_and_shut(memory: Memory, names: list[int], size: int) -> None:
    """Send a message on each connection, then shut down the sending side."""
    for name in names:
        memory[name].sendall(b"n" * size)
        memory[name].shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_request_that_ends_by_a_half_close(watches: list[Watched], host: Host, is_answered: bool) -> None:
    """A request that ends with a half-close, as from `nc -N`, waits, and is answered or unanswered like any other."""
    with opened(host.client, host.server, host.port, "127.0.0.1") as names:
        host.client.call(send_and_shut, names, REQUEST)
        host.server.call(receive_each, names, REQUEST)
        spin(APART_S)
        for watched in watches:
            waiting = {row["side"]: row["waited"] >= APART_S * 1e9 for row in waiting_on(watched, host)}
            assert waiting == dict.fromkeys(SIDES, True), watched.services(host.namespace)
        if is_answered:
            reply(host, names)
        host.server.call(close_each, names)
        host.client.call(close_each, names)
    check_both(watches, host, responses=int(is_answered), unanswered=int(not is_answered), connections=0)


def fail_on_request(host: Host, count: int, ending: str = "closed") -> None:
    """Open `count` connections, each of which the server closes after reading the first request."""
    for _ in range(count):
        with opened(host.client, host.server, host.port, "127.0.0.1") as names:
            host.server.start(receive_and_close, names, REQUEST, ending)
            host.client.call(send_and_wait, names, REQUEST)
            host.server.result()


@pytest.mark.parametrize("ending", ["closed", "reset"])
def test_a_service_that_fails_on_every_request(watches: list[Watched], host: Host, ending: str) -> None:
    """If a service always fails, its requests count as unanswered by its own fault, however early it closes."""
    fail_on_request(host, 7, ending)
    check_both(watches, host, responses=0, unanswered=7, closed=7)


# --- what a service is ----------------------------------------------------------------------------------------


def served(watched: Watched, namespace: Namespace, port: int) -> dict[tuple[str, str], int]:
    """Return the responses of each served service of a port, by process and address."""
    rows = decoded(watched.read().tables[SERVICES.name], namespace.inode)
    return {
        (row["process"], row["address"]): row["responses"]
        for row in rows
        if (row["side"], row["port"]) == (SERVED, port)
    }


def exchange_short(client: Worker, server: Worker, target: str, port: int, count: int) -> None:
    """Open `count` connections, with a request on each."""
    for _ in range(count):
        with opened(client, server, port, target) as names:
            server.start(answer_each, names, 1, (REQUEST, ANSWER))
            client.call(request_each, names, 1, (REQUEST, ANSWER))
            server.result()


def test_programs_at_several_addresses(watches: list[Watched], lab: Lab) -> None:
    """A service is identified by its program and its listening address, which may be every address; programs that use a
    port one after the other are separate services."""
    namespace = lab.namespace()
    client, port, everywhere = lab.worker(namespace, "client"), next(PORTS), next(PORTS)
    programs = [
        ("older", "127.0.0.1", 1), ("server", "127.0.0.1", 2), ("server", "127.0.0.2", 3), ("server", "::1", 4),
        ("server", "0.0.0.0", 5),
    ]  # fmt: skip
    for name, address, count in programs:
        server = lab.worker(namespace, name)
        here = everywhere if address == "0.0.0.0" else port
        server.call(listen, "listener", address, here)
        exchange_short(client, server, "127.0.0.3" if here != port else address, here, count)
        server.end()
    expected = {(name, address): count for name, address, count in programs}
    for watched in watches:
        assert served(watched, namespace, port) | served(watched, namespace, everywhere) == expected


def test_programs_that_share_a_port(watches: list[Watched], lab: Lab) -> None:
    """With SO_REUSEPORT a connection's program is known once it is accepted."""
    namespace, target = lab.namespace(), "127.0.0.1"
    client, port = lab.worker(namespace, "client"), next(PORTS)
    servers = {name: lab.worker(namespace, name) for name in ("one", "other")}
    for server in servers.values():
        server.call(share_port, target, port)
    counts = dict.fromkeys(servers, 0)
    for _ in range(20):
        client.call(connect_each, target, port, 1)
        name = next(name for name, server in servers.items() if server.call(is_connected))
        servers[name].call(accept_each, 1)
        servers[name].start(answer_each, [0], 1, (REQUEST, ANSWER))
        client.call(request_each, [0], 1, (REQUEST, ANSWER))
        servers[name].result()
        for worker in (client, servers[name]):
            worker.call(close_each, [0])
        counts[name] += 1
    for watched in watches:
        rows = served(watched, namespace, port)
        assert rows == {(name, target): count for name, count in counts.items() if count}


def share_port(memory: Memory, address: str, port: int) -> None:
    """Listen on a port that others share."""
    memory["listener"] = socket.create_server((address, port), reuse_port=True)


def is_connected(memory: Memory) -> bool:
    """Return whether a connection can be accepted."""
    return bool(select.select([memory["listener"]], [], [], 0)[0])


# --- connects that fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["127.0.0.1", "::1"])
def test_refused_connects_are_failures(watches: list[Watched], lab: Lab, target: str) -> None:
    """From the third refused connect on, the target is listed with all of them, without requests; a port scan lists
    nothing."""
    namespace = lab.namespace()
    client = lab.worker(namespace, "client")
    before = [watched.read().counts[UNLISTED_FAILURES] for watched in watches]
    listed, unlisted, *scanned = itertools.islice(PORTS, 1000)
    client.call(connect_in_vain, target, [listed] * 5 + [unlisted] * 2)
    for watched, failed_before in zip(watches, before, strict=True):
        row = watched.until(namespace, listed, USED, failed_connects=5, refused=5, unanswered=0, responses=0)
        assert row["process"] == "client"
        assert watched.read().counts[UNLISTED_FAILURES] == failed_before + 2
    client.call(connect_in_vain, target, scanned)
    for watched in watches:
        assert not {port for _, port in watched.services(namespace)} & {unlisted, *scanned}


def connect_in_vain(memory: Memory, address: str, ports: list[int]) -> None:
    """Try to connect to ports that are closed."""
    for port in ports:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as held:
            assert held.connect_ex((address, port)) == errno.ECONNREFUSED


def test_connects_without_an_answer_are_failures(watches: list[Watched], lab: Lab) -> None:
    """Unanswered connects whose client gives up are failures."""
    near, far = lab.pair()
    server, client = lab.worker(far.namespace), lab.worker(near.namespace, "client")
    port = server.call(listen, "silent", far.v4)
    lab.dropper(far).rule(every=1, port=port)
    client.call(give_up, far.v4, port, 3)
    for watched in watches:
        watched.until(near.namespace, port, USED, failed_connects=3, refused=0, unanswered=0)


def give_up(memory: Memory, address: str, port: int, count: int) -> None:
    """Try to connect `count` times, and close shortly after."""
    for _ in range(count):
        with socket.socket() as held:
            held.setblocking(False)
            assert held.connect_ex((address, port)) == errno.EINPROGRESS


# --- what is older --------------------------------------------------------------------------------------------


def waiting_on(watched: Watched, host: Host) -> list[Row]:
    """Return the requests that wait at a host's service."""
    return watched.rows(WAITING.name, host.namespace, host.port)


def test_requests_that_were_stuck_before(lab: Lab) -> None:
    """Requests stuck before the start wait since their arrival, known later, on new connections and after responses."""
    fresh, used = Host(lab), Host(lab)
    count = 3
    with (
        opened(fresh.client, fresh.server, fresh.port, "127.0.0.1", count) as names,
        opened(used.client, used.server, used.port, "::1", count),
    ):
        used.exchange(names, 2)
        sent = time.monotonic_ns()
        for host in (fresh, used):
            host.client.call(send_each, names, REQUEST)
            host.server.call(receive_each, names[1:], REQUEST)
        spin(APART_S)
        with Watched() as watched:
            for host in (fresh, used):
                rows = waiting_on(watched, host)
                longest = time.monotonic_ns() - sent + TICKS_NS
                assert sorted(row["side"] for row in rows) == sorted(SIDES * count)
                assert {row["inferred"] for row in rows} == {"yes"}
                assert all(APART_S * 1e9 - TICKS_NS <= row["waited"] <= longest for row in rows)
                host.server.call(receive_each, names[:1], REQUEST)
                reply(host, names)
                check_both([watched], host, responses=count, waiting=0)
            fresh.client.call(send_each, names, REQUEST)
            assert {row["inferred"] for row in waiting_on(watched, fresh)} == {"no"}


def test_idle_connections_from_before_do_not_wait(lab: Lab) -> None:
    """Earlier connections do not wait if the last message was the response, or the client's goodbye."""
    idle, ended, count = Host(lab), Host(lab), 200
    with (
        opened(idle.client, idle.server, idle.port, "127.0.0.1", count) as names,
        opened(ended.client, ended.server, ended.port, "::1", count),
    ):
        for host in (idle, ended):
            host.exchange(names, 1)
        ended.client.call(send_and_close, names, 7)
        spin(APART_S)
        with Watched() as watched:
            for host in (idle, ended):
                assert waiting_on(watched, host) == []
            idle.client.call(send_and_close, names, 7)
            for host in (idle, ended):
                host.server.call(receive_to_end, names)
            for host in (idle, ended):
                until(lambda host=host: not watched.services(host.namespace), "nothing is left to list")
