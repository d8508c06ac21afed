# SPDX-License-Identifier: Apache-2.0
"""Softirqs are charged to the process whose sockets they serve, and to none where they serve nobody's."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from nettop.kernel.mechanisms import NO_MECHANISM
from nettop.probes.cpu.probe import Cpu
from nettop.snapshots.cpu import NAPI_THREADS, PROCESSES, RX_SOFTIRQ, TIME_OF, TX_SOFTIRQ
from nettop.snapshots.snapshot import Snapshot, unknown_value

from . import traffic
from .lab import Lab, until
from .test_cpu import process_row, read, rows
from .test_cpu_categories import DATA_READY, FREQUENCY_HZ, Scene, bridged, directly, flood, receive, routed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since(
        "5.12", "the lens asks for what BPF programs are told since then (bpf_get_current_task_btf)"
    ),
]

ENOUGH_NS = 200 * 1_000_000_000 // FREQUENCY_HZ
"""What so many samples stand for."""
NOBODY = unknown_value(PROCESSES.dtype["pid"])
"""In place of a PID, in the row that is no process's."""
NOT_CALLED = [TIME_OF[entry] for entry in (TX_SOFTIRQ, RX_SOFTIRQ, NAPI_THREADS)]


@pytest.fixture(scope="module")
def source() -> Iterator[Cpu]:
    """The probe at work, for all tests: to compile it takes half a minute in an emulated machine."""
    with started() as made:
        yield made


@contextlib.contextmanager
def started(**mechanisms: str) -> Iterator[Cpu]:
    """The probe at work, by ways that are asked for."""
    with contextlib.closing(Cpu()) as made:
        made.set("frequency", FREQUENCY_HZ)
        made.set("mechanisms", mechanisms)
        made.start()
        yield made


def spent_ns(source: Cpu, pid: int) -> int:
    """What softirqs spent for the sockets of a process; NOBODY is what they spent for none."""
    found = [row["softirq_ns"] for row in rows(read(source), "processes") if row["pid"] == pid]
    return int(sum(found))


def grows(spent: Callable[[], int]) -> Callable[[], bool]:
    """Whether so much has been spent since now that samples would tell."""
    enough = spent() + ENOUGH_NS
    return lambda: spent() >= enough


@pytest.mark.parametrize("scene", [routed, bridged])
def test_what_is_forwarded_is_nobodys(lab: Lab, source: Cpu, scene: Scene) -> None:
    """Neither who sends it has time of softirqs, nor who has a socket there that nothing comes for."""
    left, right, address = scene(lab)
    idle, sender = lab.worker(right), lab.worker(left)
    idle.call(traffic.udp, "idle", address)
    sender.start(flood, address)
    until(grows(lambda: spent_ns(source, NOBODY)), "softirqs that serve nobody", 60)
    assert process_row(source, sender.pid)["tx_syscalls_ns"] > 0
    assert spent_ns(source, sender.pid) == 0
    assert idle.pid not in {row["pid"] for row in rows(read(source), "processes")}


@DATA_READY
def test_what_is_received_is_the_receivers(lab: Lab, source: Cpu) -> None:
    """Who sends it has none of that time."""
    left, right, address = directly(lab)
    receiver, sender = lab.worker(right), lab.worker(left)
    receiver.start(receive, address)
    sender.start(flood, address)
    until(grows(lambda: spent_ns(source, receiver.pid)), "the receiver is served", 60)
    assert spent_ns(source, sender.pid) == 0


def test_softirqs_add_up(lab: Lab, source: Cpu) -> None:
    """All rows have the time that softirqs took on all CPUs, to the ns, but for what those had whose rows have gone."""
    left, right, address = directly(lab)
    lab.worker(right).start(receive, address)
    lab.worker(left).start(flood, address)
    until(grows(lambda: on_cpus_ns(read(source))), "softirqs run", 60)
    snapshot = read(source)
    of_processes = sum(row["softirq_ns"] for row in rows(snapshot, "processes"))
    assert of_processes + source._processes.ended[RX_SOFTIRQ] == on_cpus_ns(snapshot)


def on_cpus_ns(snapshot: Snapshot) -> int:
    """What softirqs, and threads that poll devices, took on all CPUs."""
    return sum(row[name] for row in rows(snapshot, "cpus") for name in NOT_CALLED)


def test_nothing_tells_whose_it_is(lab: Lab) -> None:
    """Then all of it is nobody's, the receiver's too, and who asks for that column is told why it has no values."""
    left, right, address = directly(lab)
    receiver = lab.worker(right)
    receiver.start(receive, address)
    lab.worker(left).start(flood, address)
    with started(served=NO_MECHANISM) as source:
        until(grows(lambda: spent_ns(source, NOBODY)), "softirqs run", 60)
        snapshot = read(source)
        assert "softirq_ns" in snapshot.missing
        assert spent_ns(source, receiver.pid) == 0
        (nobodys,) = (row for row in rows(snapshot, "processes") if row["pid"] == NOBODY)
        assert nobodys["network_ns"] == on_cpus_ns(snapshot)
