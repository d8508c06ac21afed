# SPDX-License-Identifier: Apache-2.0
"""Flows from netlink messages of the firewall (include/uapi/linux/netfilter/nfnetlink.h).

NFLOG: packets that a rule logs to a group (`log group 5` in nftables; nfnetlink_log.h). Each becomes a flow.

Conntrack: connections reported as ended (nfnetlink_conntrack.h). Each becomes a flow, plus one for the reply direction.
The kernel counts bytes and packets if net.netfilter.nf_conntrack_acct is 1, and records times if
net.netfilter.nf_conntrack_timestamp is.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nettop.errors import NettopError, PermissionMissing, Unsupported
from nettop.flows.columns import ADDRESS, BY_NAME, Flows
from nettop.flows.decode.datagrams import Datagrams
from nettop.flows.decode.packets import PACKET_COLUMNS, FirstHeader, decode_packets
from nettop.flows.inputs.input import CONNTRACK, NFLOG, HostInput, of_this_host
from nettop.flows.receive import SO_RCVBUFFORCE, OpenSocket, Receiver, Wait, closed_on_failure
from nettop.kernel.net import netlink
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import as_list

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NO_ENOBUFS = 270, 5
_BODY = struct.Struct("!BBH")
"""struct nfgenmsg: address family, version, group or queue number."""

Attributes = Mapping[int, memoryview]
"""Attribute contents by type."""


def _open(groups: int, name: str, receive_buffer_bytes: int) -> socket.socket:
    """Open a socket in these multicast groups (bits). Raise Unsupported, PermissionMissing or NettopError."""
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError as error:
        raise Unsupported(f"{name} is not available: {error.strerror}", "modprobe nfnetlink") from error
    try:
        with closed_on_failure(made) as opened:
            # Drops are counted; an ENOBUFS error would add nothing.
            opened.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes)
            opened.bind((0, groups))
    except PermissionError as error:
        raise PermissionMissing(f"{name} needs CAP_NET_ADMIN", "start nettop as root") from error
    except OSError as error:
        raise NettopError(f"cannot read {name}: {error.strerror}") from error
    return made


def _messages(received: Datagrams) -> Iterator[tuple[int, Attributes]]:
    """Yield the type and attributes of each message received."""
    buffer = received.buffer.data
    for begin, length in zip(as_list(received.starts), as_list(received.lengths), strict=True):
        for kind, _, start, end in netlink.messages(buffer, begin, begin + length):
            yield kind, netlink.contents(buffer[start + _BODY.size : end])


def _now_ms() -> int:
    """Return the wall clock in ms, as netlink messages carry no timestamp."""
    return time.time_ns() // 1_000_000


def _number(content: memoryview | None, form: str) -> int:
    if content is None or len(content) < struct.calcsize(form):
        return 0
    return int(struct.unpack_from(form, content)[0])


# --- NFLOG ------------------------------------------------------------------------------------------------------

_KEPT_BYTES = 256
_LOG = 4 << 8
_PACKET, _CONFIG = _LOG | 0, _LOG | 1
_COMMAND, _MODE, _TIMEOUT, _THRESHOLD = 1, 2, 4, 5
_BIND = struct.pack("B", 1)
_COPY_PACKET = 2
_TIMESTAMP, _IN_DEVICE, _OUT_DEVICE, _PAYLOAD = 3, 4, 5, 9
_GATHERED, _HUNDREDTHS = 64, 10
"""The kernel sends packets in groups of this size, or at the latest after so many hundredths of a second."""


def open_group(group: int, receive_buffer_bytes: int) -> OpenSocket:
    """Open a socket that receives packets logged to a group. Raise Unsupported, PermissionMissing or NettopError."""
    name = f"NFLOG group {group}"
    with closed_on_failure(_open(0, name, receive_buffer_bytes)) as opened:
        for kind, content in (
            (_COMMAND, _BIND),
            (_MODE, struct.pack("!IBx", _KEPT_BYTES, _COPY_PACKET)),
            (_TIMEOUT, struct.pack("!I", _HUNDREDTHS)),
            (_THRESHOLD, struct.pack("!I", _GATHERED)),
        ):
            _configure(opened, _BODY.pack(0, 0, group) + netlink.attribute(kind, content), name)
        opened.setblocking(False)
    return OpenSocket(opened, name)


def _configure(opened: socket.socket, body: bytes, what: str) -> None:
    """Send a configuration message to the kernel. Raise PermissionMissing, or NettopError if it is rejected."""
    number = netlink.confirm(opened, _CONFIG, 0, body)
    if number == 1:
        raise PermissionMissing(f"{what} needs CAP_NET_ADMIN", "start nettop as root")
    if number:
        why = os.strerror(number)
        raise NettopError(f"the kernel rejected {what}: {why}", "check whether another program uses it")


def logged_packets(opened: OpenSocket, wait: Wait) -> HostInput:
    """Return the input of packets that the firewall logs to a group."""
    receiver = Receiver([opened], wait, batch=64, slot_bytes=1 << 16)
    return HostInput(receiver, "logged_packets", _logged_flows)


def _logged_flows(received: Datagrams) -> tuple[Flows, int]:
    received_ms = _now_ms()
    packets = [said for kind, said in _messages(received) if kind == _PACKET and _PAYLOAD in said]
    if not packets:
        return {}, 0
    payloads = [bytes(said[_PAYLOAD][:_KEPT_BYTES]) for said in packets]
    lengths = np.array([len(payload) for payload in payloads], np.intp)
    ends = np.cumsum(lengths)
    buffer = np.frombuffer(b"".join(payloads), np.uint8)
    headers = decode_packets(buffer, ends - lengths, ends, FirstHeader.IP)
    times = np.array([_time_ms(said.get(_TIMESTAMP), received_ms) for said in packets], np.int64)
    in_if, out_if = (
        np.array([_number(said.get(kind), "!I") for said in packets], np.uint32)
        for kind in (_IN_DEVICE, _OUT_DEVICE)
    )
    flows = {
        **{name: headers[name] for name in PACKET_COLUMNS},
        **of_this_host(NFLOG, times),
        "start": times,
        "bytes": headers["ip_bytes"].astype(np.uint64),
        "packets": np.ones(len(packets), np.uint64),
        "sampling_rate": np.ones(len(packets), np.uint32),
        "in_if": in_if,
        "out_if": out_if,
    }
    return flows, len(packets)


def _time_ms(stamp: memoryview | None, received_ms: int) -> int:
    """Return the packet's timestamp if the kernel provides it (struct nfulnl_msg_packet_timestamp), else the receive
    time.
    """
    if stamp is None or len(stamp) < 16:
        return received_ms
    seconds, microseconds = struct.unpack_from("!QQ", stamp)
    return int(seconds * 1000 + microseconds // 1000)


# --- conntrack --------------------------------------------------------------------------------------------------

_DESTROYED_GROUP = 1 << 2
"""NFNLGRP_CONNTRACK_DESTROY, 3, as a bit."""
_DELETE = 1 << 8 | 2
_ORIGINAL, _REPLY, _COUNTERS, _REPLY_COUNTERS, _TIMES = 1, 2, 9, 10, 20
_IP, _PROTOCOL = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
"""CTA_IP_V4_SRC and V6_SRC, CTA_IP_V4_DST and V6_DST."""
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT, _ICMP_TYPES, _ICMP_CODES = 1, 2, 3, (5, 8), (6, 9)
_PACKETS, _BYTES = 1, 2
_BEGAN, _ENDED = 1, 2
_ETYPES = {4: 0x0800, 16: 0x86DD}
_ACCOUNTING = Path("/proc/sys/net/netfilter/nf_conntrack_acct")
_ENDS = ("src", "dst", "src_port", "dst_port")
_UNTRANSLATED = (bytes(16), bytes(16), 0, 0)

_Row = dict[str, Any]
"""A flow, or one direction of a connection: values by column."""


def open_conntrack(receive_buffer_bytes: int) -> OpenSocket:
    """Open a socket that receives ended connections; warn if the kernel does not count bytes.

    Raise Unsupported, PermissionMissing or NettopError.
    """
    opened = _open(_DESTROYED_GROUP, "conntrack", receive_buffer_bytes)
    opened.setblocking(False)
    try:
        counts = _ACCOUNTING.read_text().strip() == "1"
    except OSError:
        counts = False
    warning = "conntrack does not count bytes and packets: sudo sysctl net.netfilter.nf_conntrack_acct=1"
    return OpenSocket(opened, "conntrack", "" if counts else warning)


def conntrack(opened: OpenSocket, wait: Wait) -> HostInput:
    """Return the input of ended connections."""
    return HostInput(Receiver([opened], wait, slot_bytes=1 << 13), "conntrack_events", _ended_flows)


def _ended_flows(received: Datagrams) -> tuple[Flows, int]:
    received_ms = _now_ms()
    events = [said for kind, said in _messages(received) if kind == _DELETE]
    rows = [row for said in events for row in _directions(said, received_ms)]
    return (_columns(rows, received_ms) if rows else {}), len(events)


def _directions(said: Attributes, received_ms: int) -> Iterator[_Row]:
    """Yield the directions of a connection that had packets; only the first one if the kernel does not count."""
    original, reply = (_side(said.get(kind)) for kind in (_ORIGINAL, _REPLY))
    if original is None or reply is None:
        return
    # If the kernel records no times, the end is now, and the start is unknown.
    start, end = (time_ns // 1_000_000 for time_ns in _numbers(said.get(_TIMES), _BEGAN, _ENDED))
    for direction, side, other, counters in (
        (1, original, reply, said.get(_COUNTERS)),
        (2, reply, original, said.get(_REPLY_COUNTERS)),
    ):
        packets, size = _numbers(counters, _PACKETS, _BYTES)
        if direction == 2 and not packets:
            continue
        # Packets of this direction leave with the addresses to which the other direction is sent.
        left = tuple(other[name] for name in ("dst", "src", "dst_port", "src_port"))
        is_translated = left != tuple(side[name] for name in _ENDS)
        nat = zip(_ENDS, left if is_translated else _UNTRANSLATED, strict=True)
        yield {
            **side,
            **{f"nat_{name}": value for name, value in nat},
            "packets": packets,
            "bytes": size,
            "start": start,
            "end": end or received_ms,
            "biflow_direction": direction,
        }


def _side(content: memoryview | None) -> _Row | None:
    """Parse a tuple of conntrack; None if an address is missing."""
    parts = netlink.contents(content or memoryview(b""))
    addresses, protocol = (netlink.contents(parts.get(kind, memoryview(b""))) for kind in (_IP, _PROTOCOL))
    src, dst = (_first(addresses, kinds) for kinds in (_SOURCES, _DESTINATIONS))
    if src is None or dst is None or len(src) not in _ETYPES:
        return None
    return {
        "etype": _ETYPES[len(src)],
        "src": _address(src),
        "dst": _address(dst),
        "protocol": _number(protocol.get(_NUMBER), "!B"),
        "src_port": _number(protocol.get(_SOURCE_PORT), "!H"),
        "dst_port": _number(protocol.get(_DESTINATION_PORT), "!H"),
        "icmp_type": _number(_first(protocol, _ICMP_TYPES), "!B"),
        "icmp_code": _number(_first(protocol, _ICMP_CODES), "!B"),
    }


def _first(said: Attributes, kinds: Sequence[int]) -> memoryview | None:
    return next((said[kind] for kind in kinds if kind in said), None)


def _numbers(content: memoryview | None, *kinds: int) -> Iterator[int]:
    """Yield the 64-bit numbers of these types; 0 for those that are missing."""
    said = netlink.contents(content or memoryview(b""))
    return (_number(said.get(kind), "!Q") for kind in kinds)


def _columns(rows: Sequence[_Row], received_ms: int) -> Flows:
    columns = of_this_host(CONNTRACK, np.full(len(rows), received_ms, np.int64))
    for name in rows[0]:
        values, dtype = [row[name] for row in rows], BY_NAME[name].dtype
        is_address = dtype == ADDRESS
        columns[name] = np.frombuffer(b"".join(values), ADDRESS) if is_address else np.array(values, dtype)
    columns["sampling_rate"] = np.ones(len(rows), np.uint32)
    return columns


def _address(content: memoryview) -> bytes:
    return bytes(content) if len(content) == 16 else MAPPED + bytes(content)
