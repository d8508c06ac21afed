# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: found through processes and bind mounts, each with a thread that stays inside it."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from nettop.kernel import privileges
from nettop.kernel.capabilities import require

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
"""The kind of namespace (include/uapi/linux/sched.h)."""
_STACK_BYTES = 256 << 10
_libc = ctypes.CDLL(None, use_errno=True)
_NSFS_MOUNT = re.compile(r"^\d+ \d+ \S+ net:\[(\d+)\] (\S+) .* - nsfs ", re.MULTILINE)


def find_namespaces(proc: Path = Path("/proc")) -> dict[int, list[Path]]:
    """Every network namespace that can be found, by inode number, with the files that lead into it.

    Those are /proc/PID/ns/net, and files that a namespace is bind-mounted on, such as `ip netns add` makes.
    """
    paths: dict[int, list[Path]] = {}
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        path = proc / f"{pid}/ns/net"
        try:
            paths.setdefault(os.stat(path).st_ino, []).append(path)
        except OSError:
            continue  # the process is gone, or may not be looked at
    try:
        mounts = (proc / "self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        mounts = ""
    for inode, mount in _NSFS_MOUNT.findall(mounts):
        # Spaces and the like are octal there (proc_pid_mountinfo(5)).
        unescaped = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), mount)
        paths.setdefault(int(inode), []).append(Path(unescaped))
    return paths


class NamespaceThread:
    """A thread inside one network namespace: what it runs sees that namespace's sockets.

    Entering takes CAP_SYS_ADMIN; then the thread drops all capabilities that reading does not need.
    """

    def __init__(self, path: Path | None) -> None:
        """Enter the namespace that `path` leads into (None: stay in this one). Raises PermissionMissing, OSError, and
        RuntimeError where no thread can be started.
        """
        self._executor = ThreadPoolExecutor(1, "namespace")
        previous = threading.stack_size(_STACK_BYTES)
        try:
            entered = self._executor.submit(_enter, path)
        finally:
            threading.stack_size(previous)
        try:
            entered.result()
        except BaseException:
            self.close()
            raise

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Have `task` run inside the namespace."""
        return self._executor.submit(task)

    def run(self, task: Callable[[], T]) -> T:
        """The result of `task`, run inside the namespace."""
        return self.submit(task).result()

    def close(self) -> None:
        """Leave the namespace, which nettop then no longer keeps alive."""
        self._executor.shutdown()


def enter_new_namespace() -> int:
    """Move the calling thread into a new network namespace, which ends with its last thread; the inode number.

    It takes CAP_SYS_ADMIN. Raises PermissionMissing without it, and OSError with the kernel's errno.
    """
    if _libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        if number == errno.EPERM:
            require({privileges.CAP_SYS_ADMIN}, "making a network namespace")
        limit = " (sysctl user.max_net_namespaces)" if number == errno.ENOSPC else ""
        raise OSError(number, os.strerror(number) + limit)
    return os.stat("/proc/thread-self/ns/net").st_ino


def _enter(path: Path | None) -> None:
    """Move the calling thread into the namespace, and drop what reading does not need."""
    if path is not None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, _CLONE_NEWNET):
                number = ctypes.get_errno()
                if number == errno.EPERM:
                    require({privileges.CAP_SYS_ADMIN}, "entering it")
                raise OSError(number, os.strerror(number), str(path))
        finally:
            os.close(descriptor)
    privileges.keep_only(privileges.for_reading())
