# SPDX-License-Identifier: Apache-2.0
"""Clocks that are opened early, kept, and lent to whoever asks later."""

import errno
import os
import struct
from collections.abc import Callable
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
        self.programs: set[int] = set()
        monkeypatch.setattr(perf_events, "online_cpus", lambda: (0, 2))
        monkeypatch.setattr(perf_events, "_open", self.open)
        monkeypatch.setattr(perf_events.bpf, "command", self.link)
        monkeypatch.setattr(perf_events.fcntl, "ioctl", self.ioctl)

    def open(self, cpu: int) -> int:
        """An event."""
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.opened.append(cpu)
        return os.open("/dev/zero", os.O_RDONLY)

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
