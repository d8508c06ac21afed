# SPDX-License-Identifier: Apache-2.0
"""A clock on each CPU that runs a BPF program: perf's software event cpu-clock (perf_event_open(2)).

It is a timer of the kernel (kernel/events/core.c, perf_swevent_hrtimer): it ticks in user mode, in the kernel and in
softirqs, and on idle CPUs too, whose packets are handled in the idle task. While interrupts are disabled one tick is
delayed and further ones are lost.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nettop.errors import PermissionMissing, Unsupported
from nettop.kernel import bpf
from nettop.kernel.capabilities import how_to_get
from nettop.kernel.facts import Host
from nettop.kernel.privileges import CAP_PERFMON, CAP_SYS_ADMIN
from nettop.kernel.proc_files import read_required, read_text

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}.get(platform.machine(), -1)
_PERF_FLAG_FD_CLOEXEC = 8
_UNKNOWN_FLAGS = 1 << 30
_ATTR = struct.Struct("=IIQQQQQIIQ")
"""struct perf_event_attr up to config1 (include/uapi/linux/perf_event.h)."""
_TYPE_SOFTWARE, _CPU_CLOCK = 1, 0
_FORMAT_TOTAL_TIME_ENABLED = 1
_DISABLED = 1
_ENABLE, _DISABLE, _PERIOD, SET_BPF = 0x2400, 0x2401, 0x40082404, 0x40042408
_ANY_PROCESS, _NO_GROUP = -1, -1
_READING = struct.Struct("=QQ")
"""What an event counted, and how long it was enabled, in ns."""
_PARANOID_MAX = 2
"""The highest value of kernel.perf_event_paranoid that Linux itself has; Debian and Ubuntu added 3 and 4."""
_NS = 1_000_000_000
_APART_NS = 1_000_000
"""At this distance ticks of two CPUs do not affect each other."""
_OF_ONE_CPU = {errno.ENODEV, errno.EACCES, errno.EPERM}
"""Errors that concern one CPU: it went offline, or came online after the right to open clocks was given up."""
_libc = ctypes.CDLL(None, use_errno=True)

_opened: dict[int, int] = {}
"""Events that were opened early, by CPU. They do not tick yet and cost nothing."""


def online_cpus(root: Path = Path("/")) -> tuple[int, ...]:
    """Return the CPUs that are online, in ascending order. Raises Unsupported where /sys hides them."""
    ranges = read_required("/sys/devices/system/cpu/online", root)  # such as 0-2,5
    ends = (part.partition("-") for part in ranges.strip().split(","))
    return tuple(cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1))


@contextmanager
def open_clocks() -> Iterator[None]:
    """Open the events now, for Clocks that are made before this is left.

    Opening needs CAP_PERFMON, or CAP_SYS_ADMIN where the sysctl kernel.perf_event_paranoid is 3 (Debian); an open event
    needs nothing. Errors are ignored: Clocks will raise them.
    """
    with suppress(Unsupported):
        for cpu in online_cpus():
            with suppress(OSError):
                _opened[cpu] = _open(cpu)
    try:
        yield
    finally:
        while _opened:
            os.close(_opened.popitem()[1])


class Clocks:
    """The clocks of all CPUs that are online. They do not tick until they are started.

    It needs the right to open events, unless `open_clocks` did that. The clock of a CPU that went offline is dead: a
    CPU that comes back, or is added, gets a new one if nettop still has that right. `cpus` are the CPUs that had a
    clock when `running_ns` was last called.
    """

    def __init__(self, program: int, rate_hz: int) -> None:
        """Run the program (BPF_PROG_TYPE_PERF_EVENT) at each tick, `rate_hz` times a second.

        Raises what `why_refused` gives.
        """
        self._program = program
        self._events: dict[int, int] = {}
        self._links: dict[int, int] = {}
        self._counted: dict[int, int] = {}
        """What each event had counted at the last reading: a clock that should tick and does not count is dead."""
        self._ticking = False
        self._period_ns = _NS // rate_hz
        cpus = online_cpus()
        try:
            for cpu in cpus:
                try:
                    self._add(cpu, os.dup(_opened[cpu]) if cpu in _opened else _open(cpu))
                except OSError as error:  # a CPU that alone is refused has no clock
                    if not (self._events and error.errno in _OF_ONE_CPU):
                        raise
        except OSError as error:
            self.close()
            raise why_refused(error) from error
        self.cpus = tuple(self._events)

    def start(self) -> None:
        """Tick. Raises OSError."""
        self._ticking = True
        for event in self._events.values():
            fcntl.ioctl(event, _ENABLE, 0)
            # A tick delays its CPU by some 20 µs, and CPUs that wait for its locks: if all CPUs ticked at the same
            # moment they would sample that waiting again and again (a tenth of all samples was seen).
            time.sleep(min(self._period_ns / len(self._events), _APART_NS) / _NS)

    def stop(self) -> None:
        """Stop ticking until they are started again: programs that were running have ended. Raises OSError."""
        self._ticking = False
        for event in self._events.values():
            fcntl.ioctl(event, _DISABLE, 0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not tick meanwhile, so that no program runs. Raises OSError."""
        was_ticking = self._ticking
        self.stop()
        try:
            yield
        finally:
            if was_ticking:
                self.start()

    def running_ns(self) -> dict[int, int]:
        """How long the clock of each CPU has run since it was opened; CPUs that are offline are left out.

        Opens clocks for CPUs that came online since the last call. Raises OSError.
        """
        running: dict[int, int] = {}
        for cpu in online_cpus():
            with suppress(OSError):  # no clock may be opened any more
                running[cpu] = self._read_or_renew(cpu)
        self.cpus = tuple(running)
        return running

    def close(self) -> None:
        """Stop them and release the program; a second call does nothing."""
        with suppress(OSError):
            self.stop()
        for cpu in tuple(self._events):
            self._remove(cpu)

    # --- one CPU --------------------------------------------------------------------------------------------------

    def _read_or_renew(self, cpu: int) -> int:
        """How long a CPU's clock has run; opens a new one if it has none or a dead one. Raises OSError."""
        read = (
            os.read(self._events[cpu], _READING.size) if cpu in self._events else b""
        )  # a dead one may give nothing
        counted, running = map(int, _READING.unpack(read or bytes(_READING.size)))
        if not read or (self._ticking and counted == self._counted.get(cpu)):
            event = _open(cpu)
            self._remove(cpu)
            self._add(cpu, event)
            if self._ticking:
                fcntl.ioctl(event, _ENABLE, 0)
            counted, running = 0, 0
        self._counted[cpu] = counted
        return running

    def _add(self, cpu: int, event: int) -> None:
        self._events[cpu] = event
        try:
            self._attach_program(cpu)
            fcntl.ioctl(event, _PERIOD, struct.pack("=Q", self._period_ns))
        except OSError:
            self._remove(cpu)
            raise

    def _remove(self, cpu: int) -> None:
        for descriptors in (self._links, self._events):
            if cpu in descriptors:
                os.close(descriptors.pop(cpu))

    def _attach_program(self, cpu: int) -> None:
        """By a link (since 5.15), which can be closed. Without it the program stays attached to the event for good."""
        event = self._events[cpu]
        try:
            self._links[cpu] = bpf.link(self._program, bpf.PERF_EVENT, event)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.ioctl(event, SET_BPF, self._program)
            if cpu in _opened:
                os.close(_opened.pop(cpu))


