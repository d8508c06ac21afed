# SPDX-License-Identifier: Apache-2.0
"""Every answered request counts once, at both ends, with every mechanism and kind of calls."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.probes.services.programs import FIRST_SLOT, LISTENING_MAX, SERVICES_MAX
from nettop.snapshots.services import CLIENTS, CONNECTIONS, OTHERS, SERVICES, WAITING, WITHOUT_SLOT

from . import oracle
from .lab import Lab, compiled, until
from .services import (
    ANSWER,
    MECHANISMS,
    REQUEST,
    SERVED,
    SIZES,
    USED,
    Host,
    Watched,
    WatchedByEach,
    answer_by,
    answer_each,
    close_each,
    echo_once,
    opened,
    receive_and_close,
    receive_each,
    receive_to_end,
    request_each,
    send_and_close,
    send_and_wait,
    send_each,
)
from .test_events import decoded
from .traffic import Memory, exchange, linger, listen

pytestmark = pytest.mark.kernel

ANSWERER = Path(__file__).with_name("answer.c")
SOME, READINGS = 300, 30
"""Connections that stay, and readings while others come and go."""
KINDS = ["write", "sendfile", "splice", "io_uring", "peek"]


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program that answers requests by several kinds of calls."""
    return compiled(ANSWERER, tmp_path_factory.mktemp("services"))


def check_both(watches: list[Watched], host: Host, **values: Any) -> None:
    """Check that both ends have counted the same, and that nothing waits."""
    for watched in watches:
        for side in (SERVED, USED):
            row = watched.until(host.namespace, host.port, side, waiting=0, **values)
            assert sum(row["response"]) == row["responses"]


TARGETS = {"127.0.0.1": 7, "::1": 11, "::ffff:127.0.0.1": 13}
"""How often is requested from each address."""


@pytest.fixture(scope="module")
def done(all_watches: WatchedByEach) -> Iterator[Host]:
    """Yield requests by IPv4, IPv6 and v4-mapped IPv6; some have no response, and some of these still wait."""
    with Lab() as lab:
        host = Host(lab)
        for target, count in TARGETS.items():
            with opened(host.client, host.server, host.port, target, 3) as names:
                host.exchange(names, count)
        with opened(host.client, host.server, host.port, "127.0.0.1", 2) as names:
            host.client.call(send_each, names, REQUEST)
            host.server.call(receive_each, names, REQUEST)
            host.server.call(linger, names)
            host.server.call(close_each, names)
        with opened(host.client, host.server, host.port, "::1", 5) as names:
            host.exchange(names, 1)
            host.client.call(send_each, names[:3], REQUEST)
            host.server.call(receive_each, names[:2], REQUEST)
            yield host
            host.server.call(receive_each, names[2:3], REQUEST)
            host.server.call(send_each, names[:3], ANSWER)
            host.client.call(receive_each, names[:3], ANSWER)


@pytest.mark.core
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism_counts_the_same(
    mechanism: str, all_watches: WatchedByEach, done: Host, record: Callable[..., None]
) -> None:
    """Answers, unanswered and waiting requests are equal in every mechanism, with their side, start, and
    whether read."""
    watched = all_watches.by(mechanism, record)
    responses = 3 * sum(TARGETS.values()) + 5
    rows = {
        side: watched.until(
            done.namespace, done.port, side, responses=responses, unanswered=2, waiting=3, connections=5
        )
        for side in (SERVED, USED)
    }
    assert {row["request_bytes"] for row in rows.values()} == {responses * REQUEST}
    assert rows[SERVED]["process"] == "server"
    assert rows[USED]["process"] == "client"
    for name in ("queued", "service_time"):
        assert sum(rows[SERVED][name]) == responses
    waiting = watched.rows(WAITING.name, done.namespace, done.port)
    was_read = sorted((row["side"], row["was_read"]) for row in waiting if row["side"] == SERVED)
    assert was_read == [(SERVED, "no"), (SERVED, "yes"), (SERVED, "yes")]
    assert {row["pid"] for row in waiting} == {done.server.pid, done.client.pid}
    assert {row["was_read"] for row in waiting if row["side"] == USED} == {None}
    connections = watched.rows(CONNECTIONS.name, done.namespace, done.port)
    assert [row["responses"] for row in connections] == [1] * 10
    record(verdict="same")


