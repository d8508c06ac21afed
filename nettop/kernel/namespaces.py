# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: found through processes and bind mounts, each with a thread that stays inside it."""

from __future__ import annotations

import ctypes
import os
import queue
import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from nettop.errors import NettopError
from nettop.kernel import privileges
from nettop.kernel.limits import open_files
from nettop.snapshots.safe_text import safe_text

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
"""The kind of namespace (include/uapi/linux/sched.h)."""
_STACK_BYTES = 256 << 10
_SCAN_EVERY_S = 2.0
_TOLD_FOR_S = 60.0
"""How long a namespace counts as refused after a socket was last seen in it, if nothing else tells of it."""
_WITNESSES_MAX, _WITNESSES_SHARE = 4096, 4
"""Processes that are noted at most; each takes a descriptor, of which they have a quarter at most."""
_NAMED = 3
"""So many of the namespaces that could not be entered are told by name."""
_TOO_LATE = "it appeared after privileges were dropped"
_LEFT = "left: none of the processes noted in it is there any more"
_OUT_OF_SIGHT = "out of sight"
_NO_RIGHT = "to find and enter it takes CAP_SYS_PTRACE and CAP_SYS_ADMIN"
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

    It needs CAP_SYS_ADMIN to enter, once; what it runs later needs none, and it drops them.
    """

    def __init__(self, way: Path | None) -> None:
        """Enter the namespace that `way` leads into (None: stay). Raises OSError when that is refused."""
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        entered: Future[None] = Future()
        previous = threading.stack_size(_STACK_BYTES)
        try:
            self._thread = threading.Thread(
                target=self._live, args=(way, entered), name="in a namespace", daemon=True
            )
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
            privileges.keep_only(privileges.for_reading())
        except (OSError, NettopError) as error:
            entered.set_exception(error)
            return
        entered.set_result(None)
        while (task := self._tasks.get()) is not None:
            task()


def enter_new_namespace() -> int:
    """Take the calling thread into a network namespace of its own, gone with the last thread in it; its inode number.

    It takes CAP_SYS_ADMIN. Raises OSError with the kernel's errno.
    """
    if _libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return os.stat("/proc/thread-self/ns/net").st_ino


def _enter(way: Path) -> None:
    descriptor = os.open(way, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(way))
    finally:
        os.close(descriptor)


def _leads_to(way: Path, inode: int) -> bool:
    """Whether a way leads into this namespace."""
    try:
        return os.stat(way).st_ino == inode
    except OSError:
        return False


class Witnesses:
    """Processes that were in a namespace when it could still be looked at, and so tell later whether it is used.

    A process that has left for another namespace goes on to speak for this one, until it ends.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._pidfds: dict[tuple[int, Path], int] = {}

    def note(self, mechanisms: Mapping[int, list[Path]]) -> None:
        """Note processes behind the `ways`, as far as there is room: one of each namespace first, then more in turn.

        A file that a namespace is bound to is its first turn, and takes nothing: it can be seen without rights.
        """
        room = min(_WITNESSES_MAX, open_files() // _WITNESSES_SHARE)
        for _, inode, way in sorted(self._turns(mechanisms)):
            if len(self._pidfds) >= room:
                break
            self._note(inode, way)

    def _turns(self, mechanisms: Mapping[int, list[Path]]) -> Iterator[tuple[int, int, Path]]:
        """Each process that is not noted yet, with its namespace, behind the turn in which that is due."""
        for inode, leading in mechanisms.items():
            for turn, way in enumerate(sorted(leading, key=self._pid)):
                if self._pid(way) and (inode, way) not in self._pidfds:
                    yield turn, inode, way

    def _pid(self, way: Path) -> int:
        """The process that a way leads through; 0 for a bind mount."""
        return int(way.relative_to(self._proc).parts[0]) if self._proc in way.parents else 0

    def _note(self, inode: int, way: Path) -> None:
        with suppress(OSError):
            pidfd = os.pidfd_open(self._pid(way))
            if _leads_to(way, inode):  # it has not become another process's number since the scan
                self._pidfds[inode, way] = pidfd
            else:
                os.close(pidfd)

    def mechanisms(self) -> dict[int, list[Path]]:
        """The ways into namespaces through those that are still there."""
        poll = select.poll()
        for pidfd in self._pidfds.values():
            poll.register(pidfd, select.POLLIN)
        ended = {pidfd for pidfd, _ in poll.poll(0)}
        for one in [one for one, pidfd in self._pidfds.items() if pidfd in ended]:
            os.close(self._pidfds.pop(one))
        found: dict[int, list[Path]] = {}
        for inode, way in self._pidfds:
            found.setdefault(inode, []).append(way)
        return found

    def close(self) -> None:
        """Forget them."""
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])


