# SPDX-License-Identifier: Apache-2.0
"""Parsing the kernel's sock_diag messages, built here: complete, unusual, and truncated anywhere."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.errors import NettopError, PermissionMissing, SourceFailed, TooManyFiles, Unsupported
from nettop.kernel.host.facts import Host
from nettop.kernel.net import sock_diag
from nettop.probes.connections import sock_diag_table
from nettop.probes.connections.sock_diag_table import DiagTable
from nettop.probes.connections.socket_rows import ROW, STATE, TCP, UDP, descriptors_of
from nettop.snapshots.arrays import Array
from nettop.snapshots.snapshot import known
from tests.builders.netlink import DONE, ERROR, INTERRUPTED, NESTED, Channel, attribute, end
from tests.builders.netlink import message as netlink_message
from tests.kernel import oracle
from tests.unit.test_socket_owners import process

TELLS, NOOP = 20, 1
INFO, CONGESTION, MEMORY, SHUTDOWN, CGROUP = 2, 4, 7, 8, 21
V4, V6 = (socket.AF_INET, socket.AF_INET6)
NAMES = {
    "info_state": "state", "snd_mss": "snd_mss", "rtt": "rtt", "rttvar": "rttvar", "snd_cwnd": "snd_cwnd",
    "total_retrans": "total_retrans", "bytes_acked": "bytes_acked", "bytes_received": "bytes_received",
    "segs_out": "segs_out", "segs_in": "segs_in", "notsent_bytes": "notsent_bytes", "min_rtt": "min_rtt",
    "data_segs_out": "data_segs_out", "delivery_rate": "delivery_rate", "bytes_sent": "bytes_sent",
    "bytes_retrans": "bytes_retrans", "measured": "app_limited", "lost": "lost", "pacing_rate": "pacing_rate",
    "busy_time": "busy_time", "rwnd_limited": "rwnd_limited", "sndbuf_limited": "sndbuf_limited",
    "dsack_dups": "dsack_dups", "reord_seen": "reord_seen", "snd_wnd": "snd_wnd", "probes": "probes",
}  # fmt: skip
"""Names in an array of sockets, and in struct tcp_info as the oracle declares it."""
NUMBERED = {name: at + 1 for at, name in enumerate(oracle.NAMES)}
DUMP_ENDS = end()


def message(*attributes: bytes, kind: int = TELLS, flags: int = 2, **head: Any) -> bytes:
    """Return a message about one socket; what `head` leaves out is zero."""
    cell = dict.fromkeys(
        ("family", "state", "sport", "dport", "cookie", "rqueue", "wqueue", "uid", "inode"), 0
    )
    cell |= head
    body = struct.pack(
        "=BBBB2s2s16s16sIQ5I",
        cell["family"], cell["state"], 0, 0,
        int(cell["sport"]).to_bytes(2, "big"), int(cell["dport"]).to_bytes(2, "big"),
        address(cell.get("src")), address(cell.get("dst")), 0, cell["cookie"], 0, cell["rqueue"], cell["wqueue"],
        cell["uid"], cell["inode"],
    )  # fmt: skip
    return netlink_message(kind, body + b"".join(attributes), flags)


def address(text: Any) -> bytes:
    """Return an address as a message has it: IPv4 in the first of four words."""
    if text is None:
        return bytes(16)
    return socket.inet_pton(V6 if ":" in text else V4, text).ljust(16, b"\0")


def tcp_info(**values: int) -> bytes:
    """Return INET_DIAG_INFO, with zeros for values not given."""
    return attribute(INFO, oracle.TCP_INFO.pack(*(values.get(name, 0) for name in oracle.NAMES)))


def memory(drops: int = 0) -> bytes:
    """Return INET_DIAG_SKMEMINFO."""
    return attribute(MEMORY, struct.pack("=9I", *range(1, 9), drops))


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Channel]:
    """Set the kernel's replies."""

    def answer(*replies: list[bytes]) -> Channel:
        channel = Channel(*replies)
        monkeypatch.setattr(socket, "socket", lambda *_: channel)
        return channel

    return answer


def sockets_of(datagram: bytes) -> list[Array]:
    """Return the sockets in one datagram."""
    answer = sock_diag.split_messages(datagram, 0, len(datagram))
    return list(sock_diag.group_by_layout(datagram, answer.starts, answer.lengths))


