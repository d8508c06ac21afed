# SPDX-License-Identifier: Apache-2.0
"""Receive UDP datagrams from several sockets in batches into one buffer, without a loop over datagrams.

recvmmsg(2) fills arrays that numpy reads; the struct layouts are those of 64-bit Linux (include/linux/socket.h). The
fill level of a socket's buffer and its drops are read from SO_MEMINFO (sk_get_meminfo in net/core/sock.c), at any time
and as any user. SO_RXQ_OVFL would report the same counter, sk_drops, but only with the next datagram.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

import numpy as np

from nettop.collector.columns import ADDRESS
from nettop.collector.decode.datagrams import Datagrams, ipv4, ipv6, items
from nettop.errors import NettopError, PermissionMissing, SourceFailed, UsageError
from nettop.query.address import endpoint_text
from nettop.snapshots.arrays import Array

BATCH = 1024
"""Maximum datagrams received at once."""
SLOT_BYTES = 9216
"""Bytes kept per datagram: the payload of a jumbo frame."""
NAP_S = 0.2
"""Seconds between looks at the buffers while datagrams accumulate. Decoding a batch costs 3 ms however small it is."""
_NAPS_MAX = 5
"""Maximum naps before a batch; a small buffer makes them short."""
_BURST_BYTES_PER_S = 250_000_000
"""Receive buffer consumed per second by 100,000 datagrams/s of 1,400 bytes each."""
_FILL_LEVEL = 1 / 4
"""Fill level above which a buffer is drained too slowly. The rest takes what arrives while a block is written.
Datagrams accumulate up to half of it.
"""

_PORT_MAX = 65_535
_REMEDY = "use PORT or ADDRESS:PORT, such as 2055, 127.0.0.1:6343 or [::1]:4739"
_MISSING_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of bind() for an address, or an address family, that this host does not have."""
_BUFFER_BYTES_MAX = (1 << 30) - 1
"""The kernel doubles the size for its overhead, and stores it in an int (socket(7))."""

SO_RCVBUFFORCE, SO_TIMESTAMPNS, _SO_MEMINFO = 33, 35, 55
"""Socket options missing in Python (include/uapi/asm-generic/socket.h)."""
_MEMINFO = struct.Struct("=9I")
_WAITING_BYTES, _BUFFER_BYTES, _DROPS = 0, 1, 8
"""Indices into SO_MEMINFO: SK_MEMINFO_RMEM_ALLOC, RCVBUF and DROPS (include/uapi/linux/sock_diag.h)."""

_NAME_BYTES, _NAME_STRIDE = 28, 32
"""Size of struct sockaddr_in6, the larger of the two, and the space reserved for each."""
_PORT_AT = 2
_ADDRESS_AT: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 8}
"""Offsets of the port and the address in struct sockaddr_in and sockaddr_in6."""
_JOIN: dict[int, tuple[int, int, str]] = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, "=4xI"),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, "=I"),
}
"""Socket options to join a group, and what follows its address in struct ip_mreqn and ipv6_mreq: an interface's index.
"""
_MSGHDR = np.dtype(
    [
        *(("name", "u8"), ("name_bytes", "u4"), ("vectors", "u8"), ("vector_count", "u8")),
        *(("control", "u8"), ("control_bytes", "u8"), ("flags", "u4")),
    ],
    align=True,
)
_MMSGHDR = np.dtype([("header", _MSGHDR), ("length", "u4")], align=True)
_IOVEC = np.dtype([("base", "u8"), ("length", "u8")])
_STAMP = np.dtype([("header", "V16"), ("seconds", "i8"), ("nanoseconds", "i8")])
"""SCM_TIMESTAMPNS, the only control message enabled: struct cmsghdr, then struct timespec."""
_NS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)

Wait = Callable[[Mapping[int, int], float | None], Mapping[int, int]]
"""Function that waits until a descriptor is ready for its poll(2) events, the wait is interrupted, or the timeout
expires, and returns the ready descriptors. `WakeEvent.wait` is one.
"""


