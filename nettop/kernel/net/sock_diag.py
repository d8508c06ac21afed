# SPDX-License-Identifier: Apache-2.0
"""The sockets of a network namespace, dumped by netlink's sock_diag, which needs no program and no capability.

The kernel replies with one message per socket: a fixed head, then attributes. Messages with the same attributes at the
same offsets become one structured array, without looping over them. Names and numbers are those of include/uapi/linux:
sock_diag.h, inet_diag.h, tcp.h; net/ipv4/inet_diag.c fills them.
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
from nettop.kernel.net import netlink
from nettop.snapshots.arrays import Array, as_list

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_INFO, _CONGESTION, _SOCKET_MEMORY = 2, 4, 7
"""INET_DIAG_INFO, INET_DIAG_CONG and INET_DIAG_SKMEMINFO: attributes, and (counting from 1) bits of a request."""
_CHUNK = 1 << 20
_ATTEMPTS = 3

_HEAD = {
    "family": ("u1", 0),
    "state": ("u1", 1),
    "local_port": (">u2", 4),
    "remote_port": (">u2", 6),
    "local_address": ("(4,)u4", 8),
    "remote_address": ("(4,)u4", 24),
    "device": ("u4", 40),
    "cookie": ("u8", 44),
    "rqueue": ("u4", 56),
    "wqueue": ("u4", 60),
    "uid": ("u4", 64),
    "inode": ("u4", 68),
}
"""struct inet_diag_msg: dtypes and offsets."""
_HEAD_BYTES = 72

_ATTRIBUTES = {
    _SOCKET_MEMORY: {"drops": ("u4", 32)},  # SK_MEMINFO_DROPS, the ninth word
    _INFO: {
        "info_state": ("u1", 0),
        "probes": ("u1", 3),
        "measured": ("u1", 7),  # a bit-field: delivery_rate_app_limited, and two bits of fastopen_client_fail
        "snd_mss": ("u4", 16),
        "lost": ("u4", 32),
        "last_data_sent": ("u4", 44),
        "last_data_recv": ("u4", 52),
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
        "dsack_dups": ("u4", 216),
        "reord_seen": ("u4", 220),
        "snd_wnd": ("u4", 228),
    },
}
"""The fields read from each attribute, such as struct tcp_info: dtypes and offsets in its content. Kernels append to
these structs; the array lacks fields beyond the end of the attribute."""

AttributeLayout = tuple[tuple[int, int, int], ...]
"""The attributes of a body: type, and start and end of the content."""


class Dump(NamedTuple):
    """The sockets of one protocol. `inconsistent` counts address families whose table changed during every attempt,
    according to the kernel: sockets may be missing or listed twice."""

    sockets: list[Array]
    inconsistent: int


class Reply(NamedTuple):
    """One reply: the offsets and lengths of the bodies of its messages about sockets."""

    starts: list[int]
    lengths: list[int]
    ended: bool
    interrupted: bool


def dump(protocol: int, states: int, *, info: bool) -> Dump:
    """Dump all IPv4 and IPv6 sockets of a protocol in one of the `states` (bits) in the calling thread's namespace.

    An array has the fields of `_HEAD`; `drops` for full sockets (no request sockets or minisockets); and with `info`
    the fields of `_ATTRIBUTES` that the kernel's struct tcp_info has, and `algorithm`. Raise Unsupported if the kernel
    has no such dump, PermissionMissing if it is refused, SourceFailed for any other failure.
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


def split_messages(buffer: bytes | bytearray, at: int, end: int) -> Reply:
    """Split the part of a buffer between two offsets into messages.

    Raise what `dump` raises if a message reports a failed dump or is truncated.
    """
    starts, lengths, ended, all_flags, stop = [], [], False, 0, at
    for kind, flags, start, stop in netlink.messages(buffer, at, end):
        all_flags |= flags
        length = stop - start
        if kind == _SOCK_DIAG_BY_FAMILY:
            if length < _HEAD_BYTES:
                raise _truncated()
            starts.append(start)
            lengths.append(length)
        elif ended := kind in (netlink.ERROR, netlink.DONE):
            if length < netlink.RESULT.size:
                raise _truncated()
            number = netlink.error_number(buffer[start:stop])
            if number > 0:
                raise _failed(number)
            break
    if not ended and netlink.aligned(stop) < end:
        raise _truncated()
    return Reply(starts, lengths, ended, bool(all_flags & netlink.DUMP_INTERRUPTED))


def group_by_layout(buffer: bytes | bytearray, starts: list[int], lengths: list[int]) -> Iterator[Array]:
    """Yield copies of the bodies at these offsets, one array for all bodies with the same fields."""
    at, sizes = np.array(starts, np.intp), np.array(lengths, np.intp)
    for size in as_list(np.unique(sizes)):
        # Bodies start at multiples of four bytes.
        places: Array = np.ndarray(((len(buffer) - size) // 4 + 1,), f"V{size}", buffer, 0, (4,))
        bodies = places[at[sizes == size] // 4]
        while len(bodies):
            layout = _layout_of(bodies[0].tobytes())
            # Bodies with the same attributes at the same offsets as the first.
            same = np.ones(len(bodies), bool)
            for _, begin, _ in layout:
                place = begin - netlink.ATTRIBUTE.size
                heads: Array = np.ndarray(len(bodies), "u4", bodies, place, bodies.strides)
                same &= heads == heads[0]
            yield bodies[same].view(_body_dtype(size, layout))
            bodies = bodies[~same]


def _layout_of(body: bytes) -> AttributeLayout:
    """Return the attribute layout of a body. Raise SourceFailed if an attribute exceeds it."""
    layout = tuple(netlink.attributes(body, _HEAD_BYTES))
    stop = netlink.aligned(layout[-1][2]) if layout else _HEAD_BYTES
    if len(body) - stop >= netlink.ATTRIBUTE.size:
        raise _truncated()
    return layout


def _request(channel: socket.socket, request: bytes) -> tuple[list[Array], bool]:
    """Return the sockets in the reply to one request, and whether the kernel's table was unchanged during the dump."""
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
        answer = split_messages(buffer, filled, filled + size)
        starts += answer.starts
        lengths += answer.lengths
        ended, consistent = answer.ended, consistent and not answer.interrupted
        filled += netlink.aligned(size)
        if ended or filled > _CHUNK:
            sockets += group_by_layout(buffer, starts, lengths)
            starts, lengths, filled = [], [], 0
    return sockets, consistent


@lru_cache(maxsize=64)
def _body_dtype(size: int, layout: AttributeLayout) -> np.dtype[np.void]:
    """Return the dtype of a body of this size and layout, with the fields that nettop reads."""
    fields = dict(_HEAD)
    for kind, begin, end in layout:
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
    """Return the error for an errno of sock_diag."""
    why = os.strerror(number)
    if number in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
        return Unsupported(
            f"this kernel cannot list such sockets with sock_diag ({why})",
            "load the modules tcp_diag and udp_diag, or use a kernel with CONFIG_INET_DIAG",
        )
    if number in (errno.EPERM, errno.EACCES):
        return PermissionMissing(
            f"listing sockets with sock_diag is refused, likely by a security module or a seccomp filter ({why})",
            "allow AF_NETLINK sockets in its policy",
        )
    what = "cannot list sockets with sock_diag"
    if number in TOO_MANY_FILES:
        return too_many_files(what, number)
    return SourceFailed(f"{what} ({why})", "run nettop again")
