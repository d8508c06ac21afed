# SPDX-License-Identifier: Apache-2.0
"""MPTCP: a process holds one socket, whose subflows are TCP connections managed by the kernel."""

import socket
from pathlib import Path

import pytest

from nettop.snapshots.connections import LENS
from nettop.snapshots.schema import Kind

from . import ss, traffic
from .command import JSON, Row, Running, by_cookie, in_namespaces, rows
from .lab import Lab, Namespace, Worker, until
from .test_events import Watch, part, process
from .traffic import Call

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since("5.12", "a program at a tracepoint may not ask for a socket's cookie"),
    pytest.mark.skipif(not Path("/proc/sys/net/mptcp").exists(), reason="this kernel has no MPTCP"),
]

COUNTERS = [field.name for field in LENS.tables[0].stored if field.kind is Kind.COUNTER]


def joined(lab: Lab, host: str = "127.0.0.1") -> tuple[Namespace, Worker, Worker]:
    """Return a namespace with a client and a server joined by one MPTCP connection over loopback, number 0."""
    home = lab.namespace()
    client, server = lab.worker(home, "client"), lab.worker(home, "server")
    port = server.call(traffic.listen_mptcp, "listener", host)
    client.call(traffic.connect, 0, Call((host, port), protocol=socket.IPPROTO_MPTCP))
    server.call(traffic.accept, "listener", 0)
    return home, client, server


def move(client: Worker, server: Worker, up: int, down: int) -> None:
    """Move these bytes over connection 0."""
    client.start(traffic.exchange, {0: up}, {0: down})
    server.call(traffic.exchange, {0: down}, {0: up})
    client.result()


def owners(listed: list[Row], protocol: str) -> dict[int, tuple[int | None, str | None]]:
    """Return the processes of a protocol's rows, by cookie."""
    return {row["id"]: part(row, "pid", "process") for row in listed if row["protocol"] == protocol}


@pytest.mark.walks
@pytest.mark.core
def test_sockets_and_subflows(lab: Lab) -> None:
    """The socket held by a process and its subflow are two rows with one owner; the subflow has the numbers."""
    connections = [joined(lab, host) for host in ("127.0.0.1", "::1")]
    for _, client, server in connections:
        move(client, server, 1009, 1013)
    least = [moved(home) for home, _, _ in connections]
    shown = rows(everything=False)
    for (home, client, server), before in zip(connections, least, strict=True):
        check_rows(in_namespaces(shown, home.inode), home, client, server)
        check_bytes(in_namespaces(shown, home.inode), before, moved(home))


def subflows_of(home: Namespace) -> dict[int, ss.Socket]:
    """Return the subflows of a namespace in ss, by cookie."""
    return {cookie: row for cookie, row in ss.sockets(home, "-t", "-p").items() if row.state != "LISTEN"}


def moved(home: Namespace) -> dict[int, tuple[int, int]]:
    """Return the bytes sent and received by the subflows of a namespace in ss, by cookie."""
    return {
        key: (row.count("bytes_sent"), row.count("bytes_received")) for key, row in subflows_of(home).items()
    }


def check_bytes(
    listed: list[Row], before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]]
) -> None:
    """Check that each subflow's bytes lie between two readings of ss: MPTCP may send data again at any time."""
    by_id = by_cookie(listed)
    assert before.keys() == after.keys()
    for cookie, least in before.items():
        shown = part(by_id[cookie], "bytes_sent", "bytes_received")
        for low, value, high in zip(least, shown, after[cookie], strict=True):
            assert low <= value <= high, (cookie, least, shown, after[cookie])


def check_rows(listed: list[Row], home: Namespace, client: Worker, server: Worker) -> None:
    """Check that a namespace's rows are an MPTCP connection and its subflow, as in ss and both processes."""
    subflows = subflows_of(home)
    holders = {cookie: process(row.holders[0][0]) for cookie, row in subflows.items()}
    assert owners(listed, "tcp") == holders
    assert sorted(holders.values()) == sorted(process(worker.pid) for worker in (client, server))
    held = {worker.call(traffic.cookie, 0): process(worker.pid) for worker in (client, server)}
    assert owners(listed, "mptcp") == held
    assert {row["id"] for row in listed} == holders.keys() | held.keys()
    by_id = by_cookie(listed)
    ends = ("pid", "local_address", "local_port", "remote_address", "remote_port", "state", "direction")
    assert {part(by_id[cookie], *ends) for cookie in held} == {part(by_id[key], *ends) for key in subflows}
    assert {by_id[cookie][name] for cookie in held for name in COUNTERS} == {None}


