# SPDX-License-Identifier: Apache-2.0
"""Receiving over loopback: every datagram sent is received unchanged, or counted as dropped."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nettop.collector.columns import ADDRESS
from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.receive import OpenSocket, Receiver, UdpPort, endpoint_of, extend_counter, open_socket
from nettop.errors import NettopError, PermissionMissing, SourceFailed, UsageError
from nettop.kernel.host import privileges
from nettop.process.wake_event import WakeEvent
from nettop.query.address import MAPPED

from .logging_run import DEADLINE_S, until

BUFFER_BYTES = 100_000
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def has_ipv6() -> bool:
    """Return whether this host has ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


HAS_IPV6 = has_ipv6()
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this host has no IPv6")
FAMILIES = [socket.AF_INET, pytest.param(socket.AF_INET6, marks=needs_ipv6)]


@pytest.fixture(autouse=True)
def _on_one_cpu() -> Iterator[None]:
    """Pin to one CPU: loopback delivers by a softirq on the sending CPU, so two CPUs may reorder datagrams."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


class Received(NamedTuple):
    """A datagram as bytes."""

    address: bytes
    port: int
    content: bytes


def received(datagrams: Datagrams) -> list[Received]:
    """Return the contents of a batch, after checking its dtypes."""
    count = len(datagrams.starts)
    for values, dtype in [
        (datagrams.buffer, "u1"),
        (datagrams.starts, np.intp),
        (datagrams.lengths, np.intp),
        (datagrams.senders, ADDRESS),
        (datagrams.ports, "u2"),
        (datagrams.received_ns, "i8"),
    ]:
        assert values.dtype == dtype
        assert values is datagrams.buffer or values.shape == (count,)
    return [
        Received(sender.tobytes(), port, datagrams.buffer[start:end].tobytes())
        for sender, port, start, end in zip(
            datagrams.senders,
            datagrams.ports.tolist(),
            datagrams.starts.tolist(),
            datagrams.ends.tolist(),
            strict=True,
        )
    ]


def opened_at(family: int = socket.AF_INET, buffer_bytes: int = BUFFER_BYTES) -> OpenSocket:
    """Open a socket on loopback, on a port chosen by the kernel."""
    return open_socket(UdpPort(LOOPBACK[socket.AddressFamily(family)], 0), buffer_bytes)


def always_ready(others: Mapping[int, int], timeout_s: float | None) -> Mapping[int, int]:
    """Return at once."""
    return others


class Sender:
    """A sender from its own address and port to one socket; a context manager."""

    def __init__(self, family: int, port: int, source: str | None = None) -> None:
        loopback = LOOPBACK[socket.AddressFamily(family)]
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((source or loopback, 0))
        self.socket.connect((loopback, port))
        address, self.port = self.socket.getsockname()[:2]
        packed = ip_address(address).packed
        self.address = packed if len(packed) == 16 else MAPPED + packed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *contents: bytes) -> list[Received]:
        """Send these; return them as they should be received."""
        for content in contents:
            self.socket.send(content)
        return [Received(self.address, self.port, content) for content in contents]


def waiting_bytes(opened: OpenSocket) -> int:
    """Return the memory used by a socket's receive queue (SK_MEMINFO_RMEM_ALLOC of SO_MEMINFO)."""
    waiting: int = struct.unpack_from("=I", opened.socket.getsockopt(socket.SOL_SOCKET, 55, 36))[0]
    return waiting


def fill(opened: OpenSocket, sender: Sender, count: int) -> None:
    """Queue this many empty datagrams in an empty socket."""
    sender.send(b"")
    each = until(lambda: waiting_bytes(opened))
    sender.send(*[b""] * (count - 1))
    until(lambda: waiting_bytes(opened) == count * each)


