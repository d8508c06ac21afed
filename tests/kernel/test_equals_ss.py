# SPDX-License-Identifier: Apache-2.0
"""Over 2,000 sockets with lost packets: nettop equals `ss -tinem` field by field, and other oracles elsewhere.

Both peers stand still (SIGSTOP) while they are compared. Kernel timers go on, so a row is compared only where
two runs of ss, one before and one after nettop, agree; every row has to be compared once.

Oracles: ss for what ss prints; TCP_INFO through a borrowed descriptor for the exact value of what ss rounds;
SO_COOKIE for id; SIOCGSKNS and fstat for netns; /proc/PID/comm for process; /proc/PID/cgroup for cgroup.
"""

import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from . import oracle, ss, traffic
from .command import Row, by_cookie, in_namespaces, rows
from .lab import Dropper, End, Lab, Worker, until
from .traffic import Call, prime_after

pytestmark = pytest.mark.kernel

CONNECTIONS = 1050
USERS = 60
GROUPS = 15
PLAIN, UNREAD, CLIENT_FIN, SERVER_FIN, UNREAD_FIN, IN_FLIGHT, FULL = range(7)
FULL_FIN, FLIGHT_FIN, LAST_ACK, CLOSING = range(7, 11)
LOUD = (PLAIN, 11)  # with a small MSS and much to send: these lose up to some eighty segments
SILENT = (
    120  # connections that queue up before they begin, and send nothing: each has its own round trip time
)
PORT = 4711
ENOUGH = 50
FIN_WAIT2, CLOSE, LISTEN, IS_CLOSING = 5, 7, 10, 11  # the kernel's numbers
VARIED = (
    "local_address", "local_port", "remote_address", "remote_port", "uid", "bytes_sent", "bytes_acked",
    "bytes_received", "bytes_in_flight", "send_queue", "receive_queue", "packets_sent", "packets_received",
    "data_packets_sent", "retransmits", "rtt_us", "rtt_var_us", "rtt_min_us", "cwnd", "mss",
    "delivery_rate", "id",
)  # fmt: skip


@dataclass
class Mesh:
    """Two namespaces full of sockets, whose processes are stopped."""

    ends: tuple[End, End]
    client: Worker
    server: Worker

    def oracle_rows(self) -> dict[int, ss.Socket]:
        """Return ss's rows of both namespaces, without the listener and TIME_WAIT (no longer a full socket)."""
        sockets: dict[int, ss.Socket] = {}
        for end in self.ends:
            sockets |= ss.sockets(end.namespace, "-t", "-p")
        return {cookie: row for cookie, row in sockets.items() if row.state not in ("LISTEN", "TIME_WAIT")}

    def nettop_rows(self) -> dict[int, Row]:
        """Return nettop's rows of both namespaces."""
        return by_cookie(in_namespaces(rows(), *(end.namespace.inode for end in self.ends)))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Yield the sockets in every lasting state, after an exchange that lost data segments in both directions."""
    with Lab() as lab:
        near, far = lab.pair()
        for number in range(1, USERS):
            near.initial_window(far, number, number + 2)
        client, server = lab.worker(near.namespace, "mesh-client"), lab.worker(far.namespace, "mesh-server")
        droppers = lab.dropper(near), lab.dropper(far)
        server.call(traffic.listen, "listener", "::", PORT)
        join(client, server, near, far, range(CONNECTIONS))
        near.queue_up("1mbit")
        join(client, server, near, far, range(CONNECTIONS, CONNECTIONS + SILENT))
        for end, dropper in zip((near, far), droppers, strict=True):
            end.queue_up("3gbit")
            dropper.rule(every=17, data=True)
        talk(client, server)
        assert all(dropper.dropped() for dropper in droppers)
        for dropper in droppers:
            dropper.nothing()
        half_close(client, server)
        cut_off(client, server, droppers[1])
        client.stop()
        server.stop()
        yield Mesh((near, far), client, server)


def members(group: int) -> list[int]:
    """Return the connections of one group."""
    return list(range(group, CONNECTIONS, GROUPS))


def join(client: Worker, server: Worker, near: End, far: End, numbers: range) -> None:
    """Connect these at once: IPv4, IPv6 and IPv4 over IPv6, each with its own addresses, MSS and user."""
    calls = {}
    for number in numbers:
        version = 6 if number % 3 == 1 else 4
        calls[number] = Call(
            (far.address(1 + number % USERS, version), PORT),
            (near.address(1 + number % 997, version), 0),
            mss=200 + number * 7 % (300 if number % GROUPS in LOUD else 1200),
            uid=2000 + number % USERS,
            mapped=number % 3 == 2,
        )
    ports = client.call(traffic.connect_at_once, calls)
    names = {(call.source[0], ports[number]): number for number, call in calls.items() if call.source}
    server.call(accept_mesh, "listener", names)


def accept_mesh(memory: dict[Any, Any], listener: str, numbers: dict[tuple[str, int], int]) -> None:
    """Accept all, each for another user, and file them under the numbers of their connections."""
    for turn in range(len(numbers)):
        traffic.accept(memory, listener, "new", 3000 + turn % USERS)
        held = memory.pop("new")
        memory[numbers[peer(held)]] = held


def peer(held: socket.socket) -> tuple[str, int]:
    """Return the other end's address (IPv4 if mapped) and port."""
    host, port = held.getpeername()[:2]
    return ss.endpoint(f"[{host}]:{port}")


