# SPDX-License-Identifier: Apache-2.0
"""The network namespaces that nettop has entered, each with a thread that stays inside, and their names."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from nettop.errors import PermissionMissing, limit_reached
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host, container_of
from nettop.kernel.host.privileges import name_of
from nettop.kernel.host.proc_files import stat_words
from nettop.kernel.net.namespaces import enter_namespace, find_namespaces
from nettop.snapshots.arrays import Array
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import OWN_NAMESPACE
from nettop.snapshots.snapshot import NAMESPACES_PARTLY_SEEN, PARTLY_SEEN, Rows, TextTable, known

T = TypeVar("T")

DEVICE_INDEX = "device_index"
"""An optional column beside `netns`: the interface index in that namespace, which the column `device` names."""

_SCAN_INTERVAL_S = 2.0
_SEEN_FOR_S = 10.0
"""Seconds for which a namespace counts as in use after a socket was seen in it."""
_NAMES_MAX = 3
"""Maximum namespaces that one gap names."""
_NAMED_BY_IP = (Path("/run/netns"), Path("/var/run/netns"))
"""Directories in which `ip netns` names namespaces."""
_UNKNOWN = np.iinfo(np.uint32).max
_RESERVED_THREADS = 12
_AT_ONCE = 4
"""Threads that run at once: each that waits for Python's lock wakes up every 5 ms (sys.getswitchinterval)."""
_DROPPED = "it appeared after nettop dropped privileges"