def only_row(datagram: bytes, protocol: int = TCP) -> dict[str, Any]:
    """Return the row of the one socket in a datagram; unknown is None."""
    (sockets,) = sockets_of(datagram)
    rows = sock_diag_table._rows(sockets, protocol, 4026531840)
    assert len(rows) == 1
    columns = {name: rows[name] for name in ROW.names or () if name not in ("comm", "algorithm")}
    return {name: column[0].tolist() if known(column)[0] else None for name, column in columns.items()}


def text_of(halves: list[int]) -> str:
    """Return an address of a row."""
    raw = struct.pack(">QQ", *halves)
    return (
        socket.inet_ntop(V4, raw[12:]) if raw[:12] == bytes(10) + b"\xff\xff" else socket.inet_ntop(V6, raw)
    )


# --- messages -----------------------------------------------------------------------------------------------


def test_every_field_is_read_where_the_kernel_has_it() -> None:
    """Head, tcp_info and memory of one socket, each field with a number of its own."""
    answer = message(
        attribute(SHUTDOWN, b"\3"), memory(77), tcp_info(**NUMBERED), attribute(CONGESTION, b"cubic\0"),
        family=V4, state=1, sport=443, dport=50000, src="10.1.2.3", dst="10.3.2.1", cookie=2**40 + 5,
        rqueue=11, wqueue=12, uid=13, inode=14,
    )  # fmt: skip
    ((row,),) = sockets_of(answer)
    head = "family state local_port remote_port cookie rqueue wqueue uid inode drops"
    assert [row[name] for name in head.split()] == [V4, 1, 443, 50000, 2**40 + 5, 11, 12, 13, 14, 77]
    assert row["algorithm"] == b"cubic"
    assert {name: row[name] for name in NAMES} == {name: NUMBERED[kernels] for name, kernels in NAMES.items()}


def test_requests_ask_for_both_families(answered: Callable[..., Channel]) -> None:
    """One request a family: protocol, attributes and states as struct inet_diag_req_v2 has them."""
    kernel = answered([DUMP_ENDS], [DUMP_ENDS])
    assert sock_diag.dump(TCP, 0x123, info=True) == sock_diag.Dump([], 0)
    for request, family in zip(kernel.requests, (V4, V6), strict=True):
        assert struct.unpack_from("=IHH", request) == (len(request), TELLS, 0x301)
        attributes = sum(1 << (extension - 1) for extension in (INFO, CONGESTION, MEMORY))
        assert struct.unpack_from("=BBBxI", request, 16) == (family, TCP, attributes, 0x123)
        assert len(request) == 16 + 56


def test_a_dump_longer_than_the_buffer(answered: Callable[..., Channel]) -> None:
    """Datagrams come until the kernel says that it is done; none overwrites another."""
    whole = [message(memory(), tcp_info(), cookie=cookie) for cookie in range(6000)]
    datagrams = [b"".join(whole[at : at + 100]) for at in range(0, 6000, 100)]
    answered([*datagrams, DUMP_ENDS], [DUMP_ENDS])
    row = sock_diag.dump(TCP, 1, info=True).sockets
    assert np.concatenate([sockets["cookie"] for sockets in row]).tolist() == list(range(6000))


KINDS = [
    lambda cookie: message(cookie=cookie, state=6),
    lambda cookie: message(memory(cookie), cookie=cookie),
    lambda cookie: message(memory(cookie), attribute(SHUTDOWN, b"\0"), cookie=cookie),
    lambda cookie: message(attribute(SHUTDOWN, b"\0"), memory(cookie), cookie=cookie),
    lambda cookie: message(memory(cookie), tcp_info(segs_in=cookie), cookie=cookie),
    lambda cookie: message(tcp_info(segs_in=cookie), memory(cookie), cookie=cookie),
    lambda cookie: message(
        attribute(CGROUP, bytes(8)), memory(cookie), attribute(999, b"abc"), cookie=cookie
    ),
]


@given(st.lists(st.sampled_from(range(len(KINDS)))))
def test_messages_of_every_kind_in_any_order(kinds: list[int]) -> None:
    """Each message is returned once, with its own values, wherever its attributes stand."""
    datagram = b"".join(KINDS[kind](cookie) for cookie, kind in enumerate(kinds))
    row: dict[int, tuple[bool, bool]] = {}
    for sockets in sockets_of(datagram):
        names = sockets.dtype.names or ()
        for reported in sockets:
            cookie = int(reported["cookie"])
            assert cookie not in row
            row[cookie] = ("drops" in names, "segs_in" in names)
            assert all(reported[name] == cookie for name in ("drops", "segs_in") if name in names)
    assert row == {cookie: (kind != 0, kind in (4, 5)) for cookie, kind in enumerate(kinds)}