class _Sighting(NamedTuple):
    """When a socket was last seen in a namespace, and the longest time between two such readings (monotonic, s)."""

    at: float
    pause: float

    def again(self, now: float) -> _Sighting:
        """It is seen once more."""
        return _Sighting(now, max(self.pause, now - self.at))

    def lasts(self, now: float) -> bool:
        """Whether it still tells that the namespace is used: for two readings, and a minute at most."""
        return now - self.at <= min(_TOLD_FOR_S, _SCAN_EVERY_S + 2 * self.pause)


class Namespaces:
    """The namespaces of this host, followed as they come and go.

    A thread inside keeps a namespace alive, so a guard leaves those that nobody else is in, however seldom
    anything is read. Whoever uses `threads` holds the `lock`. `refused` names the namespaces that could not be
    entered, and why: their sockets without an owner go unlisted.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._users = 1
        self._scanned_at = float("-inf")
        self._closed = threading.Event()
        self._ways: dict[int, list[Path]] = {}
        self._seen: dict[int, _Sighting] = {}
        self._left_at: dict[int, float] = {}
        self._names: dict[int, str] = {}
        self._witnesses: Witnesses | None = None
        self._why_not = _NO_RIGHT
        self._guard: threading.Thread | None = None
        self.lock = threading.RLock()
        self.own = os.stat(proc / "self/ns/net").st_ino
        self.threads: dict[int, NamespaceThread] = {}
        self.refused: dict[int, str] = {}

    def name(self, inode: int) -> str:
        """What people call a namespace: the file it is bound to, or a process in it; safe to show."""
        if inode == self.own:
            return "nettop's own"
        mechanisms = self._ways.get(inode, [])
        bound = [way.name for way in mechanisms if self._proc not in way.parents]
        processes = [way.relative_to(self._proc).parts[0] for way in mechanisms if self._proc in way.parents]
        if mechanisms:
            return safe_text(bound[0]) if bound else f"of process {processes[0]}"
        return _OUT_OF_SIGHT if inode in self.threads or inode in self.refused else "gone"

    def gaps(self) -> dict[str, str]:
        """The namespaces that could not be entered, and why: those of one reason together, a few of them by name."""
        self._names = {inode: self._names.get(inode) or self._called(inode) for inode in self.refused}
        by_reason: dict[str, list[str]] = {}
        for inode, why in self.refused.items():
            by_reason.setdefault(why, []).append(self._names[inode])
        return {
            _together(names): why if why == _LEFT else f"not entered: {why}"
            for why, names in by_reason.items()
        }

    def _called(self, inode: int) -> str:
        """A namespace's name, or its number where it has none. It is told once: the process may end before."""
        return self.name(inode) if self._ways.get(inode) else str(inode)

    def enter(self) -> None:
        """Enter every namespace that can be found now. Whoever drops privileges does it before, and `watch` after."""
        with self.lock:
            self._look()

    def settle(self) -> None:
        """Note what will tell that a namespace is still used when it cannot be looked at any more.

        From now on those that appear are refused, and those in which nobody noted is left are left.
        """
        with self.lock:
            others = {inode: mechanisms for inode, mechanisms in self._ways.items() if inode != self.own}
            self._witnesses = Witnesses(self._proc)
            self._witnesses.note(others)
            if privileges.held() >= {privileges.CAP_SYS_ADMIN, privileges.CAP_SYS_PTRACE}:
                self._why_not = _TOO_LATE

    def watch(self, kept: AbstractSet[int] = privileges.LOOKING) -> None:
        """Have the guard leave, from now on, what nobody else is in.

        It has at most the calling thread's rights, and of those that are `kept` what looking takes.
        """
        if self._guard is None:
            settled = threading.Event()
            guard = threading.Thread(
                target=self._leave_the_dead, args=(settled, kept), name="namespaces", daemon=True
            )
            guard.start()
            # Only now: whoever is interrupted while it ends may close this from another thread.
            self._guard = guard
            settled.wait()

    def follow(self, seen: AbstractSet[int]) -> None:
        """Enter namespaces that are new and leave those that nobody else is in.

        The scan costs a look at every process, so it runs every two seconds, and at once when a socket was
        `seen` in a namespace not yet known.
        """
        self.watch()
        with self.lock:
            now = time.monotonic()
            self._seen |= {
                inode: self._seen.get(inode, _Sighting(now, _SCAN_EVERY_S)).again(now) for inode in seen
            }
            news = seen - self.threads.keys() - self.refused.keys()
            if news or now - self._scanned_at >= _SCAN_EVERY_S:
                self._look()

    def share(self) -> None:
        """Count one more user, who will close these."""
        self._users += 1

    def close(self) -> None:
        """Leave every namespace, if nobody else uses these."""
        self._users -= 1
        if self._users:
            return
        if _shared.get(self._proc) is self:
            del _shared[self._proc]
        self._closed.set()
        if self._guard is not None:
            self._guard.join()
        for inode in list(self.threads):
            self.threads.pop(inode).close()
        if self._witnesses is not None:
            self._witnesses.close()

    def _look(self) -> None:
        """Find what namespaces there are, and enter them."""
        self._scan()
        out_of_sight = {inode: self._why(inode) for inode in self._out_of_sight()}
        self.refused = {
            inode: why for inode, why in self.refused.items() if inode in self._ways
        } | out_of_sight
        for inode, mechanisms in self._ways.items():
            if inode not in self.threads:
                self._join(inode, mechanisms)

    def _out_of_sight(self) -> AbstractSet[int]:
        """Namespaces that sockets were seen in of late, though nothing that may be looked at leads there."""
        recently = self._scanned_at - _TOLD_FOR_S
        self._seen = {inode: seen for inode, seen in self._seen.items() if seen.at >= recently}
        self._left_at = {
            inode: at for inode, at in self._left_at.items() if at >= recently or inode in self._seen
        }
        if _sees_everything():
            return frozenset()  # nothing leads there: it is gone
        return self._seen.keys() - self._ways.keys() - self.threads.keys()

    def _why(self, inode: int) -> str:
        """Why a namespace is not entered that was not there, or was left, when the rights were given up."""
        bound = any(self._proc not in way.parents for way in self._ways.get(inode, ()))
        # The kernel gives numbers again. What is bound is new: nothing was bound to what was left.
        return _LEFT if inode in self._left_at and not bound else self._why_not

    def _scan(self) -> None:
        """Find what namespaces there are, and leave those that there are no more."""
        now = self._scanned_at = time.monotonic()
        self._ways = find_namespaces(self._proc)
        if self._witnesses is not None:
            self._add_witnessed(self._witnesses)
        used = set(self._ways)
        if self._witnesses is not None and not _sees_everything():
            used |= {inode for inode, seen in self._seen.items() if seen.lasts(now)}
        for inode in self.threads.keys() - used:
            self.threads.pop(inode).close()
            if self._witnesses is not None:
                self._left_at[inode] = now

    def _add_witnessed(self, witnesses: Witnesses) -> None:
        """Add the ways through those that were noted, and note more while they can be found."""
        told = witnesses.mechanisms()
        witnesses.note(
            {inode: self._ways[inode] for inode in self.threads.keys() & self._ways if inode != self.own}
        )
        for inode, mechanisms in told.items():
            self._ways[inode] = mechanisms + [
                way for way in self._ways.get(inode, []) if way not in mechanisms
            ]

    def _leave_the_dead(self, settled: threading.Event, kept: AbstractSet[int]) -> None:
        """The guard's life: scan when nobody else has for a while, and never while namespaces are read."""
        privileges.keep_only(privileges.LOOKING & kept)
        settled.set()
        while not self._closed.wait(_SCAN_EVERY_S):
            if not self.lock.acquire(blocking=False):
                continue
            try:
                if time.monotonic() - self._scanned_at >= _SCAN_EVERY_S:
                    self._scan()
            finally:
                self.lock.release()

    def _join(self, inode: int, mechanisms: list[Path]) -> None:
        """Enter by the first way that still leads there: processes come and go while this looks."""
        if self._witnesses is not None and inode != self.own:
            self.refused.setdefault(inode, self._why(inode))
            return
        for way in mechanisms:
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


def _sees_everything() -> bool:
    """Whether no process's namespace is hidden from the calling thread."""
    return privileges.CAP_SYS_PTRACE in privileges.held()


def _together(names: list[str]) -> str:
    """Namespaces as the name of one gap."""
    more = len(names) - _NAMED
    last = [f"{more} more"] if more > 0 else []
    *before, end = [*names[:_NAMED], *last]
    return f"namespaces {', '.join(before)} and {end}" if before else f"namespace {end}"


_shared: dict[Path, Namespaces] = {}


def shared_namespaces(proc: Path = Path("/proc")) -> Namespaces:
    """The namespaces that all who ask use together, until each of them has closed them. Of one thread only."""
    found = _shared.get(proc)
    if found is None:
        found = _shared[proc] = Namespaces(proc)
    else:
        found.share()
    return found
