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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


class Clocks:
    """The clocks of all CPUs that run now: silent until they are started.

    A CPU that begins to run later has none: `cpus` are those that have. It needs the right to open events, unless
    `open_clocks` did that.
    """

    def __init__(self, program: int, frequency_hz: int) -> None:
        """Have the program (BPF_PROG_TYPE_PERF_EVENT) run at each tick, so often in a second.

        Raises PermissionMissing, Unsupported, or OSError with the kernel's errno.
        """
        self._events: dict[int, int] = {}
        self._links: list[int] = []
        self.period_ns = 0
        try:
            for cpu in online_cpus():
                self._events[cpu] = os.dup(_kept[cpu]) if cpu in _kept else _open(cpu)
                self._have_run(program, cpu)
            self.set_frequency(frequency_hz)
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

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs that have a clock."""
        return tuple(self._events)

    def set_frequency(self, frequency_hz: int) -> None:
        """Tick so often in a second from now on. Raises OSError."""
        self.period_ns = _NS // frequency_hz
        for event in self._events.values():
            fcntl.ioctl(event, _PERIOD, struct.pack("=Q", self.period_ns))

    def start(self) -> None:
        """Tick. Raises OSError."""
        for event in self._events.values():
            fcntl.ioctl(event, _ENABLE, 0)

    def stop(self) -> None:
        """Tick no more until they are started again. Raises OSError."""
        for event in self._events.values():
            fcntl.ioctl(event, _DISABLE, 0)

    def running_ns(self) -> dict[int, int]:
        """For how long the clock of each CPU has run since it was opened; that of a CPU that is gone is left out."""
        readings = {cpu: os.read(event, _READING.size) for cpu, event in self._events.items()}
        return {cpu: _READING.unpack(reading)[1] for cpu, reading in readings.items() if reading}

    def close(self) -> None:
        """Stop them and let go of the program; a second call does nothing."""
        with suppress(OSError):
            self.stop()
        while self._links:
            os.close(self._links.pop())
        while self._events:
            os.close(self._events.popitem()[1])

    def _have_run(self, program: int, cpu: int) -> None:
        """A link (since 5.15) lets go of the event again. Without it the event is the program's for good."""
        event = self._events[cpu]
        try:
            self._links.append(
                bpf.command(_LINK_CREATE, struct.pack("=IIII48x", program, event, _BPF_PERF_EVENT, 0))
            )
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.ioctl(event, _SET_BPF, program)
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