def amounts(seed: int) -> dict[int, int]:
    """Return the bytes that each connection sends: few for most, many for some."""
    dice = random.Random(seed)
    return {
        number: prime_after(
            dice.randrange(700, 400_000) if number % GROUPS in LOUD else dice.randrange(9_000)
        )
        for number in range(CONNECTIONS)
    }


def talk(client: Worker, server: Worker) -> None:
    """Have both sides send and read everything at the same time."""
    up, down = amounts(1), amounts(2)
    client.start(traffic.exchange, up, down)
    server.start(traffic.exchange, down, up)
    client.result(150)
    server.result(150)
    everyone = list(range(CONNECTIONS))
    client.call(traffic.acknowledged, everyone)
    server.call(traffic.acknowledged, everyone)


def half_close(client: Worker, server: Worker) -> None:
    """Leave unread data and received FINs in every combination."""
    unread = {number: prime_after(number) for number in members(UNREAD) + members(UNREAD_FIN)}
    client.call(traffic.send, unread)
    client.call(traffic.acknowledged, list(unread))
    client.call(traffic.shut, members(CLIENT_FIN) + members(LAST_ACK) + members(UNREAD_FIN))
    server.call(traffic.shut, members(SERVER_FIN))
    for number in members(CLIENT_FIN) + members(LAST_ACK) + members(UNREAD_FIN):
        client.call(traffic.in_state, number, FIN_WAIT2)
    for number in members(SERVER_FIN):
        server.call(traffic.in_state, number, FIN_WAIT2)


def cut_off(client: Worker, server: Worker, dropper: Dropper) -> None:
    """Cut off the server, then have both sides send data that stays unacknowledged."""
    dropper.rule(every=1)
    few, many = members(IN_FLIGHT) + members(FLIGHT_FIN), members(FULL) + members(FULL_FIN)
    client.call(traffic.send, {number: prime_after(number) for number in few})
    client.call(traffic.send, {number: prime_after(40_000 + 97 * number) for number in many})
    client.call(traffic.shut, members(FULL_FIN) + members(FLIGHT_FIN) + members(CLOSING))
    server.call(traffic.send, {number: prime_after(2 * number) for number in members(LAST_ACK)})
    server.call(traffic.shut, members(LAST_ACK) + members(CLOSING))
    for number in members(CLOSING):
        client.call(traffic.in_state, number, IS_CLOSING)


def compare(
    take: Callable[[], dict[int, Any]],
    mesh: Mesh,
    check: Callable[[Row, Any], dict[str, tuple[object, object]]],
) -> dict[int, Row]:
    """Compare every socket once while it is stable; return the compared rows."""
    compared: dict[int, Row] = {}

    def all_compared() -> bool:
        before, shown, after = take(), mesh.nettop_rows(), take()
        assert before.keys() == after.keys()
        assert not before.keys() - shown.keys(), f"{len(before.keys() - shown.keys())} sockets have no row"
        for cookie in before:
            if before[cookie] == after[cookie]:
                different = check(shown[cookie], before[cookie])
                assert not different, f"{before[cookie]}: nettop, oracle = {different}"
                compared[cookie] = shown[cookie]
        return len(compared) == len(before)

    until(all_compared, "every socket stood still during one snapshot", 60)
    return compared


def differences(row: Row, wanted: dict[str, Any]) -> dict[str, tuple[object, object]]:
    """Return the fields that nettop reports differently."""
    return {name: (row[name], value) for name, value in wanted.items() if row[name] != value}


