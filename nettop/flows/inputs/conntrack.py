# SPDX-License-Identifier: Apache-2.0
"""Connections that conntrack reports as ended. Each becomes a flow, plus one for the reply direction.

The header include/uapi/linux/netfilter/nfnetlink_conntrack.h describes the messages. The kernel counts bytes and
packets if net.netfilter.nf_conntrack_acct is 1, and records times if net.netfilter.nf_conntrack_timestamp is.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.flows.columns import ADDRESS, BY_NAME, Flows
from nettop.flows.inputs.input import CONNTRACK, of_this_host
from nettop.flows.inputs.netfilter import BODY, Attributes, messages, now_ms, open_netfilter
from nettop.flows.pipeline import Pipeline
from nettop.flows.receive import OpenSocket, Receiver, Wait
from nettop.kernel.net import netlink
from nettop.query.address import MAPPED

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
_UNTRANSLATED = (bytes(16), bytes(16), 0, 0)
_SLOT_BYTES, _BATCH = 1 << 13, 1024


class _Side(NamedTuple):
    """One direction of a connection, as columns of a flow."""

    etype: int
    src: bytes
    dst: bytes
    protocol: int
    src_port: int
    dst_port: int
    icmp_type: int
    icmp_code: int


class _Flow(NamedTuple):
    """A flow: one direction, and the other columns."""

    side: _Side
    nat_src: bytes
    nat_dst: bytes
    nat_src_port: int
    nat_dst_port: int
    packets: int
    bytes: int
    start: int
    end: int
    biflow_direction: int


def open_conntrack(receive_buffer_bytes: int) -> OpenSocket:
    """Open a socket that receives ended connections; warn if the kernel does not count bytes.

    Raise Unsupported, PermissionMissing or NettopError.
    """
    opened = open_netfilter(_DESTROYED_GROUP, "conntrack", receive_buffer_bytes)
    opened.socket.setblocking(False)
    try:
        counts = _ACCOUNTING.read_text().strip() == "1"
    except OSError:
        counts = False
    warning = (
        ""
        if counts
        else ("conntrack does not count bytes and packets: sudo sysctl net.netfilter.nf_conntrack_acct=1")
    )
    return OpenSocket(opened.socket, opened.endpoint, opened.receive_buffer_bytes, warning)


class Conntrack:
    """An Input of ended connections."""

    def __init__(self, opened: OpenSocket, wait: Wait) -> None:
        self.receiver = Receiver([opened], wait, batch=_BATCH, slot_bytes=_SLOT_BYTES)
        self._events = 0

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Implement `Input.receive`."""
        received = self.receiver.receive(timeout_s)
        received_ms = now_ms()
        rows: list[_Flow] = []
        for kind, body in messages(received):
            if kind == _DELETE:
                self._events += 1
                rows += _flows_of(netlink.contents(body[BODY.size :]), received_ms)
        if rows:
            pipeline.add_flows(_columns(rows, received_ms), len(rows))
        return len(received.starts) > 0

    def count(self, pipeline: Pipeline) -> None:
        """Implement `Input.count`."""
        pipeline.counted["conntrack_events"] = self._events
        pipeline.counted["own_drops"] = sum(self.receiver.drops())


def _flows_of(said: Attributes, received_ms: int) -> list[_Flow]:
    """Return the directions of a connection that had packets; only the first one if the kernel does not count."""
    original, reply = (_side(said.get(kind)) for kind in (_ORIGINAL, _REPLY))
    if original is None or reply is None:
        return []
    start, end = _times(said.get(_TIMES), received_ms)
    flows = []
    for direction, side, other, counters in (
        (1, original, reply, said.get(_COUNTERS)),
        (2, reply, original, said.get(_REPLY_COUNTERS)),
    ):
        packets, size = _counted(counters)
        if direction == 2 and not packets:
            continue
        # Packets of this direction leave with the addresses to which the other direction is sent.
        is_translated = (other.dst, other.dst_port, other.src, other.src_port) != (
            side.src,
            side.src_port,
            side.dst,
            side.dst_port,
        )
        nat = (other.dst, other.src, other.dst_port, other.src_port) if is_translated else _UNTRANSLATED
        flows.append(_Flow(side, *nat, packets, size, start, end, direction))
    return flows


def _side(content: memoryview | None) -> _Side | None:
    """Parse a tuple of conntrack; None if an address is missing."""
    if content is None:
        return None
    parts = netlink.contents(content)
    addresses, protocol = (netlink.contents(parts.get(kind, memoryview(b""))) for kind in (_IP, _PROTOCOL))
    src, dst = (
        next((addresses[kind] for kind in kinds if kind in addresses), None)
        for kinds in (_SOURCES, _DESTINATIONS)
    )
    if src is None or dst is None or len(src) not in _ETYPES:
        return None
    ports = [_number(protocol.get(kind), "!H") for kind in (_SOURCE_PORT, _DESTINATION_PORT)]
    icmp = [
        next((_number(protocol[kind], "!B") for kind in kinds if kind in protocol), 0)
        for kinds in (_ICMP_TYPES, _ICMP_CODES)
    ]
    return _Side(
        _ETYPES[len(src)], _address(src), _address(dst), _number(protocol.get(_NUMBER), "!B"), *ports, *icmp
    )


def _columns(rows: Sequence[_Flow], received_ms: int) -> Flows:
    sides = [row.side for row in rows]
    columns = of_this_host(CONNTRACK, np.full(len(rows), received_ms, np.int64))
    for parts, names in ((sides, _Side._fields), (rows, _Flow._fields[1:])):
        for name in names:
            values, dtype = [getattr(part, name) for part in parts], BY_NAME[name].dtype
            columns[name] = (
                np.frombuffer(b"".join(values), ADDRESS) if dtype == ADDRESS else np.array(values, dtype)
            )
    columns["sampling_rate"] = np.ones(len(rows), np.uint32)
    return columns


def _counted(counters: memoryview | None) -> tuple[int, int]:
    """Return packets and bytes."""
    said = netlink.contents(counters) if counters is not None else {}
    return _number(said.get(_PACKETS), "!Q"), _number(said.get(_BYTES), "!Q")


def _times(content: memoryview | None, received_ms: int) -> tuple[int, int]:
    """Return when the connection began and ended, in ms. If the kernel records no times, the end is now, and the start
    is unknown.
    """
    said = netlink.contents(content) if content is not None else {}
    began, ended = (_number(said.get(kind), "!Q") // 1_000_000 for kind in (_BEGAN, _ENDED))
    return began, ended or received_ms


def _number(content: memoryview | None, form: str) -> int:
    if content is None or len(content) < struct.calcsize(form):
        return 0
    return int(struct.unpack_from(form, content)[0])


def _address(content: memoryview) -> bytes:
    return bytes(content) if len(content) == 16 else MAPPED + bytes(content)
