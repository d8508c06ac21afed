# SPDX-License-Identifier: Apache-2.0
"""Oracles for values that ss does not show: the kernel's own data on one socket or process.

`Borrowed` copies another process's descriptor (pidfd_getfd), which works for a stopped process too.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from .lab import libc

SYS_PIDFD_GETFD, SO_COOKIE, SIOCGSKNS = 438, 57, 0x894C
NEVER_MEASURED = 0xFFFFFFFF
NOT_PACED = 0xFFFFFFFFFFFFFFFF
TCP_INFO = struct.Struct("=8B24I4Q6I4Q2I2Q4I")
NAMES = (
    "state", "ca_state", "retransmits", "probes", "backoff", "options", "wscale", "app_limited", "rto",
    "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans", "fackets", "last_data_sent",
    "last_ack_sent", "last_data_recv", "last_ack_recv", "pmtu", "rcv_ssthresh", "rtt", "rttvar",
    "snd_ssthresh", "snd_cwnd", "advmss", "reordering", "rcv_rtt", "rcv_space", "total_retrans",
    "pacing_rate", "max_pacing_rate", "bytes_acked", "bytes_received", "segs_out", "segs_in",
    "notsent_bytes", "min_rtt", "data_segs_in", "data_segs_out", "delivery_rate", "busy_time",
    "rwnd_limited", "sndbuf_limited", "delivered", "delivered_ce", "bytes_sent", "bytes_retrans",
    "dsack_dups", "reord_seen", "rcv_ooopack", "snd_wnd",
)  # fmt: skip
CLOCKS = (
    "last_data_sent", "last_ack_sent", "last_data_recv", "last_ack_recv", "busy_time", "rwnd_limited",
    "sndbuf_limited",
)  # fmt: skip
"""What moves while nothing happens."""


class Borrowed:
    """Another process's socket, open inside a `with` block."""

    def __init__(self, pid: int, descriptor: int) -> None:
        process = os.pidfd_open(pid)
        try:
            copy = libc.syscall(SYS_PIDFD_GETFD, process, descriptor, 0)
        finally:
            os.close(process)
        if copy < 0:
            raise OSError(ctypes.get_errno(), f"pidfd_getfd {pid} {descriptor}")
        self.socket = socket.socket(fileno=copy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def cookie(self) -> int:
        """Return SO_COOKIE."""
        return cookie(self.socket)

    def tcp_info(self) -> dict[str, int]:
        """Return getsockopt(TCP_INFO), by the kernel's names."""
        return tcp_info(self.socket)

    def congestion_control(self) -> str:
        """Return getsockopt(TCP_CONGESTION)."""
        name = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        return name.rstrip(b"\0").decode()

    def namespace_inode(self) -> int:
        """Return the inode of the socket's network namespace (ioctl SIOCGSKNS, then fstat)."""
        descriptor = fcntl.ioctl(self.socket, SIOCGSKNS)
        try:
            return os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)


def cookie(held: socket.socket) -> int:
    """Return SO_COOKIE of a socket of this process."""
    return int(struct.unpack("=Q", held.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


def tcp_info(held: socket.socket) -> dict[str, int]:
    """Return TCP_INFO of a socket of this process, by the kernel's names."""
    raw = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
    return dict(zip(NAMES, TCP_INFO.unpack(raw), strict=True))


def socket_descriptors(pid: int) -> dict[int, int]:
    """Map socket inodes to descriptors of that process, from /proc/PID/fd."""
    inodes = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        link = os.readlink(entry.path)
        if link.startswith("socket:["):
            inodes[int(link[8:-1])] = int(entry.name)
    return inodes


def tcp_sockets(pid: int) -> Iterator[Borrowed]:
    """Yield a copy of each TCP socket of that process, one by one."""
    for descriptor in socket_descriptors(pid).values():
        with Borrowed(pid, descriptor) as held:
            if (
                held.socket.family in (socket.AF_INET, socket.AF_INET6)
                and held.socket.type == socket.SOCK_STREAM
            ):
                yield held


def command_name(pid: int) -> str:
    """Return the thread group leader's name from /proc/PID/comm."""
    return Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape").rstrip("\n")


def cgroup(pid: int) -> str:
    """Return the process's cgroup v2 path; if that hierarchy is unused, the longest v1 path."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
    return paths[""] if paths.get("", "/") != "/" else max(paths.values(), key=len)
