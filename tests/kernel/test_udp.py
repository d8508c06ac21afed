# SPDX-License-Identifier: Apache-2.0
"""Each UDP message counts once, with its bytes, at its socket and process, whichever call moves it."""

import contextlib
import ctypes
import itertools
import select
import socket
import struct
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest

from nettop.kernel.net.hook_check import HookCheck
from nettop.probes.connections import programs
from nettop.probes.connections.udp import COUNTED, UdpTotals
from nettop.snapshots.arrays import Array
from nettop.snapshots.snapshot import Snapshot

from . import oracle, traffic
from .command import Row, by_cookie
from .lab import Lab, Namespace, ip, libc, until
from .test_events import Watch, decoded
from .traffic import V4, V6, Memory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since("5.12", "a program at a tracepoint may not ask for a socket's cookie"),
]

SOL_UDP, UDP_SEGMENT = 17, 103
IP_RECVERR, IPV6_RECVERR = 11, 25
NOTHING = (0, 0, 0, 0)
Moved = tuple[int, int, int, int]
"""What a socket moved, in the order of COUNTED: bytes sent and received, messages sent and received."""


@pytest.fixture
def watch(one_watch: Watch) -> Watch:
    """Return the shared probe, without the sockets of the last test."""
    one_watch.lose_sight_of_gone()
    return one_watch


def moved(row: Row) -> Moved:
    """Return the counts of the row's socket."""
    sent, received, messages_sent, messages_received = (row[name] for name in COUNTED)
    return sent, received, messages_sent, messages_received


def listed(snapshot: Snapshot, namespace: Namespace) -> dict[int, Row]:
    """Return the rows of a namespace by socket."""
    return by_cookie(decoded(snapshot.tables["sockets"], namespace.inode))


# --- two hundred sockets in five processes --------------------------------------------------------------------

PROCESSES, PAIRS = 5, 20


def open_receivers(memory: Memory) -> list[int]:
    """Open the receivers of a process, alternating IPv4 and IPv6; return their ports."""
    return [traffic.udp(memory, ("in", number), host_of(number)) for number in range(PAIRS)]


def host_of(number: int) -> str:
    """Return the loopback address that a pair of sockets uses."""
    return "::1" if number % 2 else "127.0.0.1"


def send_to_receivers(memory: Memory, ports: list[int], first: int) -> dict[int, Moved]:
    """Send to each receiver `count` messages of one length, both prime; half of the senders are connected."""
    sent = {}
    for number, port in enumerate(ports):
        length, count = lengths_of(first + number)
        target = (host_of(number), port)
        sender = memory["out", number] = socket.socket(V6 if number % 2 else V4, socket.SOCK_DGRAM)
        if number % 4 < 2:
            sender.connect(target)
        for _ in range(count):
            sender.send(b"n" * length) if number % 4 < 2 else sender.sendto(b"n" * length, target)
        sent[oracle.cookie(sender)] = (length * count, 0, count, 0)
    return sent


def lengths_of(number: int) -> tuple[int, int]:
    """Return a message's length and the number of messages, different for each pair of sockets."""
    return traffic.primes(PROCESSES * PAIRS, above=100)[number], (2, 3, 5, 7, 11)[number % 5]


def receive_all(memory: Memory, first: int) -> dict[int, Moved]:
    """Receive everything sent to this process."""
    received = {}
    for number in range(PAIRS):
        length, count = lengths_of(first + number)
        receiver = memory["in", number]
        for _ in range(count):
            assert len(receiver.recv(2 * length)) == length
        received[oracle.cookie(receiver)] = (0, length * count, 0, count)
    return received