# --- sockets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UdpPort:
    """A UDP port at one address of this host or, if empty, at all addresses of both families."""

    address: str
    port: int

    def __str__(self) -> str:
        return endpoint_text(self.address or "*", self.port)

    @property
    def is_group(self) -> bool:
        """Whether the address is a multicast group, whose datagrams go to every socket."""
        return bool(self.address) and ip_address(self.address).is_multicast


def endpoint_of(word: str) -> UdpPort:
    """Parse a value of --listen: `2055`, `:2055`, `0.0.0.0:2055`, `[::1]:4739`, `[fe80::1%eth0]:4739`.

    `[::]` is IPv6 only, so that `0.0.0.0` can be given as well. For port 0 the kernel chooses one. Raise UsageError.
    """
    host, _, port = word.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > _PORT_MAX:
        raise UsageError(f"--listen {word!r} has no port from 0 to {_PORT_MAX}", _REMEDY)
    if host in {"", "*"}:
        return UdpPort("", int(port))
    is_bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if is_bracketed else host)
    except ValueError as error:
        raise UsageError(f"--listen {word!r} has no address before the port", _REMEDY) from error
    if is_bracketed != isinstance(address, IPv6Address):
        remedy = f"write {endpoint_text(str(address), port)}"
        raise UsageError(f"--listen {word!r}: IPv6 addresses, and only those, go in brackets", remedy)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return UdpPort(str(address), int(port))