@pytest.mark.parametrize(
    "strange", [attribute(200, b""), attribute(31, b"x" * 5), attribute(INFO | 0x40, b"1234")]
)
@pytest.mark.parametrize("first", [True, False])
def test_unknown_attributes_are_passed_over(strange: bytes, first: bool) -> None:
    """Unknown attributes of later kernels have no effect, before or after known ones."""
    known_ones = (attribute(MEMORY | NESTED, struct.pack("=9I", *range(9))), tcp_info(rtt=5))
    attributes = (strange, *known_ones) if first else (*known_ones, strange)
    ((row,),) = sockets_of(message(*attributes, cookie=9))
    assert (row["cookie"], row["drops"], row["rtt"]) == (9, 8, 5)


def test_a_tcp_info_of_another_kernel() -> None:
    """A shorter struct tcp_info leaves missing fields unknown; the known part of a longer one is read."""
    offsets = {name: oracle_offset(kernels) for name, kernels in NAMES.items()}
    whole = tcp_info(**NUMBERED)[4:].ljust(300, b"\xee")
    for length in range(0, 300, 4):
        answer = message(memory(), attribute(INFO, whole[:length]), state=1)
        ((row,),) = sockets_of(answer)
        there = set(row.dtype.names) & NAMES.keys()
        assert there == {name for name, (at, size) in offsets.items() if at + size <= length}
        assert all(row[name] == NUMBERED[NAMES[name]] for name in there)
        row = only_row(answer)
        assert (row["retransmits"] is None) == (length < 104)
        assert (row["bytes_in_flight"] is None) == (length < 216)


def oracle_offset(name: str) -> tuple[int, int]:
    """Return offset and size of a field of struct tcp_info, from the oracle's declaration."""
    sizes = [
        struct.calcsize(f"={code}") for code in "B" * 8 + "I" * 24 + "Q" * 4 + "I" * 6 + "Q" * 4 + "IIQQIIII"
    ]
    at = oracle.NAMES.index(name)
    return sum(sizes[:at]), sizes[at]


# --- truncated answers --------------------------------------------------------------------------------------

WHOLE = message(attribute(SHUTDOWN, b"\0"), memory(3), tcp_info(), cookie=1)


def test_every_cut_of_a_datagram() -> None:
    """A datagram truncated within a message is an error, never a socket made of the buffer's old contents."""
    buffer = bytearray(WHOLE * 3)
    for kept in range(1, 2 * len(WHOLE)):
        if kept % len(WHOLE):
            with pytest.raises(SourceFailed):
                sock_diag.split_messages(buffer, 0, kept)
        else:
            assert len(sock_diag.split_messages(buffer, 0, kept).starts) == kept // len(WHOLE)


def test_every_length_of_a_message() -> None:
    """A message with a shorter length is an error, or ends after its head or one of its attributes."""
    behind_head, behind_first, behind_memory = range(88, 92), range(93, 100), range(136, 140)
    for length in range(len(WHOLE)):
        cut = struct.pack("=I", length) + WHOLE[4:length]
        if length in (*behind_head, *behind_first, *behind_memory):
            ((row,),) = sockets_of(cut)
            assert ("drops" in row.dtype.names) == (length in behind_memory)
            assert "rtt" not in row.dtype.names
        else:
            with pytest.raises(SourceFailed):
                sockets_of(cut)


@pytest.mark.parametrize("length", [*range(4), 41, 0xFFFF])
def test_an_attribute_of_impossible_length(length: int) -> None:
    """An attribute shorter than its own head, or longer than the message, is an error."""
    wrong = struct.pack("=HH", length, MEMORY) + bytes(36)
    with pytest.raises(SourceFailed):
        sockets_of(message(wrong))


@given(st.binary(max_size=400))
def test_no_bytes_do_harm(noise: bytes) -> None:
    """Any bytes give sockets, or one of nettop's errors."""
    for datagram in (
        noise,
        WHOLE[:88] + noise,
        struct.pack("=IHHII", len(noise) + 16, TELLS, 2, 1, 0) + noise,
    ):
        with suppress(NettopError):
            sockets_of(datagram)