@pytest.mark.core
def test_two_hundred_sockets_in_five_processes(lab: Lab, watch: Watch) -> None:
    """Bytes, messages and owner of each socket are exact: IPv4 and IPv6, connected and not."""
    home = lab.namespace()
    lost_before = watch.read().lost["udp messages"]
    workers = [lab.worker(home, f"talker{number}") for number in range(PROCESSES)]
    ports = [worker.call(open_receivers) for worker in workers]
    expected: dict[int, tuple[int, Moved]] = {}
    for number, worker in enumerate(workers):
        sent = worker.call(send_to_receivers, ports[number - 1], number * PAIRS)
        received = workers[number - 1].call(receive_all, number * PAIRS)
        expected |= {cookie: (worker.pid, counted) for cookie, counted in sent.items()}
        expected |= {cookie: (workers[number - 1].pid, counted) for cookie, counted in received.items()}
    snapshot = watch.read()
    assert len(expected) == 2 * PROCESSES * PAIRS
    actual = {cookie: (row["pid"], moved(row)) for cookie, row in listed(snapshot, home).items()}
    assert actual == expected
    assert snapshot.lost["udp messages"] == lost_before


# --- every call that sends or receives ------------------------------------------------------------------------


class Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("length", ctypes.c_uint),
    )


def many(call: Any, held: socket.socket, lengths: tuple[int, ...]) -> None:
    """Call sendmmsg or recvmmsg once for messages of these lengths."""
    buffers = [ctypes.create_string_buffer(length) for length in lengths]
    vectors = [Vector(ctypes.addressof(buffer), len(buffer)) for buffer in buffers]
    messages = (Message * len(lengths))(
        *(Message(vectors=ctypes.pointer(vector), vector_count=1) for vector in vectors)
    )
    assert call(held.fileno(), messages, len(lengths), 0, None) == len(lengths)
    assert [message.length for message in messages] == list(lengths)


