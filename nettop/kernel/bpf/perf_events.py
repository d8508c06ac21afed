# SPDX-License-Identifier: Apache-2.0
"""A clock on each CPU that runs a BPF program: perf's software event cpu-clock (perf_event_open(2)).

It is a kernel timer (kernel/events/core.c, perf_swevent_hrtimer): it ticks in user mode, in the kernel, in softirqs,
and on idle CPUs, which handle packets in the idle task. While interrupts are disabled, one tick is delayed and further
ones are lost.
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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nettop.errors import PermissionMissing, Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host
from nettop.kernel.host.privileges import CAP_PERFMON, CAP_SYS_ADMIN, how_to_get
from nettop.kernel.host.proc_files import read_required, read_text

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
"""An event's count, and the time it was enabled, in ns."""
_PARANOID_MAX = 2
"""Highest kernel.perf_event_paranoid of mainline Linux; Debian and Ubuntu added 3 and 4."""
_NS = 1_000_000_000
_STAGGER_NS = 1_000_000
"""Interval at which the ticks of two CPUs do not affect each other."""
_CPU_ERRORS = {errno.ENODEV, errno.EACCES, errno.EPERM}
"""Errors that concern one CPU: it went offline, or came online after nettop dropped the privilege to open clocks."""
_libc = ctypes.CDLL(None, use_errno=True)


def online_cpus(root: Path = Path("/")) -> tuple[int, ...]:
    """Return the online CPUs in ascending order. Raise Unsupported if /sys does not show them."""
    ranges = read_required("/sys/devices/system/cpu/online", root)  # such as 0-2,5
    ends = (part.partition("-") for part in ranges.strip().split(","))
    return tuple(cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1))


@contextmanager
def open_clocks() -> Iterator[dict[int, int]]:
    """Open the events now, by CPU, for Clocks created inside this context.

    Opening needs CAP_PERFMON, or CAP_SYS_ADMIN if the sysctl kernel.perf_event_paranoid is 3 (Debian); using an open
    event needs nothing. Errors are ignored here: Clocks will raise them.
    """
    opened: dict[int, int] = {}
    with suppress(Unsupported):
        for cpu in online_cpus():
            with suppress(OSError):
                opened[cpu] = _open(cpu)
    try:
        yield opened
    finally:
        while opened:
            os.close(opened.popitem()[1])


