# SPDX-License-Identifier: Apache-2.0
"""The socket table's fallback (sock_diag and /proc) reports the same as its best mechanism, the iterators.

Both tables are read in one process while the sockets' processes are stopped (SIGSTOP). Kernel timers continue, so a row
is compared only if iterator readings before and after agree; every row must be compared once.
"""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from nettop.kernel.bpf.program import Loader
from nettop.kernel.host.facts import Host
from nettop.kernel.net.entered_namespaces import shared_namespaces
from nettop.probes.connections.programs import table_text
from nettop.probes.connections.sock_diag_table import DiagTable
from nettop.probes.connections.socket_rows import ROW, STATE, descriptors_of
from nettop.probes.connections.socket_table import SocketTable
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import known

from . import traffic
from .lab import Dropper, Lab, Namespace, libc, process_state, settle_child, until
from .socket_sharing import accepted_by, fork_with_sockets, keep_in_flight, prefork
from .test_equals_ss import Mesh, mesh
from .test_rows import overflow_udp
from .traffic import Call

pytestmark = pytest.mark.kernel
__all__ = ["mesh"]

TICK_NS = 10_000_000
SYS_EXIT = 60 if os.uname().machine == "x86_64" else 93
NOT_REPORTED = ("congestion_limited", "send_buffer_full", "syn_queue", "direction", "descriptors_max")
"""What sock_diag lacks; of a connection also the backlog of the listener that it came to."""
MOVING = ("busy_us", "receiver_limited_us", "send_buffer_limited_us", "last_sent_ms", "last_received_ms")
"""What grows while a socket waits: test_equals_ss.py and test_bytes_exact.py compare it."""
COMPARED = [field.name for field in SOCKETS.stored if field.name not in NOT_REPORTED + MOVING] + [
    "start_time"
]
TEXTS = [field.name for field in SOCKETS.stored if field.kind is Kind.TEXT]
COUNTERS = (
    "bytes_sent", "bytes_acked", "bytes_received", "packets_sent", "packets_received", "data_packets_sent",
    "retransmits",
)  # fmt: skip
VARIED = (
    *COUNTERS, "bytes_in_flight", "cwnd", "mss", "rtt_us", "rtt_var_us", "rtt_min_us", "delivery_rate",
    "peer_window", "pacing_rate",
)  # fmt: skip
NOT_OF_CLOSED = (
    *VARIED,
    "application_limited",
    "lost",
    "spurious",
    "reordered",
    "probes",
    "congestion_control",
)
"""What sock_diag does not report of a TCP socket in CLOSE."""

Row = dict[str, Any]
Table = SocketTable | DiagTable