def plain(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    sender.send(b"n" * 101)
    receiver.recv(1000)
    return (101, 0, 1, 0), (0, 101, 0, 1)


def read_and_write(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    with sender.makefile("wb", buffering=0) as output, receiver.makefile("rb", buffering=0) as source:
        output.write(b"n" * 103)
        assert len(source.read(1000)) == 103
    return (103, 0, 1, 0), (0, 103, 0, 1)


def many_at_once(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    lengths = (107, 109, 113, 127)
    many(libc.sendmmsg, sender, lengths)
    many(libc.recvmmsg, receiver, lengths)
    return (sum(lengths), 0, 4, 0), (0, sum(lengths), 0, 4)


def segmented(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    """Send one message that the kernel cuts into seven datagrams."""
    sender.sendmsg([b"n" * 7 * 131], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 131))])
    for _ in range(7):
        assert len(receiver.recv(1000)) == 131
    return (7 * 131, 0, 1, 0), (0, 7 * 131, 0, 7)


def peeked(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    sender.send(b"n" * 137)
    for _ in range(3):
        assert len(receiver.recv(1000, socket.MSG_PEEK)) == 137
    receiver.recv(1000)
    return (137, 0, 1, 0), (0, 137, 0, 1)


def never_received(sender: socket.socket, _: socket.socket) -> tuple[Moved, Moved]:
    sender.send(b"n" * 139)
    return (139, 0, 1, 0), NOTHING


def empty(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    sender.send(b"")
    assert receiver.recv(1000) == b""
    return (0, 0, 1, 0), (0, 0, 0, 1)


def cut_off(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    """Receive less than was sent; return both sides' counts: the rest does not count as received."""
    sender.send(b"n" * 149)
    assert len(receiver.recv(11)) == 11
    return (149, 0, 1, 0), (0, 11, 0, 1)


def answered(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    sender.send(b"n" * 151)
    receiver.sendto(b"n" * 157, receiver.recvfrom(1000)[1])
    sender.recv(1000)
    return (151, 157, 1, 1), (157, 151, 1, 1)


def refused(sender: socket.socket, receiver: socket.socket) -> tuple[Moved, Moved]:
    """Make a failed send and a read of the error queue, which do not count."""
    sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    if sender.family == V6:
        sender.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    receiver.close()
    sender.send(b"n" * 163)
    assert select.select([sender], [], [], 30)[0]
    with pytest.raises(ConnectionRefusedError):
        sender.send(b"n" * 167)
    assert sender.recvmsg(1000, 1000, socket.MSG_ERRQUEUE)[0] == b"n" * 163
    return (163, 0, 1, 0), NOTHING


CALLS: tuple[Callable[[socket.socket, socket.socket], tuple[Moved, Moved]], ...] = (
    plain, read_and_write, many_at_once, segmented, peeked, never_received, empty, cut_off, answered, refused,
)  # fmt: skip


def make_each_call(memory: Memory) -> dict[int, tuple[str, Moved]]:
    """Make each call by two sockets; return the bytes of each open one, and its call.

    test_mechanisms.py has every mechanism count this.
    """
    done: dict[int, tuple[str, Moved]] = {}
    for host, act in itertools.product(("127.0.0.1", "::1", "::ffff:127.0.0.1"), CALLS):
        name = f"{act.__name__} {host}"
        port = traffic.udp(memory, ("in", name), host)
        traffic.udp(memory, ("out", name), host, (host, port))
        ends = memory["out", name], memory["in", name]
        cookies = [oracle.cookie(end) for end in ends]  # which a probe cannot give them
        for end, cookie, counted in zip(ends, cookies, act(*ends), strict=True):
            if end.fileno() >= 0:
                done[cookie] = name, counted
    return done


# --- sockets that close ---------------------------------------------------------------------------------------


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Array]:
    """Return the rows of closed sockets, one array per reading."""
    noted: list[Array] = []
    read = UdpTotals.read

    def note(self: UdpTotals, *arguments: Any) -> tuple[Array, Array]:
        rows, gone = read(self, *arguments)
        noted.append(gone)
        return rows, gone

    monkeypatch.setattr(UdpTotals, "read", note)
    return noted


def last_ended(ended: list[Array], sockets: Collection[int]) -> dict[int, tuple[int, Moved]]:
    """Return the owners of these sockets that the last reading found closed, and their total bytes."""
    gone = ended[-1][np.isin(ended[-1]["id"], list(sockets))]
    return {row["id"]: (row["pid"], tuple(row[name] for name in COUNTED)) for row in gone}


LENGTHS = (11, 13, 17, 19, 23, 29, 31)


def answer(memory: Memory, count: int) -> None:
    """Answer `count` questions with twice as many bytes."""
    for _ in range(count):
        question, client = memory["server"].recvfrom(1000)
        memory["server"].sendto(2 * question, client)


def ask(memory: Memory, target: tuple[str, int]) -> dict[int, Moved]:
    """Ask as a resolver does: open a socket for each question, and close it after the answer."""
    done = {}
    for length in LENGTHS:
        with socket.socket(V6 if ":" in target[0] else V4, socket.SOCK_DGRAM) as client:
            client.connect(target)
            client.send(b"n" * length)
            done[oracle.cookie(client)] = (length, len(client.recv(1000)), 1, 1)
    return done


@pytest.mark.core
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_sockets_that_close_between_two_readings(
    lab: Lab, watch: Watch, ended: list[Array], host: str
) -> None:
    """A socket opened, used and closed since the last reading has a row with its owner, which may have exited; the next
    reading finds it ended."""
    home = lab.namespace()
    server = lab.worker(home, "server")
    port = server.call(traffic.udp, "server", host)
    server.start(answer, PROCESSES * len(LENGTHS))
    clients = [lab.worker(home, f"resolver{number}") for number in range(PROCESSES)]
    done: dict[int, tuple[int, Moved]] = {}
    for client in clients:
        done |= {cookie: (client.pid, counted) for cookie, counted in client.call(ask, (host, port)).items()}
    names = {client.pid: f"resolver{number}" for number, client in enumerate(clients)}
    for client in clients:
        client.end()
    server.result()
    here = listed(watch.read(), home)
    served = here.pop(server.call(traffic.cookie, "server"))
    questions = PROCESSES * len(LENGTHS), PROCESSES * sum(LENGTHS)
    assert moved(served) == (2 * questions[1], questions[1], questions[0], questions[0])
    assert {cookie: (row["pid"], moved(row)) for cookie, row in here.items()} == done
    assert {row["process"] for row in here.values()} == set(names.values())
    assert all(row["process"] == names[row["pid"]] for row in here.values())
    assert {
        (row["owner_source"], row["state"], row["remote_port"], row["remote_address"])
        for row in here.values()
    } == {("message", "ESTABLISHED", port, host)}
    assert last_ended(ended, done) == {}
    assert listed(watch.read(), home).keys() == {served["id"]}
    assert last_ended(ended, done) == done
    watch.read()
    assert last_ended(ended, done) == {}


def test_a_socket_that_closes_after_it_was_listed(lab: Lab, watch: Watch, ended: list[Array]) -> None:
    """A listed socket that closes has its last bytes in its last row; it ends once, with its total and its owner."""
    home = lab.namespace()
    first, second = lab.worker(home), lab.worker(home)
    sink = ("127.0.0.1", lab.worker(home).call(traffic.udp, "sink", "127.0.0.1"))
    sockets = {}
    for worker, name in ((first, "idle"), (second, "busy")):
        worker.call(traffic.udp, name, "127.0.0.1", sink)
        worker.call(send_messages, name, [101, 103])
        sockets[name] = worker.call(traffic.cookie, name)
    assert senders(watch.read(), home) == dict.fromkeys(sockets.values(), (204, 0, 2, 0))
    second.call(send_messages, "busy", [107])
    for worker, name in ((first, "idle"), (second, "busy")):
        worker.call(traffic.close, [name])
    assert senders(watch.read(), home) == {sockets["busy"]: (311, 0, 3, 0)}
    assert last_ended(ended, sockets.values()) == {sockets["idle"]: (first.pid, (204, 0, 2, 0))}
    assert senders(watch.read(), home) == {}
    assert last_ended(ended, sockets.values()) == {sockets["busy"]: (second.pid, (311, 0, 3, 0))}


def send_messages(memory: Memory, name: object, lengths: list[int]) -> None:
    """Send a message of each length."""
    for length in lengths:
        memory[name].send(b"n" * length)


def senders(snapshot: Snapshot, namespace: Namespace) -> dict[int, Moved]:
    """Return the counts of a namespace's sockets that have a peer."""
    return {cookie: moved(row) for cookie, row in listed(snapshot, namespace).items() if row["remote_port"]}


# --- beside the table -----------------------------------------------------------------------------------------


def test_more_sockets_than_there_is_room_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets without room have unknown counters, not 0, and their messages count as lost."""
    monkeypatch.setattr(programs, "UDP_SOCKETS_MAX", 16)
    home = lab.namespace()
    worker = lab.worker(home)
    with Watch() as watch:
        worker.call(send_by_many, 37)
        snapshot = watch.read()
    all_moved = [moved(row) for row in listed(snapshot, home).values()]
    tracked = sum(counted != (None,) * 4 for counted in all_moved)
    assert set(all_moved) == {(101, 0, 1, 0), (None,) * 4}
    assert (len(all_moved), tracked <= 16) == (37, True)
    assert snapshot.lost["udp messages"] >= 37 - tracked
    assert snapshot.counts["udp_messages_sent"] >= 37


def send_by_many(memory: Memory, count: int) -> None:
    """Send a message by each of `count` sockets to itself."""
    for number in range(count):
        port = traffic.udp(memory, number, "127.0.0.1")
        memory[number].sendto(b"n" * 101, ("127.0.0.1", port))


@pytest.mark.walks
def test_switched_off(lab: Lab) -> None:
    """With --udp off nothing is loaded for it, and its fields give that as the reason."""
    home = lab.namespace()
    lab.worker(home).call(send_by_many, 2)
    with Watch(udp="off") as watch:
        snapshot = watch.read()
        assert not {name for name in watch.probe.programs() if "udp_" in name}
    assert snapshot.via["udp"] == "n/a: switched off by --udp off"
    assert snapshot.missing.keys() == {"messages_sent", "messages_received"}
    assert {moved(row) for row in listed(snapshot, home).values()} == {(None, None, None, None)}
    assert not {name for name in (*snapshot.counts, *snapshot.lost) if name.startswith("udp")}


def test_a_hook_that_is_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that does not see the check's datagrams is refused: it would count 0."""

    def make_no_traffic(_: HookCheck) -> frozenset[int]:
        return frozenset()

    monkeypatch.setattr(HookCheck, "make_traffic", make_no_traffic)
    with Watch() as watch:
        assert "never called by the check's traffic: udp_sent" in watch.read().via["udp"]


# --- what no call of a process moves --------------------------------------------------------------------------

UDP_ENCAP, ESP_IN_UDP = 100, 2
UNKNOWN = (None, None, None, None)


def open_raw(memory: Memory) -> dict[int, tuple[str, int, str]]:
    """Open raw sockets that move data, and one of UDP-Lite; return each one's kind, protocol number and state."""
    expected = {}
    for family, protocol, host in ((V4, socket.IPPROTO_UDP, "127.0.0.1"), (V6, socket.IPPROTO_ICMPV6, "::1")):
        for state in ("UNCONN", "ESTABLISHED"):
            raw = memory[protocol, state] = socket.socket(family, socket.SOCK_RAW, protocol)
            if state == "ESTABLISHED":
                raw.connect((host, 0))
            raw.sendto(struct.pack("!HHHH", 1111, 9, 108, 0) + b"n" * 100, (host, 0))
            expected[oracle.cookie(raw)] = ("raw", protocol, state)
    with contextlib.suppress(OSError):
        memory["lite"] = socket.socket(V4, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE)
    return expected


@pytest.mark.walks
@pytest.mark.core
def test_raw_sockets_are_no_udp_sockets(lab: Lab, watch: Watch) -> None:
    """A raw socket is shown as such, with its protocol number; its bytes are unknown, not 0.

    Sockets of other protocols do not count as UDP.
    """
    home = lab.namespace()
    expected = lab.worker(home, "raw").call(open_raw)
    here = listed(watch.read(), home)
    assert {
        cookie: (row["protocol"], row["local_port"], row["state"]) for cookie, row in here.items()
    } == expected
    assert {moved(row) for row in here.values()} == {UNKNOWN}
    assert {row["process"] for row in here.values()} == {"raw"}


def open_encapsulated(memory: Memory) -> tuple[int, int]:
    """Open an IKE daemon's socket, whose ESP the kernel takes, and another one; send a message on each."""
    for name in ("ike", "plain"):
        traffic.udp(memory, name, "127.0.0.1")
        if name == "ike":
            memory[name].setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, ESP_IN_UDP)
        memory[name].sendto(b"n" * 10, ("127.0.0.1", 9))
    return oracle.cookie(memory["ike"]), oracle.cookie(memory["plain"])


def send_through(memory: Memory, target: tuple[str, int]) -> None:
    """Send a message through a tunnel whose far end does not exist."""
    with socket.socket(V4, socket.SOCK_DGRAM) as out:
        out.sendto(b"n" * 1000, target)


@pytest.mark.walks
@pytest.mark.core
def test_datagrams_moved_by_the_kernel_are_unknown(lab: Lab, watch: Watch) -> None:
    """Datagrams of a tunnel pass no call of a process: its socket's bytes are unknown.

    A socket held by the kernel has the kernel as its owner.
    """
    near, far = lab.pair()
    home = near.namespace
    ip("-n", home.name, "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", "4789", "remote", far.v4)
    ip("-n", home.name, "address", "add", "10.91.0.1/24", "dev", "vx0")
    ip("-n", home.name, "link", "set", "vx0", "up")
    ip("-n", home.name, "neighbour", "add", "10.91.0.2", "lladdr", "02:00:00:00:00:07", "dev", "vx0")
    worker = lab.worker(home, "ike")
    ike, plain_socket = worker.call(open_encapsulated)
    worker.call(send_through, ("10.91.0.2", 9))

    def tunnel() -> Row | None:  # hash tables are not walked at each reading
        here = listed(watch.read(), home)
        return next((row for row in here.values() if row["local_port"] == 4789), None)

    row = until(tunnel, "the socket of the tunnel is listed")
    here = listed(watch.read(), home)
    assert (row["process"], row["pid"], moved(row)) == ("(kernel)", None, UNKNOWN)
    assert (here[ike]["pid"], moved(here[ike])) == (worker.pid, UNKNOWN)
    assert (here[plain_socket]["pid"], moved(here[plain_socket])) == (worker.pid, (10, 0, 1, 0))
    groups = decoded(watch.read().tables["groups"])
    assert [group["pid"] for group in groups if group["group"] == "(kernel)"] == [None]
