# SPDX-License-Identifier: Apache-2.0
"""Softirqs are charged to the process that owns the socket, or to no process."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from nettop.kernel.bpf.mechanisms import NO_MECHANISM
from nettop.probes.cpu.probe import Cpu
from nettop.snapshots.cpu import NAPI_THREADS, PROCESSES, RX_SOFTIRQ, TIME_OF, TX_SOFTIRQ
from nettop.snapshots.snapshot import Snapshot, unknown_value
from tests.options import source_options

from . import traffic
from .lab import Lab, until
from .test_cpu import process_row, read, rows
from .test_cpu_categories import (
    DATA_READY,
    DEADLINE_S,
    FREQUENCY_HZ,
    Scene,
    bridged,
    directly,
    flood,
    receive,
    routed,
)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since("5.15", "the lens needs a helper of BPF programs that is new there (bpf_task_pt_regs)"),
]

ENOUGH_NS = 200 * 1_000_000_000 // FREQUENCY_HZ
"""The time that 200 samples stand for."""
NO_PID = unknown_value(PROCESSES.dtype["pid"])
"""The PID of the row `(no process)`."""
SOFTIRQ_WORK = [TIME_OF[entry] for entry in (TX_SOFTIRQ, RX_SOFTIRQ, NAPI_THREADS)]


@pytest.fixture(scope="module")
def source() -> Iterator[Cpu]:
    """Yield one probe for all tests: compiling takes half a minute in an emulated machine."""
    with started() as made:
        yield made


@contextlib.contextmanager
def started(**mechanisms: str) -> Iterator[Cpu]:
    """Yield the probe, started with chosen mechanisms."""
    with contextlib.closing(Cpu()) as made:
        made.configure(source_options(mechanisms=mechanisms, frequency=FREQUENCY_HZ))
        made.start()
        yield made


def spent_ns(source: Cpu, pid: int) -> int:
    """Return softirq time charged to a process, or to none (NO_PID)."""
    return int(sum(row["softirq_ns"] for row in rows(read(source), "processes") if row["pid"] == pid))


def grows(spent: Callable[[], int]) -> Callable[[], bool]:
    """Return whether enough time has passed since now for samples to show it."""
    enough = spent() + ENOUGH_NS
    return lambda: spent() >= enough


@pytest.mark.parametrize("scene", [routed, bridged])
def test_forwarding_is_charged_to_no_process(lab: Lab, source: Cpu, scene: Scene) -> None:
    """Neither the sender nor the owner of an idle socket is charged softirq time."""
    left, right, address = scene(lab)
    idle, sender = lab.worker(right), lab.worker(left)
    idle.call(traffic.udp, "idle", address)
    sender.start(flood, address)
    until(grows(lambda: spent_ns(source, NO_PID)), "softirqs that serve no process", DEADLINE_S)
    assert process_row(source, sender.pid)["tx_syscalls_ns"] > 0
    assert spent_ns(source, sender.pid) == 0
    assert idle.pid not in {row["pid"] for row in rows(read(source), "processes")}


@DATA_READY
def test_receiving_is_charged_to_the_receiver(lab: Lab, source: Cpu) -> None:
    """Receiving is charged to the receiver, not to the sender."""
    left, right, address = directly(lab)
    receiver, sender = lab.worker(right), lab.worker(left)
    receiver.start(receive, address)
    sender.start(flood, address)
    until(grows(lambda: spent_ns(source, receiver.pid)), "the receiver is served", DEADLINE_S)
    assert spent_ns(source, sender.pid) == 0


def test_softirqs_add_up(lab: Lab, source: Cpu) -> None:
    """All rows, including ended processes, sum up to the time of softirqs on all CPUs, to the ns."""
    left, right, address = directly(lab)
    lab.worker(right).start(receive, address)
    lab.worker(left).start(flood, address)
    until(grows(lambda: on_cpus_ns(read(source))), "softirqs run", DEADLINE_S)
    snapshot = read(source)
    process_limits = sum(row["softirq_ns"] for row in rows(snapshot, "processes"))
    ended = int(snapshot.ended[PROCESSES.name].total.array["softirq_ns"].sum())
    assert process_limits + ended == on_cpus_ns(snapshot)


def on_cpus_ns(snapshot: Snapshot) -> int:
    """Return time of softirqs and of threads that poll devices, on all CPUs."""
    return sum(row[name] for row in rows(snapshot, "cpus") for name in SOFTIRQ_WORK)


def test_without_sockets_no_process_is_charged(lab: Lab) -> None:
    """If the sockets of softirqs are unknown, no process is charged, and the column is n/a."""
    left, right, address = directly(lab)
    receiver = lab.worker(right)
    receiver.start(receive, address)
    lab.worker(left).start(flood, address)
    with started(served=NO_MECHANISM) as source:
        until(grows(lambda: spent_ns(source, NO_PID)), "softirqs run", DEADLINE_S)
        snapshot = read(source)
        assert "softirq_ns" in snapshot.missing
        assert spent_ns(source, receiver.pid) == 0
        (no_process,) = (row for row in rows(snapshot, "processes") if row["pid"] == NO_PID)
        assert no_process["network_ns"] == on_cpus_ns(snapshot)
