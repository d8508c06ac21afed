# SPDX-License-Identifier: Apache-2.0
"""The sources of flows of a worker: exporters' datagrams, and sampled packets of an interface of this host, such as a
switch's mirror port. Each packet becomes a flow.

The kernel samples packets: a socket filter passes one in N (packet(7), SKF_AD_RANDOM in include/uapi/linux/filter.h).
The worker reads the headers and the length of each packet, and skips packets sent by the host itself.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from nettop.collector.backlog import Backlog
from nettop.collector.columns import ADDRESS, Flows
from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.decode.packets import PACKET_COLUMNS, FirstHeader, decode_packets
from nettop.collector.pipeline import Pipeline
from nettop.collector.receive import (
    SO_RCVBUFFORCE,
    SO_TIMESTAMPNS,
    OpenSocket,
    Receiver,
    Wait,
    closed_on_failure,
)
from nettop.errors import NettopError, PermissionMissing, Unsupported, UsageError
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import Array

MIRRORED = 203
"""Protocol version of flows that this host observes itself, in addition to those of exporters."""
_THIS_HOST = MAPPED + bytes((127, 0, 0, 1))


class Exports:
    """An input of datagrams from exporters. Use it from one thread only.

    Datagrams that arrive faster than they can be decoded wait on disk or, if that is full, in the socket buffers.
    """

    def __init__(
        self, sockets: Sequence[OpenSocket], open_backlog: Callable[[], Backlog], wait: Wait
    ) -> None:
        self.receiver = Receiver(sockets, wait)
        self._backlog = open_backlog()

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Wait for data, and put it into the pipeline; return whether there was any. Raise SourceFailed."""
        has_come = False
        if not self._backlog.is_full:
            datagrams = self.receiver.receive(timeout_s if self._backlog.is_empty else 0)
            has_come = len(datagrams.starts) > 0
            has_to_wait = not self._backlog.is_empty or self.receiver.is_behind()
            if has_come and not (has_to_wait and self._backlog.put(datagrams)):
                pipeline.add(datagrams)
        if self._backlog.is_full or not (self._backlog.is_empty or self.receiver.is_behind()):
            pipeline.add(self._backlog.take())
            return True
        return has_come

    def count(self, pipeline: Pipeline) -> None:
        """Update the pipeline's counts, such as kernel drops."""
        pipeline.counted["kernel_drops"] = sum(self.receiver.drops())
        pipeline.counted["truncated"] = sum(counts.truncated for counts in self.receiver.counts)
        pipeline.queued = self._backlog.datagrams


class HostInput:
    """An input of what this host sees itself, by methods like those of Exports.

    `flows_of` returns the flows in what was received, and the number of packets or events that they describe, which the
    LEDGER counts as `counter`.
    """

    def __init__(
        self, receiver: Receiver, counter: str, flows_of: Callable[[Datagrams], tuple[Flows, int]]
    ) -> None:
        self.receiver = receiver
        self._counter, self._flows_of, self._seen = counter, flows_of, 0

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Wait for data, and put its flows into the pipeline; return whether there was any. Raise SourceFailed."""
        received = self.receiver.receive(timeout_s)
        if not len(received.starts):
            return False
        flows, seen = self._flows_of(received)
        self._seen += seen
        if flows:
            pipeline.add_flows(flows, len(flows["received"]))
        return True

    def count(self, pipeline: Pipeline) -> None:
        """Update the pipeline's counts."""
        pipeline.counted[self._counter] = self._seen
        pipeline.counted["own_drops"] = sum(self.receiver.drops())


Input = Exports | HostInput


def of_this_host(version: int, received_ms: Array) -> Flows:
    """Return the columns that mark flows as observed by this host at these times (n,)."""
    count = len(received_ms)
    return {
        "protocol_version": np.full(count, version, np.uint8),
        "exporter": np.frombuffer(_THIS_HOST * count, ADDRESS),
        "received": received_ms,
        "end": received_ms,
    }


# --- a mirror port ----------------------------------------------------------------------------------------------


