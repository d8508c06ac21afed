# SPDX-License-Identifier: Apache-2.0
"""Packets of an interface, such as a port to which a switch mirrors others: some are sampled, and each is a flow.

The kernel draws them: a filter of the socket lets one packet in so many pass (packet(7), SKF_AD_RANDOM in
include/uapi/linux/filter.h). Of each its headers are read, and its length. What the host itself sends is not among
them.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

import numpy as np

from nettop.errors import NettopError, PermissionMissing, Unsupported, UsageError
from nettop.flows.decode.packets import PACKET_COLUMNS, FirstHeader, decoded_packets
from nettop.flows.inputs.input import MIRRORED, of_this_host
from nettop.flows.pipeline import Pipeline
from nettop.flows.receive import OpenSocket, Receiver, SocketCounts, Wait

KEPT_BYTES = 256
"""What is read of a packet: all headers, also in tunnels of MPLS and VLANs."""
SAMPLING_MAX = 1 << 20
_ETHERNET = 1
"""ARPHRD_ETHER, of packet sockets' addresses."""
_FIRST_HEADERS = {
    _ETHERNET: FirstHeader.ETHERNET,
    772: FirstHeader.ETHERNET,  # ARPHRD_LOOPBACK
    512: FirstHeader.PPP,  # ARPHRD_PPP
    65534: FirstHeader.IP,  # ARPHRD_NONE: tunnels
    776: FirstHeader.IP,  # ARPHRD_SIT
    768: FirstHeader.IP,  # ARPHRD_TUNNEL
    769: FirstHeader.IP,  # ARPHRD_TUNNEL6
}
"""What a packet begins with, by the type of its interface (include/uapi/linux/if_arp.h)."""
_ALL_PROTOCOLS = 3
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS, _IGNORE_OUTGOING = 263, 1, 1, 23
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_LOAD_RANDOM, _MODULO, _IF_EQUAL, _RETURN = 0x20, 0x94, 0x15, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_MOD|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K."""
_RANDOM_AT = 0x1_0000_0000 - 0x1000 + 56
"""SKF_AD_OFF + SKF_AD_RANDOM."""
_WHOLE = 0xFFFF_FFFF
"""What a filter returns for a packet that passes: of one that it shortens, the length is lost to recvmsg."""


def open_mirror(interface: str, sampling: int, receive_buffer_bytes: int) -> OpenSocket:
    """Open a socket that gets one packet in `sampling` of an interface, which is promiscuous as long as it is open.

    Raises UsageError for an interface that does not exist, Unsupported for one whose packets nobody can read here,
    PermissionMissing without CAP_NET_RAW.
    """
    try:
        index = socket.if_nametoindex(interface)
    except OSError as error:
        raise UsageError(
            f"--interface {interface!r}: there is no such interface", "ip -br link lists them"
        ) from error
    try:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError as error:
        raise PermissionMissing(
            f"packets of {interface} cannot be read: that needs CAP_NET_RAW", "start nettop as root"
        ) from error
    try:
        opened.setblocking(False)
        _filter(opened, sampling)
        opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer_bytes)
        membership = struct.pack("=iHH8s", index, _PROMISCUOUS, 0, b"")
        opened.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, membership)
        opened.bind((interface, _ALL_PROTOCOLS))
        kind = opened.getsockname()[3]
        if kind not in _FIRST_HEADERS:
            raise Unsupported(f"packets of {interface} are of a kind that is not known (ARPHRD {kind})")
    except OSError as error:
        opened.close()
        raise NettopError(
            f"packets of {interface} cannot be read: {error.strerror}", "see ip link"
        ) from error
    except NettopError:
        opened.close()
        raise
    granted = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    return OpenSocket(opened, f"interface {interface}", granted, "")


def _filter(opened: socket.socket, sampling: int) -> None:
    """Let one packet in `sampling` pass."""
    code = [(_RETURN, 0, 0, _WHOLE)]
    if sampling > 1:
        code = [
            (_LOAD_RANDOM, 0, 0, _RANDOM_AT),
            (_MODULO, 0, 0, sampling),
            (_IF_EQUAL, 0, 1, 0),
            *code,
            (_RETURN, 0, 0, 0),
        ]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(instructions))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class Mirror:
    """An Input: packets of an interface."""

    def __init__(self, opened: OpenSocket, sampling: int, wait: Wait) -> None:
        name, _, _, kind, _ = opened.socket.getsockname()
        self._first = _FIRST_HEADERS[kind]
        self._index, self._sampling = socket.if_nametoindex(name), sampling
        self._receiver = Receiver([opened], wait, slot_bytes=KEPT_BYTES, whole_lengths=True)

    @property
    def counts(self) -> Sequence[SocketCounts]:
        """As of Input."""
        return self._receiver.counts

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """As of Input."""
        packets = self._receiver.receive(timeout_s)
        count = len(packets.starts)
        if not count:
            return False
        kept = packets.starts + np.minimum(packets.lengths, KEPT_BYTES)
        headers = decoded_packets(packets.buffer, packets.starts, kept, self._first)
        flows = {
            **{name: headers[name] for name in PACKET_COLUMNS},
            **of_this_host(MIRRORED, packets.received_ns // 1_000_000),
            "start": packets.received_ns // 1_000_000,
            "bytes": packets.lengths.astype(np.uint64),
            "packets": np.ones(count, np.uint64),
            "sampling_rate": np.full(count, self._sampling, np.uint32),
            "in_if": np.full(count, self._index, np.uint32),
            "direction": np.zeros(count, np.uint8),
        }
        pipeline.add_flows(flows, count)
        return True

    def count(self, pipeline: Pipeline) -> None:
        """As of Input."""
        pipeline.counted["mirrored_packets"] = self.counts[0].datagrams
        pipeline.counted["own_drops"] = sum(self._receiver.drops())