# --- calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_calls(watches: list[Watched], host: Host, answerer: Path, kind: str) -> None:
    """Answers count by write, sendfile, splice and io_uring; MSG_PEEK, empty and failed calls add none."""
    count, answer = 211, 4096
    with opened(host.client, host.server, host.port, "::1") as names:
        host.server.start(answer_by, answerer, kind, count, (REQUEST, answer))
        host.client.start(request_each, names, count, (REQUEST, answer))
        if not host.server.result():
            assert kind == "io_uring"
            host.client.end()
            pytest.skip("io_uring is not allowed here")
        host.client.result()
        for watched in watches:
            read = sum(watched.until(host.namespace, host.port, SERVED, responses=count)["queued"])
            rows = watched.rows(CONNECTIONS.name, host.namespace, host.port)
            assert [row["queued_responses"] for row in rows if row["side"] == SERVED] == [read]
    check_both(
        watches,
        host,
        responses=count,
        request_bytes=count * REQUEST,
        response_bytes=count * answer,
        unanswered=0,
    )


@pytest.mark.parametrize("ending", ["reset", "closed"])
@pytest.mark.parametrize("was_read", [True, False])
def test_a_request_without_an_answer(
    watches: list[Watched], host: Host, ending: str, *, was_read: bool
) -> None:
    """A request without a response counts once as unanswered, with its age, at both ends, after a reset or a FIN."""
    age_s = 0.02
    with opened(host.client, host.server, host.port, "::1", 3) as names:
        host.exchange(names, 2)
        host.client.call(send_each, names, REQUEST)
        if was_read:
            host.server.call(receive_each, names, REQUEST)
        oldest = age_s * 1e9
        for watched in watches:
            until(
                lambda watched=watched: all(
                    watched.service(host.namespace, host.port, side)["oldest"] > oldest
                    for side in (SERVED, USED)
                ),
                "the request is that old",
            )
        if ending == "reset":
            host.server.call(linger, names)
        host.server.call(close_each, names)
        host.client.call(close_each, names)
    check_both(watches, host, responses=6, unanswered=3)
    for watched in watches:
        for side in (SERVED, USED):
            assert watched.service(host.namespace, host.port, side)["unanswered_ns"] >= 3 * oldest


def test_a_client_that_has_left_waits_no_longer(watches: list[Watched], host: Host) -> None:
    """TCP still has to send what it wrote before it closed; the server has not answered it."""
    with opened(host.client, host.server, host.port, "127.0.0.1") as names:
        host.exchange(names, 1)
        host.client.call(fill, names)
        for watched in watches:
            watched.until(host.namespace, host.port, USED, waiting=1)
        host.client.call(close_each, names)
        for watched in watches:
            watched.until(host.namespace, host.port, USED, waiting=0)
            watched.until(host.namespace, host.port, SERVED, waiting=1)


def fill(memory: Memory, names: list[int]) -> None:
    """Send on each connection until both buffers are full."""
    for name in names:
        memory[name].settimeout(0.1)
        with suppress(TimeoutError):
            memory[name].sendall(bytes(64 << 20))


def test_goodbyes_are_no_requests(watches: list[Watched], host: Host) -> None:
    """A last message right before the end, as in TLS, is no unanswered request."""
    for _ in range(11):
        with opened(host.client, host.server, host.port, "127.0.0.1") as names:
            host.exchange(names, 1)
            host.client.call(send_and_close, names, 31)
            host.server.call(receive_to_end, names)
    check_both(watches, host, responses=11, unanswered=0)


def test_a_server_that_closes_on_last_words(watches: list[Watched], host: Host) -> None:
    """A last message is no request if the server closes before the client, which may not be running, does."""
    for _ in range(11):
        with opened(host.client, host.server, host.port, "127.0.0.1") as names:
            host.exchange(names, 1)
            host.server.start(receive_and_close, names, 31)
            host.client.call(send_and_wait, names, 31)
            host.server.result()
    check_both(watches, host, responses=11, unanswered=0)


def test_both_directions_at_once_are_marked(watches: list[Watched], host: Host) -> None:
    """If requests and responses overlap, a turn is a burst and the row is marked; if they alternate it is not."""
    amount = 4 << 20
    with opened(host.client, host.server, host.port, "127.0.0.1") as names:
        host.exchange(names, 5)
        for watched in watches:
            assert watched.until(host.namespace, host.port, responses=5)["pattern"] == "alternating"
        host.server.start(exchange, dict.fromkeys(names, amount), dict.fromkeys(names, amount))
        host.client.call(exchange, dict.fromkeys(names, amount), dict.fromkeys(names, amount))
        host.server.result()
        for watched in watches:
            assert watched.service(host.namespace, host.port)["pattern"] == "overlapping"


