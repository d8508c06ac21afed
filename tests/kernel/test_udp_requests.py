# SPDX-License-Identifier: Apache-2.0
"""Each UDP request is timed and counted once, at both ends, beside a client that times its own requests."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nettop.probes.services.udp_programs import FALLBACKS, REQUESTS_MAX
from nettop.snapshots.services import PROTOCOLS, SERVICES, TIMEOUT_S, UDP, UNTIMED, WAITING

from .command import Row
from .lab import Lab, Namespace, set_name, until
from .services import SERVED, USED, Watched, quantile, tool
from .test_events import decoded
from .traffic import Memory, spin

pytestmark = pytest.mark.kernel

DNS, NTP, SNMP, SIP, OTHER = 53, 123, 161, 5060, 5300
DNS_BYTES = 12
CONNECTED, UNCONNECTED = "connected", "unconnected"
SERVFAIL, NXDOMAIN = 2, 3
CODES = {"good": 0, "fail": SERVFAIL, "gone": NXDOMAIN}
"""DNS's code of the response to a name, by the name's first label. There is none to `lost`."""
HELD_S = {"slow": 0.03}
"""How long the server holds back a response."""


class WatchedUdp(Watched):
    """A probe that times UDP requests, and its rows."""

    def udp(self, namespace: Namespace) -> dict[tuple[str, int, str], Row]:
        """Return the counts of UDP services in a namespace, by side, port and process."""
        rows = decoded(self.read().tables[SERVICES.name], namespace.inode)
        return {
            (row["side"], row["port"], row["process"]): row
            for row in rows
            if row["protocol"] == PROTOCOLS[UDP]
        }

    def waiting(self, namespace: Namespace) -> list[Row]:
        """Return the requests that wait in a namespace, those that wait longest first."""
        rows = decoded(self.read().tables[WAITING.name], namespace.inode)
        return sorted(rows, key=lambda row: -row["waited"])

    def until_udp(
        self, namespace: Namespace, side: str, port: int = DNS, process: str = "", **values: Any
    ) -> Row:
        """Wait until a service has these values, and return its row."""
        key = side, port, process or {SERVED: "server", USED: "client"}[side]
        return self.until_row(lambda: self.udp(namespace).get(key, {}), values, 2 * TIMEOUT_S)

    def until_both(self, namespace: Namespace, port: int = DNS, **values: Any) -> dict[str, Row]:
        """Wait until the service has these values at both ends, and return its rows by side."""
        return {side: self.until_udp(namespace, side, port, **values) for side in (USED, SERVED)}


@pytest.fixture
def watched(record: Callable[..., None]) -> Iterator[WatchedUdp]:
    """Yield a probe of this test's own: the next namespace may have the number of the last one's."""
    with WatchedUdp(udp_port=f"{SIP}") as probe:
        record(hook=FALLBACKS.hook.name, mechanism=FALLBACKS.mechanisms[0].name)
        if why := probe.read().hooks[2].why:
            record(verdict="refused", why=why)
            pytest.skip(why)
        yield probe


class Ends:
    """A server of a port, and its client, in one namespace or in two."""

    def __init__(self, lab: Lab, near: Namespace | None = None, far: Namespace | None = None) -> None:
        self.near = near or lab.namespace()
        self.far = far or self.near
        self.client = lab.worker(self.near, "client")
        self.server = lab.worker(self.far, "server")
        self.to = "127.0.0.1", DNS

    def open(self, to: tuple[str, int] = ("127.0.0.1", DNS), how: str = "", source: int = 0) -> None:
        """Bind the server's socket, and open the client's, "a"."""
        self.to = to
        self.server.call(bind, *to)
        self.client.call(open_client, "a", to, how, source)

    def send(self, *datagrams: bytes) -> None:
        """Send datagrams from the client's socket."""
        self.client.call(send, "a", self.to, list(datagrams))

    def ask(self, *requests: bytes, by: Callable[[Memory, int], Any] | None = None) -> tuple[list[int], Any]:
        """Send each request once the one before was answered; return the times this took in ns, and the server's
        result."""
        self.server.start(by or answer, len(requests))
        return self.client.call(ask, "a", self.to, list(requests)), self.server.result()

    def send_taken(self, *requests: bytes) -> None:
        """Send requests that the server receives, and answers later."""
        self.server.start(take, len(requests))
        self.send(*requests)
        self.server.result()


@pytest.fixture
def ends(lab: Lab) -> Ends:
    """Return a server and its client."""
    return Ends(lab)


# --- requests and responses --------------------------------------------------------------------------------------