class Clocks:
    """The clocks of all online CPUs. They do not tick until started.

    Needs Linux 5.15, and the privilege to open events unless they were `opened` by `open_clocks`. The clock of a CPU
    that goes offline is dead; a CPU that comes back or is added gets a new one if nettop still has that privilege.
    `cpus` are the CPUs that had a clock at the last call of `running_ns`.
    """

    def __init__(self, program: int, rate_hz: int, opened: dict[int, int] | None = None) -> None:
        """Run the program (BPF_PROG_TYPE_PERF_EVENT) at each tick, `rate_hz` times a second.

        Raises the errors of `why_refused`.
        """
        self._program = program
        self._opened = {} if opened is None else opened
        self._events: dict[int, int] = {}
        self._held: dict[int, ExitStack] = {}
        """What closes the event and the link of a CPU."""
        self._counted: dict[int, int] = {}
        """Each event's count at the last read: a clock that should tick but does not count is dead."""
        self._ticking = False
        self._period_ns = _NS // rate_hz
        for cpu in online_cpus():
            try:
                self._add(cpu, os.dup(self._opened[cpu]) if cpu in self._opened else _open(cpu))
            except OSError as error:
                if self._events and error.errno in _CPU_ERRORS:
                    continue  # a single CPU that fails has no clock
                self.close()
                raise why_refused(error) from error
        self.cpus = tuple(self._events)

    def start(self) -> None:
        """Start ticking. Raise OSError."""
        self._ticking = True
        for event in self._events.values():
            fcntl.ioctl(event, _ENABLE, 0)
            # A tick delays its CPU, and CPUs that wait for its locks, by some 20 µs. If all CPUs ticked at the same
            # time, they would keep sampling that wait (seen: a tenth of all samples).
            time.sleep(min(self._period_ns / len(self._events), _STAGGER_NS) / _NS)

    def stop(self) -> None:
        """Stop ticking until restarted; running programs have finished on return. Raise OSError."""
        self._ticking = False
        for event in self._events.values():
            fcntl.ioctl(event, _DISABLE, 0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause ticking inside this context, so that no program runs. Raise OSError."""
        was_ticking = self._ticking
        self.stop()
        try:
            yield
        finally:
            if was_ticking:
                self.start()

    def running_ns(self) -> dict[int, int]:
        """Return the running time of each online CPU's clock since it was opened, in ns.

        Opens clocks for CPUs that came online since the last call. Raise OSError.
        """
        running: dict[int, int] = {}
        for cpu in online_cpus():
            with suppress(OSError):  # nettop may no longer open clocks
                running[cpu] = self._read_or_renew(cpu)
        self.cpus = tuple(running)
        return running

    def close(self) -> None:
        """Stop the clocks and release the program; a second call is a no-op."""
        with suppress(OSError):
            self.stop()
        for cpu in tuple(self._events):
            self._remove(cpu)

    # --- one CPU --------------------------------------------------------------------------------------------------

    def _read_or_renew(self, cpu: int) -> int:
        """Return the running time of a CPU's clock; open a new clock if there is none or it is dead. Raise OSError."""
        # A dead clock may return nothing.
        read = os.read(self._events[cpu], _READING.size) if cpu in self._events else b""
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
        with ExitStack() as opened:
            opened.callback(os.close, event)
            opened.callback(os.close, bpf.link(self._program, bpf.PERF_EVENT, event))
            fcntl.ioctl(event, _PERIOD, struct.pack("=Q", self._period_ns))
            self._events[cpu], self._held[cpu] = event, opened.pop_all()

    def _remove(self, cpu: int) -> None:
        if self._events.pop(cpu, None) is not None:
            self._held.pop(cpu).close()


def open_event(attributes: bytes, cpu: int, what: str) -> int:
    """Open an event for any process on a CPU, given its struct perf_event_attr. Raise OSError that names `what`."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    where = (_ANY_PROCESS, cpu, _NO_GROUP)
    event = int(_libc.syscall(_PERF_EVENT_OPEN, buffer, *where, _PERF_FLAG_FD_CLOEXEC))
    if event < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return event


def require_perf_events() -> None:
    """Raise the error of `why_refused` if this thread may not open a clock."""
    cpu = online_cpus()[0]
    try:
        os.close(_open(cpu))
    except OSError as error:
        raise why_refused(error) from error


def why_refused(error: OSError, host: Host | None = None) -> Exception:
    """Return PermissionMissing or Unsupported for an event that could not be opened; other errors unchanged."""
    host = host or Host()
    if blocked := _errno_before_kernel():
        return host.blocked_call("perf_event_open", blocked)
    if error.errno in (errno.ENOENT, errno.ENOSYS):
        return Unsupported("this kernel has no perf events", "use a kernel with CONFIG_PERF_EVENTS")
    if not isinstance(error, PermissionError):
        return error
    held = privileges.effective()
    paranoid = read_text(host.proc / "sys/kernel/perf_event_paranoid").strip() or "unknown"
    if CAP_SYS_ADMIN not in held and CAP_PERFMON not in held:
        return PermissionMissing(
            f"opening perf events needs CAP_PERFMON (kernel.perf_event_paranoid: {paranoid})",
            how_to_get([CAP_PERFMON], privileges.held()),
        )
    # If /proc hides the setting, it is the only cause left.
    if CAP_SYS_ADMIN not in held and not (paranoid.isdecimal() and int(paranoid) <= _PARANOID_MAX):
        return PermissionMissing(
            f"kernel.perf_event_paranoid is {paranoid}: above {_PARANOID_MAX}, opening perf events needs CAP_SYS_ADMIN",
            f"sysctl kernel.perf_event_paranoid={_PARANOID_MAX}; or {how_to_get([CAP_SYS_ADMIN], privileges.held())}",
        )
    return PermissionMissing(
        f"the kernel refuses perf events ({error.strerror}), likely by a security module",
        "allow perf_event in its policy; it logs what it denies: dmesg, or /var/log/audit/audit.log",
    )


def _errno_before_kernel() -> int:
    """Return the errno if opening fails before the kernel checks the arguments, as under a seccomp filter; else 0.

    The kernel rejects unknown flags before anything else, for any caller.
    """
    _libc.syscall(_PERF_EVENT_OPEN, None, *(_ANY_PROCESS, 0, _NO_GROUP), _UNKNOWN_FLAGS)
    number = ctypes.get_errno()
    return 0 if number == errno.EINVAL else number


def _open(cpu: int) -> int:
    """Open a disabled event on a CPU, with a period of one second."""
    attributes = _ATTR.pack(
        _TYPE_SOFTWARE, _ATTR.size, _CPU_CLOCK, _NS, 0, _FORMAT_TOTAL_TIME_ENABLED, _DISABLED, 0, 0, 0
    )
    return open_event(attributes, cpu, f"clock of CPU {cpu}")