KEPT_BYTES = 256
"""Bytes read per packet: enough for all headers, including MPLS and VLAN stacks."""
_ETHERNET = 1
"""ARPHRD_ETHER, in the addresses of packet sockets."""
_FIRST_HEADERS = {
    _ETHERNET: FirstHeader.ETHERNET,
    772: FirstHeader.ETHERNET,  # ARPHRD_LOOPBACK
    512: FirstHeader.PPP,  # ARPHRD_PPP
    65534: FirstHeader.IP,  # ARPHRD_NONE: tunnels
    776: FirstHeader.IP,  # ARPHRD_SIT
    768: FirstHeader.IP,  # ARPHRD_TUNNEL
    769: FirstHeader.IP,  # ARPHRD_TUNNEL6
}
"""First header of a packet, by interface type (include/uapi/linux/if_arp.h)."""
_ALL_PROTOCOLS = 3
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS, _IGNORE_OUTGOING = 263, 1, 1, 23
_SO_ATTACH_FILTER = 26
_LOAD_RANDOM, _MODULO, _IF_EQUAL, _RETURN = 0x20, 0x94, 0x15, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_MOD|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K."""
_RANDOM_AT = 0x1_0000_0000 - 0x1000 + 56
"""SKF_AD_OFF + SKF_AD_RANDOM."""
_WHOLE = 0xFFFF_FFFF
"""Return value of the filter for a packet that passes. If the filter truncated it, recvmsg would lose the length."""


def open_mirror(interface: str, sampling: int, receive_buffer_bytes: int) -> OpenSocket:
    """Open a socket that receives one packet in `sampling` of an interface, which is promiscuous while the socket is
    open.

    Raise UsageError if the interface does not exist, Unsupported if its packets cannot be decoded, PermissionMissing
    without CAP_NET_RAW.
    """
    try:
        index = socket.if_nametoindex(interface)
    except OSError as error:
        raise UsageError(
            f"--interface {interface!r}: no such interface", "list interfaces with ip -br link"
        ) from error
    try:
        with closed_on_failure(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as opened:
            opened.setblocking(False)
            _filter(opened, sampling)
            opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes)
            membership = struct.pack("=iHH8s", index, _PROMISCUOUS, 0, b"")
            opened.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, membership)
            opened.bind((interface, _ALL_PROTOCOLS))
            kind = opened.getsockname()[3]
            if kind not in _FIRST_HEADERS:
                raise Unsupported(f"{interface} has an unknown link type (ARPHRD {kind})")
    except PermissionError as error:
        raise PermissionMissing(
            f"reading packets of {interface} needs CAP_NET_RAW", "start nettop as root"
        ) from error
    except OSError as error:
        raise NettopError(
            f"cannot read packets of {interface}: {error.strerror}", "check it with ip link"
        ) from error
    return OpenSocket(opened, f"interface {interface}")


def _filter(opened: socket.socket, sampling: int) -> None:
    """Attach a filter that passes one packet in `sampling`."""
    code = [(_RETURN, 0, 0, _WHOLE)]
    if sampling > 1:
        code = [
            (_LOAD_RANDOM, 0, 0, _RANDOM_AT),
            (_MODULO, 0, 0, sampling),
            (_IF_EQUAL, 0, 1, 0),
            *code,
            (_RETURN, 0, 0, 0),
        ]
    instructions = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    )
    program = struct.pack("@HP", len(code), ctypes.addressof(instructions))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def mirrored_packets(opened: OpenSocket, sampling: int, wait: Wait) -> HostInput:
    """Return the input of an interface's packets."""
    name, _, _, kind, _ = opened.socket.getsockname()
    receiver = Receiver([opened], wait, slot_bytes=KEPT_BYTES, whole_lengths=True)
    flows_of = partial(
        _flows, first=_FIRST_HEADERS[kind], index=socket.if_nametoindex(name), sampling=sampling
    )
    return HostInput(receiver, "mirrored_packets", flows_of)


def _flows(packets: Datagrams, *, first: FirstHeader, index: int, sampling: int) -> tuple[Flows, int]:
    count, received_ms = len(packets.starts), packets.received_ns // 1_000_000
    kept = packets.starts + np.minimum(packets.lengths, KEPT_BYTES)
    headers = decode_packets(packets.buffer, packets.starts, kept, first)
    flows = {
        **{name: headers[name] for name in PACKET_COLUMNS},
        **of_this_host(MIRRORED, received_ms),
        "start": received_ms,
        "bytes": packets.lengths.astype(np.uint64),
        "packets": np.ones(count, np.uint64),
        "sampling_rate": np.full(count, sampling, np.uint32),
        "in_if": np.full(count, index, np.uint32),
        "direction": np.zeros(count, np.uint8),
    }
    return flows, count