def query(number: int, name: str, kind: int = 1) -> bytes:
    """Return a DNS request."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, kind, 1)


def label(request: bytes) -> str:
    """Return the first label of a request's name."""
    return request[DNS_BYTES + 1 : DNS_BYTES + 1 + request[DNS_BYTES]].decode()


def bind(memory: Memory, address: str, port: int = DNS) -> None:
    """Open the server's socket, which receives IPv4 too if its address is IPv6."""
    memory["server"] = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    memory["server"].bind((address, port))


def open_client(memory: Memory, name: object, to: tuple[str, int], how: str = "", port: int = 0) -> None:
    """Open a socket that asks; how: "connected" or not."""
    memory[name] = socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET, socket.SOCK_DGRAM)
    memory[name].settimeout(10)
    if port:
        memory[name].bind(("", port))
    if how == CONNECTED:
        memory[name].connect(to)


def send(memory: Memory, name: object, to: tuple[str, int], datagrams: list[bytes]) -> None:
    """Send datagrams, from a connected socket to its peer."""
    held = memory[name]
    try:
        held.getpeername()
    except OSError:
        for datagram in datagrams:
            held.sendto(datagram, to)
    else:
        for datagram in datagrams:
            held.send(datagram)


def ask(memory: Memory, name: object, to: tuple[str, int], requests: list[bytes]) -> list[int]:
    """Send each request after the response to the one before; return how long each took in ns."""
    took = []
    for request in requests:
        began_ns = time.monotonic_ns()
        send(memory, name, to, [request])
        assert memory[name].recv(4096)[:2] == request[:2]
        took.append(time.monotonic_ns() - began_ns)
    return took


def answer(memory: Memory, count: int) -> list[int]:
    """Answer requests by DNS, each after the time that its name says; return for how long each was held, in ns."""
    held = []
    for _ in range(count):
        request, client = memory["server"].recvfrom(4096)
        began_ns = time.monotonic_ns()
        name = label(request)
        if name == "lost":
            continue
        spin(HELD_S.get(name, 0))
        flags = 0x8180 | CODES.get(name, 0)
        held.append(time.monotonic_ns() - began_ns)
        memory["server"].sendto(request[:2] + struct.pack(">H", flags) + request[4:], client)
    return held


def take(memory: Memory, count: int) -> None:
    """Receive requests, to be answered later."""
    memory["taken"] = [memory["server"].recvfrom(4096) for _ in range(count)]


def answer_taken(memory: Memory, order: list[int]) -> None:
    """Answer the requests that were taken, in this order."""
    for number in order:
        request, client = memory["taken"][number]
        memory["server"].sendto(request[:2] + b"\x81\x80" + request[4:], client)


def receive(memory: Memory, name: object, count: int) -> None:
    """Receive responses."""
    for _ in range(count):
        memory[name].recv(4096)


def shut(memory: Memory, name: object) -> None:
    """Close a socket."""
    memory.pop(name).close()


# --- responses -----------------------------------------------------------------------------------------------------

PLAN = ["good"] * 17 + ["slow"] * 3 + ["fail"] * 5 + ["gone"] * 7
ANSWERED = {"responses": len(PLAN), "failed_responses": 5, "missing_names": 7, "unanswered": 0, "waiting": 0}


@pytest.mark.core
@pytest.mark.parametrize(
    ("listens", "to", "how"),
    [
        ("127.0.0.1", "127.0.0.1", CONNECTED),
        ("::1", "::1", UNCONNECTED),
        ("::", "::ffff:127.0.0.1", CONNECTED),
        ("0.0.0.0", "127.0.0.1", UNCONNECTED),
    ],
)
def test_answers(watched: WatchedUdp, ends: Ends, listens: str, to: str, how: str) -> None:
    """Each response counts once at both ends, with a time between what the server held and what the client waited."""
    requests = [query(number, f"{name}.example") for number, name in enumerate(PLAN)]
    ends.to = to, DNS
    ends.server.call(bind, listens)
    ends.client.call(open_client, "a", ends.to, how)
    took, held = ends.ask(*requests)
    rows = watched.until_both(ends.near, **ANSWERED, timed=len(PLAN))
    sizes = sum(map(len, requests))
    for row in rows.values():
        assert sum(held) <= row["response_ns"] <= sum(took)
        assert quantile(row, "response", 1) >= max(held) * 15 / 16
        assert quantile(row, "response", 1) <= max(took) * 17 / 16
        assert (row["request_bytes"], row["response_bytes"]) == (sizes, sizes)
        assert (row["connections"], row["pattern"], row["closed"]) == (None, None, None)
        assert row["failed_connects"] is None
    assert rows[SERVED]["response_ns"] <= rows[USED]["response_ns"]
    assert (rows[USED]["address"], rows[SERVED]["address"]) == (to.removeprefix("::ffff:"), listens)
    assert (rows[USED]["pid"], rows[SERVED]["pid"]) == (ends.client.pid, ends.server.pid)