def all_of(receiver: Receiver, count: int) -> list[Received]:
    """Receive this many datagrams, in however many batches."""
    come: list[Received] = []
    end = time.monotonic() + DEADLINE_S
    while len(come) < count:
        assert time.monotonic() < end, "not in time"
        come += received(receiver.receive(DEADLINE_S))
    return come


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "address", "port"),
    [
        ("2055", "", 2055),
        (":2055", "", 2055),
        ("*:2055", "", 2055),
        ("0.0.0.0:2055", "0.0.0.0", 2055),
        ("[::]:4739", "::", 4739),
        ("127.0.0.1:6343", "127.0.0.1", 6343),
        ("[fe80::1%eth0]:4739", "fe80::1%eth0", 4739),
        ("[2001:DB8:0::1]:0", "2001:db8::1", 0),
        ("[::ffff:192.0.2.1]:65535", "192.0.2.1", 65535),
    ],
)
def test_valid_endpoints(word: str, address: str, port: int) -> None:
    """Valid values of --listen."""
    assert endpoint_of(word) == UdpPort(address, port)


@given(
    st.one_of(
        st.just(""),
        st.ip_addresses(v=4).map(str),
        st.integers(0, (1 << 128) - 1)
        .map(IPv6Address)
        .map(lambda address: str(address.ipv4_mapped or address)),
    ),
    st.integers(0, 65535),
)
def test_an_endpoint_is_written_as_it_is_read(address: str, port: int) -> None:
    """So an endpoint shown in a report is valid for --listen."""
    endpoint = UdpPort(address, port)
    assert endpoint_of(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("word", "what", "remedy"),
    [
        ("", "no port", "as 2055"),
        ("netflow", "no port", "as 2055"),
        ("127.0.0.1:", "no port", "as 2055"),
        ("65536", "no port", "as 2055"),
        ("-1", "no port", "as 2055"),
        ("+1", "no port", "as 2055"),
        ("²", "no port", "as 2055"),
        ("9" * 5000, "no port", "as 2055"),
        ("collector:2055", "no address", "127.0.0.1:6343"),
        ("127.0.0.256:2055", "no address", "127.0.0.1:6343"),
        ("[]:2055", "no address", "127.0.0.1:6343"),
        ("[::1:2055", "no address", "127.0.0.1:6343"),
        ("::1:2055", "brackets", "[::1]:2055"),
        ("[127.0.0.1]:2055", "brackets", "127.0.0.1:2055"),
        ("[::1]", "no port", "as 2055"),
    ],
)
def test_invalid_endpoints(word: str, what: str, remedy: str) -> None:
    """Each error shows the correct form."""
    with pytest.raises(UsageError) as raised:
        endpoint_of(word)
    assert repr(word) in raised.value.what
    assert what in raised.value.what
    assert remedy in raised.value.remedy


# --- sockets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wildcard_receives_from_both_families(family: int) -> None:
    """One socket, on a port chosen by the kernel."""
    opened = open_socket(UdpPort("", 0), BUFFER_BYTES)
    with (
        closing(Receiver([opened], always_ready)) as receiver,
        Sender(family, opened.endpoint.port) as sender,
    ):
        assert sender.send(b"whole") == all_of(receiver, 1)


@needs_ipv6
def test_the_wildcard_of_ipv6_leaves_ipv4_to_others() -> None:
    """Two sockets share one port."""
    ipv6 = open_socket(UdpPort("::", 0), BUFFER_BYTES)
    ipv4 = open_socket(UdpPort("0.0.0.0", ipv6.endpoint.port), BUFFER_BYTES)
    with closing(Receiver([ipv6, ipv4], always_ready)) as receiver:
        for family in LOOPBACK:
            with Sender(family, ipv6.endpoint.port) as sender:
                assert sender.send(b"whole") == all_of(receiver, 1)
        assert [counts.datagrams for counts in receiver.counts] == [1, 1]


@needs_ipv6
def test_a_wildcard_is_never_half_of_it() -> None:
    """If another process has the port in one family, it is in use."""
    taken = open_socket(UdpPort("::", 0), BUFFER_BYTES)
    with closing(taken.socket), pytest.raises(NettopError, match="is in use"):
        open_socket(UdpPort("", taken.endpoint.port), BUFFER_BYTES)