@dataclass
class Reader:
    """A table, and the rows of its last reading, which the next one starts from."""

    table: Table
    before: Array = field(default_factory=lambda: np.zeros(0, ROW))
    counts: dict[str, int] = field(default_factory=dict)

    def read(self, *namespaces: Namespace) -> dict[int, Row]:
        """Return the rows in these namespaces by id, with None for unknown."""
        if isinstance(self.table, SocketTable):
            self.table._last_walks = {}  # or rows of an earlier walk would be used again
        self.before, names, self.counts, _ = self.table.read(self.before)
        assert np.all(self.before["id"][1:] > self.before["id"][:-1])
        rows = self.before[np.isin(self.before["netns"], [namespace.inode for namespace in namespaces])]
        texts = names.texts()
        columns = {name: values(rows, name) for name in COMPARED}
        for name in TEXTS:
            columns[name] = [None if code is None else texts[name][code] for code in columns[name]]
        columns["start_time"] = [None if at is None else at // TICK_NS for at in columns["start_time"]]
        cells = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return {row["id"]: row for row in cells}


def values(rows: Array, name: str) -> list[Any]:
    """Return a column, with None for unknown."""
    return [
        value if there else None for value, there in zip(rows[name].tolist(), known(rows[name]), strict=True)
    ]


@dataclass
class Tables:
    """Both tables."""

    first: Reader
    second: Reader

    def compare(self, *namespaces: Namespace) -> dict[int, Row]:
        """Compare every row once while it is stable; return the rows of the fallback."""
        compared: dict[int, Row] = {}

        def all_compared() -> bool:
            once, shown, again = (
                reader.read(*namespaces) for reader in (self.first, self.second, self.first)
            )
            assert once.keys() == again.keys()
            assert not shown.keys() - once.keys()
            expected = {key: row for key, row in once.items() if not is_dead(row, shown.get(key))}
            assert not expected.keys() - shown.keys()
            for key, row in expected.items():
                if row == again[key]:
                    different = differences(shown[key], row)
                    assert not different, f"{row}: sock_diag, iterators = {different}"
                    compared[key] = shown[key]
            return len(compared) == len(expected)

        until(all_compared, "every socket stood still during three readings", 60)
        return compared


def is_dead(row: Row, shown: Row | None) -> bool:
    """Return whether only a descriptor keeps a socket in CLOSE.

    For such a socket sock_diag lists the connection's remains in TIME_WAIT, or nothing. It lists one with a port since
    Linux 6.8.
    """
    return bool(row["state"] == STATE["CLOSE"]) and (shown is None or shown["state"] != STATE["CLOSE"])


def differences(row: Row, wanted: Row) -> dict[str, tuple[object, object]]:
    """Return the fields that differ in the fallback; values that sock_diag does not report may be unknown."""
    unreported = set(NOT_OF_CLOSED) if row["state"] == STATE["CLOSE"] else set()
    if row["pid"] is None:
        unreported.add("uid")
    return {
        name: (row[name], wanted[name])
        for name in COMPARED
        if row[name] != wanted[name] and not (row[name] is None and name in unreported)
    }


@pytest.fixture(scope="module")
def tables() -> Iterator[Tables]:
    """Yield both tables, attached once for all tests; each lists everything."""
    loader = Loader()
    first = SocketTable(loader.load(table_text()), Host())
    loader.close()
    second = DiagTable(Host(), shared_namespaces(Host()))
    for table in (first, second):
        table.list_all(True)
    yield Tables(Reader(first), Reader(second))
    for table in (first, second):
        table.close()


def states(rows: dict[int, Row]) -> set[str]:
    """Return the names of the existing states."""
    return {name for name, number in STATE.items() if number in {row["state"] for row in rows.values()}}


@pytest.mark.walks
def test_every_field_equals_the_iterators(tables: Tables, mesh: Mesh) -> None:
    """Every field is equal over 2,000 sockets of IPv4, IPv6 and both in all lasting states, hundreds with lost
    segments."""
    compared = tables.compare(*(end.namespace for end in mesh.ends))
    assert len(compared) >= 2000
    assert states(compared) >= {
        "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING", "LISTEN",
    }  # fmt: skip
    assert sum(bool(row["retransmits"]) for row in compared.values()) >= 100
    distinct = {name: len({row[name] for row in compared.values()} - {None, 0}) for name in VARIED}
    assert {name: number for name, number in distinct.items() if number < 50} == {}


@pytest.mark.walks
def test_states_that_no_process_holds(tables: Tables, lab: Lab) -> None:
    """Both tables have requests, minisockets, orphans, a backlog, a listener, and sockets that are only bound."""
    near, far = lab.pair()
    client, server = lab.worker(near.namespace, "client"), lab.worker(far.namespace, "server")
    port = server.call(traffic.listen, "listener", "::", 0, 7)
    for name in ("time wait", "fin wait"):
        client.call(traffic.connect, name, Call((far.v4, port)))
        server.call(traffic.accept, "listener", name)
        client.call(traffic.close, [name])
    server.call(traffic.close, ["time wait"])
    client.call(traffic.connect_at_once, {1: Call((far.v4, port)), 2: Call((far.v6, port))})
    client.call(traffic.send, {1: 101, 2: 103})
    client.call(traffic.acknowledged, [1, 2])
    dropper = lab.dropper(far)
    dropper.rule(every=1, with_flags=Dropper.ACK, without_flags=Dropper.SYN)
    client.call(traffic.connect_at_once, {3: Call((far.v4, port)), 4: Call((far.v6, port))})
    dropper.rule(every=1)
    client.call(traffic.connect_without_answer, 5, Call((far.v4, port)))
    client.call(traffic.send, {3: 1009})
    client.call(traffic.close, [3])
    client.call(only_bind, 6, near.v4)
    for worker in (client, server):
        worker.stop()
    compared = tables.compare(near.namespace, far.namespace)
    assert states(compared) - {"CLOSE"} == {
        "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE_WAIT", "LISTEN",
    }  # fmt: skip
    assert sum(row["pid"] is None for row in compared.values()) >= 7


def only_bind(memory: traffic.Memory, name: object, address: str) -> None:
    """Bind a TCP socket to a port, and do nothing else with it."""
    memory[name] = socket.socket()
    memory[name].bind((address, 0))


@pytest.mark.walks
def test_counters_of_busy_connections(tables: Tables, lab: Lab) -> None:
    """While bytes move, no counter decreases and no unsent byte is acknowledged; at the end all bytes are reported."""
    near, far = lab.pair()
    client, server, port = traffic.client_and_server(lab, near.namespace, far.namespace, "::")
    ports = client.call(traffic.connect_at_once, [Call((far.v4, port)), Call((far.v6, port))])
    server.call(traffic.accept_ports, "listener", {port: number for number, port in enumerate(ports)})
    lab.dropper(far).rule(every=503, data=True)
    up, down = {0: 30_000_001, 1: 20_000_003}, {0: 1009, 1: 10_000_019}
    client.start(traffic.exchange, up, down)
    server.start(traffic.exchange, down, up)
    before: dict[int, Row] = {}

    def all_moved() -> bool:
        now = tables.second.read(near.namespace, far.namespace)
        for key, row in now.items():
            if row["state"] == STATE["ESTABLISHED"]:
                assert row["bytes_acked"] <= row["bytes_sent"]
                assert all(row[name] >= before.get(key, row)[name] for name in COUNTERS)
        before.update(now)
        return sorted(row["bytes_acked"] or 0 for row in now.values()) == sorted(
            [0, *up.values(), *down.values()]
        )

    until(all_moved, "every byte is acknowledged", 120)
    client.result()
    server.result()
    assert any(row["retransmits"] for row in before.values())
    tables.compare(near.namespace, far.namespace)


@pytest.mark.walks
def test_time_wait_is_counted_alike(tables: Tables, lab: Lab) -> None:
    """TIME_WAIT has a row only on request; both mechanisms count it, and list it completely."""
    home = lab.namespace()
    worker = lab.worker(home)
    port = worker.call(traffic.listen, "listener", "127.0.0.1")
    worker.call(traffic.connect, "client", Call(("127.0.0.1", port)))
    worker.call(traffic.accept, "listener", "server")
    worker.call(traffic.close, ["client"])
    worker.call(traffic.close, ["server"])
    readers = (tables.first, tables.second)
    try:
        for reader in readers:
            reader.table.list_all(False)
        until(lambda: states(tables.second.read(home)) == {"LISTEN"}, "its row has gone")
        for reader in readers:
            assert states(reader.read(home)) == {"LISTEN"}
            assert reader.counts["time_wait"] >= 1
    finally:
        for reader in readers:
            reader.table.list_all(True)
    assert states(tables.second.read(home)) == {"LISTEN", "TIME_WAIT"}


@pytest.mark.walks
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_udp_equals_the_iterators(tables: Tables, lab: Lab, host: str) -> None:
    """UDP sockets, connected or not, have equal queues and drops."""
    home = lab.namespace()
    worker = lab.worker(home)
    worker.call(overflow_udp, host, 4093)
    compared = tables.compare(home)
    assert states(compared) == {"UNCONN", "ESTABLISHED"}
    assert sum(bool(row["drops"]) for row in compared.values()) == 1
    assert sum(bool(row["receive_queue"]) for row in compared.values()) == 2


def shared(tables: Tables, namespace: Namespace) -> dict[int, list[tuple[int, int]]]:
    """Return the owners of each socket as found by the fallback and by the iterators."""
    compared = tables.compare(namespace)
    reported = []
    for reader in (tables.first, tables.second):
        rows = reader.before[np.isin(reader.before["id"], list(compared))]
        reported.append(
            {
                int(row["id"]): descriptors_of(rows[at : at + 1], reader.table.held_by_several)
                for at, row in enumerate(rows)
            }
        )
    assert reported[0] == reported[1]
    return reported[1]


@pytest.mark.walks
def test_several_holders(tables: Tables, lab: Lab) -> None:
    """A socket that many processes hold has the same owner, and the same processes, by both mechanisms."""
    home = lab.namespace()
    master, client = lab.worker(home, "master"), lab.worker(home, "client")
    port = master.call(prefork, 20)  # children that begin within one clock tick
    client.call(traffic.connect_at_once, [Call(("127.0.0.1", port))] * 20)
    master.call(accepted_by)
    held = shared(tables, home)
    assert max(len({pid for pid, _ in pairs}) for pairs in held.values()) == 6
    client.call(duplicate, 0)
    client.call(fork_with_sockets)
    assert sum(len(pairs) == 4 for pairs in shared(tables, home).values()) == 1


def duplicate(memory: traffic.Memory, name: object) -> None:
    """Duplicate the socket's descriptor."""
    memory["copy"] = memory[name].dup()


@pytest.mark.walks
def test_an_owner_stays(tables: Tables, lab: Lab) -> None:
    """A socket keeps its owner when a younger child holds it too."""
    home = lab.namespace()
    worker = lab.worker(home)
    worker.call(traffic.listen, "listener", "127.0.0.1")
    assert {row["pid"] for row in tables.compare(home).values()} == {worker.pid}
    worker.call(fork_with_sockets)
    assert {row["pid"] for row in tables.compare(home).values()} == {worker.pid}


@pytest.mark.walks
def test_socket_that_no_descriptor_holds(tables: Tables, lab: Lab) -> None:
    """A socket that only an unread message holds has a row, and no owner."""
    home = lab.namespace()
    worker = lab.worker(home)
    worker.call(traffic.listen, "listener", "127.0.0.1")
    worker.call(keep_in_flight, "listener")
    (row,) = until(lambda: tables.second.read(home), "the listener is listed").values()
    assert (row["pid"], row["descriptor"], row["process"], row["owner_source"]) == (None, None, None, None)


@pytest.mark.walks
def test_process_whose_first_thread_has_ended(tables: Tables, lab: Lab) -> None:
    """A process whose first thread has ended lives on in its other threads, and still holds its sockets."""
    home = lab.namespace()
    worker = lab.worker(home, "parent")
    pid = worker.call(listen_without_leader)
    until(lambda: process_state(pid) == "Z", "the first thread has ended")
    (first,), (second,) = (reader.read(home).values() for reader in (tables.first, tables.second))
    assert first["pid"] == pid
    for name in ("pid", "descriptor", "process", "start_time"):
        assert second[name] == first[name]


def listen_without_leader(memory: traffic.Memory) -> int:
    """Fork a child that listens, and whose first thread ends; return its PID."""
    pid = os.fork()
    if pid == 0:
        settle_child("leaderless")
        traffic.listen(memory, "listener", "127.0.0.1")
        threading.Thread(target=threading.Event().wait).start()
        libc.syscall(SYS_EXIT, 0)
    return pid
