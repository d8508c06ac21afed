# SPDX-License-Identifier: Apache-2.0
"""The services lens times requests and answers that do not simply alternate, or says that it cannot."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import time
from collections.abc import Callable, Sequence
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
    close_each,
    connect_each,
    opened,
    receive_each,
    request_each,
    send_each,
)
from .test_events import decoded
from .traffic import Memory, linger, listen, receive, spin

pytestmark = pytest.mark.kernel

MS = 1_000_000
SIDES = (SERVED, USED)
TARGETS = pytest.mark.parametrize("target", ["127.0.0.1", "::1"])
APART_S, SETTLED_S = 0.1, 1.05
"""Longer than parts of one message are apart, and longer than it takes until a connection alternates again."""
TICKS_NS = 20 * MS
"""What the kernel knows in ticks only, of 1 to 10 ms, is right within two of them."""


@pytest.fixture
def host(lab: Lab) -> Host:
    """Return a server and its client."""
    return Host(lab)


def check_both(watches: Sequence[Watched], host: Host, **values: Any) -> None:
    """Check what both sides of a service have counted."""
    for watched in watches:
        for side in SIDES:
            watched.until(host.namespace, host.port, side, **values)


def ask(host: Host, names: list[int]) -> None:
    """Send a request and have the server read it."""
    host.client.call(send_each, names, REQUEST)
    host.server.call(receive_each, names, REQUEST)


def reply(host: Host, names: list[int]) -> None:
    """Answer the request."""
    host.server.call(send_each, names, ANSWER)
    host.client.call(receive_each, names, ANSWER)


@pytest.mark.core
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism_marks_the_same(
    mechanism: str,
    all_watches: WatchedByEach,
    lab: Lab,
    record: Callable[..., None],
) -> None:
    """Every mechanism marks overlapping requests, pushes, and a failed service alike."""
    watched = all_watches.by(mechanism, record)
    overlapping, pushing, failing = Host(lab), Host(lab), Host(lab)
    with opened(overlapping.client, overlapping.server, overlapping.port, "::1") as names:
        overlap(overlapping, names)
    with opened(pushing.client, pushing.server, pushing.port, "127.0.0.1") as names:
        ping(pushing, names, 2)
    fail_on_request(failing, "127.0.0.1", 3)
    check_both([watched], overlapping, pattern="overlapping", answers=1, overlaps=1, timed=None)
    check_both([watched], pushing, pattern="pushing", answers=1, pushes=2, timed=None)
    check_both([watched], failing, unanswered=3, closed=3)
    record(verdict="same")


# --- requests that overlap ------------------------------------------------------------------------------------


def overlap(host: Host, names: list[int]) -> None:
    """Send two requests, the second after a pause, then answer both: one turn."""
    for _ in range(2):
        ask(host, names)
        spin(APART_S)
    for _ in range(2):
        reply(host, names)


@TARGETS
def test_requests_that_overlap_have_no_response_times(
    watches: list[Watched], host: Host, target: str
) -> None:
    """If several requests are open at once, their answers cannot be told apart: none has a time, and none waits."""
    with opened(host.client, host.server, host.port, target) as names:
        host.exchange(names, 3)
        ask(host, names)
        spin(APART_S)
        ask(host, names)
        check_both(watches, host, waiting=0)
        reply(host, names)
        ask(host, names)
        reply(host, names)
        ask(host, names)
        check_both(watches, host, pattern="overlapping", answers=5, overlaps=2, timed=None, waiting=None)
        for watched in watches:
            assert not watched.rows(WAITING.name, host.namespace, host.port)


@TARGETS
def test_parts_of_a_request_do_not_overlap(watches: list[Watched], host: Host, target: str) -> None:
    """The second part of a request waits for the ACK of the first, which a receiver delays by 40 ms: no overlap."""
    with opened(host.client, host.server, host.port, target) as names:
        host.client.call(allow_delay, names)
        for _ in range(5):
            host.client.call(send_in_two, names)
            host.server.call(receive_each, names, 2 * REQUEST)
            reply(host, names)
    check_both(watches, host, pattern="alternating", answers=5, overlaps=0, timed=5)


def allow_delay(memory: Memory, names: list[int]) -> None:
    """Have TCP delay small segments (Nagle's algorithm)."""
    for name in names:
        memory[name].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


def send_in_two(memory: Memory, names: list[int]) -> None:
    """Send a request by two calls."""
    for name in names:
        memory[name].sendall(b"q" * REQUEST)
        memory[name].sendall(b"q" * REQUEST)


@TARGETS
def test_a_slow_upload_does_not_overlap(watches: list[Watched], host: Host, target: str) -> None:
    """A request larger than the initial window may arrive with pauses, and does not overlap."""
    size = 30_000
    with opened(host.client, host.server, host.port, target) as names:
        for _ in range(3):
            host.client.call(send_each, names, size)
            host.server.call(receive_each, names, size)
            spin(APART_S)
        reply(host, names)
    check_both(watches, host, pattern="alternating", answers=1, timed=1, request_bytes=3 * size)


@TARGETS
def test_after_a_silence_requests_alternate_again(watches: list[Watched], host: Host, target: str) -> None:
    """After an overlap a connection is untimed only until its service has spoken last for a second."""
    with opened(host.client, host.server, host.port, target) as names:
        overlap(host, names)
        check_both(watches, host, overlaps=1, answers=1)
        spin(SETTLED_S)
        host.exchange(names, 100)
    check_both(watches, host, pattern="alternating", answers=101, overlaps=1, timed=100)


# --- the server speaks unasked --------------------------------------------------------------------------------


def ping(host: Host, names: list[int], count: int) -> None:
    """Exchange an upgrade, then have the server ping occasionally, and the client answer at once."""
    host.exchange(names, 1)
    for _ in range(count):
        spin(APART_S)
        reply(host, names)
        ask(host, names)


@TARGETS
def test_pings_are_pushes(watches: list[Watched], host: Host, target: str) -> None:
    """A client's reply to a ping is no request that waits until the next ping, or is stuck."""
    with opened(host.client, host.server, host.port, target) as names:
        ping(host, names, 3)
        check_both(watches, host, pattern="pushing", answers=1, pushes=3, timed=None, waiting=None)
        for watched in watches:
            assert not watched.rows(WAITING.name, host.namespace, host.port)
    check_both(watches, host, connections=0, unanswered=0, replies=2)


@TARGETS
def test_a_push_now_and_then_leaves_requests_timed(watches: list[Watched], host: Host, target: str) -> None:
    """One second after a push, as of a database's notification, the next request is timed again."""
    with opened(host.client, host.server, host.port, target) as names:
        host.exchange(names, 2)
        spin(APART_S)
        reply(host, names)
        spin(SETTLED_S)
        host.exchange(names, 5)
    check_both(watches, host, pattern="alternating", answers=7, pushes=1, replies=0, timed=7)


# --- times ----------------------------------------------------------------------------------------------------


@TARGETS
def test_a_request_begins_when_its_call_does(watches: list[Watched], host: Host, target: str) -> None:
    """A request begins with its call, which ends only when the server has read most of it."""
    size = 8 << 20
    with opened(host.client, host.server, host.port, target) as names:
        host.exchange(names, 1)
        began = time.monotonic_ns()
        host.client.start(request_each, names, 1, (size, ANSWER))
        host.server.call(receive_slowly, size, APART_S)
        host.server.call(send_each, names, ANSWER)
        host.client.result()
        took = time.monotonic_ns() - began
    for watched in watches:
        row = watched.until(host.namespace, host.port, USED, answers=2, timed=2)
        assert 5 * APART_S * 1e9 - TICKS_NS < row["response_ns"] < took + TICKS_NS


def receive_slowly(memory: Memory, size: int, pause_s: float) -> None:
    """Read `size` bytes, once they begin to arrive, in twenty parts, with a pause before each of the first five."""
    memory[0].recv(1, socket.MSG_PEEK)
    for at in range(20):
        if at < 5:
            spin(pause_s)
        receive(memory[0], size // 20 + (size % 20 if at == 19 else 0))


@TARGETS
def test_a_request_that_the_kernel_holds_back_begins_when_it_comes(
    watches: list[Watched], host: Host, target: str
) -> None:
    """A socket reports less than SO_RCVLOWAT only to polling: the request begins when it arrives."""
    with opened(host.client, host.server, host.port, target) as names:
        host.server.call(wait_for_more, names)
        host.client.call(send_each, names, REQUEST)
        for watched in watches:
            until(
                lambda watched=watched: (
                    {row["side"] for row in watched.rows(WAITING.name, host.namespace, host.port)} == {*SIDES}
                ),
                "the request waits",
            )
        spin(APART_S)
        host.server.call(receive_unblocked, names, REQUEST)
        reply(host, names)
    for watched in watches:
        row = watched.until(host.namespace, host.port, SERVED, answers=1)
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


@TARGETS
@pytest.mark.parametrize("is_answered", [True, False])
def test_a_request_that_ends_by_a_half_close(
    watches: list[Watched], host: Host, target: str, *, is_answered: bool
) -> None:
    """A request that ends with a half-close, as from `nc -N`, waits, and is answered or unanswered like any other."""
    with opened(host.client, host.server, host.port, target) as names:
        host.client.call(send_and_shut, names, REQUEST)
        host.server.call(receive_each, names, REQUEST)
        spin(APART_S)
        for watched in watches:
            waiting = {
                row["side"]: row["waited"] >= APART_S * 1e9
                for row in watched.rows(WAITING.name, host.namespace, host.port)
            }
            assert waiting == dict.fromkeys(SIDES, True), watched.services(host.namespace)
        if is_answered:
            reply(host, names)
        host.server.call(close_each, names)
        host.client.call(close_each, names)
    check_both(watches, host, answers=int(is_answered), unanswered=int(not is_answered), connections=0)


def fail_on_request(host: Host, target: str, count: int, ending: str = "closed") -> None:
    """Open `count` connections, each of which the server closes after reading the first request."""
    for _ in range(count):
        with opened(host.client, host.server, host.port, target) as names:
            host.server.start(read_and_end, names, ending)
            host.client.call(send_and_wait, names)
            host.server.result()


def read_and_end(memory: Memory, names: list[int], ending: str) -> None:
    """Read a request, and close the connection, by a reset if requested."""
    for name in names:
        receive(memory[name], REQUEST)
        if ending == "reset":
            linger(memory, [name])
        memory.pop(name).close()


def send_and_wait(memory: Memory, names: list[int]) -> None:
    """Send a request, and wait for the end of the connection."""
    for name in names:
        memory[name].sendall(b"q" * REQUEST)
        try:
            assert not memory[name].recv(1)
        except ConnectionResetError:
            continue


@TARGETS
@pytest.mark.parametrize("ending", ["closed", "reset"])
def test_a_service_that_fails_on_every_request(
    watches: list[Watched], host: Host, target: str, ending: str
) -> None:
    """If a service always fails, its requests count as unanswered by its own fault, however early it closes."""
    fail_on_request(host, target, 7, ending)
    check_both(watches, host, answers=0, unanswered=7, closed=7)


@TARGETS
def test_a_client_that_gives_up(watches: list[Watched], host: Host, target: str) -> None:
    """A request whose client gives up is unanswered, but not closed by the service."""
    with opened(host.client, host.server, host.port, target) as names:
        ask(host, names)
        spin(APART_S)
        host.client.call(close_each, names)
        host.server.call(close_each, names)
    check_both(watches, host, unanswered=1, closed=0)


# --- what a service is ----------------------------------------------------------------------------------------


def served(watched: Watched, namespace: Namespace, port: int) -> dict[tuple[str, str], int]:
    """Return the answers of each served service of a port, by process and address."""
    rows = decoded(watched.read().tables[SERVICES.name], namespace.inode)
    return {
        (row["process"], row["address"]): row["answers"]
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


@TARGETS
def test_programs_that_use_a_port_after_each_other(watches: list[Watched], lab: Lab, target: str) -> None:
    """Programs that use a port one after the other are separate services."""
    namespace = lab.namespace()
    client, port = lab.worker(namespace, "client"), next(PORTS)
    for name, count in (("older", 2), ("newer", 3)):
        server = lab.worker(namespace, name)
        server.call(listen, "listener", target, port)
        exchange_short(client, server, target, port, count)
        server.end()
    for watched in watches:
        assert served(watched, namespace, port) == {("older", target): 2, ("newer", target): 3}


def test_programs_at_two_addresses(watches: list[Watched], lab: Lab) -> None:
    """A service is identified by its listening address, which may be every address."""
    namespace = lab.namespace()
    client, port = lab.worker(namespace, "client"), next(PORTS)
    everywhere = next(PORTS)
    addresses = {"127.0.0.1": 2, "127.0.0.2": 3, "::1": 4, "0.0.0.0": 5}
    for address, count in addresses.items():
        server = lab.worker(namespace, "server")
        here = everywhere if address == "0.0.0.0" else port
        server.call(listen, "listener", address, here)
        exchange_short(client, server, "127.0.0.3" if here != port else address, here, count)
    for watched in watches:
        expected = {("server", address): count for address, count in addresses.items()}
        assert served(watched, namespace, port) | served(watched, namespace, everywhere) == expected


@TARGETS
def test_programs_that_share_a_port(watches: list[Watched], lab: Lab, target: str) -> None:
    """With SO_REUSEPORT a connection's program is known once it is accepted."""
    namespace = lab.namespace()
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
        client.call(close_each, [0])
        servers[name].call(close_each, [0])
        counts[name] += 1
    for watched in watches:
        rows = served(watched, namespace, port)
        assert rows == {(name, target): count for name, count in counts.items() if count}


def share_port(memory: Memory, address: str, port: int) -> None:
    """Listen on a port that others share."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    memory["listener"] = socket.socket(family)
    memory["listener"].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    memory["listener"].bind((address, port))
    memory["listener"].listen()


def is_connected(memory: Memory) -> bool:
    """Return whether a connection can be accepted."""
    return bool(select.select([memory["listener"]], [], [], 0)[0])


# --- connects that fail ---------------------------------------------------------------------------------------


@TARGETS
def test_refused_connects_are_failures(watches: list[Watched], lab: Lab, target: str) -> None:
    """From the third refused connect on, the target is listed with all of them, without requests."""
    namespace = lab.namespace()
    client = lab.worker(namespace, "client")
    before = [watched.read().counts[UNLISTED_FAILURES] for watched in watches]
    listed, unlisted = next(PORTS), next(PORTS)
    client.call(connect_in_vain, target, [listed] * 5 + [unlisted] * 2)
    for watched, failed_before in zip(watches, before, strict=True):
        row = watched.until(namespace, listed, USED, failed_connects=5, refused=5, unanswered=0, answers=0)
        assert row["process"] == "client"
        assert (USED, unlisted) not in watched.services(namespace)
        assert watched.read().counts[UNLISTED_FAILURES] == failed_before + 2


@TARGETS
def test_a_port_scan_takes_no_place(watches: list[Watched], lab: Lab, target: str) -> None:
    """None of a thousand ports that refuse is listed."""
    namespace = lab.namespace()
    client = lab.worker(namespace, "client")
    ports = list(itertools.islice(PORTS, 1000))
    client.call(connect_in_vain, target, ports)
    for watched in watches:
        assert not {port for _, port in watched.services(namespace)} & {*ports}


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


@TARGETS
def test_requests_that_were_stuck_before(lab: Lab, target: str) -> None:
    """Requests stuck before the start wait since their arrival, known later, on new connections and after answers."""
    fresh, used = Host(lab), Host(lab)
    count = 3
    with (
        opened(fresh.client, fresh.server, fresh.port, target, count) as names,
        opened(used.client, used.server, used.port, target, count),
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
                check_both([watched], host, answers=count, waiting=0)
            fresh.client.call(send_each, names, REQUEST)
            assert {row["inferred"] for row in waiting_on(watched, fresh)} == {"no"}


@TARGETS
def test_idle_connections_from_before_do_not_wait(lab: Lab, target: str) -> None:
    """Earlier connections do not wait if the last message was the answer, or the client's goodbye."""
    idle, ended, count = Host(lab), Host(lab), 200
    with (
        opened(idle.client, idle.server, idle.port, target, count) as names,
        opened(ended.client, ended.server, ended.port, target, count),
    ):
        for host in (idle, ended):
            host.exchange(names, 1)
        ended.client.call(send_and_close, names)
        spin(APART_S)
        with Watched() as watched:
            for host in (idle, ended):
                assert waiting_on(watched, host) == []
            idle.client.call(send_and_close, names)
            for host in (idle, ended):
                host.server.call(receive_and_close, names)
            for host in (idle, ended):
                until(lambda host=host: not watched.services(host.namespace), "nothing is left to list")


def send_and_close(memory: Memory, names: list[int]) -> None:
    """Say goodbye on each connection."""
    for name in names:
        memory[name].sendall(b"goodbye")
        memory.pop(name).close()


def receive_and_close(memory: Memory, names: list[int]) -> None:
    """Read to the end of each connection."""
    for name in names:
        while memory[name].recv(65536):
            pass
        memory.pop(name).close()