@dataclass(frozen=True, eq=False)
class OpenSocket:
    """A socket to receive from, and its endpoint, or a name if it is not UDP.

    `warning` is a message to report, empty if there is none.
    """

    socket: socket.socket
    endpoint: UdpPort | str
    warning: str = ""

    @property
    def receive_buffer_bytes(self) -> int:
        """What the kernel granted: it reports twice that, for its overhead."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


@contextmanager
def closed_on_failure(opened: socket.socket) -> Iterator[socket.socket]:
    """Close the socket if the block fails."""
    with ExitStack() as on_failure:
        yield on_failure.enter_context(opened)
        on_failure.pop_all()


def open_socket(endpoint: UdpPort, receive_buffer_bytes: int, *, shared_port: bool = False) -> OpenSocket:
    """Open a socket that receives at an endpoint.

    With `shared_port`, processes of one user may open several; the kernel assigns each sender to one of them.

    Raise UsageError for a buffer size that no kernel grants, NettopError for a port in use or an address that this host
    lacks, PermissionMissing for a port that this user may not bind.
    """
    if not 0 < receive_buffer_bytes <= _BUFFER_BYTES_MAX:
        raise UsageError(
            f"a receive buffer cannot have {receive_buffer_bytes:,} bytes",
            f"use 1 to {_BUFFER_BYTES_MAX:,} bytes",
        )
    try:
        opened = _opened(endpoint, receive_buffer_bytes, shared_port=shared_port)
    except OSError as error:
        raise _failure(endpoint, error) from error
    bound = UdpPort(endpoint.address, opened.getsockname()[1])
    granted = OpenSocket(opened, bound).receive_buffer_bytes
    warning = (
        f"the receive buffer of {bound} has {granted:,} bytes instead of {receive_buffer_bytes:,}, so bursts may "
        f"be dropped: sudo sysctl net.core.rmem_max={receive_buffer_bytes}, or start nettop with CAP_NET_ADMIN"
    )
    return OpenSocket(opened, bound, warning if granted < receive_buffer_bytes else "")


def _opened(endpoint: UdpPort, receive_buffer_bytes: int, *, shared_port: bool) -> socket.socket:
    """Open the socket. Without IPv6, all addresses means all IPv4 addresses. Raise OSError."""
    if endpoint.address:
        return _bound(endpoint, socket.AF_UNSPEC, receive_buffer_bytes, shared_port=shared_port)
    try:
        return _bound(endpoint, socket.AF_INET6, receive_buffer_bytes, shared_port=shared_port)
    except OSError as error:
        if error.errno not in _MISSING_ADDRESS:
            raise
        return _bound(endpoint, socket.AF_INET, receive_buffer_bytes, shared_port=shared_port)


def _bound(endpoint: UdpPort, family: int, receive_buffer_bytes: int, *, shared_port: bool) -> socket.socket:
    # Python's bind() ignores the zone of an address, such as fe80::1%eth0.
    flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
    family, kind, _, _, name = socket.getaddrinfo(
        endpoint.address or None, endpoint.port, family, socket.SOCK_DGRAM, flags=flags
    )[0]
    with closed_on_failure(socket.socket(family, kind)) as opened:
        opened.setblocking(False)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(endpoint.address))
        if shared_port:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # The kernel's timestamp, for 0.1 µs: datagrams may have waited in the buffer for seconds.
        opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # Do this before the first datagram arrives.
        try:
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        opened.bind(name)
        if endpoint.is_group:
            _join(opened, endpoint, int(name[-1]) if family == socket.AF_INET6 else 0)
    return opened


def _join(opened: socket.socket, group: UdpPort, zone: int) -> None:
    """Join a multicast group on the interface of its zone, else on all that can. Raise OSError if none can, or if they
    are too many.
    """
    packed = socket.inet_pton(opened.family, group.address.partition("%")[0])
    level, option, interface = _JOIN[opened.family]
    indices = [zone] if zone else [index for index, _ in socket.if_nameindex()]
    failures: list[OSError] = []
    for index in indices:
        try:
            opened.setsockopt(level, option, packed + struct.pack(interface, index))
        except OSError as error:  # an interface may have no addresses of this family
            failures.append(error)
    if failures and (len(failures) == len(indices) or failures[-1].errno == errno.ENOBUFS):
        raise failures[-1]


def _failure(endpoint: UdpPort, error: OSError) -> NettopError:
    what, port = f"cannot receive at {endpoint}", endpoint.port
    if error.errno == errno.EADDRINUSE:
        return NettopError(
            f"{what}: port {port} is in use",
            f"stop what uses it (ss -lunp 'sport = :{port}'), or choose another port with --listen",
        )
    if isinstance(error, PermissionError):
        return PermissionMissing(
            f"{what}: port {port} needs CAP_NET_BIND_SERVICE",
            "choose a port from 1024 on, or run it as root; a security module may also deny it",
        )
    if error.errno == errno.ENOBUFS and endpoint.is_group:
        return NettopError(
            f"{what}: this host has more interfaces than a socket may join the group on",
            "raise it with sudo sysctl net.ipv4.igmp_max_memberships=N",
        )
    if error.errno in _MISSING_ADDRESS or isinstance(error, socket.gaierror):  # a zone that does not exist
        return NettopError(
            f"{what}: this host has no address {endpoint.address}",
            "use an address of this host (see ip -br address), or only the port for all of them",
        )
    return NettopError(f"{what}: {error.strerror}", "choose another address with --listen")


# --- receiving --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ReceiveCounts:
    """Counts of one socket since it was opened."""

    endpoint: UdpPort | str
    datagrams: int = 0
    bytes: int = 0
    """Bytes of datagrams that were kept."""
    truncated: int = 0
    """Datagrams longer than a slot."""
    calls: int = 0
    """Calls of recvmmsg, including those that received nothing."""
    drops: int = 0
    """Datagrams dropped by the kernel: full socket buffer, full UDP memory, or bad checksum."""


class Receiver:
    """Receiver for several sockets, which it owns. Use it from one thread only.

    `counts` are those of the sockets, in order.
    """

    def __init__(
        self,
        sockets: Sequence[OpenSocket],
        wait: Wait,
        *,
        batch: int = BATCH,
        slot_bytes: int = SLOT_BYTES,
        nap_s: float = NAP_S,
        whole_lengths: bool = False,
    ) -> None:
        """Receive up to `batch` datagrams at once, keeping `slot_bytes` of each. After the first, more accumulate for
        some naps of `nap_s` seconds, or less if a burst would fill half of a receive buffer. With `whole_lengths`,
        lengths are those sent, even of truncated datagrams.
        """
        self.counts = tuple(ReceiveCounts(opened.endpoint) for opened in sockets)
        self._sockets = [opened.socket for opened in sockets]
        self._events = {opened.fileno(): select.POLLIN for opened in self._sockets}
        self._wait = wait
        self._slots = _Slots(batch, slot_bytes, socket.MSG_TRUNC if whole_lengths else 0)
        smallest = min(opened.receive_buffer_bytes for opened in sockets)
        self._nap_s = min(nap_s, smallest / _BURST_BYTES_PER_S)
        self._first = 0
        self._was_full = False
        self._failed: SourceFailed | None = None

    def receive(self, timeout_s: float | None = None) -> Datagrams:
        """Wait for datagrams, and return what has arrived: nothing on a timeout or when the wait is interrupted.

        Those of one socket are in order of arrival. Truncated ones are cut to `slot_bytes`. All calls share one
        `buffer`: its content is valid until the next call. After a full batch it does not wait. If a socket fails,
        raise SourceFailed after returning what arrived on the others.
        """
        if self._failed is not None:
            raise self._failed
        if not self._was_full:
            end = math.inf if timeout_s is None else time.monotonic() + timeout_s
            if not self._wait(self._events, timeout_s):
                return self._slots.datagrams([])
            self._accumulate(end)
        parts = self._read()
        if self._failed is not None and not parts:
            raise self._failed
        for place, begin, end in parts:
            counts, messages = self.counts[place], self._slots.messages[begin:end]
            counts.datagrams += end - begin
            counts.bytes += int(messages["length"].sum())
            counts.truncated += int(np.count_nonzero(messages["header"]["flags"] & socket.MSG_TRUNC))
        return self._slots.datagrams(
            [(self._sockets[place].family, begin, end) for place, begin, end in parts]
        )

    def _accumulate(self, end: float) -> None:
        """Nap until `end`, unless a buffer fills or the wait is interrupted."""
        for _ in range(_NAPS_MAX):
            begin = time.monotonic()
            nap_s = min(self._nap_s, end - begin)
            if nap_s <= 0 or self._update_drops() >= _FILL_LEVEL / 2:
                return
            self._wait({}, nap_s)
            if time.monotonic() < begin + nap_s:
                return

    def is_behind(self) -> bool:
        """Return whether datagrams arrive faster than they are received, so that a buffer fills. Raise SourceFailed."""
        return self._was_full and self._update_drops() > _FILL_LEVEL

    def drops(self) -> tuple[int, ...]:
        """Return the current drops of each socket, updating its counts. Raise SourceFailed."""
        self._update_drops()
        return tuple(counts.drops for counts in self.counts)

    def close(self) -> None:
        """Close the sockets; what is in their buffers is lost."""
        for opened in self._sockets:
            opened.close()

    def _read(self) -> list[tuple[int, int, int]]:
        """Receive as much as fits from all sockets. Return the sockets that received something, each with its first and
        end slot.
        """
        parts = []
        begin = 0
        for turn in range(len(self._sockets)):
            place = (self._first + turn) % len(self._sockets)
            try:
                count = self._slots.fill(self._sockets[place].fileno(), begin)
            except OSError as error:
                self._failed = _receive_failure(self.counts[place].endpoint, error)
                break
            self.counts[place].calls += 1
            if count:
                parts.append((place, begin, begin + count))
                begin += count
            if begin == self._slots.count:
                self._first = place + 1  # so that a busy socket does not starve the others
                break
        self._was_full = begin == self._slots.count
        return parts

    def _update_drops(self) -> float:
        """Update the drops of all sockets. Return the fill level of the fullest buffer."""
        fullest = 0.0
        for opened, counts in zip(self._sockets, self.counts, strict=True):
            try:
                memory = _MEMINFO.unpack(opened.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
            except OSError as error:
                raise _receive_failure(counts.endpoint, error) from error
            counts.drops = extend_counter(counts.drops, memory[_DROPS])
            fullest = max(fullest, memory[_WAITING_BYTES] / memory[_BUFFER_BYTES])
        return fullest


def _receive_failure(endpoint: UdpPort | str, error: OSError) -> SourceFailed:
    failure = SourceFailed(f"cannot receive at {endpoint} any more: {error.strerror}", "restart nettop")
    failure.__cause__ = error
    return failure


def extend_counter(total: int, counter: int) -> int:
    """Extend a total by its new lowest 32 bits `counter`, assuming it grew by less than 2³²."""
    return total + (counter - total & 0xFFFFFFFF)


class _Slots:
    """Slots for datagrams, with the arrays for recvmmsg(2). The kernel holds their addresses, so they must not move."""

    def __init__(self, count: int, slot_bytes: int, flags: int) -> None:
        self.count = count
        self._flags = socket.MSG_DONTWAIT | flags
        place = np.arange(count)
        self._starts = place * slot_bytes
        self._starts.flags.writeable = False  # shared by all batches
        self._buffer: Array = np.zeros(count * slot_bytes, np.uint8)
        self._names: Array = np.zeros(count * _NAME_STRIDE, np.uint8)
        self._name_at = place * _NAME_STRIDE
        self._stamps: Array = np.zeros(count, _STAMP)
        self._vectors: Array = np.zeros(count, _IOVEC)
        self._vectors["base"] = self._buffer.ctypes.data + self._starts
        self._vectors["length"] = slot_bytes
        self.messages: Array = np.zeros(count, _MMSGHDR)
        self._address = self.messages.ctypes.data
        headers = self._headers = self.messages["header"]
        headers["name"] = self._names.ctypes.data + self._name_at
        headers["vectors"] = self._vectors.ctypes.data + place * _IOVEC.itemsize
        headers["vector_count"] = 1
        headers["control"] = self._stamps.ctypes.data + place * _STAMP.itemsize
        self._reset_lengths(count)

    def fill(self, descriptor: int, begin: int) -> int:
        """Receive from a socket into the slots from `begin` on; return how many were filled. Raise OSError."""
        received: int = _libc.recvmmsg(
            descriptor, self._address + begin * _MMSGHDR.itemsize, self.count - begin, self._flags, None
        )
        if received >= 0:
            return received
        number = ctypes.get_errno()
        if number in (errno.EAGAIN, errno.EINTR):
            return 0
        raise OSError(number, os.strerror(number))

    def datagrams(self, parts: Sequence[tuple[int, int, int]]) -> Datagrams:
        """Return the datagrams in the slots, given each part's socket family, first slot and end."""
        count = parts[-1][2] if parts else 0
        senders: Array = np.zeros(count, ADDRESS)
        for family, begin, end in parts:
            if family not in _ADDRESS_AT:
                continue
            at = self._name_at[begin:end] + _ADDRESS_AT[family]
            senders[begin:end] = (ipv4 if family == socket.AF_INET else ipv6)(self._names, at)
        stamps = self._stamps[:count]
        self._reset_lengths(count)
        return Datagrams(
            self._buffer,
            self._starts[:count],
            self.messages["length"][:count].astype(np.intp),
            senders,
            items(self._names, self._name_at[:count] + _PORT_AT, ">u2").astype(np.uint16),
            stamps["seconds"] * _NS + stamps["nanoseconds"],
        )

    def _reset_lengths(self, count: int) -> None:
        """Reset the lengths of names and control messages, which the kernel overwrites with the actual ones."""
        self._headers["name_bytes"][:count] = _NAME_BYTES
        self._headers["control_bytes"][:count] = _STAMP.itemsize