# --- connections and services ---------------------------------------------------------------------------------


def test_connections_that_are_older(host: Host) -> None:
    """A connection from before the start counts later requests, and a waiting request has its age."""
    with opened(host.client, host.server, host.port, "::1", 4) as names:
        host.exchange(names, 3)
        host.client.call(silent, names[0], 20)
        host.client.call(send_each, names[:1], REQUEST)
        with Watched() as watched:
            for side in (SERVED, USED):
                watched.until(host.namespace, host.port, side, responses=0, connections=4, waiting=1)
            host.server.call(receive_each, names[:1], REQUEST)
            host.server.call(send_each, names[:1], ANSWER)
            host.client.call(receive_each, names[:1], ANSWER)
            host.exchange(names, 5)
            check_both([watched], host, responses=21)


def test_connections_are_listed_once_through_descriptors(host: Host) -> None:
    """Without the walk over socket storage, a connection that two processes hold is listed once at each end."""
    with Watched(unowned="none") as watched, opened(host.client, host.server, host.port, "::1", 2) as names:
        host.exchange(names, 2)
        host.client.call(send_each, names[:1], REQUEST)
        child = host.client.call(fork_holder)
        for side in (SERVED, USED):
            watched.until(host.namespace, host.port, side, responses=4, connections=2, waiting=1)
        assert len(watched.rows(CONNECTIONS.name, host.namespace, host.port)) == 4
        assert len(watched.rows(WAITING.name, host.namespace, host.port)) == 2
        host.client.call(end_holder, child)


def fork_holder(memory: Memory) -> int:
    """Fork a process that holds the same descriptors until it is killed; return its PID."""
    child = os.fork()
    if child == 0:
        signal.pause()
    return child


def end_holder(memory: Memory, child: int) -> None:
    """Kill the process, and wait for its end."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_socket_that_connects_again(watches: list[Watched], host: Host) -> None:
    """After a refused attempt, a socket's responses are counted."""
    host.client.call(connect_after_refusal, host.port)
    host.server.call(accept_as, 0)
    host.exchange([0], 3)
    check_both(watches, host, responses=3, connections=1)


def connect_after_refusal(memory: Memory, port: int) -> None:
    """Connect a socket, first to a closed port."""
    memory[0] = socket.socket()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            memory[0].connect(closed.getsockname())
    memory[0].connect(("127.0.0.1", port))


def silent(memory: Memory, name: int, least_ms: int) -> None:
    """Wait until a connection has been silent for a while: TCP knows the time of its last message only in ticks."""
    until(lambda: oracle.tcp_info(memory[name])["last_data_recv"] >= least_ms, "nothing comes")


def test_namespaces_have_services_of_their_own(watches: list[Watched], lab: Lab) -> None:
    """A port served in one namespace and used from another is a separate service in each."""
    near, far = lab.pair()
    server, client = lab.worker(far.namespace), lab.worker(near.namespace)
    port = int(server.call(listen, "listener", "::"))
    with opened(client, server, port, far.v6, 2) as names:
        server.start(answer_each, names, 23, SIZES)
        client.call(request_each, names, 23, SIZES)
        server.result()
    for watched in watches:
        watched.until(far.namespace, port, SERVED, responses=46)
        assert watched.until(near.namespace, port, USED, responses=46)["address"] == far.v6
        assert (SERVED, port) not in watched.services(near.namespace)
        assert (USED, port) not in watched.services(far.namespace)


def test_clients_of_a_service(watches: list[Watched], lab: Lab) -> None:
    """Each client address has a row with its responses and connections."""
    near, far = lab.pair()
    server, client = lab.worker(far.namespace), lab.worker(near.namespace)
    port = int(server.call(listen, "listener", "0.0.0.0"))
    for number, responses in enumerate((3, 5, 7)):
        client.call(connect_from, near.address(number), far.v4, port, number)
        server.call(accept_as, number)
        server.start(answer_each, [number], responses, SIZES)
        client.call(request_each, [number], responses, SIZES)
        server.result()
    for watched in watches:
        watched.until(far.namespace, port, responses=15)
        rows = decoded(watched.read().tables[CLIENTS.name])
        here = {row["client"]: row for row in rows if row["port"] == port}
        expected = {near.address(number): (responses, 1) for number, responses in enumerate((3, 5, 7))}
        assert {name: (row["responses"], row["connections"]) for name, row in here.items()} == expected


