# SPDX-License-Identifier: Apache-2.0
"""Clocks that are opened early for later use, and clocks of CPUs that go offline and come back."""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nettop.errors import PermissionMissing, Unsupported
from nettop.kernel.bpf import perf_events
from nettop.kernel.bpf.perf_events import Clocks, online_cpus, open_clocks

PROGRAM = 77


class Kernel:
    """A fake kernel: events are files, and requests to them are recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ioctls: list[tuple[int, int, object]] = []
        self.opened: list[int] = []
        self.refusal: int | None = None
        self.online = [0, 2]
        self.running: dict[int, int] = {}
        self.counted: dict[int, int] = {}
        self._cpus: dict[int, int] = {}
        self._real_read = os.read
        monkeypatch.setattr(perf_events, "online_cpus", lambda: tuple(self.online))
        monkeypatch.setattr(perf_events.os, "read", self.read)
        monkeypatch.setattr(perf_events, "_open", self.open)
        monkeypatch.setattr(perf_events.bpf, "link", self.link)
        monkeypatch.setattr(perf_events.fcntl, "ioctl", self.ioctl)

    def open(self, cpu: int) -> int:
        """Return an event."""
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.opened.append(cpu)
        event = os.open("/dev/zero", os.O_RDONLY)
        self._cpus[event], self.running[event], self.counted[event] = cpu, 0, 0
        return event

    def read(self, event: int, size: int) -> bytes:
        """Return the values of an event; other files are really read."""
        if event not in self._cpus:
            return self._real_read(event, size)
        return struct.pack("=QQ", self.counted[event], self.running[event])

    def pass_time(self) -> None:
        """Advance the clocks of online CPUs."""
        for event, cpu in self._cpus.items():
            if cpu in self.online:
                self.running[event] += 10
                self.counted[event] += 9

    def take_offline(self, cpu: int) -> None:
        """Take the CPU offline, which kills its events."""
        self.online.remove(cpu)
        self._cpus = {event: number if number != cpu else -1 for event, number in self._cpus.items()}

    def link(self, program: int, attach_type: int, event: int) -> int:
        """Return a link of a program to an event."""
        assert (program, attach_type) == (PROGRAM, perf_events.bpf.PERF_EVENT)
        os.fstat(event)  # raises if it is closed
        return os.open("/dev/null", os.O_RDONLY)

    def ioctl(self, event: int, request: int, value: object) -> int:
        """Record a request to an event."""
        os.fstat(event)  # raises if it is closed
        self.ioctls.append((event, request, value))
        return 0

    def requests(self) -> list[int]:
        """Return the requests so far."""
        return [request for _, request, _ in self.ioctls]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Return two CPUs, 0 and 2."""
    return Kernel(monkeypatch)


@pytest.fixture
def descriptors() -> Callable[[], set[str]]:
    """Return the open descriptors."""
    return lambda: set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", (0,)), ("0-3\n", (0, 1, 2, 3)), ("0-1,4,6-7\n", (0, 1, 4, 6, 7))]
)
def test_online_cpus(tmp_path: Path, text: str, cpus: tuple[int, ...]) -> None:
    """Parse the kernel's notation of ranges."""
    folder = tmp_path / "sys/devices/system/cpu"
    folder.mkdir(parents=True)
    (folder / "online").write_text(text)
    assert online_cpus(tmp_path) == cpus


def test_each_cpu_has_a_clock(kernel: Kernel, descriptors: Callable[[], set[str]]) -> None:
    """A clock ticks with its period between start and stop; closing it, even twice, leaves nothing."""
    before = descriptors()
    clocks = Clocks(PROGRAM, 100)
    assert clocks.cpus == (0, 2)
    assert {value for _, _, value in kernel.ioctls} == {struct.pack("=Q", 10_000_000)}
    assert perf_events._ENABLE not in kernel.requests()
    clocks.start()
    clocks.stop()
    assert kernel.requests() == [
        *2 * [perf_events._PERIOD],
        *2 * [perf_events._ENABLE],
        *2 * [perf_events._DISABLE],
    ]
    clocks.close()
    clocks.close()
    assert descriptors() == before


