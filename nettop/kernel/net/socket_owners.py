# SPDX-License-Identifier: Apache-2.0
"""The processes that hold each socket, from the links in /proc/PID/fd: `socket:[inode]`.

Nothing is cached between reads: descriptor tables change unnoticed, so cached entries might be wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.kernel.host.proc_files import TICK_NS
from nettop.process.clocks import offset_ns
from nettop.snapshots.arrays import Array

OWNER_PROCESS = np.dtype([("pid", "u4"), ("start_time", "u8"), ("comm", "S16"), ("netns", "u4")])
"""A process: `start_time` in nanoseconds since boot, `comm` the name of its main thread, `netns` its network namespace,
all bits set if unknown."""

_LINK = "socket:["
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_UNKNOWN = np.iinfo(np.uint32).max
_KERNEL_THREAD = 0x00200000
_FLAGS, _START = 6, 19
"""Indexes of flags (PF_*) and starttime after the name in /proc/PID/stat (proc_pid_stat(5))."""


class SocketOwners(NamedTuple):
    """Descriptors of sockets, process by process, in ascending order per process.

    `inode` and `fd` belong to a descriptor; `process` is the index of its process in `processes`. `hidden` counts
    processes whose descriptors this user may not see.
    """

    inode: Array
    fd: Array
    process: Array
    processes: Array
    hidden: int

    def namespaces(self) -> frozenset[int]:
        """Return the network namespaces of these processes."""
        return frozenset(self.processes["netns"].tolist()) - {_UNKNOWN}


def find_owners(proc: Path = Path("/proc")) -> SocketOwners:
    """Find the socket descriptors of all processes that may be inspected."""
    owned: list[dict[int, int]] = []
    processes: list[tuple[int, int, bytes, int]] = []
    hidden = 0
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        try:
            # An open /proc/PID directory never shows another process.
            with _folder(proc / str(pid)) as process:
                try:
                    sockets = _sockets_of(process)
                except PermissionError:
                    hidden += not _is_kernel_thread(process)
                    continue
                if sockets:
                    processes.append(_identify(process, pid))
                    owned.append(sockets)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has exited
        except PermissionError:
            hidden += 1
    return SocketOwners(
        np.fromiter((inode for sockets in owned for inode in sockets.values()), np.uint32),
        np.fromiter((fd for sockets in owned for fd in sockets), np.uint32),
        np.repeat(np.arange(len(owned)), list(map(len, owned))),
        np.array(processes, OWNER_PROCESS),
        hidden,
    )


def _sockets_of(process: int) -> dict[int, int]:
    """Return the inodes of a process's sockets, by descriptor."""
    with _folder("fd", process) as folder:
        if names := os.listdir(folder):
            return _links(folder, names)
    # The main thread may have exited before the others, which share one table.
    with _folder("task", process) as threads:
        for thread in os.listdir(threads):
            with _folder(f"{thread}/fd", threads) as folder:
                if names := os.listdir(folder):
                    return _links(folder, names)
    return {}


def _links(folder: int, names: list[str]) -> dict[int, int]:
    sockets = {}
    for name in names:
        try:
            link = os.readlink(name, dir_fd=folder)
        except FileNotFoundError:
            continue  # closed meanwhile
        if link.startswith(_LINK):
            sockets[int(name)] = int(link[len(_LINK) : -1])
    return sockets


def _identify(process: int, pid: int) -> tuple[int, int, bytes, int]:
    """Return a process as the values of OWNER_PROCESS.

    /proc counts the start time in clock ticks (10 ms). Within a tick, the later process has the higher PID until PIDs
    wrap, and no PID reaches the ten million nanoseconds of a tick, so adding the PID orders them.
    """
    comm, words = _stat(process)
    try:
        netns = os.stat("ns/net", dir_fd=process).st_ino
    except (PermissionError, FileNotFoundError):  # another user's process, or its main thread has exited
        netns = _UNKNOWN
    start = int(words[_START]) * TICK_NS - offset_ns("boottime")  # negative offsets wrap around
    return pid, (start + pid) % (1 << 64), comm, netns


def _is_kernel_thread(process: int) -> bool:
    """Return whether a process is a kernel thread, which holds no descriptors."""
    try:
        return bool(int(_stat(process)[1][_FLAGS]) & _KERNEL_THREAD)
    except PermissionError:
        return False


def _stat(process: int) -> tuple[bytes, list[bytes]]:
    """Return the name in /proc/PID/stat, which may contain parentheses and spaces, and the words after it."""
    with open(os.open("stat", os.O_RDONLY, dir_fd=process), "rb") as file:
        before, _, behind = file.read().rpartition(b")")
    return before.partition(b"(")[2], behind.split()


@contextmanager
def _folder(path: Path | str, within: int | None = None) -> Iterator[int]:
    """Open a directory, relative to the directory `within`, and yield its descriptor."""
    descriptor = os.open(path, _FOLDER, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