def connect_from(memory: Memory, source: str, target: str, port: int, name: int) -> None:
    """Connect from one of the client's addresses."""
    memory[name] = socket.create_connection((target, port), source_address=(source, 0))


def accept_as(memory: Memory, name: int) -> None:
    """Accept a connection under this name."""
    memory[name] = memory["listener"].accept()[0]


def test_more_services_than_places(lab: Lab) -> None:
    """Services without a place share one row with their sum, and their number is shown."""
    namespace = lab.namespace()
    worker = lab.worker(namespace)
    count = (SERVICES_MAX - FIRST_SLOT) // 2 + 41
    with Watched() as watched:
        worker.call(be_many_services, count)
        snapshot = watched.read()
        rows = decoded(snapshot.tables[SERVICES.name])
        others = {row["side"]: row["responses"] for row in rows if row["process"] == OTHERS}
        own = [row for row in rows if row["netns"] == namespace.inode]
        # Traffic of other processes may be among the others.
        for side in (SERVED, USED):
            assert sum(row["responses"] for row in own if row["side"] == side) + others[side] >= count
        assert 0 < 2 * count - len(own) <= sum(others.values()) <= snapshot.lost[WITHOUT_SLOT]


def test_many_services_one_after_the_other(lab: Lab) -> None:
    """Of more services than places each gets a row; evicted ones are summed in one row, and nothing is lost."""
    namespace = lab.namespace()
    worker = lab.worker(namespace)
    at_once = SERVICES_MAX // 16
    with Watched() as watched:
        before: set[int] = set()
        for round_ in range(1, 16 + 1):
            worker.call(be_many_services, at_once)
            snapshot = watched.read()
            own = [row for row in decoded(snapshot.tables[SERVICES.name]) if row["netns"] == namespace.inode]
            new = [row for row in own if row["id"] not in before]
            before |= {row["id"] for row in new}
            assert sum(row["responses"] for row in new if row["side"] == SERVED) == at_once
            (ended,) = decoded(snapshot.ended[SERVICES.name].total)
            assert sum(row["responses"] for row in own) + ended["responses"] >= 2 * round_ * at_once
        assert snapshot.lost[WITHOUT_SLOT] == 0


def test_a_listener_after_many_others(lab: Lab) -> None:
    """The table of listeners has room for those with connections, however many existed before."""
    namespace = lab.namespace()
    worker = lab.worker(namespace)
    with Watched() as watched:
        worker.call(listen_often, LISTENING_MAX + 1000)
        port = worker.call(serve_at_every_address)
        rows = decoded(watched.read().tables[SERVICES.name], namespace.inode)
        addresses = [row["address"] for row in rows if row["side"] == SERVED and row["port"] == port]
        assert addresses == ["0.0.0.0"]


def listen_often(memory: Memory, count: int) -> None:
    """Listen at `count` ports, one after the other."""
    for port in range(20_000, 20_000 + count):
        socket.create_server(("127.0.0.1", port)).close()


def serve_at_every_address(memory: Memory) -> int:
    """Exchange a request and a response at each of two addresses of a listener; return its port."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        for address in ("127.0.0.1", "127.0.0.2"):
            echo_once(listener, address)
        return int(listener.getsockname()[1])


def be_many_services(memory: Memory, count: int) -> None:
    """Exchange a request and a response with each of `count` ports, from one process."""
    for _ in range(count):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            echo_once(listener, "127.0.0.1")


def test_a_connection_is_listed_once(all_watches: WatchedByEach) -> None:
    """Also while others open and close, which has the kernel repeat some in its walk over socket storage."""
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            with socket.create_connection(listener.getsockname()), listener.accept()[0]:
                pass

    with socket.create_server(("127.0.0.1", 0), backlog=SOME) as listener, ExitStack() as held:
        for _ in range(SOME):
            held.enter_context(socket.create_connection(listener.getsockname()))
            held.enter_context(listener.accept()[0])
        thread = threading.Thread(target=come_and_go)
        thread.start()
        held.callback(thread.join)
        held.callback(over.set)
        for watched in all_watches.attached:
            for _ in range(READINGS):
                ids = watched.read().tables[CONNECTIONS.name].array["id"]
                assert len(ids) >= SOME
                assert (np.diff(ids.astype(np.int64)) > 0).all()