def test_clocks_that_were_opened_early_can_be_used_repeatedly(
    kernel: Kernel, descriptors: Callable[[], set[str]]
) -> None:
    """Early events are used without opening new ones, and all are closed at the end."""
    before = descriptors()
    with open_clocks() as opened:
        kernel.refusal = errno.EACCES
        for _ in range(2):
            Clocks(PROGRAM, 100, opened).close()
        assert kernel.opened == [0, 2]
    assert descriptors() == before
    with pytest.raises(PermissionMissing):
        Clocks(PROGRAM, 100)


def read_later(clocks: Clocks, kernel: Kernel) -> dict[int, int]:
    """Wait a little and return how long the clocks have run."""
    kernel.pass_time()
    return clocks.running_ns()


@pytest.fixture
def ticking(kernel: Kernel, descriptors: Callable[[], set[str]]) -> Iterator[Clocks]:
    """Yield ticking clocks of both CPUs, read once; assert that they leave nothing."""
    before = descriptors()
    clocks = Clocks(PROGRAM, 100)
    clocks.start()
    assert read_later(clocks, kernel) == {0: 10, 2: 10}
    kernel.ioctls.clear()
    yield clocks
    clocks.close()
    assert descriptors() == before


@pytest.mark.parametrize("read_meanwhile", [True, False])
def test_a_cpu_that_comes_back_or_is_added_has_a_new_clock(
    kernel: Kernel, ticking: Clocks, read_meanwhile: bool
) -> None:
    """A new clock ticks like the others, even if no clock was read meanwhile."""
    kernel.take_offline(2)
    if read_meanwhile:
        assert read_later(ticking, kernel) == {0: 20} and ticking.cpus == (0,)
    kernel.online += [2, 3]
    assert read_later(ticking, kernel).items() >= {2: 0, 3: 0}.items()
    assert kernel.requests() == [perf_events._PERIOD, perf_events._ENABLE] * 2
    assert read_later(ticking, kernel).items() >= {2: 10, 3: 10}.items()
    assert ticking.cpus == (0, 2, 3) and kernel.opened == [0, 2, 2, 3]


def test_a_cpu_that_comes_back_too_late_has_none(kernel: Kernel, ticking: Clocks) -> None:
    """Without the right to open a clock, every reading omits the CPU; with the right it has a clock again."""
    kernel.take_offline(2)
    kernel.online.append(2)
    kernel.refusal = errno.EACCES
    for _ in range(3):
        assert 2 not in read_later(ticking, kernel)
        assert ticking.cpus == (0,)
    kernel.refusal = None
    assert read_later(ticking, kernel)[2] == 0
    assert ticking.cpus == (0, 2)


def test_a_stopped_clock_is_not_taken_for_dead(kernel: Kernel, ticking: Clocks) -> None:
    """Stopped clocks do not count: which of them are dead shows once they are started again."""
    ticking.stop()
    kernel.take_offline(2)
    kernel.online.append(2)
    assert ticking.running_ns() == ticking.running_ns() == {0: 10, 2: 10}
    assert kernel.opened == [0, 2]
    ticking.start()
    assert read_later(ticking, kernel) == {0: 20, 2: 0}
    assert kernel.opened == [0, 2, 2]


def test_a_pause_starts_clocks_again_that_were_ticking(kernel: Kernel, ticking: Clocks) -> None:
    """After a pause the clocks tick again; a pause within a pause starts nothing."""
    with ticking.paused():
        with ticking.paused():
            pass
        assert perf_events._ENABLE not in kernel.requests()
    assert kernel.requests()[-2:] == 2 * [perf_events._ENABLE]


def test_a_cpu_that_came_after_the_early_clocks_does_not_affect_others(kernel: Kernel) -> None:
    """A CPU that came after the early clocks has none if the right to open more was given up."""
    with open_clocks() as opened:
        kernel.online.append(3)
        kernel.refusal = errno.EACCES
        clocks = Clocks(PROGRAM, 100, opened)
        assert clocks.cpus == (0, 2)
        clocks.close()


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EACCES, PermissionMissing), (errno.EPERM, PermissionMissing), (errno.ENOSYS, Unsupported)],
)
def test_a_refusal_is_raised(
    kernel: Kernel, descriptors: Callable[[], set[str]], number: int, error: type[Exception]
) -> None:
    """Clocks raise the refusal; opening early ignores it, as the clocks may never be needed."""
    before = descriptors()
    kernel.refusal = number
    with open_clocks() as opened, pytest.raises(error):
        Clocks(PROGRAM, 100, opened)
    assert descriptors() == before
