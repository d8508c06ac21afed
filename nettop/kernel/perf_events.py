# SPDX-License-Identifier: Apache-2.0
"""A clock on each CPU that runs a BPF program: perf's software event cpu-clock (perf_event_open(2)).

It is a timer of the kernel's (kernel/events/core.c, perf_swevent_hrtimer), so it ticks in user mode, in the kernel and
in softirqs alike, on idle CPUs too: what arrives there is handled in the idle task. It is silent only while
interrupts are off; a tick that is late for that is told afterwards, further ones are lost.
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
from typing import NamedTuple

from nettop.errors import PermissionMissing, Unsupported
from nettop.kernel import bpf

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}.get(platform.machine(), -1)
_PERF_FLAG_FD_CLOEXEC = 8
_ATTR = struct.Struct("=IIQQQQQIIQ")
"""struct perf_event_attr up to config1 (include/uapi/linux/perf_event.h)."""
_TYPE_SOFTWARE, _CPU_CLOCK = 1, 0
_FORMAT_TOTAL_TIME_ENABLED = 1
_DISABLED = 1
_ENABLE, _DISABLE, _PERIOD, _SET_BPF = 0x2400, 0x2401, 0x40082404, 0x40042408
_ANY_PROCESS, _NO_GROUP = -1, -1
_LINK_CREATE, _BPF_PERF_EVENT = 28, 41
"""The command of bpf(2), and the place that it links a program to (include/uapi/linux/bpf.h)."""
_READING = struct.Struct("=QQ")
_NS = 1_000_000_000
_APART_NS = 1_000_000
"""So far apart ticks of two CPUs have nothing to do with each other."""
_OF_ONE_CPU = {errno.ENODEV, errno.EACCES, errno.EPERM}
"""What refuses the clock of a CPU that has gone, or that came when the right to open one was given up."""
_libc = ctypes.CDLL(None, use_errno=True)

_kept: dict[int, int] = {}
"""Events that were opened with the right to, by CPU. They tick for nobody yet and cost nothing."""


def online_cpus(root: Path = Path("/")) -> tuple[int, ...]:
    """The CPUs that run, in ascending order."""
    return _numbers((root / "sys/devices/system/cpu/online").read_text())


def _numbers(text: str) -> tuple[int, ...]:
    """`0-2,5` as (0, 1, 2, 5)."""
    ends = (part.partition("-") for part in text.strip().split(","))
    return tuple(cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1))


@contextmanager
def open_clocks() -> Iterator[None]:
    """Open the events now, for whoever asks for Clocks until this is left.

    Opening takes CAP_PERFMON, CAP_SYS_ADMIN where the sysctl kernel.perf_event_paranoid is 3 (Debian); what is open
    takes nothing. Whoever may not open them goes on without.
    """
    for cpu in online_cpus():
        with suppress(OSError):
            _kept[cpu] = _open(cpu)
    try:
        yield
    finally:
        while _kept:
            os.close(_kept.popitem()[1])


class _Reading(NamedTuple):
    """What an event counts: the clock's ns, and those of wall time in which it was switched on."""

    counted: int
    running: int