# --- how a dump ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "raised"),
    [
        (end(errno.ENOENT, ERROR), Unsupported),
        (end(errno.EPERM), PermissionMissing),
        (end(errno.EACCES), PermissionMissing),
        (end(errno.ENOBUFS), SourceFailed),
        (netlink_message(DONE, b""), SourceFailed),
    ],
)
def test_errors_of_the_kernel(
    answered: Callable[..., Channel], reply: bytes, raised: type[NettopError]
) -> None:
    """An errno, or a message that ends the dump without one, gives an error with a remedy."""
    answered([reply])
    with pytest.raises(raised) as caught:
        sock_diag.dump(TCP, 1, info=False)
    assert caught.value.remedy
    if len(reply) > 16:
        assert os.strerror(-struct.unpack_from("=i", reply, 16)[0]) in caught.value.what


@pytest.mark.parametrize(
    ("number", "raised", "remedy"),
    [(errno.EPERM, PermissionMissing, "AF_NETLINK"), (errno.EMFILE, TooManyFiles, "ulimit -n")],
)
def test_a_netlink_socket_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, number: int, raised: type[NettopError], remedy: str
) -> None:
    """A sandbox without netlink sockets is named as the cause, and so is the limit of descriptors."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(raised) as caught:
        sock_diag.dump(TCP, 1, info=False)
    assert remedy in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("attempts", "cookies", "inconsistent"),
    [(2, [1, 2], 0), (3, [1], 1)],
    ids=["interrupted twice", "always interrupted"],
)
def test_an_interrupted_dump_is_repeated(
    answered: Callable[..., Channel], attempts: int, cookies: list[int], inconsistent: int
) -> None:
    """A dump that the kernel calls inconsistent is made three times; the last one stands, and is counted."""
    torn = [message(cookie=1), end(flags=2 | INTERRUPTED)]
    whole = [[message(cookie=1), message(cookie=2), DUMP_ENDS]] * (3 - attempts)
    answered(*([*torn] for _ in range(attempts)), *whole, [DUMP_ENDS])
    dumped = sock_diag.dump(TCP, 1, info=False)
    assert [sockets["cookie"].tolist() for sockets in dumped.sockets] == [cookies]
    assert dumped.inconsistent == inconsistent


def test_other_messages_are_passed_over(answered: Callable[..., Channel]) -> None:
    """Messages that are neither a socket nor an end are ignored."""
    answered([message(kind=NOOP, cookie=1) + message(cookie=2), DUMP_ENDS], [DUMP_ENDS])
    assert [sockets["cookie"].tolist() for sockets in sock_diag.dump(TCP, 1, info=False).sockets] == [[2]]


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "source", "target", "shown"),
    [
        (V4, "10.1.2.3", "10.3.2.1", (V4, "10.1.2.3", "10.3.2.1")),
        (V6, "2001:db8::1", "fe80::2", (V6, "2001:db8::1", "fe80::2")),
        (V6, "::ffff:10.1.2.3", "::ffff:10.3.2.1", (V4, "10.1.2.3", "10.3.2.1")),
        (V6, "::ffff:10.1.2.3", "::", (V4, "10.1.2.3", "0.0.0.0")),
        (V6, "::", "::", (V6, "::", "::")),
        (V4, "0.0.0.0", "0.0.0.0", (V4, "0.0.0.0", "0.0.0.0")),
    ],
)
def test_addresses(family: int, source: str, target: str, shown: tuple[int, str, str]) -> None:
    """IPv4 mapped into IPv6 is IPv4, even if only one side is."""
    row = only_row(message(family=family, src=source, dst=target))
    assert (row["family"], text_of(row["local_address"]), text_of(row["remote_address"])) == shown


def test_a_minisocket_has_no_numbers() -> None:
    """TIME_WAIT has addresses but no measurements; its uid of 0 means unknown."""
    row = only_row(message(state=STATE["TIME_WAIT"], sport=1, dport=2, cookie=3))
    there = {name for name, value in row.items() if value is not None}
    assert there == {
        "id", "protocol", "netns", "state", "family", "local_address", "remote_address", "local_port", "remote_port",
    }  # fmt: skip


def test_the_queues_of_a_listener_are_no_bytes() -> None:
    """A listener's queue fields are waiting connections and their limit, not bytes."""
    row = only_row(message(memory(), state=STATE["LISTEN"], rqueue=3, wqueue=128))
    queues = ("accept_queue", "backlog", "receive_queue", "send_queue")
    assert [row[name] for name in queues] == [3, 128, None, None]


