# SPDX-License-Identifier: Apache-2.0
"""Hooks and clocks of the lens `cpu` that go and come back, and what nobody gets unasked."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nettop.kernel import maps, perf_events
from nettop.kernel.mechanisms import NO_MECHANISM
from nettop.probes.cpu.probe import Cpu
from nettop.probes.cpu.samples import SAMPLED
from nettop.snapshots.snapshot import Snapshot

from . import traffic
from .lab import Lab, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since(
        "5.12", "the lens asks for what BPF programs are told since then (bpf_get_current_task_btf)"
    ),
]

BY_HOOKS = ["fexit", "kretprobe", "raw_syscalls"]
MESSAGES = 2000
AWAY_NS = 50_000_000
CALLS = ("tx_syscalls_ns", "rx_syscalls_ns", "io_workers_ns")
CPUSETS = Path("/sys/fs/cgroup/cpuset")


@contextlib.contextmanager
def started(**mechanisms: str) -> Iterator[Cpu]:
    """The probe at work by these ways."""
    source = Cpu()
    source.set("mechanisms", mechanisms)
    try:
        source.start()
        yield source
    finally:
        source.close()


@pytest.fixture(params=BY_HOOKS)
def source(request: pytest.FixtureRequest) -> Iterator[Cpu]:
    """The probe with hooks at system calls, where this kernel has that way."""
    with started(syscalls=request.param) as source:
        why = read(source).why_not("syscalls")
        if why is not None:
            pytest.skip(why)
        yield source


def read(source: Cpu) -> Snapshot:
    """The probe's reading now."""
    return source.read(time.monotonic_ns())


# --- hooks that are left out for --max-overhead -------------------------------------------------------------------


# --- what is taken only when it is asked for ----------------------------------------------------------------------


def test_raw_syscalls_is_taken_by_nobody_who_does_not_ask_for_it() -> None:
    """Where there are no samples there is no time of system calls rather than slow ones, and it says why."""
    with started(samples=NO_MECHANISM) as source:
        hook = read(source).hook("syscalls")
        names = source.programs()
    assert hook is not None
    assert hook.mechanism in {None, "fexit", "kretprobe"}
    assert hook.mechanism or "--mechanism syscalls=raw_syscalls" in dict(hook.refused)["raw_syscalls"]
    assert not {name for name in names if "sys_enter" in name or "sys_exit" in name}


def test_a_sum_without_its_parts_says_so() -> None:
    """The network's time without that of system calls is not the network's time."""
    with started(syscalls=NO_MECHANISM) as source:
        assert (
            read(source).gaps["network"].startswith("summed up without TX syscalls, RX syscalls, I/O workers")
        )
    with started() as source:
        snapshot = read(source)
    assert "network" not in snapshot.gaps or None in {hook.mechanism for hook in snapshot.hooks}


# --- CPUs that go and come back -------------------------------------------------------------------------------------


@pytest.fixture
def switch() -> Path:
    """What turns off the last CPU."""
    cpu = perf_events.online_cpus()[-1]
    switch = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
    if cpu == 0 or not os.access(switch, os.W_OK):
        pytest.skip("there is no CPU that may be turned off")
    if any(CPUSETS.glob("*/cpuset.cpus")):
        pytest.skip("cgroups of version 1 would not get the CPU back")
    return switch


@contextlib.contextmanager
def turned_off(switch: Path) -> Iterator[None]:
    """The CPU does not run meanwhile."""
    try:
        switch.write_text("0")
        yield
    finally:
        switch.write_text("1")


def ticks(source: Cpu, cpu: int) -> int:
    """How often the clock has met that CPU."""
    assert source._program is not None
    return int(maps.read_per_cpu(source._program.maps["sampled"], 0, SAMPLED)["ticks"][cpu])


def occupy(memory: traffic.Memory, cpu: int) -> None:
    """Keeps a CPU from idling until the process is ended."""
    os.sched_setaffinity(0, {cpu})
    while True:
        pass


def is_looked_at(source: Cpu, cpu: int) -> Callable[[], bool]:
    """Whether the CPU was met since, by what readings do for that."""
    before = ticks(source, cpu)
    return lambda: read(source).lost["cpus"] == 0 and ticks(source, cpu) > before


@pytest.mark.parametrize("looked_at_meanwhile", [True, False])
def test_a_cpu_that_comes_back_is_looked_at_again(
    lab: Lab, switch: Path, looked_at_meanwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a new clock; whoever may not open one any more is told of each CPU that nobody looks at."""
    cpu = perf_events.online_cpus()[-1]
    with started(syscalls=NO_MECHANISM) as source:
        assert read(source).lost["cpus"] == 0
        with monkeypatch.context() as without_rights, turned_off(switch):
            without_rights.setattr(perf_events, "_open", refuse)
            if looked_at_meanwhile:
                now = read(source)
                assert cpu not in now.tables["cpus"].array["cpu"]
                assert now.lost["cpus"] == 0
            switch.write_text("1")
            told = until(lambda: read(source).lost["cpus"], "the CPU without a clock is told")
            assert [read(source).lost["cpus"] for _ in range(3)] == [told] * 3 == [1] * 3
        lab.worker().start(occupy, cpu)
        until(is_looked_at(source, cpu), "the CPU that came back is looked at")


def refuse(cpu: int) -> Any:
    """Stands for the kernel, to who gave up the right to open clocks."""
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
