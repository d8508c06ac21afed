# SPDX-License-Identifier: Apache-2.0
"""The sockets of a network namespace as netlink's sock_diag dumps them: no program, no capability, any user.

The kernel answers with one message per socket: a fixed head, then attributes. Messages with the same attributes at the
same offsets become one structured array, without a loop over them. Names and numbers are those of
include/uapi/linux: sock_diag.h, inet_diag.h, tcp.h; what fills them is net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nettop.errors import (
    TOO_MANY_FILES,
    NettopError,
    PermissionMissing,
    SourceFailed,
    Unsupported,
    too_many_files,
)
from nettop.kernel import netlink
from nettop.snapshots.arrays import as_list
from nettop.snapshots.snapshot import Array

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_INFO, _CONGESTION, _SOCKET_MEMORY = 2, 4, 7
"""INET_DIAG_INFO, INET_DIAG_CONG and INET_DIAG_SKMEMINFO: attributes, and (counted from 1) bits of a request."""
_CHUNK = 1 << 20
_ATTEMPTS = 3

_HEAD = {
    "family": ("u1", 16),
    "state": ("u1", 17),
    "local_port": (">u2", 20),
    "remote_port": (">u2", 22),
    "local_address": ("(4,)u4", 24),
    "remote_address": ("(4,)u4", 40),
    "device": ("u4", 56),
    "cookie": ("u8", 60),
    "rqueue": ("u4", 72),
    "wqueue": ("u4", 76),
    "uid": ("u4", 80),
    "inode": ("u4", 84),
}
"""struct inet_diag_msg after the message's header: dtypes and offsets in the message."""
_HEAD_BYTES = 88

_ATTRIBUTES = {
    _SOCKET_MEMORY: {"drops": ("u4", 32)},  # SK_MEMINFO_DROPS, the ninth of them
    _INFO: {
        "info_state": ("u1", 0),
        "measured": ("u1", 7),  # a bit-field: delivery_rate_app_limited, and two bits of fastopen_client_fail
        "snd_mss": ("u4", 16),
        "lost": ("u4", 32),
        "rtt": ("u4", 68),
        "rttvar": ("u4", 72),
        "snd_cwnd": ("u4", 80),
        "total_retrans": ("u4", 100),
        "pacing_rate": ("u8", 104),
        "bytes_acked": ("u8", 120),
        "bytes_received": ("u8", 128),
        "segs_out": ("u4", 136),
        "segs_in": ("u4", 140),
        "notsent_bytes": ("u4", 144),
        "min_rtt": ("u4", 148),
        "data_segs_out": ("u4", 156),
        "delivery_rate": ("u8", 160),
        "busy_time": ("u8", 168),
        "rwnd_limited": ("u8", 176),
        "sndbuf_limited": ("u8", 184),
        "bytes_sent": ("u8", 200),
        "bytes_retrans": ("u8", 208),
        "reord_seen": ("u4", 220),
        "snd_wnd": ("u4", 228),
    },
}
"""The fields read from each attribute, such as struct tcp_info: dtypes and offsets in its content. Kernels append to
these structs; a field beyond the end of the attribute is not among the names of the array."""

AttributeLayout = tuple[tuple[int, int, int], ...]
"""The attributes of a message: kind, offset of the attribute in the message, and its length."""


class Dump(NamedTuple):
    """The sockets of one protocol. `inconsistent` counts address families whose table changed during each dump, as the
    kernel reports: sockets may be missing, or listed twice."""

    sockets: list[Array]
    inconsistent: int


class Answer(NamedTuple):
    """The messages of one answer: offsets and lengths of those about sockets."""

    starts: list[int]
    lengths: list[int]
    ended: bool
    interrupted: bool


def dump(protocol: int, states: int, *, info: bool) -> Dump:
    """Every IPv4 and IPv6 socket of a protocol in one of the `states` (bits) in the calling thread's namespace.

    A socket's array has the names of `_HEAD`, `drops` if it is a whole socket (no request, no minisocket), and with
    `info` the names of `_ATTRIBUTES` that its struct tcp_info has, and `algorithm`. Raises Unsupported where the kernel
    has no such dump, PermissionMissing where it is refused, SourceFailed for any other failure.
    """
    sockets: list[Array] = []
    inconsistent = 0
    wanted = 1 << (_SOCKET_MEMORY - 1) | (1 << (_INFO - 1) | 1 << (_CONGESTION - 1) if info else 0)
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        ) as channel:
            for family in (socket.AF_INET, socket.AF_INET6):
                request = struct.pack("=BBBxI48x", family, protocol, wanted, states)
                for _ in range(_ATTEMPTS):
                    listed, consistent = _request(channel, request)
                    if consistent:
                        break
                else:
                    inconsistent += 1
                sockets += listed
    except OSError as error:
        raise _failed(error.errno or 0) from error
    return Dump(sockets, inconsistent)


