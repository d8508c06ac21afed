# SPDX-License-Identifier: Apache-2.0
"""The cpu lens without some of its hooks, and the clocks of CPUs that go offline and come back."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nettop.kernel.bpf import maps, perf_events
from nettop.kernel.bpf.mechanisms import NO_MECHANISM
from nettop.probes.cpu.probe import Cpu
from nettop.probes.cpu.samples import SAMPLED
from nettop.snapshots.snapshot import Snapshot, known
from tests.options import source_options

from . import traffic
from .lab import Lab, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since("5.15", "the lens needs a helper of BPF programs that is new there (bpf_task_pt_regs)"),
]

CPUSETS = Path("/sys/fs/cgroup/cpuset")


@contextlib.contextmanager
def started(**mechanisms: str) -> Iterator[Cpu]:
    """Yield the probe, started with chosen mechanisms."""
    source = Cpu()
    source.configure(source_options(mechanisms=mechanisms))
    try:
        source.start()
        yield source
    finally:
        source.close()


def read(source: Cpu) -> Snapshot:
    """Return the probe's reading now."""
    return source.read(time.monotonic_ns())


# --- what is missing ------------------------------------------------------------------------------------------------


def test_without_samples_times_are_not_available() -> None:
    """Without samples all times but those of /proc/stat are unknown, and no process has a row."""
    with started(samples=NO_MECHANISM) as source:
        snapshot = read(source)
    assert snapshot.why_not("samples") == "disabled by --mechanism"
    assert snapshot.why_not("served") == "there are no samples"
    assert {"network_ns", "rx_softirq_ns", "tx_syscalls_ns", "softirq_ns", "rcu_ns"} <= set(snapshot.missing)
    cpus = snapshot.tables["cpus"].array
    assert not known(cpus["network_ns"]).any() and known(cpus["stat_softirq_ns"]).all()
    assert not len(snapshot.tables["processes"].array)


# --- CPUs that go offline and come back -----------------------------------------------------------------------


@pytest.fixture
def switch() -> Path:
    """Return the file that takes the last CPU offline."""
    cpu = perf_events.online_cpus()[-1]
    switch = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
    if cpu == 0 or not os.access(switch, os.W_OK):
        pytest.skip("there is no CPU that may be taken offline")
    if any(CPUSETS.glob("*/cpuset.cpus")):
        pytest.skip("cgroups of version 1 would not get the CPU back")
    return switch


@contextlib.contextmanager
def offline(switch: Path) -> Iterator[None]:
    """Take the CPU offline inside the `with` block."""
    try:
        switch.write_text("0")
        yield
    finally:
        switch.write_text("1")


def ticks(source: Cpu, cpu: int) -> int:
    """Return how often the clock has ticked on that CPU."""
    assert source._program is not None
    return int(maps.read_per_cpu(source._program.maps["sampled"], 0, SAMPLED)["ticks"][cpu])


def occupy(memory: traffic.Memory, cpu: int) -> None:
    """Keep a CPU busy until the process is killed."""
    os.sched_setaffinity(0, {cpu})
    while True:
        pass


def is_sampled(source: Cpu, cpu: int) -> Callable[[], bool]:
    """Return whether the CPU was sampled since then; readings renew its clock."""
    before = ticks(source, cpu)
    return lambda: read(source).lost["cpus"] == 0 and ticks(source, cpu) > before


@pytest.mark.parametrize("read_meanwhile", [True, False])
def test_a_cpu_that_comes_back_is_sampled_again(
    lab: Lab, switch: Path, read_meanwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new clock samples a CPU that comes back; if nettop may not open one, each CPU without a clock is reported as
    lost.
    """
    cpu = perf_events.online_cpus()[-1]
    with started() as source:
        assert read(source).lost["cpus"] == 0
        with monkeypatch.context() as without_rights, offline(switch):
            without_rights.setattr(perf_events, "_open", refuse)
            if read_meanwhile:
                now = read(source)
                assert cpu not in now.tables["cpus"].array["cpu"]
                assert now.lost["cpus"] == 0
            switch.write_text("1")
            lost = until(lambda: read(source).lost["cpus"], "the CPU without a clock is reported")
            assert [read(source).lost["cpus"] for _ in range(3)] == [lost] * 3 == [1] * 3
        lab.worker().start(occupy, cpu)
        until(is_sampled(source, cpu), "the CPU that came back is sampled")


def refuse(cpu: int) -> Any:
    """Fail as the kernel does for a process that may not open clocks."""
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
