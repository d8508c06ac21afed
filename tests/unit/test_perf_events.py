# SPDX-License-Identifier: Apache-2.0
"""Clocks that are opened early, kept, and lent to whoever asks later; and those of CPUs that come and go."""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nettop.errors import PermissionMissing, Unsupported
from nettop.kernel import perf_events
from nettop.kernel.perf_events import Clocks, online_cpus, open_clocks

PROGRAM = 77


class Kernel:
    """Stands for the kernel: events are files, and what is asked of them is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, int, object]] = []
        self.opened: list[int] = []
        self.refusal: int | None = None
        self.has_links = True
        self.online = [0, 2]
        self.running: dict[int, int] = {}
        self.counted: dict[int, int] = {}
        self._cpus: dict[int, int] = {}
        self._real_read = os.read
        monkeypatch.setattr(perf_events, "online_cpus", lambda: tuple(self.online))
        monkeypatch.setattr(perf_events.os, "read", self.read)
        monkeypatch.setattr(perf_events, "_open", self.open)
        monkeypatch.setattr(perf_events.bpf, "command", self.link)
        monkeypatch.setattr(perf_events.fcntl, "ioctl", self.ioctl)

    def open(self, cpu: int) -> int:
        """An event."""
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.opened.append(cpu)
        event = os.open("/dev/zero", os.O_RDONLY)
        self._cpus[event], self.running[event], self.counted[event] = cpu, 0, 0
        return event

    def read(self, event: int, size: int) -> bytes:
        """What an event counts; of what is none of them, what is there."""
        if event not in self._cpus:
            return self._real_read(event, size)
        return struct.pack("=QQ", self.counted[event], self.running[event])

    def pass_time(self) -> None:
        """Clocks that live count."""
        for event, cpu in self._cpus.items():
            if cpu in self.online:
                self.running[event] += 10
                self.counted[event] += 9

    def take_off(self, cpu: int) -> None:
        """The CPU goes, and with it whatever it ran."""
        self.online.remove(cpu)
        self._cpus = {event: of if of != cpu else -1 for event, of in self._cpus.items()}

    def link(self, number: int, attributes: bytes) -> int:
        """A link of a program to an event, on kernels that have such."""
        if not self.has_links:
            raise OSError(errno.EINVAL, "no links")
        assert struct.unpack_from("=I", attributes)[0] == PROGRAM
        return os.open("/dev/null", os.O_RDONLY)

    def ioctl(self, event: int, request: int, value: object) -> int:
        """What is asked of an event."""
        os.fstat(event)  # it is open
        self.asked.append((event, request, value))
        return 0

    def requests(self) -> list[int]:
        """What was asked so far."""
        return [request for _, request, _ in self.asked]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Two CPUs, 0 and 2."""
    return Kernel(monkeypatch)


@pytest.fixture
def descriptors() -> Callable[[], set[str]]:
    """The descriptors that are open."""
    return lambda: set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", (0,)), ("0-3\n", (0, 1, 2, 3)), ("0-1,4,6-7\n", (0, 1, 4, 6, 7))]
)
def test_cpus_that_run(tmp_path: Path, text: str, cpus: tuple[int, ...]) -> None:
    """As the kernel writes ranges."""
    folder = tmp_path / "sys/devices/system/cpu"
    folder.mkdir(parents=True)
    (folder / "online").write_text(text)
    assert online_cpus(tmp_path) == cpus


def test_each_cpu_has_a_clock(kernel: Kernel, descriptors: Callable[[], set[str]]) -> None:
    """It ticks from the start to the stop, as often as asked; closing leaves nothing, twice too."""
    before = descriptors()
    clocks = Clocks(PROGRAM, 100)
    assert clocks.cpus == (0, 2) and clocks.period_ns == 10_000_000
    assert perf_events._ENABLE not in kernel.requests()
    clocks.start()
    clocks.set_frequency(1000)
    clocks.stop()
    assert kernel.requests() == [
        *2 * [perf_events._PERIOD],
        *2 * [perf_events._ENABLE],
        *2 * [perf_events._PERIOD],
        *2 * [perf_events._DISABLE],
    ]
    assert kernel.asked[-3][2] == struct.pack("=Q", 1_000_000)
    clocks.close()
    clocks.close()
    assert descriptors() == before


def test_clocks_that_are_kept_are_lent_again_and_again(
    kernel: Kernel, descriptors: Callable[[], set[str]]
) -> None:
    """Nothing is opened for them, and at the end all are closed."""
    before = descriptors()
    with open_clocks():
        kernel.refusal = errno.EACCES
        for _ in range(2):
            Clocks(PROGRAM, 100).close()
        assert kernel.opened == [0, 2]
    assert descriptors() == before
    with pytest.raises(PermissionMissing):
        Clocks(PROGRAM, 100)