def test_two_processes_with_the_same_numbers(watched: WatchedUdp, lab: Lab, ends: Ends) -> None:
    """Requests of two processes have the same numbers and are answered crosswise: each response has its own time."""
    other = lab.worker(ends.near, "other")
    ends.open()
    other.call(open_client, "a", ends.to)
    ends.server.start(take, 2)
    began_ns = time.monotonic_ns()
    ends.send(query(7, "a.example"))
    first_ns = time.monotonic_ns()
    spin(0.05)
    other.call(send, "a", ends.to, [query(7, "b.example")])
    ends.server.result()
    second_ns = time.monotonic_ns()
    ends.server.call(answer_taken, [1, 0])
    ended_ns = time.monotonic_ns()
    for worker in (ends.client, other):
        worker.call(receive, "a", 1)
    row = watched.until_udp(ends.near, USED, responses=1, waiting=0)
    assert second_ns - first_ns <= row["response_ns"] <= ended_ns - began_ns
    row = watched.until_udp(ends.near, USED, process="other", responses=1, waiting=0)
    assert row["response_ns"] <= ended_ns - first_ns - 50_000_000
    watched.until_udp(ends.near, SERVED, responses=2, waiting=0)


def test_many_at_once(watched: WatchedUdp, ends: Ends) -> None:
    """Requests of one socket overlap and are answered in the reverse order: each is found by its number."""
    count = 101
    ends.open(("::1", DNS), CONNECTED)
    ends.send_taken(*(query(number * 601, "good.example") for number in range(count)))
    watched.until_both(ends.near, responses=0, waiting=count)
    ends.server.call(answer_taken, list(reversed(range(count))))
    watched.until_both(ends.near, responses=count, waiting=0, unanswered=0)


def test_many_processes(watched: WatchedUdp, lab: Lab, ends: Ends) -> None:
    """No request of several processes at once is missed, mixed up, or counted twice."""
    to, count = ("127.0.0.1", DNS), 2000
    clients = [ends.client, lab.worker(ends.near, "client"), lab.worker(ends.near, "client")]
    ends.server.call(bind, "127.0.0.1")
    ends.server.start(answer, count * len(clients))
    for number, client in enumerate(clients):
        client.call(open_client, "a", to, CONNECTED if number % 2 else UNCONNECTED)
        client.start(ask, "a", to, [query(number, "gone.example") for number in range(count)])
    took = sum(sum(client.result()) for client in clients)
    held = sum(ends.server.result())
    total = count * len(clients)
    for side in (USED, SERVED):
        row = watched.until_udp(
            ends.near, side, responses=total, missing_names=total, unanswered=0, waiting=0
        )
        assert held <= row["response_ns"] <= took
    assert watched.read().lost[UNTIMED] == 0


def test_an_answer_of_another_process(watched: WatchedUdp, ends: Ends) -> None:
    """A service belongs to the process that answers, whoever bound its socket."""
    ends.open()
    _, child = ends.ask(*(query(number, "good.example") for number in range(3)), by=answer_in_child)
    row = watched.until_udp(ends.near, SERVED, process="helper", responses=3, waiting=0)
    assert row["pid"] == child
    assert len(watched.udp(ends.near)) == 2


def answer_in_child(memory: Memory, count: int) -> int:
    """Have a child process of another name answer; return its PID."""
    child = os.fork()
    if not child:
        set_name(b"helper")
        answer(memory, count)
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_without_the_hook(ends: Ends) -> None:
    """Without its hook, no UDP service has a row, and what only that counts is not available."""
    with WatchedUdp(udp_requests="none") as watched:
        ends.client.call(open_client, "a", ends.to)
        ends.send(query(1, "lost.example"))
        snapshot = watched.read()
        assert snapshot.hooks[2].mechanism is None
        assert set(snapshot.hooks[2].fields) == {"failed_responses", "missing_names"}
        assert not watched.udp(ends.near)


@pytest.mark.walks
def test_a_server_that_was_there_before(ends: Ends) -> None:
    """The process of a socket that is older than the watch is known before its first response."""
    ends.open(how=CONNECTED)
    with WatchedUdp() as watched:
        if why := watched.read().hooks[2].why:
            pytest.skip(why)
        ends.send(query(1, "lost.example"))
        row = watched.until_udp(ends.near, SERVED, waiting=1)
        assert row["pid"] == ends.server.pid