def split(buffer: bytes | bytearray, at: int, end: int) -> Answer:
    """The messages between two offsets of a buffer.

    Raises what `dump` raises when one of them reports a failed dump, or is truncated.
    """
    starts, lengths, ended, all_flags = [], [], False, 0
    while at < end and not ended:
        length, kind, flags = _message(buffer, at, end)
        all_flags |= flags
        if kind in (netlink.ERROR, netlink.DONE):
            if length < netlink.HEADER.size + netlink.RESULT.size:
                raise _truncated()
            number = netlink.error_number(buffer[at + netlink.HEADER.size : at + length])
            if number > 0:
                raise _failed(number)
            ended = True
        elif kind == _SOCK_DIAG_BY_FAMILY:
            if length < _HEAD_BYTES:
                raise _truncated()
            starts.append(at)
            lengths.append(length)
        at += netlink.aligned(length)
    return Answer(starts, lengths, ended, bool(all_flags & netlink.DUMP_INTERRUPTED))


def alike(buffer: bytes | bytearray, starts: list[int], lengths: list[int]) -> Iterator[Array]:
    """Copies of the messages at these offsets, one array for all that have the same fields."""
    at, sizes = np.array(starts, np.intp), np.array(lengths, np.intp)
    for size in as_list(np.unique(sizes)):
        # Messages begin at multiples of four bytes.
        places: Array = np.ndarray(((len(buffer) - size) // 4 + 1,), f"V{size}", buffer, 0, (4,))
        messages = places[at[sizes == size] // 4]
        while len(messages):
            layout = attributes(messages[0].tobytes())
            same = np.ones(
                len(messages), bool
            )  # those with the attributes of the first one at the same offsets
            for _, place, _ in layout:
                heads: Array = np.ndarray(len(messages), "u4", messages, place, messages.strides)
                same &= heads == heads[0]
            yield messages[same].view(_message_dtype(size, layout))
            messages = messages[~same]


def attributes(message: bytes) -> AttributeLayout:
    """The layout of a message. Raises SourceFailed where an attribute is longer than what is left for it."""
    layout, at = [], _HEAD_BYTES
    while at + netlink.ATTRIBUTE.size <= len(message):
        length, kind = netlink.ATTRIBUTE.unpack_from(message, at)
        if length < netlink.ATTRIBUTE.size or at + length > len(message):
            raise _truncated()
        layout.append((kind & netlink.ATTRIBUTE_KIND, at, length))
        at += netlink.aligned(length)
    return tuple(layout)


def _request(channel: socket.socket, request: bytes) -> tuple[list[Array], bool]:
    """The sockets in the answer to one request, and whether the kernel's table did not change meanwhile."""
    channel.send(netlink.request(_SOCK_DIAG_BY_FAMILY, netlink.DUMP, request))
    buffer = bytearray(_CHUNK + netlink.ANSWER_BYTES)
    view = memoryview(buffer)
    sockets: list[Array] = []
    starts: list[int] = []
    lengths: list[int] = []
    filled, ended, consistent = 0, False, True
    while not ended:
        size, _, flags, _ = channel.recvmsg_into([view[filled:]])
        if flags & socket.MSG_TRUNC:
            raise _truncated()
        answer = split(buffer, filled, filled + size)
        starts += answer.starts
        lengths += answer.lengths
        ended, consistent = answer.ended, consistent and not answer.interrupted
        filled += netlink.aligned(size)
        if ended or filled > _CHUNK:
            sockets += alike(buffer, starts, lengths)
            starts, lengths, filled = [], [], 0
    return sockets, consistent


def _message(buffer: bytes | bytearray, at: int, end: int) -> tuple[int, int, int]:
    """Length, kind and flags of the message at an offset."""
    if end - at < netlink.HEADER.size:
        raise _truncated()
    length, kind, flags, _, _ = netlink.HEADER.unpack_from(buffer, at)
    if length < netlink.HEADER.size or length > end - at:
        raise _truncated()
    return length, kind, flags


@lru_cache(maxsize=64)
def _message_dtype(size: int, layout: AttributeLayout) -> np.dtype[np.void]:
    """The dtype of a message of this size and layout, with the fields that are read."""
    fields = dict(_HEAD)
    for kind, at, length in layout:
        begin, end = at + netlink.ATTRIBUTE.size, at + length
        if kind == _CONGESTION:
            fields["algorithm"] = (f"S{end - begin}", begin)
        for name, (dtype, offset) in _ATTRIBUTES.get(kind, {}).items():
            if begin + offset + np.dtype(dtype).itemsize <= end:
                fields[name] = (dtype, begin + offset)
    return np.dtype(
        {
            "names": list(fields),
            "formats": [dtype for dtype, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": size,
        }
    )


def _truncated() -> SourceFailed:
    return SourceFailed("the kernel's list of sockets is truncated (sock_diag)", "run nettop again")


def _failed(number: int) -> NettopError:
    """The error for an errno of sock_diag."""
    why = os.strerror(number)
    if number in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
        return Unsupported(
            f"this kernel does not list such sockets by sock_diag ({why})",
            "load the modules tcp_diag and udp_diag, or use a kernel that has CONFIG_INET_DIAG",
        )
    if number in (errno.EPERM, errno.EACCES):
        return PermissionMissing(
            f"listing sockets by sock_diag is refused here ({why})",
            "a security module or a seccomp filter forbids it: allow AF_NETLINK sockets",
        )
    what = "listing sockets by sock_diag failed"
    if number in TOO_MANY_FILES:
        return too_many_files(what, number)
    return SourceFailed(f"{what} ({why})", "run nettop again")
