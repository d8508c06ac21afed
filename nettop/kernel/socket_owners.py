# SPDX-License-Identifier: Apache-2.0
"""Which processes hold which sockets, by the links in /proc/PID/fd: `socket:[inode]`.

Nothing is kept from one reading to the next: a table of descriptors changes without a trace, so remembered entries
might be wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.kernel.proc_stat import TICK_NS
from nettop.snapshots.snapshot import Array

OWNER_PROCESS = np.dtype([("pid", "u4"), ("start_time", "u8"), ("comm", "S16"), ("netns", "u4")])
"""A process: `start_time` is nanoseconds of boot time, `comm` the name of its first thread, `netns` the network
namespace that it is in, all bits set where that is unknown."""

_LINK = "socket:["
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_UNKNOWN = np.iinfo(np.uint32).max
_KERNEL_THREAD = 0x00200000
_FLAGS, _START = 6, 19
"""The positions of flags (PF_*) and starttime after the name in /proc/PID/stat (proc_pid_stat(5))."""


class SocketOwners(NamedTuple):
    """Descriptors of sockets, process by process, each process's in ascending order.

    `inode` and `fd` belong to a descriptor, `process` is the position of its process in `processes`. `hidden` counts
    processes whose descriptors this user may not see.
    """

    inode: Array
    fd: Array
    process: Array
    processes: Array
    hidden: int

    def namespaces(self) -> frozenset[int]:
        """The network namespaces that these processes are in."""
        return frozenset(self.processes["netns"].tolist()) - {_UNKNOWN}


def find_owners(proc: Path = Path("/proc")) -> SocketOwners:
    """The descriptors of sockets in all processes that may be inspected."""
    owned: list[dict[int, int]] = []
    processes: list[tuple[int, int, bytes, int]] = []
    hidden = 0
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        try:
            # An open folder of /proc never shows another process.
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
            continue  # it has ended
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
    """The inodes of a process's sockets, by descriptor."""
    with _folder("fd", process) as folder:
        if names := os.listdir(folder):
            return _links(folder, names)
    # The first thread may have ended before the others, which share one table.
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
    """A process, as the values of OWNER_PROCESS.

    /proc counts its start in clock ticks (10 ms). Within a tick the later process has the higher PID, until PIDs wrap,
    and no PID reaches the ten million nanoseconds of a tick: so the PID is added to them.
    """
    comm, words = _stat(process)
    try:
        netns = os.stat("ns/net", dir_fd=process).st_ino
    except (PermissionError, FileNotFoundError):  # of another user; its first thread has ended
        netns = _UNKNOWN
    return pid, int(words[_START]) * TICK_NS + pid, comm, netns


def _is_kernel_thread(process: int) -> bool:
    """Whether it is a kernel thread, which holds no descriptors."""
    try:
        return bool(int(_stat(process)[1][_FLAGS]) & _KERNEL_THREAD)
    except PermissionError:
        return False


def _stat(process: int) -> tuple[bytes, list[bytes]]:
    """The name in /proc/PID/stat, which may contain brackets and spaces, and the words after it."""
    descriptor = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        text = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    before, _, behind = text.rpartition(b")")
    return before.partition(b"(")[2], behind.split()


@contextmanager
def _folder(path: Path | str, within: int | None = None) -> Iterator[int]:
    """A folder's descriptor, below the folder `within`."""
    descriptor = os.open(path, _FOLDER, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