class Namespaces:
    """The network namespaces of this host, tracked as they come and go.

    A thread inside keeps a namespace alive, so a guard thread leaves namespaces that nobody else uses, even between
    reads. With privileges, nettop can inspect every process. After dropping them, it considers a namespace in use while
    it is bind-mounted, while a process that was in it at the drop still runs, or while sockets are seen in it.

    Hold `lock` to use `threads`. `refused` maps namespaces that could not be entered to the reason: their sockets
    without an owner process are not listed. Each of the `users` calls close() once.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._host = Host(proc.parent)
        self.users = 1
        self._scanned_at = float("-inf")
        self._updated_at = float("-inf")
        self._paths: dict[int, list[Path]] = {}
        self._texts = TextTable()
        self._devices: dict[tuple[int, int], str] = {}
        self._device_texts = TextTable()
        self._seen: dict[int, float] = {}
        self._members: dict[int, dict[Path, int | None]] = {}
        self._may_enter = True
        self._reason = _why_hidden()
        self._guard: threading.Thread | None = None
        self._guard_ends = threading.Event()
        self.lock = threading.RLock()
        self.own = os.stat(proc / "self/ns/net").st_ino
        self._names: dict[int, str] = {self.own: OWN_NAMESPACE}
        self.threads: dict[int, ThreadPoolExecutor] = {}
        self.refused: dict[int, str] = {}

    def name(self, inode: int) -> str:
        """Return a namespace's name; without one, its process or why that is unknown. Safe to display."""
        if name := self._names.get(inode):  # the guard replaces names and paths at any time
            return name
        if paths := self._paths.get(inode):
            return f"of process {paths[0].parts[-3]}"
        return "hidden" if inode in self.threads or inode in self.refused else "gone"

    def with_names(self, rows: Rows) -> Rows:
        """Return the rows with `namespace`, and `device` if they have it, set to names, or to numbers if unnamed."""
        self._texts = self._texts.renewed(len(self._paths))
        rows.array["namespace"] = self._codes(np.ascontiguousarray(rows.array["netns"]))
        texts = {**rows.texts, "namespace": self._texts.frozen()}
        if DEVICE_INDEX in (rows.array.dtype.names or ()):
            texts["device"] = self._name_devices(rows.array)
        return replace(rows, texts=texts)

    def _name_devices(self, array: Array) -> Sequence[str]:
        """Set the names of the devices that sockets are bound to; return the texts for their codes."""
        self._device_texts = self._device_texts.renewed(len(self._devices))
        at = np.flatnonzero(known(array[DEVICE_INDEX]))
        pairs = zip(array["netns"][at].tolist(), array[DEVICE_INDEX][at].tolist(), strict=True)
        array["device"][at] = [self._device_texts.code(self._device(*pair)) for pair in pairs]
        return self._device_texts.frozen()

    def _device(self, inode: int, index: int) -> str:
        """Look up a device's name inside its namespace; return its index if that fails."""
        known_devices = self._devices  # the guard may replace it
        if (inode, index) not in known_devices:
            name = ""
            with self.lock, suppress(OSError):
                if thread := self.threads.get(inode):
                    name = safe_text(thread.submit(socket.if_indextoname, index).result())
            known_devices[inode, index] = name or str(index)
        return known_devices[inode, index]

    def _codes(self, inodes: Array) -> Array:
        """Map namespace inode numbers to the codes of their names."""
        starts = np.flatnonzero(np.diff(inodes, prepend=~inodes[:1]))  # rows come in runs of a process
        codes = self._texts.codes(
            inodes[starts], lambda inode: None if inode == _UNKNOWN else self._names.get(inode, str(inode))
        )
        return np.repeat(codes, np.diff(starts, append=len(inodes)))

    @property
    def lost(self) -> int:
        """Namespaces that could not be entered, without those partly seen."""
        return sum(reason != _DROPPED for reason in self.refused.values())

    def counts(self) -> dict[str, int]:
        """Count namespaces that appeared after privileges were dropped and are only partly seen; empty if none."""
        partly_seen = len(self.refused) - self.lost
        return {NAMESPACES_PARTLY_SEEN: partly_seen} if partly_seen else {}

    def gaps(self, *, unseen: bool = False) -> dict[str, str]:
        """Return one gap per reason for namespaces that could not be entered, with a few of their names.

        Set `unseen` if not even namespaces that appeared later are partly seen.
        """
        by_reason: dict[str, list[str]] = {}
        for inode, reason in self.refused.items():
            by_reason.setdefault(reason, []).append(self.name(inode) if inode in self._paths else str(inode))
        return {
            _gap_name(names): PARTLY_SEEN if reason == _DROPPED and not unseen else f"not entered: {reason}"
            for reason, names in by_reason.items()
        }

    def enter(self) -> None:
        """Enter every current namespace, before privileges are dropped."""
        with self.lock:
            self._update()

    def stop_entering(self) -> None:
        """Refuse namespaces that appear from now on, and record the processes in the others.

        Without privileges, nettop cannot inspect other users' processes, but it still sees whether they run.
        """
        with self.lock:
            self._may_enter = False
            self._members = {
                inode: {path: self._start_time(path) for path in filter(self._is_process, paths)}
                for inode, paths in self._paths.items()
                if inode != self.own
            }
            self._reason = _why_hidden()

    def watch(self, kept: AbstractSet[int] = privileges.FINDING_NAMESPACES) -> None:
        """Start, or restart, the guard thread, which leaves namespaces that nobody else uses.

        The guard keeps those of the calling thread's capabilities that are in `kept` and needed to find namespaces.
        """
        self._end_guard()
        self._guard_ends.clear()
        started = threading.Event()
        guard = threading.Thread(target=self._guard_run, args=(started, kept), name="namespaces", daemon=True)
        guard.start()
        # Set it only once started: after an interrupt, another thread may call close().
        self._guard = guard
        started.wait()

    def _end_guard(self) -> None:
        if self._guard is not None:
            self._guard_ends.set()
            self._guard.join()
            self._guard = None

    def follow(self, seen: AbstractSet[int]) -> None:
        """Enter new namespaces and leave unused ones; `seen` are the namespaces in which sockets were seen.

        A scan visits every process, so it runs every two seconds, or immediately if a namespace is unknown.
        """
        with self.lock:
            if self._guard is None:
                self.watch()
            now = time.monotonic()
            self._seen.update(dict.fromkeys(seen, now))
            unknown = seen - self.threads.keys() - self.refused.keys()
            # The guard's scans do not count: they enter nothing.
            if unknown or now - self._updated_at >= _SCAN_INTERVAL_S:
                self._update()

    def run_in_each(self, function: Callable[[], T], seen: AbstractSet[int] = frozenset()) -> dict[int, T]:
        """Call `follow`, then call a function in all entered namespaces; return its results by inode number."""
        with self.lock:
            self.follow(seen)
            threads, results = list(self.threads.items()), dict[int, T]()
            for at in range(0, len(threads), _AT_ONCE):
                running = {inode: thread.submit(function) for inode, thread in threads[at : at + _AT_ONCE]}
                wait(running.values())
                results |= {inode: future.result() for inode, future in running.items()}
            return results

    def join(self) -> bool:
        """Add a user; return False if the last user has already closed the namespaces."""
        with self.lock:
            self.users += bool(self.users)
            return self.users > 0

    def close(self) -> None:
        """Leave every namespace if this was the last user."""
        with self.lock:
            self.users -= 1
            if self.users:
                return
        self._end_guard()
        while self.threads:
            self.threads.popitem()[1].shutdown()

    def _update(self) -> None:
        """Leave unused namespaces and enter new ones."""
        self._scan()
        self._updated_at = self._scanned_at
        hidden = self._hidden() - self.threads.keys() - self._paths.keys()
        self.refused = {
            inode: reason for inode, reason in self.refused.items() if inode in self._paths
        } | dict.fromkeys(hidden, self._reason)
        new = self._paths.keys() - self.threads.keys()
        if self.own in new:
            self._enter(self.own)
        others = new - {self.own}
        if not self._may_enter:
            self.refused = dict.fromkeys(others, self._reason) | self.refused
        elif others:
            with _reserved_threads():
                for inode in others:
                    self._enter(inode)

    def _scan(self) -> None:
        """Find the namespaces in use and leave the others."""
        now = self._scanned_at = time.monotonic()
        self._devices = {}  # they may have been renamed
        paths = find_namespaces(self._proc)
        for inode, members in self._members.items():
            running = (
                path for path, started in members.items() if started and self._start_time(path) == started
            )
            if inode not in paths and (path := next(running, None)):
                paths[inode] = [path]
        named = ((inode, self._find_name(path_of)) for inode, path_of in paths.items() if inode != self.own)
        self._paths = paths
        self._names = {self.own: OWN_NAMESPACE} | {inode: name for inode, name in named if name}
        self._seen = {inode: at for inode, at in self._seen.items() if now - at <= _SEEN_FOR_S}
        for inode in self.threads.keys() - self._paths.keys() - self._hidden():
            self.threads.pop(inode).shutdown()

    def _find_name(self, paths: list[Path]) -> str:
        """Return the name in `ip netns`, else the container's, else the bind mount's file name; empty if none."""
        files = [path for path in paths if not self._is_process(path)]
        by_ip = [path.name for path in files if path.parent in _NAMED_BY_IP]
        if by_ip:
            return safe_text(by_ip[0])
        process = next(filter(self._is_process, paths), None)
        group = self._host.cgroup(int(process.parts[-3])) if process else None
        container = container_of(group) if group else None
        # A systemd unit (no colon in its name) may have several namespaces.
        if container is not None and ":" in container:
            return safe_text(container)
        return safe_text(files[0].name) if files else ""

    def _hidden(self) -> AbstractSet[int]:
        """Return namespaces in which sockets were seen recently; none if nettop can inspect all processes."""
        return frozenset() if privileges.CAP_SYS_PTRACE in privileges.held() else self._seen.keys()

    def _enter(self, inode: int) -> None:
        """Enter through the first path that is still valid: processes may have exited since the scan."""
        for path in self._paths[inode]:
            try:
                if os.stat(path).st_ino == inode:
                    self.threads[inode] = enter_namespace(None if inode == self.own else path)
                    self.refused.pop(inode, None)
                    return
            except FileNotFoundError:
                continue
            except PermissionMissing as error:
                self.refused[inode] = error.what
            except OSError as error:
                self.refused[inode] = error.strerror or str(error)
            except RuntimeError as error:
                if (limit := limit_reached("entering it failed", error)) is None:
                    raise
                self.refused[inode] = limit.what
                return

    def _guard_run(self, started: threading.Event, kept: AbstractSet[int]) -> None:
        """Scan if nobody else has done so recently, but never while namespaces are being read."""
        privileges.keep_only(privileges.FINDING_NAMESPACES & kept)
        started.set()
        while not self._guard_ends.wait(_SCAN_INTERVAL_S):
            if not self.lock.acquire(blocking=False):
                continue
            try:
                if time.monotonic() - self._scanned_at >= _SCAN_INTERVAL_S:
                    with suppress(OSError):  # such as without descriptors: the next scan may succeed
                        self._scan()
            finally:
                self.lock.release()

    def _is_process(self, path: Path) -> bool:
        """Return whether a path enters a namespace through a process rather than a bind mount."""
        return str(path).startswith(f"{self._proc}/")

    def _start_time(self, path: Path) -> int | None:
        """Return the start time of the path's process in ticks since boot; None once it has exited."""
        words = stat_words(self._proc, int(path.parts[-3]))
        return int(words[19]) if words and words[0] not in "ZX" else None