def test_without_links_a_kept_clock_serves_once(kernel: Kernel, descriptors: Callable[[], set[str]]) -> None:
    """Such kernels bind a program to an event for good."""
    before = descriptors()
    kernel.has_links = False
    with open_clocks():
        first = Clocks(PROGRAM, 100)
        assert kernel.requests().count(perf_events._SET_BPF) == 2
        first.close()
        assert descriptors() == before
        Clocks(PROGRAM, 100).close()
        assert kernel.opened == [0, 2, 0, 2]
    assert descriptors() == before


def look(clocks: Clocks, kernel: Kernel) -> dict[int, int]:
    """What the clocks tell a while later."""
    kernel.pass_time()
    return clocks.running_ns()


@pytest.fixture
def ticking(kernel: Kernel, descriptors: Callable[[], set[str]]) -> Iterator[Clocks]:
    """Clocks of both CPUs that were looked at; at the end they leave nothing."""
    before = descriptors()
    clocks = Clocks(PROGRAM, 100)
    clocks.start()
    assert look(clocks, kernel) == {0: 10, 2: 10}
    kernel.asked.clear()
    yield clocks
    clocks.close()
    assert descriptors() == before


@pytest.mark.parametrize("looked_at_meanwhile", [True, False])
def test_a_cpu_that_comes_back_has_a_new_clock(
    kernel: Kernel, ticking: Clocks, looked_at_meanwhile: bool
) -> None:
    """It ticks as the others do, whether or not anybody saw that the CPU was gone."""
    kernel.take_off(2)
    if looked_at_meanwhile:
        assert look(ticking, kernel) == {0: 20} and ticking.cpus == (0,)
    kernel.online.append(2)
    assert look(ticking, kernel)[2] == 0
    assert kernel.requests() == [perf_events._PERIOD, perf_events._ENABLE]
    assert look(ticking, kernel)[2] == 10
    assert ticking.cpus == (0, 2) and kernel.opened == [0, 2, 2]


def test_a_cpu_that_is_added_has_a_clock(kernel: Kernel, ticking: Clocks) -> None:
    """From the next look on."""
    kernel.online.append(3)
    assert look(ticking, kernel) == {0: 20, 2: 20, 3: 0}
    assert look(ticking, kernel) == {0: 30, 2: 30, 3: 10}
    assert ticking.cpus == (0, 2, 3)


def test_a_cpu_that_comes_back_too_late_has_none(kernel: Kernel, ticking: Clocks) -> None:
    """Without the right to open one it is told at every look that the CPU has none; with it again it has."""
    kernel.take_off(2)
    kernel.online.append(2)
    kernel.refusal = errno.EACCES
    for _ in range(3):
        assert 2 not in look(ticking, kernel)
        assert ticking.cpus == (0,)
    kernel.refusal = None
    assert look(ticking, kernel)[2] == 0
    assert ticking.cpus == (0, 2)


def test_what_is_silent_is_not_dead(kernel: Kernel, ticking: Clocks) -> None:
    """Clocks that were stopped count nothing: which of them are dead shows when they are started again."""
    ticking.stop()
    kernel.take_off(2)
    kernel.online.append(2)
    assert ticking.running_ns() == ticking.running_ns() == {0: 10, 2: 10}
    assert kernel.opened == [0, 2]
    ticking.start()
    assert look(ticking, kernel) == {0: 20, 2: 0}
    assert kernel.opened == [0, 2, 2]


def test_a_cpu_that_came_after_the_kept_clocks_takes_none_from_the_others(kernel: Kernel) -> None:
    """When the right to open more was given up meanwhile."""
    with open_clocks():
        kernel.online.append(3)
        kernel.refusal = errno.EACCES
        clocks = Clocks(PROGRAM, 100)
        assert clocks.cpus == (0, 2)
        clocks.close()


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EACCES, PermissionMissing), (errno.EPERM, PermissionMissing), (errno.ENOSYS, Unsupported)],
)
def test_a_refusal_is_told(
    kernel: Kernel, descriptors: Callable[[], set[str]], number: int, error: type[Exception]
) -> None:
    """Opening early goes on without, for nobody may ever want them."""
    before = descriptors()
    kernel.refusal = number
    with open_clocks(), pytest.raises(error):
        Clocks(PROGRAM, 100)
    assert descriptors() == before