class Refused(socket.socket):
    """Sockets of a host where binding fails, or a family is missing."""

    on_bind: ClassVar[int] = 0
    on_open: ClassVar[Mapping[int, int]] = {}

    def __init__(self, family: int = -1, *arguments: Any, **others: Any) -> None:
        if number := self.on_open.get(family):
            raise OSError(number, os.strerror(number))
        super().__init__(family, *arguments, **others)

    def bind(self, address: Any) -> None:
        if self.on_bind:
            raise OSError(self.on_bind, os.strerror(self.on_bind))
        super().bind(address)


GROUPS = ["239.77.1.1", pytest.param("ff15::77", marks=needs_ipv6)]


def test_a_multicast_group_is_joined() -> None:
    """On every interface, also without a route to it."""
    opened = open_socket(endpoint_of("239.77.1.1:0"), BUFFER_BYTES)
    assert isinstance(opened.endpoint, UdpPort)
    with closing(opened.socket) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        on_loopback = struct.pack("=8xI", socket.if_nametoindex("lo"))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, on_loopback)
        sender.sendto(b"flows", ("239.77.1.1", opened.endpoint.port))
        receiver.settimeout(DEADLINE_S)
        assert receiver.recv(100) == b"flows"


@needs_ipv6
def test_a_multicast_group_of_ipv6_is_joined() -> None:
    """On every interface, or on that of its zone."""

    def interfaces(scope: int) -> set[str]:
        rows = map(str.split, Path("/proc/net/igmp6").read_text().splitlines())
        return {name for _, name, group, *_ in rows if group == f"ff1{scope}{'77':0>28}"}

    with closing(open_socket(endpoint_of("[ff15::77]:0"), BUFFER_BYTES).socket):
        assert "lo" in interfaces(5)
    assert interfaces(5) == set()
    with closing(open_socket(endpoint_of("[ff12::77%lo]:0"), BUFFER_BYTES).socket):
        assert interfaces(2) == {"lo"}