def _why_hidden() -> str:
    """Return why namespaces that appear after dropping privileges are refused, given the thread's capabilities."""
    wanted = {privileges.CAP_SYS_PTRACE, privileges.CAP_SYS_ADMIN}
    missing = sorted(wanted - privileges.held())
    return f"finding and entering it needs {' and '.join(map(name_of, missing))}" if missing else _DROPPED


def _gap_name(names: list[str]) -> str:
    """Join the names into the name of one gap: `namespaces a, b, c and 7 more`."""
    more = len(names) - _NAMES_MAX
    *others, last = [*names[:_NAMES_MAX], f"{more} more"] if more > 0 else names
    return f"namespaces {', '.join(others)} and {last}" if others else f"namespace {last}"


def shared_namespaces(host: Host) -> Namespaces:
    """Return the namespaces that all probes of a host share until each has closed them."""
    with host.kept.lock:
        shared = host.kept.namespaces
        if not isinstance(shared, Namespaces) or not shared.join():
            shared = host.kept.namespaces = Namespaces(host.proc)
        return shared


@contextmanager
def _reserved_threads() -> Iterator[None]:
    """Reserve some threads while namespaces are entered, so that if these reach the limit of threads and processes,
    loaders and frontend threads can still be started later.
    """
    is_over = threading.Event()
    reserved: list[threading.Thread] = []
    try:
        with suppress(RuntimeError):  # the limit is already reached
            for _ in range(_RESERVED_THREADS):
                thread = threading.Thread(target=is_over.wait, name="reserved", daemon=True)
                thread.start()
                reserved.append(thread)
        yield
    finally:
        is_over.set()
        for thread in reserved:
            thread.join()