def test_a_translated_address(watched: WatchedUdp, ends: Ends) -> None:
    """A connected socket's requests count for the service that it asks, whatever the firewall makes of the address."""
    ends.to, real = ("127.0.0.11", DNS), ("127.0.0.1", OTHER)
    tool("nft")
    ends.near.run("nft", "add table ip t; add chain ip t c { type nat hook output priority -100; }")
    ends.near.run("nft", f"add rule ip t c ip daddr {ends.to[0]} udp dport {DNS} dnat to {real[0]}:{real[1]}")
    ends.server.call(bind, *real)
    ends.client.call(open_client, "a", ends.to, CONNECTED)
    ends.ask(*(query(number, "good.example") for number in range(3)))
    watched.until_udp(ends.near, USED, responses=3, waiting=0, address=ends.to[0])
    assert len(watched.udp(ends.near)) == 1


# --- no response -----------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("how", [CONNECTED, UNCONNECTED])
def test_a_lost_answer(watched: WatchedUdp, ends: Ends, how: str, record: Callable[..., None]) -> None:
    """A request without a response waits, with its age, until it counts as unanswered, once, at both ends."""
    ends.open(how=how)
    before_ns = time.monotonic_ns()
    ends.send(query(1, "lost.example"), query(2, "lost.example"))
    sent_ns = time.monotonic_ns()
    ends.server.call(answer, 2)
    spin(0.1)
    for side in (USED, SERVED):
        least_ns = time.monotonic_ns() - sent_ns
        row = watched.until_udp(ends.near, side, waiting=2, unanswered=0)
        assert least_ns <= row["oldest"] <= time.monotonic_ns() - before_ns
    waiting = watched.waiting(ends.near)
    assert sorted(row["side"] for row in waiting) == [SERVED, SERVED, USED, USED]
    assert len({row["id"] for row in waiting}) == len(waiting)
    for row in waiting:
        is_used = row["side"] == USED
        assert row["pid"] == (ends.client if is_used else ends.server).pid
        assert row["remote_port" if is_used else "local_port"] == DNS
        assert row["remote_address"] == "127.0.0.1"
    for side in (USED, SERVED):
        row = watched.until_udp(ends.near, side, waiting=0, unanswered=2, responses=0)
        assert row["unanswered_ns"] == 2 * round(TIMEOUT_S * 1e9)
    assert not watched.waiting(ends.near)
    assert time.monotonic_ns() - before_ns >= TIMEOUT_S * 1e9
    record(verdict="same")


def test_a_late_answer(watched: WatchedUdp, ends: Ends) -> None:
    """A response after the timeout is none, whether or not nettop has read meanwhile."""
    ends.open(how=CONNECTED)
    ends.send_taken(query(1, "good.example"))
    late = time.monotonic() + TIMEOUT_S + 0.1
    until(lambda: time.monotonic() > late, "the request has timed out")
    ends.server.call(answer_taken, [0])
    ends.client.call(receive, "a", 1)
    watched.until_both(ends.near, responses=0, unanswered=1, waiting=0)
    ends.ask(query(1, "good.example"))
    watched.until_both(ends.near, responses=1, unanswered=1, waiting=0)


def test_sockets_closed_while_waiting(watched: WatchedUdp, ends: Ends) -> None:
    """A request whose socket is closed is unanswered at once, with its age; at the other end when that closes."""
    to, count = ("::1", DNS), 5
    ends.server.call(bind, "::1")
    began_ns = time.monotonic_ns()
    for number in range(count):
        ends.client.call(open_client, number, to, (CONNECTED, UNCONNECTED)[number % 2])
        ends.client.call(send, number, to, [query(3, "lost.example")])
    spin(0.02)
    for number in range(count):
        ends.client.call(shut, number)
    took_ns = time.monotonic_ns() - began_ns
    row = watched.until_udp(ends.near, USED, unanswered=count, waiting=0)
    assert count * 20_000_000 <= row["unanswered_ns"] <= count * took_ns
    watched.until_udp(ends.near, SERVED, unanswered=0, waiting=count)
    ends.server.call(shut, "server")
    watched.until_udp(ends.near, SERVED, unanswered=count, waiting=0)
    assert time.monotonic_ns() - began_ns < TIMEOUT_S * 1e9


