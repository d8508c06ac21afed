# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, found through processes and bind mounts, each with a thread that stays inside."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nettop.kernel.host import privileges
from nettop.kernel.host.privileges import require
from nettop.kernel.host.proc_files import mounts

_CLONE_NEWNET = 0x40000000
"""Namespace type (include/uapi/linux/sched.h)."""
_STACK_BYTES = 256 << 10
_libc = ctypes.CDLL(None, use_errno=True)
_NETWORK_NAMESPACE = re.compile(r"net:\[(\d+)\]")


def find_namespaces(proc: Path = Path("/proc")) -> dict[int, list[Path]]:
    """Map the inode number of every network namespace found to the files through which to enter it.

    These are /proc/PID/ns/net, and files that a namespace is bind-mounted on, as `ip netns add` creates.
    """
    paths: dict[int, list[Path]] = {}
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        path = proc / f"{pid}/ns/net"
        try:
            paths.setdefault(os.stat(path).st_ino, []).append(path)
        except OSError:
            continue  # the process is gone or not accessible
    for mount in mounts(proc):
        if mount.kind == "nsfs" and (inode := _NETWORK_NAMESPACE.fullmatch(mount.source)):
            paths.setdefault(int(inode[1]), []).append(Path(mount.point))
    return paths


def enter_namespace(path: Path | None) -> ThreadPoolExecutor:
    """Start a thread inside the namespace at `path` (None: the current one); its tasks see that namespace's sockets.

    Entering needs CAP_SYS_ADMIN; the thread then drops all capabilities that reading does not need. It keeps the
    namespace alive until shut down. Raise PermissionMissing, OSError, or RuntimeError if no thread can be started.
    """
    thread = ThreadPoolExecutor(1, "namespace")
    previous = threading.stack_size(_STACK_BYTES)
    try:
        entered = thread.submit(_enter, path)
    finally:
        threading.stack_size(previous)
    try:
        entered.result()
    except BaseException:
        thread.shutdown()
        raise
    return thread


def enter_new_namespace() -> int:
    """Move the calling thread into a new network namespace, which ends with its last thread; return its inode number.

    Needs CAP_SYS_ADMIN. Raise PermissionMissing without it, and OSError with the kernel's errno.
    """
    _check(_libc.unshare(_CLONE_NEWNET), "creating a network namespace")
    return os.stat("/proc/thread-self/ns/net").st_ino


def _enter(path: Path | None) -> None:
    """Move the calling thread into the namespace, then drop capabilities that reading does not need."""
    if path is not None:
        with path.open("rb") as file:
            _check(_libc.setns(file.fileno(), _CLONE_NEWNET), "entering it")
    privileges.keep_only(privileges.for_reading())


def _check(result: int, doing: str) -> None:
    """Raise PermissionMissing or OSError if a system call failed."""
    if result:
        number = ctypes.get_errno()
        if number == errno.EPERM:
            require({privileges.CAP_SYS_ADMIN}, doing)
        limit = " (sysctl user.max_net_namespaces)" if number == errno.ENOSPC else ""
        raise OSError(number, os.strerror(number) + limit)