@pytest.mark.oracle
def test_every_column_equals_ss(mesh: Mesh) -> None:
    """Every column of `ss -tinem` is equal on more than 2,000 sockets, each with at least 50 distinct values."""
    compared = compare(
        mesh.oracle_rows, mesh, lambda row, line: differences(ss.as_printed(row), ss.expected(line))
    )
    assert len(compared) >= 2000
    distinct = {name: len({row[name] for row in compared.values()} - {0, None}) for name in VARIED}
    assert {name: number for name, number in distinct.items() if number < ENOUGH} == {}
    states = {row["state"] for row in compared.values()}
    assert states == {"ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LAST_ACK", "CLOSING"}


def test_owner_equals_ss(mesh: Mesh) -> None:
    """The process of each socket is the one that ss finds by walking /proc."""
    compare(mesh.oracle_rows, mesh, lambda row, wanted: differences(row, {"pid": wanted.holders[0][0]}))


def test_every_counter_equals_tcp_info(mesh: Mesh) -> None:
    """Values that ss rounds equal the kernel's own TCP_INFO to the last digit."""

    def take() -> dict[int, dict[str, int]]:
        sockets = {}
        for worker in (mesh.client, mesh.server):
            for held in oracle.tcp_sockets(worker.pid):
                info = held.tcp_info()
                if info["state"] not in (LISTEN, CLOSE):
                    sockets[held.cookie()] = {name: info[name] for name in info if name not in oracle.CLOCKS}
        return sockets

    compared = compare(take, mesh, lambda row, info: differences(row, from_tcp_info(info)))
    assert len(compared) >= 2000
    assert any(row["spurious"] for row in compared.values())


def from_tcp_info(info: dict[str, int]) -> dict[str, Any]:
    """Return nettop's fields from TCP_INFO."""
    measured = info["rtt"] > 0
    return {
        "bytes_sent": info["bytes_sent"] - info["bytes_retrans"],
        "packets_sent": info["segs_out"],
        "packets_received": info["segs_in"],
        "data_packets_sent": info["data_segs_out"],
        "retransmits": info["total_retrans"],
        "rtt_us": info["rtt"] if measured else None,
        "rtt_var_us": info["rttvar"] if measured else None,
        "rtt_min_us": None if info["min_rtt"] == oracle.NEVER_MEASURED else info["min_rtt"],
        "cwnd": info["snd_cwnd"],
        "mss": info["snd_mss"],
        "delivery_rate": info["delivery_rate"] or None,
        "application_limited": ("no", "yes")[info["app_limited"] & 1],
        "lost": info["lost"],
        "spurious": info["dsack_dups"],
        "reordered": info["reord_seen"],
        "probes": info["probes"],
        "peer_window": info["snd_wnd"],
        "pacing_rate": info["pacing_rate"] if info["pacing_rate"] not in (0, oracle.NOT_PACED) else None,
    }


def test_limited_times_and_algorithm_equal_the_kernel_s(mesh: Mesh) -> None:
    """Times that advance while a socket waits lie between those of TCP_INFO before and after."""
    times = {
        "busy_us": "busy_time",
        "receiver_limited_us": "rwnd_limited",
        "send_buffer_limited_us": "sndbuf_limited",
    }

    def take() -> dict[int, dict[str, Any]]:
        return {
            held.cookie(): held.tcp_info() | {"algorithm": held.congestion_control()}
            for worker in (mesh.client, mesh.server)
            for held in oracle.tcp_sockets(worker.pid)
        }

    before, shown, after = take(), mesh.nettop_rows(), take()
    compared = [cookie for cookie in before if before[cookie]["state"] not in (LISTEN, CLOSE)]
    assert len(compared) >= 2000
    for cookie in compared:
        row = shown[cookie]
        assert row["congestion_control"] == before[cookie]["algorithm"]
        for name, of_kernel in times.items():
            assert before[cookie][of_kernel] <= row[name] <= after[cookie][of_kernel], name
    assert any(shown[cookie]["busy_us"] for cookie in compared)


def test_fields_that_ss_lacks(mesh: Mesh) -> None:
    """id, netns, process, cgroup and the rest equal their own oracles, listed at the top of this module."""
    shown = mesh.nettop_rows()
    for worker, end, direction in (
        (mesh.client, mesh.ends[0], "outbound?"),
        (mesh.server, mesh.ends[1], "inbound?"),
    ):
        wanted = {
            "pid": worker.pid,
            "process": oracle.command_name(worker.pid),
            "opened_at": None,
            "protocol": "tcp",
            "cgroup": oracle.cgroup(worker.pid),
            "netns": end.namespace.inode,
            "direction": direction,
        }
        for held in oracle.tcp_sockets(worker.pid):
            if held.tcp_info()["state"] not in (LISTEN, CLOSE):
                assert held.namespace_inode() == end.namespace.inode
                assert not differences(shown[held.cookie()], wanted)