def test_a_request_that_is_sent_again(watched: WatchedUdp, ends: Ends) -> None:
    """A request that is sent again is the same one, and waits since it was first sent."""
    ends.open(how=CONNECTED)
    ends.server.start(answer, 2)
    before_ns = time.monotonic_ns()
    ends.send(query(9, "lost.example"))
    sent_ns = time.monotonic_ns()
    spin(0.05)
    ends.client.call(ask, "a", ends.to, [query(9, "good.example")])
    ended_ns = time.monotonic_ns()
    for side in (USED, SERVED):
        row = watched.until_udp(ends.near, side, responses=1, unanswered=0, waiting=0)
        assert ended_ns - sent_ns >= 50_000_000 <= row["response_ns"] <= ended_ns - before_ns


def test_too_many(watched: WatchedUdp, ends: Ends) -> None:
    """Each request that finds no room is lost, and no other; those of the rest of the machine take room too."""
    count = REQUESTS_MAX + 101
    before = watched.read().lost[UNTIMED]
    ends.client.call(open_client, "a", ends.to)
    for first in range(0, count, 500):
        ends.send(*(query(number, "lost.example") for number in range(first, min(first + 500, count))))
    waiting = watched.udp(ends.near)[USED, DNS, "client"]["waiting"]
    assert REQUESTS_MAX - 101 <= waiting <= REQUESTS_MAX
    assert waiting + watched.read().lost[UNTIMED] - before == count
    ends.client.call(shut, "a")
    watched.until_udp(ends.near, USED, waiting=0, unanswered=waiting, responses=0)


# --- other ports ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("port", "source"), [(NTP, 0), (NTP, NTP), (SNMP, 0), (SIP, SIP), (853, 0)])
def test_other_protocols(watched: WatchedUdp, lab: Lab, port: int, source: int) -> None:
    """At other ports, also at that of the user and between two of them, a datagram answers the oldest request."""
    near, far = lab.pair()
    ends = Ends(lab, near.namespace, far.namespace)
    requests = [struct.pack(">HH", number, 0) + b"\0" * 44 for number in range(13)]
    ends.open((far.v4, port), CONNECTED if source == NTP else UNCONNECTED, source)
    took, _ = ends.ask(*requests, by=answer_plainly)
    for namespace, side in ((ends.near, USED), (ends.far, SERVED)):
        row = watched.until_udp(namespace, side, port, responses=13, waiting=0, unanswered=0)
        assert row["response_ns"] <= sum(took)
        assert (row["failed_responses"], row["missing_names"]) == (None, None)
        assert len(watched.udp(namespace)) == 1


def answer_plainly(memory: Memory, count: int) -> None:
    """Send every datagram back."""
    for _ in range(count):
        memory["server"].sendto(*memory["server"].recvfrom(4096))


def test_the_oldest_request_is_answered_first(watched: WatchedUdp, ends: Ends) -> None:
    """Requests without numbers are answered in their order; what follows unanswered ones is timed again."""
    count = 7
    ends.open(("127.0.0.1", SNMP))
    ends.send_taken(*[b"get"] * count)
    ends.server.call(answer_taken, [0, 1, 2])
    ends.client.call(receive, "a", 3)
    watched.until_both(ends.near, SNMP, responses=3, waiting=count - 3)
    watched.until_both(ends.near, SNMP, responses=3, waiting=0, unanswered=count - 3)
    took, _ = ends.ask(b"get one", b"get two", by=answer_plainly)
    for side in (USED, SERVED):
        before = watched.until_udp(ends.near, side, SNMP, responses=5, waiting=0, unanswered=count - 3)
        assert quantile(before, "response", 0.2) <= max(took) * 17 / 16


def test_other_ports_are_not_timed(watched: WatchedUdp, ends: Ends) -> None:
    """Datagrams of other ports, and those that are too short for DNS, are no requests."""
    ends.open(("127.0.0.1", OTHER))
    ends.ask(b"one", b"two", b"three", by=answer_plainly)
    ends.client.call(send, "a", ("127.0.0.1", DNS), [b"", b"short"])
    assert not watched.udp(ends.near)


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("good.example", 28, "good.example AAAA"),
        ("es\x1bcape\n.example", 1, "es\\027cape\\010.example A"),
        (".".join(["good", *["long" * 10] * 3]), 1, None),
    ],
)
def test_the_last_question(watched: WatchedUdp, ends: Ends, name: str, kind: int, text: str | None) -> None:
    """A row's details tell the last question; a long one is cut."""
    ends.open(how=CONNECTED)
    ends.ask(query(1, "good.first"), query(2, name, kind))
    for side in (USED, SERVED):
        row = watched.until_udp(ends.near, side, responses=2)
        details = watched.probe.describe(row["id"])
        assert details["Mechanism"] == FALLBACKS.mechanisms[0].name
        shown = details["Last question"]
        assert shown == text if text else name.startswith(shown.removesuffix("…")) and shown.endswith("…")