@pytest.mark.walks
def test_listener(lab: Lab) -> None:
    """An MPTCP listener and its TCP listener belong to the process."""
    home = lab.namespace()
    server = lab.worker(home, "server")
    server.call(traffic.listen_mptcp, "listener", "127.0.0.1")
    listed = in_namespaces(rows(), home.inode)
    assert {part(row, "protocol", "state", "pid") for row in listed} == {
        (protocol, "LISTEN", server.pid) for protocol in ("tcp", "mptcp")
    }


def test_subflows_stay(lab: Lab) -> None:
    """A subflow keeps its row and owner over several refreshes, and vanishes with its connection."""
    home, client, server = joined(lab)
    with Running(*JSON, "--interval", "3600") as running:
        for number in range(1, 5):
            until(lambda number=number: len(running.refreshes()) == number, f"refresh {number}")
            if number < 4:
                running.refresh()
        assert running.end() == 0, running.errors()  # after a last reading
        refreshes = [in_namespaces(refresh, home.inode) for refresh in running.refreshes()]
    expected = {process(client.pid), process(server.pid)}
    assert [set(owners(listed, "tcp").values()) for listed in refreshes] == [expected] * 5


@pytest.mark.parametrize("closer", ["client", "server", "both", "client resets"])
@pytest.mark.parametrize("is_read", [False, True], ids=["unread", "read"])
def test_events_name_the_process(lab: Lab, closer: str, is_read: bool) -> None:
    """A kernel thread closes subflows: their events name the process that holds the MPTCP socket."""
    with Watch() as watch:
        home, client, server = joined(lab)
        move(client, server, 1009, 1013)
        if is_read:
            watch.read()
        if closer == "client resets":
            client.call(traffic.linger, [0])
        for worker in (server, client) if closer == "server" else (client, server):
            worker.call(traffic.close, [0])
        reported = watch.wait(home, connect=1, accept=1, close=2)
        pids = {"outbound": process(client.pid), "inbound": process(server.pid)}
        assert {row["protocol"] for row in reported} == {"tcp"}
        assert [part(row, "pid", "process") for row in reported] == [
            pids[row["direction"]] for row in reported
        ]
        moved = {
            row["pid"]: part(row, "bytes_sent", "bytes_received")
            for row in reported
            if row["event"] == "close"
        }
        assert moved[client.pid] == moved[server.pid][::-1]


def test_connections_from_before_the_start(lab: Lab) -> None:
    """The first reading finds the owners of both ends of an earlier connection."""
    home, client, server = joined(lab)
    with Watch() as watch:
        watch.read()
        for worker in (client, server):
            worker.call(traffic.close, [0])
        reported = watch.wait(home, close=2)
    assert sorted(part(row, "pid", "process") for row in reported) == sorted(
        process(worker.pid) for worker in (client, server)
    )


def test_a_subflow_that_the_kernel_adds(lab: Lab) -> None:
    """A second path, managed by a kernel thread, still belongs to the process."""
    with Watch() as watch:
        near, far = lab.pair()
        for end in (near, far):
            end.namespace.ip("mptcp", "limits", "set", "subflow", "2", "add_addr_accepted", "2")
        near.namespace.ip("mptcp", "endpoint", "add", near.address(7), "dev", near.device, "subflow")
        client, server = lab.worker(near.namespace, "client"), lab.worker(far.namespace, "server")
        port = server.call(traffic.listen_mptcp, "listener", far.v4)
        client.call(traffic.connect, 0, Call((far.v4, port), protocol=socket.IPPROTO_MPTCP))
        server.call(traffic.accept, "listener", 0)
        move(client, server, 1009, 1013)
        opened = watch.wait(near.namespace, connect=2)
        assert {row["local_address"] for row in opened} == {near.v4, near.address(7)}
        listed = watch.read().tables["sockets"].array
        ours = listed[(listed["netns"] == near.namespace.inode) & (listed["protocol"] == 6)]
        assert ours["pid"].tolist() == [client.pid] * 2
        for worker in (client, server):
            worker.call(traffic.close, [0])
        reported = watch.wait(near.namespace, connect=2, close=2)
        assert {part(row, "pid", "process") for row in reported} == {process(client.pid)}