def test_udp_rows() -> None:
    """A UDP socket without a peer is UNCONN; a queue that is read while it is counted is not negative."""
    row = only_row(message(memory(5), state=STATE["CLOSE"], rqueue=2**32 - 7, wqueue=3, uid=9), UDP)
    assert (row["state"], row["receive_queue"], row["send_queue"], row["drops"]) == (STATE["UNCONN"], 0, 3, 5)
    assert (row["uid"], row["remote_port"], row["bytes_sent"]) == (9, None, None)
    assert only_row(message(memory(), state=1), UDP)["state"] == STATE["ESTABLISHED"]


@pytest.mark.parametrize(("uid", "inode", "shown"), [(0, 0, None), (0, 7, 0), (8, 0, 8), (8, 7, 8)])
def test_users(uid: int, inode: int, shown: int | None) -> None:
    """A uid of 0 is root's only with an inode; older kernels report 0 for every orphan."""
    assert only_row(message(memory(), state=1, uid=uid, inode=inode))["uid"] == shown


def connection(state: str, unsent: int = 0, queued: int = 0, **info: int) -> dict[str, Any]:
    """Return the row of a connection in that state."""
    values = {"min_rtt": oracle.NEVER_MEASURED, "notsent_bytes": unsent} | info
    return only_row(message(memory(), tcp_info(state=STATE[state], **values), state=1, wqueue=queued))


@pytest.mark.parametrize(
    ("state", "queues", "sent", "acknowledged", "shown"),
    [
        ("ESTABLISHED", (0, 0), 1000, 1000, (1000, 0)),
        ("ESTABLISHED", (0, 0), 1000, 1001, (1000, 0)),  # the SYN was ours
        ("ESTABLISHED", (300, 500), 1000, 801, (800, 200)),
        ("SYN_SENT", (0, 1), 0, 0, (0, 1)),
        ("FIN_WAIT1", (0, 101), 1000, 900, (900, 101)),
        ("FIN_WAIT1", (50, 151), 1000, 900, (899, 101)),  # the FIN has not left
        ("FIN_WAIT2", (0, 0), 1000, 1002, (1000, 0)),
        ("LAST_ACK", (0, 1), 1000, 1000, (1000, 1)),
        ("CLOSING", (0, 1), 1000, 1001, (1000, 1)),
        ("ESTABLISHED", (900, 500), 1000, 700, (698, 0)),  # written to between queue and the rest
        ("ESTABLISHED", (0, 500), 1000, 1001, (999, 500)),  # acknowledged in between
    ],
)
def test_payload_sent(
    state: str, queues: tuple[int, int], sent: int, acknowledged: int, shown: tuple[int, int]
) -> None:
    """Each byte counts once, without SYN and FIN, among acknowledged bytes and bytes in flight."""
    row = connection(state, *queues, bytes_sent=sent + 70, bytes_retrans=70, bytes_acked=acknowledged)
    assert (row["state"], row["bytes_sent"]) == (STATE[state], sent)
    assert (row["bytes_acked"], row["bytes_in_flight"]) == shown


@pytest.mark.parametrize(
    ("state", "counted", "received"),
    [("ESTABLISHED", 100, 100), ("FIN_WAIT2", 100, 100), ("CLOSE_WAIT", 100, 99), ("LAST_ACK", 1, 0),
     ("CLOSING", 100, 99), ("CLOSE_WAIT", 0, 0)],
)  # fmt: skip
def test_payload_received(state: str, counted: int, received: int) -> None:
    """A received FIN is not payload."""
    assert connection(state, bytes_received=counted)["bytes_received"] == received


