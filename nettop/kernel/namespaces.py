# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: found through processes and bind mounts, each with a thread that stays inside it."""

from __future__ import annotations

import ctypes
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from nettop.snapshots.safe_text import safe_text

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_STACK_BYTES = 256 << 10
_SCAN_EVERY_S = 2.0
_libc = ctypes.CDLL(None, use_errno=True)
_NSFS_MOUNT = re.compile(r"^\d+ \d+ \S+ net:\[(\d+)\] (\S+) .* - nsfs ", re.MULTILINE)


def find_namespaces(proc: Path = Path("/proc")) -> dict[int, list[Path]]:
    """Every network namespace that can be found, by inode number, with the files that lead into it.

    Those are /proc/PID/ns/net, and files that a namespace is bind-mounted on, such as `ip netns add` makes.
    """
    found: dict[int, list[Path]] = {}
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            way = proc / entry.name / "ns/net"
            try:
                found.setdefault(os.stat(way).st_ino, []).append(way)
            except OSError:
                continue  # the process is gone, or is not ours to look at
    try:
        mounts = (proc / "self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        mounts = ""
    for inode, path in _NSFS_MOUNT.findall(mounts):
        found.setdefault(int(inode), []).append(Path(_unescaped(path)))
    return found


def _unescaped(path: str) -> str:
    """A path of mountinfo, where spaces and the like are octal (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


class NamespaceThread:
    """A thread inside one network namespace: what it runs sees that namespace's sockets.

    It needs CAP_SYS_ADMIN to enter, once; what it runs later needs none.
    """

    def __init__(self, way: Path | None) -> None:
        """Enter the namespace that `way` leads into (None: stay). Raises OSError when that is refused."""
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        entered: Future[None] = Future()
        previous = threading.stack_size(_STACK_BYTES)
        try:
            self._thread = threading.Thread(target=self._live, args=(way, entered), daemon=True)
            self._thread.start()
        finally:
            threading.stack_size(previous)
        entered.result()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Have `task` run inside; what it gives comes with the future."""
        answer: Future[T] = Future()

        def carry_out() -> None:
            try:
                answer.set_result(task())
            except BaseException as error:  # noqa: BLE001 - handed to who asked
                answer.set_exception(error)

        self._tasks.put(carry_out)
        return answer

    def run(self, task: Callable[[], T]) -> T:
        """What `task` gives when it is run inside."""
        return self.submit(task).result()

    def close(self) -> None:
        """Leave the namespace, which nettop then keeps alive no longer."""
        self._tasks.put(None)
        self._thread.join()

    def _live(self, way: Path | None, entered: Future[None]) -> None:
        try:
            if way is not None:
                _enter(way)
        except OSError as error:
            entered.set_exception(error)
            return
        entered.set_result(None)
        while (task := self._tasks.get()) is not None:
            task()


def _enter(way: Path) -> None:
    descriptor = os.open(way, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(way))
    finally:
        os.close(descriptor)


class Namespaces:
    """The namespaces of this host, followed as they come and go.

    A thread inside keeps a namespace alive, so a guard leaves those that nobody else is in, however seldom
    anything is read. Whoever uses `threads` holds the `lock`. `refused` names the namespaces that could not be
    entered, and why: their sockets without an owner go unlisted.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._scanned_at = float("-inf")
        self._closed = threading.Event()
        self._ways: dict[int, list[Path]] = {}
        self.lock = threading.RLock()
        self.own = os.stat(proc / "self/ns/net").st_ino
        self.threads: dict[int, NamespaceThread] = {}
        self.refused: dict[int, str] = {}
        self._guard = threading.Thread(target=self._leave_the_dead, name="namespaces", daemon=True)
        self._guard.start()

    def name(self, inode: int) -> str:
        """What people call a namespace: the file it is bound to, or a process in it; safe to show."""
        if inode == self.own:
            return "nettop's own"
        ways = self._ways.get(inode, [])
        bound = [way.name for way in ways if self._proc not in way.parents]
        processes = [way.relative_to(self._proc).parts[0] for way in ways if self._proc in way.parents]
        return safe_text(bound[0]) if bound else f"of process {processes[0]}" if processes else "gone"

    def follow(self, seen: AbstractSet[int]) -> None:
        """Enter namespaces that are new and leave those that nobody else is in.

        The scan costs a look at every process, so it runs every two seconds, and at once when a socket was
        `seen` in a namespace not yet known.
        """
        with self.lock:
            news = seen - self.threads.keys() - self.refused.keys()
            if news or time.monotonic() - self._scanned_at >= _SCAN_EVERY_S:
                self._scan()
                self.refused = {inode: why for inode, why in self.refused.items() if inode in self._ways}
                for inode, ways in self._ways.items():
                    if inode not in self.threads:
                        self._join(inode, ways)

    def close(self) -> None:
        """Leave every namespace."""
        self._closed.set()
        self._guard.join()
        for inode in list(self.threads):
            self.threads.pop(inode).close()

    def _scan(self) -> None:
        """Find what namespaces there are, and leave those that there are no more."""
        self._scanned_at = time.monotonic()
        self._ways = find_namespaces(self._proc)
        for inode in self.threads.keys() - self._ways.keys():
            self.threads.pop(inode).close()

    def _leave_the_dead(self) -> None:
        """The guard's life: scan when nobody else has for a while, and never while namespaces are read."""
        while not self._closed.wait(_SCAN_EVERY_S):
            if not self.lock.acquire(blocking=False):
                continue
            try:
                if time.monotonic() - self._scanned_at >= _SCAN_EVERY_S:
                    self._scan()
            finally:
                self.lock.release()

    def _join(self, inode: int, ways: list[Path]) -> None:
        """Enter by the first way that still leads there: processes come and go while this looks."""
        for way in ways:
            try:
                if os.stat(way).st_ino != inode:
                    continue
                self.threads[inode] = NamespaceThread(None if inode == self.own else way)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.refused[inode] = error.strerror or str(error)
                continue
            self.refused.pop(inode, None)
            return