def open_event(attributes: bytes, cpu: int, what: str) -> int:
    """An event for any process on a CPU, by its struct perf_event_attr. Raises OSError, which names `what`."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    where = (_ANY_PROCESS, cpu, _NO_GROUP)
    event = int(_libc.syscall(_PERF_EVENT_OPEN, buffer, *where, _PERF_FLAG_FD_CLOEXEC))
    if event < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return event


def require_perf_events() -> None:
    """Raise what `why_refused` gives where this thread may open no clock."""
    cpu = online_cpus()[0]
    try:
        os.close(_open(cpu))
    except OSError as error:
        raise why_refused(error) from error


def why_refused(error: OSError, host: Host | None = None) -> Exception:
    """PermissionMissing or Unsupported for an event that could not be opened; the error itself where it is another."""
    host = host or Host()
    blocked = _errno_before_kernel()
    if blocked:
        return host.blocked_call("perf_event_open", blocked)
    if error.errno in (errno.ENOENT, errno.ENOSYS):
        return Unsupported("this kernel has no perf events", "use a kernel with CONFIG_PERF_EVENTS")
    if not isinstance(error, PermissionError):
        return error
    held = host.effective()
    paranoid = read_text(host.proc / "sys/kernel/perf_event_paranoid").strip() or "unknown"
    if CAP_SYS_ADMIN not in held and CAP_PERFMON not in held:
        return PermissionMissing(
            f"opening perf events needs CAP_PERFMON (kernel.perf_event_paranoid: {paranoid})",
            how_to_get([CAP_PERFMON], host.permitted()),
        )
    # Where /proc hides the setting, it is what is left as the cause.
    if CAP_SYS_ADMIN not in held and not (paranoid.isdecimal() and int(paranoid) <= _PARANOID_MAX):
        return PermissionMissing(
            f"kernel.perf_event_paranoid is {paranoid}: above {_PARANOID_MAX} this kernel opens perf events only with "
            "CAP_SYS_ADMIN",
            f"sysctl kernel.perf_event_paranoid={_PARANOID_MAX}; or {how_to_get([CAP_SYS_ADMIN], host.permitted())}",
        )
    return PermissionMissing(
        f"the kernel refuses perf events ({error.strerror}), likely by a security module",
        "allow perf_event in its policy; it logs what it denies: dmesg, or /var/log/audit/audit.log",
    )


def _errno_before_kernel() -> int:
    """The errno with which opening fails before the kernel looks at its arguments, as in a seccomp filter; 0 if it does
    not. The kernel itself refuses unknown flags first of all, whoever asks."""
    _libc.syscall(_PERF_EVENT_OPEN, None, *(_ANY_PROCESS, 0, _NO_GROUP), _UNKNOWN_FLAGS)
    number = ctypes.get_errno()
    return 0 if number == errno.EINVAL else number


def _open(cpu: int) -> int:
    """A disabled event of a CPU, with a period of one second."""
    attributes = _ATTR.pack(
        _TYPE_SOFTWARE, _ATTR.size, _CPU_CLOCK, _NS, 0, _FORMAT_TOTAL_TIME_ENABLED, _DISABLED, 0, 0, 0
    )
    return open_event(attributes, cpu, f"clock of CPU {cpu}")