@pytest.mark.parametrize("group", GROUPS)
def test_a_multicast_group_that_no_interface_can_join(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the endpoint."""
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(2**30, "gone")])
    with pytest.raises(NettopError, match=r"cannot receive at .*: "):
        open_socket(UdpPort(group, 0), BUFFER_BYTES)


def test_a_multicast_group_on_too_many_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some would not be received from; the error says what to raise."""

    class Full(socket.socket):
        """A socket that may join no more groups."""

        def setsockopt(self, level: int, option: int, *value: Any) -> None:
            if (level, option) == (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP):
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            super().setsockopt(level, option, *value)

    monkeypatch.setattr(socket, "socket", Full)
    with pytest.raises(NettopError, match="more interfaces than a socket may join") as caught:
        open_socket(endpoint_of("239.77.1.1:0"), BUFFER_BYTES)
    assert "igmp_max_memberships" in caught.value.remedy


def test_without_ipv6_a_wildcard_is_that_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the kernel's ipv6.disable=1."""
    monkeypatch.setattr(Refused, "on_open", {socket.AF_INET6: errno.EAFNOSUPPORT})
    monkeypatch.setattr(socket, "socket", Refused)
    opened = open_socket(UdpPort("", 0), BUFFER_BYTES)
    assert opened.socket.family == socket.AF_INET
    assert opened.socket.getsockname()[0] == "0.0.0.0"
    opened.socket.close()
    with pytest.raises(NettopError, match="no address ::1"):
        open_socket(UdpPort("::1", 0), BUFFER_BYTES)


@pytest.mark.parametrize(
    ("number", "kind", "what", "remedy"),
    [
        (errno.EACCES, PermissionMissing, "port 514 needs CAP_NET_BIND_SERVICE", "from 1024 on"),
        (errno.EADDRNOTAVAIL, NettopError, "no address 192.0.2.1", "ip -br address"),
        (errno.ENOBUFS, NettopError, os.strerror(errno.ENOBUFS), "another address"),
    ],
)
def test_failures_to_bind(
    number: int, kind: type[NettopError], what: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each error states the endpoint, the cause and the remedy."""
    monkeypatch.setattr(Refused, "on_bind", number)
    monkeypatch.setattr(socket, "socket", Refused)
    with pytest.raises(kind) as raised:
        open_socket(UdpPort("192.0.2.1", 514), BUFFER_BYTES)
    assert type(raised.value) is kind
    assert "cannot receive at 192.0.2.1:514: " in raised.value.what
    assert what in raised.value.what
    assert remedy in raised.value.remedy


def test_a_zone_that_does_not_exist() -> None:
    """The zone is an interface that this host does not have."""
    with pytest.raises(NettopError, match="no address fe80::1%none"):
        open_socket(UdpPort("fe80::1%none", 0), BUFFER_BYTES)


def test_a_port_in_use() -> None:
    """The error says how to find the process."""
    with closing(opened_at().socket) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NettopError, match=f"port {port} is in use") as raised:
            open_socket(UdpPort("127.0.0.1", port), BUFFER_BYTES)
    assert f"ss -lunp 'sport = :{port}'" in raised.value.remedy


def test_a_shared_port() -> None:
    """Each datagram arrives on one of the sockets, and all of one sender on the same."""
    first = open_socket(UdpPort("127.0.0.1", 0), BUFFER_BYTES, shared_port=True)
    second = open_socket(first.endpoint, BUFFER_BYTES, shared_port=True)
    with closing(Receiver([first, second], always_ready)) as receiver, ExitStack() as ends:
        for _ in range(20):
            sender = ends.enter_context(Sender(socket.AF_INET, first.endpoint.port))
            before = [counts.datagrams for counts in receiver.counts]
            assert sender.send(b"1", b"2", b"3") == all_of(receiver, 3)
            after = [counts.datagrams for counts in receiver.counts]
            assert sorted(np.subtract(after, before).tolist()) == [0, 3]


def without_capabilities(function: Callable[[], OpenSocket]) -> OpenSocket:
    """Return the result of a function called in a thread without capabilities."""

    def run() -> OpenSocket:
        privileges.keep_only(privileges.NOTHING)
        return function()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


def test_the_buffer_that_is_granted() -> None:
    """A size beyond the limit is granted in part, and the warning says how to get it."""
    most = int(Path("/proc/sys/net/core/rmem_max").read_text())
    usual = without_capabilities(lambda: opened_at(buffer_bytes=most))
    large = without_capabilities(lambda: opened_at(buffer_bytes=most + 1))
    assert (usual.receive_buffer_bytes, usual.warning) == (most, "")
    assert large.receive_buffer_bytes == most
    usual.socket.close()
    large.socket.close()
    assert f"{large.endpoint} has {most:,} bytes instead of {most + 1:,}" in large.warning
    assert f"sysctl net.core.rmem_max={most + 1}" in large.warning
    assert "CAP_NET_ADMIN" in large.warning


@pytest.mark.parametrize("size", [-1, 0, 1 << 30])
def test_a_buffer_that_no_kernel_grants(size: int) -> None:
    """The error states the maximum."""
    with pytest.raises(UsageError, match=rf"{size:,} bytes") as raised:
        opened_at(buffer_bytes=size)
    assert "1,073,741,823" in raised.value.remedy


# --- receiving --------------------------------------------------------------------------------------------------

PLAN = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([0, 1, 7, 63, 64, 65, 300])), min_size=1, max_size=40
)
"""Which sender sends, and how many."""


@given(PLAN, st.integers(1, 12))
@settings(max_examples=40)
def test_datagrams_are_received_as_they_were_sent(plan: list[tuple[int, int]], batch: int) -> None:
    """From several sockets and senders, including empty and truncated ones, in order, in batches of any size."""
    slot_bytes = 64
    families = [socket.AF_INET, socket.AF_INET6 if HAS_IPV6 else socket.AF_INET]
    with ExitStack() as ends:
        event = ends.enter_context(WakeEvent())
        sockets = [*map(opened_at, families), open_socket(UdpPort("", 0), BUFFER_BYTES)]
        receiver = Receiver(sockets, event.wait, batch=batch, slot_bytes=slot_bytes, nap_s=0)
        ends.enter_context(closing(receiver))
        places = [0, 0, 1, 2, 2]
        senders = [
            ends.enter_context(Sender(family, sockets[place].endpoint.port, source))
            for place, family, source in zip(
                places,
                [socket.AF_INET, socket.AF_INET, families[1], socket.AF_INET, families[1]],
                ["127.0.0.1", "127.1.2.3", None, "127.255.255.254", None],
                strict=True,
            )
        ]
        sent: list[list[Received]] = [[] for _ in senders]
        for number, (which, size) in enumerate(plan):
            sent[which] += senders[which].send(struct.pack("=I", number).ljust(size, b"x")[:size])
        come = all_of(receiver, len(plan))
        for sender, expected in zip(senders, sent, strict=True):
            assert [datagram for datagram in come if datagram[:2] == (sender.address, sender.port)] == [
                datagram._replace(content=datagram.content[:slot_bytes]) for datagram in expected
            ]
        assert len(come) == len(plan)
        for place, counts in enumerate(receiver.counts):
            sizes = [
                len(datagram.content)
                for at, expected in zip(places, sent, strict=True)
                for datagram in expected
                if at == place
            ]
            assert counts.datagrams == len(sizes)
            assert counts.bytes == sum(min(size, slot_bytes) for size in sizes)
            assert counts.truncated == sum(size > slot_bytes for size in sizes)
        assert receiver.drops() == (0, 0, 0)


def test_when_a_datagram_arrived() -> None:
    """By the kernel's timestamp, not by when it is read."""
    opened = opened_at()
    with (
        closing(Receiver([opened], always_ready)) as receiver,
        Sender(socket.AF_INET, opened.endpoint.port) as sender,
    ):
        before = time.time_ns()
        fill(opened, sender, 2)
        looked = time.time_ns()
        stamps = receiver.receive().received_ns.tolist()
    assert len(stamps) == 2
    assert before <= min(stamps) <= max(stamps) <= looked


def test_only_the_buffer_is_used_again() -> None:
    """Everything else may be kept by the caller."""
    opened = opened_at()
    with closing(Receiver([opened], always_ready)) as receiver, ExitStack() as ends:
        first, second = (ends.enter_context(Sender(socket.AF_INET, opened.endpoint.port)) for _ in range(2))
        first.send(b"a")
        until(lambda: waiting_bytes(opened))
        kept = receiver.receive()
        assert received(kept) == [Received(first.address, first.port, b"a")]
        stamps = kept.received_ns.tolist()
        assert second.send(b"bbb") == all_of(receiver, 1)
        assert received(kept) == [Received(first.address, first.port, b"b")]
        assert kept.received_ns.tolist() == stamps
        with pytest.raises(ValueError, match="read-only"):
            kept.starts[0] = 1  # of all batches


def test_full_sockets_take_turns() -> None:
    """A busy socket does not starve another; while batches are full, nothing waits."""
    waits: list[float | None] = []

    def wait(others: Mapping[int, int], timeout_s: float | None) -> Mapping[int, int]:
        waits.append(timeout_s)
        return others

    sockets = [opened_at(), opened_at()]
    with closing(Receiver(sockets, wait, batch=2, nap_s=1e-9)) as receiver, ExitStack() as ends:
        senders = [ends.enter_context(Sender(socket.AF_INET, opened.endpoint.port)) for opened in sockets]
        for opened, sender in zip(sockets, senders, strict=True):
            fill(opened, sender, 5)
        batches = [receiver.receive(7).ports.tolist() for _ in range(6)]
    a, b = (sender.port for sender in senders)
    assert batches == [[a, a], [b, b], [a, a], [b, b], [a, b], []]
    assert waits == [7, *[1e-9] * 5]


def test_drops_are_counted() -> None:
    """Sent = received + dropped by the kernel, for each socket, whenever it is read."""
    sockets = [opened_at(buffer_bytes=1), opened_at(buffer_bytes=1)]
    with closing(Receiver(sockets, always_ready)) as receiver, ExitStack() as ends:
        senders = [ends.enter_context(Sender(socket.AF_INET, opened.endpoint.port)) for opened in sockets]
        sent = [0, 0]
        for count in (50, 1, 50):
            for place, sender in enumerate(senders):
                sender.send(*[bytes(100)] * (place + 1) * count)
                sent[place] += (place + 1) * count

            def come() -> list[int]:
                receiver.receive()
                drops = receiver.drops()
                assert drops == tuple(counts.drops for counts in receiver.counts)
                return [counts.datagrams + counts.drops for counts in receiver.counts]

            until(lambda come=come: come() == sent)  # type: ignore[misc]
        for counts in receiver.counts:
            assert counts.drops > 0
            assert counts.datagrams > 0
            assert counts.bytes == 100 * counts.datagrams


@given(st.integers(0, 1 << 40), st.integers(0, (1 << 32) - 1))
def test_a_counter_that_wraps(total: int, growth: int) -> None:
    """The kernel's counter has 32 bits."""
    assert extend_counter(total, total + growth & 0xFFFFFFFF) == total + growth


def test_a_wait_that_is_ended() -> None:
    """By another thread, or before it begins; nothing is received then."""
    with WakeEvent() as event, closing(Receiver([opened_at()], event.wait)) as receiver:
        event.set()
        assert received(receiver.receive()) == []
        waking = threading.Thread(target=event.set)
        waking.start()
        assert received(receiver.receive()) == []
        waking.join()
        assert received(receiver.receive(0)) == []
    assert [counts.calls for counts in receiver.counts] == [0]


def test_datagrams_gather() -> None:
    """Nap for the given time; less if the buffer is small or the time is up, and not at all if it is filling."""
    naps: list[float | None] = []

    def wait(others: Mapping[int, int], timeout_s: float | None) -> Mapping[int, int]:
        if not others:
            naps.append(timeout_s)
        return others

    opened = opened_at()
    longest_s = opened.receive_buffer_bytes / 250e6
    with ExitStack() as ends:
        sender = ends.enter_context(Sender(socket.AF_INET, opened.endpoint.port))
        short = Receiver([opened], wait, nap_s=longest_s / 2)
        long = ends.enter_context(closing(Receiver([opened], wait, nap_s=1)))
        sender.send(b"")
        quarter = opened.receive_buffer_bytes // 2 // until(lambda: waiting_bytes(opened))
        assert len(short.receive().lengths) == 1
        for count in (1, quarter // 4, quarter):
            fill(opened, sender, count)
            assert len(long.receive().lengths) == count
        fill(opened, sender, 1)
        assert len(long.receive(0).lengths) == 1
    assert naps == [longest_s / 2, longest_s, longest_s]


def test_a_socket_that_fails() -> None:
    """Datagrams of the other sockets are returned first."""
    sockets = [opened_at(), opened_at()]
    reader, writer = os.pipe()
    with (
        closing(Receiver(sockets, always_ready, nap_s=0)) as receiver,
        Sender(socket.AF_INET, sockets[0].endpoint.port) as sender,
    ):
        fill(sockets[0], sender, 3)
        os.dup2(reader, sockets[1].socket.fileno())
        os.close(reader)
        os.close(writer)
        assert len(receiver.receive().lengths) == 3
        for failing in (receiver.receive, receiver.receive, receiver.drops):
            with pytest.raises(SourceFailed) as raised:
                failing()
            assert raised.value.what == (
                f"cannot receive at {sockets[1].endpoint} any more: {os.strerror(errno.ENOTSOCK)}"
            )