def test_nothing_was_measured_yet() -> None:
    """The round-trip time is unknown before the first round trip, and the delivery rate before the first delivery."""
    names = ("rtt_us", "rtt_var_us", "rtt_min_us", "delivery_rate")
    for state, info, expected in (
        ("SYN_SENT", {"rttvar": 250_000}, [None] * 4),
        ("ESTABLISHED", {"rtt": 0, "min_rtt": 0}, [0, 0, 0, None]),  # less than a microsecond
        ("ESTABLISHED", {"rtt": 30, "rttvar": 7, "min_rtt": 0, "delivery_rate": 10**10}, [30, 7, 0, 10**10]),
    ):
        row = connection(state, **info)
        assert [row[name] for name in names] == expected


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 7)))
def test_pairs(inodes: list[int], wanted: list[int]) -> None:
    """Every socket is joined with every descriptor of its inode, in the order of the descriptors."""
    row = sock_diag_table._pairs(np.array(inodes, np.uint32), np.array(wanted, np.uint32))
    assert sorted(zip(*(at.tolist() for at in row), strict=True)) == [
        (i, w) for i, inode in enumerate(inodes) for w, other in enumerate(wanted) if inode == other
    ]
    assert np.all(np.diff(row[1]) >= 0)


class Thread:
    """A namespace's thread that runs its calls at once."""

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        """Run it."""
        answer: Future[Any] = Future()
        try:
            answer.set_result(task())
        except NettopError as error:
            answer.set_exception(error)
        return answer


def table(tmp_path: Any) -> DiagTable:
    """Return a table of one namespace, on a host without processes."""
    (tmp_path / "proc").mkdir()
    namespaces: Any = SimpleNamespace(
        lock=nullcontext(),
        threads={1: Thread()},
        follow=lambda seen: None,
        gaps=lambda unseen: {"namespace 2": "not entered"},
    )
    return DiagTable(Host(tmp_path), namespaces)


def lacking(*missing: int) -> Callable[..., sock_diag.Dump]:
    """Return a dump by a kernel that lists all but these protocols."""

    def dump(protocol: int, states: int, *, info: bool) -> sock_diag.Dump:
        if protocol in missing:
            raise Unsupported(f"no {protocol}", "load it")
        answer = message(memory(), state=1, cookie=protocol, sport=1, inode=protocol)
        return sock_diag.Dump(sockets_of(answer), int(info))

    return dump


def test_a_protocol_that_is_not_listed_is_a_gap(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without udp_diag the rows of TCP go on, and what is missing has a name and a reason."""
    monkeypatch.setattr(sock_diag, "dump", lacking(UDP))
    made = table(tmp_path)
    process(tmp_path / "proc", 7, {3: f"socket:[{TCP}]"})
    for reading in (1, 2):
        rows, _, counts, _ = made.read(np.zeros(0, ROW))
        assert rows["id"].tolist() == [TCP]  # in two dumps, shown once
        assert descriptors_of(rows, made.held_by_several) == [(7, 3)]
        assert made.gaps()["udp"] == f"no {UDP}"
        assert "tcp" not in made.gaps()
        assert (counts["inconsistent_dumps"], counts["namespaces"], counts["processes_hidden"]) == (
            reading,
            1,
            0,
        )
    assert made.gaps()["namespace 2"] == "not entered"
    monkeypatch.setattr(sock_diag, "dump", lacking())
    assert made.read(rows)[0]["id"].tolist() == [TCP, UDP]
    assert "udp" not in made.gaps()


def test_a_reading_takes_nothing_back(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledged bytes never fall below those of the previous reading; unknown ones stay unknown."""
    acked = {1: 998, 2: 2000, 4: 7, 5: 5}
    answer = b"".join(
        message(memory(), tcp_info(state=1, bytes_sent=count, bytes_acked=count), state=1, cookie=cookie)
        for cookie, count in acked.items()
    ) + message(memory(), state=1, cookie=3)
    monkeypatch.setattr(sock_diag, "dump", lambda *_, info: sock_diag.Dump(sockets_of(answer), 0))
    made = table(tmp_path)
    before = made.read(np.zeros(0, ROW))[0]
    assert before["bytes_acked"].tolist() == [998, 2000, 2**64 - 1, 7, 5]
    before["bytes_acked"] = (1000, 1000, 1000, 2**64 - 1, 2**64 - 1)
    assert made.read(before)[0]["bytes_acked"].tolist() == [1000, 2000, 2**64 - 1, 7, 5]


def test_nothing_is_listed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that lists neither protocol is an unsupported one."""
    monkeypatch.setattr(sock_diag, "dump", lacking(TCP, UDP))
    with pytest.raises(Unsupported):
        table(tmp_path).read(np.zeros(0, ROW))
