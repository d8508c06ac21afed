# SPDX-License-Identifier: Apache-2.0
"""Hooks and clocks of the lens `cpu` that go and come back, and what nobody gets unasked."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nettop.kernel import maps, perf_events
from nettop.kernel.mechanisms import NO_MECHANISM
from nettop.probes.cpu.probe import Cpu
from nettop.probes.cpu.samples import SAMPLED
from nettop.snapshots.own_cost import LEFT_OUT
from nettop.snapshots.snapshot import Snapshot
from tests.unit.test_pace import Play

from . import traffic
from .lab import Lab, Worker, process_state, until

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


def spent(source: Cpu, pid: int) -> dict[str, int]:
    """What a process has been charged for its calls; nothing where it has no row."""
    rows = read(source).tables["processes"].array
    mine = rows[rows["pid"] == pid]
    return {name: int(mine[name].sum()) for name in CALLS}


# --- hooks that are left out for --max-overhead -------------------------------------------------------------------


def send(memory: traffic.Memory, to: tuple[str, int]) -> int:
    """Sends messages; returns the CPU time that the process took for that, in ns."""
    began = time.process_time_ns()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(MESSAGES):
            sender.sendto(b"n", to)
    return time.process_time_ns() - began


def receive(memory: traffic.Memory, name: str) -> int:
    """Waits for a message; returns how long it is."""
    return len(memory[name].recv(100))


def spin(memory: traffic.Memory) -> int:
    """Takes CPU time without a call on a socket; returns how much."""
    began = time.process_time_ns()
    while (took := time.process_time_ns() - began) < AWAY_NS:
        pass
    return took


def leave_out(play: Play) -> None:
    """The programs are too dear until there is nothing left to be left out."""
    play.turns(4, own=0.001, cpu=0.5)


def take_back(play: Play) -> None:
    """They are cheap until all is back."""
    play.turns(400, own=0.001)


@pytest.fixture
def play(source: Cpu) -> Play:
    """--max-overhead over this source: what it costs is the test's to say."""
    play = Play()
    play.sources = {"cpu": source}
    return play


def test_calls_that_are_left_out_are_charged_to_nobody(source: Cpu, play: Play, lab: Lab) -> None:
    """What is sent meanwhile is in no time, what is sent before and after is, and nothing is in it twice."""
    worker = lab.worker()
    to = ("127.0.0.1", worker.call(traffic.udp, "full", "127.0.0.1"))
    whole = read(source)
    used = worker.call(send, to)
    before = spent(source, worker.pid)
    assert 0 < before["tx_syscalls_ns"] <= used
    leave_out(play)
    assert {LEFT_OUT in read(source).via[point] for point in ("samples", "served", "syscalls")} == {True}
    worker.call(send, to)
    assert spent(source, worker.pid) == before
    take_back(play)
    assert str(play.pace.restraint) == ""
    assert read(source).via == whole.via
    assert spent(source, worker.pid) == before
    used = worker.call(send, to)
    after = spent(source, worker.pid)
    assert 0 < after["tx_syscalls_ns"] - before["tx_syscalls_ns"] <= used


@pytest.mark.parametrize("comes_meanwhile", [True, False])
def test_waiting_while_calls_are_left_out_is_charged_to_nobody(
    source: Cpu, play: Play, lab: Lab, comes_meanwhile: bool
) -> None:
    """A call that began before is forgotten: neither what it waited nor what its thread does later is its time."""
    worker = lab.worker()
    port = worker.call(traffic.udp, "waits", "127.0.0.1")
    worker.start(receive, "waits")
    until(lambda: process_state(worker.pid) == "S", "the worker waits")
    leave_out(play)
    before = spent(source, worker.pid)
    if comes_meanwhile:
        answer(worker, port)
    take_back(play)
    if not comes_meanwhile:
        answer(worker, port)
    assert worker.call(spin) >= AWAY_NS
    assert spent(source, worker.pid) == before


def answer(worker: Worker, port: int) -> None:
    """Ends the wait, and waits for the next order."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"n", ("127.0.0.1", port))
    assert worker.result() == 1
    until(lambda: process_state(worker.pid) == "S", "the worker waits for orders")


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