class Clocks:
    """The clocks of all CPUs that run: silent until they are started.

    It needs the right to open events, unless `open_clocks` did that. The clock of a CPU that went off is dead for
    good: one that comes back gets a new one, as does one that was added, as long as there is that right. `cpus` are
    those that had a clock by the last look at them.
    """

    def __init__(self, program: int, frequency_hz: int) -> None:
        """Have the program (BPF_PROG_TYPE_PERF_EVENT) run at each tick, so often in a second.

        Raises PermissionMissing, Unsupported, or OSError with the kernel's errno.
        """
        self._program = program
        self._events: dict[int, int] = {}
        self._links: dict[int, int] = {}
        self._counted: dict[int, int] = {}
        """What each event had counted by the last look: a clock that ticks and counts nothing is dead."""
        self._ticking = False
        self.period_ns = _NS // frequency_hz
        try:
            for cpu in online_cpus():
                self._add_first(cpu)
        except PermissionError as error:
            self.close()
            raise PermissionMissing(
                "the kernel opens no clock for this user: it takes CAP_PERFMON, or CAP_SYS_ADMIN where the sysctl "
                "kernel.perf_event_paranoid is above 2",
                "run it as root: sudo nettop",
            ) from error
        except OSError as error:
            self.close()
            if error.errno in (errno.ENOENT, errno.ENOSYS):
                raise Unsupported("this kernel has no perf events") from error
            raise
        self.cpus = tuple(self._events)

    def set_frequency(self, frequency_hz: int) -> None:
        """Tick so often in a second from now on. Raises OSError."""
        self.period_ns = _NS // frequency_hz
        for event in self._in_turn():
            self._set_period(event)

    def start(self) -> None:
        """Tick. Raises OSError."""
        self._ticking = True
        for event in self._in_turn():
            fcntl.ioctl(event, _ENABLE, 0)

    def stop(self) -> None:
        """Tick no more until they are started again. Raises OSError."""
        self._ticking = False
        for event in self._events.values():
            fcntl.ioctl(event, _DISABLE, 0)

    def running_ns(self) -> dict[int, int]:
        """For how long the clock of each CPU has run since it was opened; that of a CPU that is gone is left out.

        Opens clocks of CPUs that came, or came back, since the last look. Raises OSError.
        """
        readings = {cpu: reading for cpu in online_cpus() if (reading := self._read_or_renew(cpu))}
        self.cpus = tuple(readings)
        return {cpu: reading.running for cpu, reading in readings.items()}

    def close(self) -> None:
        """Stop them and let go of the program; a second call does nothing."""
        with suppress(OSError):
            self.stop()
        for cpu in tuple(self._events):
            self._remove(cpu)

    def _in_turn(self) -> Iterator[int]:
        """Each CPU's event, one part of the period behind the other.

        A tick stops its CPU for some 20 µs, and holds up who waits for a lock there: ticks of all CPUs at the same
        moment would meet each other's waiting again and again (seen: a tenth of all samples).
        """
        for event in self._events.values():
            yield event
            time.sleep(min(self.period_ns / len(self._events), _APART_NS) / _NS)

    # --- one CPU --------------------------------------------------------------------------------------------------

    def _add_first(self, cpu: int) -> None:
        """Take the event that is kept, or a new one. What refuses just this CPU, of several, leaves it without."""
        try:
            self._add(cpu, os.dup(_kept[cpu]) if cpu in _kept else _open(cpu))
        except OSError as error:
            if not (self._events and error.errno in _OF_ONE_CPU):
                raise

    def _read_or_renew(self, cpu: int) -> _Reading | None:
        """What a CPU's clock counts: a new one if there was none, or a dead one. None where it may not have one."""
        reading = self._read(cpu)
        if reading is None or (self._ticking and reading.counted == self._counted.get(cpu)):
            try:
                self._renew(cpu)
            except OSError:
                return None
            reading = _Reading(0, 0)
        self._counted[cpu] = reading.counted
        return reading

    def _read(self, cpu: int) -> _Reading | None:
        """What its event counts; None where it has none, or one of which the kernel tells nothing any more."""
        if cpu not in self._events:
            return None
        read = os.read(self._events[cpu], _READING.size)
        return _Reading(*_READING.unpack(read)) if read else None

    def _renew(self, cpu: int) -> None:
        """Put a new event in the place of one that is dead, if there was one. Raises OSError."""
        event = _open(cpu)
        self._remove(cpu)
        self._add(cpu, event)
        if self._ticking:
            fcntl.ioctl(event, _ENABLE, 0)

    def _add(self, cpu: int, event: int) -> None:
        self._events[cpu] = event
        try:
            self._have_run(cpu)
            self._set_period(event)
        except OSError:
            self._remove(cpu)
            raise

    def _remove(self, cpu: int) -> None:
        for kept in (self._links, self._events):
            if cpu in kept:
                os.close(kept.pop(cpu))

    def _set_period(self, event: int) -> None:
        fcntl.ioctl(event, _PERIOD, struct.pack("=Q", self.period_ns))

    def _have_run(self, cpu: int) -> None:
        """A link (since 5.15) lets go of the event again. Without it the event is the program's for good."""
        event = self._events[cpu]
        try:
            self._links[cpu] = bpf.command(
                _LINK_CREATE, struct.pack("=IIII48x", self._program, event, _BPF_PERF_EVENT, 0)
            )
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.ioctl(event, _SET_BPF, self._program)
            if cpu in _kept:
                os.close(_kept.pop(cpu))


def _open(cpu: int) -> int:
    """An event of that CPU, switched off, which will tick once a second."""
    attributes = _ATTR.pack(
        _TYPE_SOFTWARE, _ATTR.size, _CPU_CLOCK, _NS, 0, _FORMAT_TOTAL_TIME_ENABLED, _DISABLED, 0, 0, 0
    )
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    where = (_ANY_PROCESS, cpu, _NO_GROUP)
    event = int(_libc.syscall(_PERF_EVENT_OPEN, buffer, *where, _PERF_FLAG_FD_CLOEXEC))
    if event < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"clock of CPU {cpu}")
    return event
