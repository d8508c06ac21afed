# SPDX-License-Identifier: Apache-2.0
"""Samples of real traffic show the working parts of the network stack, and whom it serves; every loss is counted."""

import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nettop.kernel.bpf import maps, perf_events
from nettop.kernel.bpf.mechanisms import NO_MECHANISM
from nettop.kernel.bpf.perf_events import Clocks, open_clocks
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.host import privileges
from nettop.kernel.host.proc_files import read_cpu_times
from nettop.probes.cpu import samples as cpu_samples
from nettop.probes.cpu.probe import Cpu
from nettop.probes.cpu.samples import SAMPLED, TICK, SampleReading, Samples, program_text
from nettop.snapshots.cpu import (
    CATEGORIES,
    NAPI_THREADS,
    OTHER,
    PROCESSES,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    TIME_OF,
    TX_SOFTIRQ,
    TX_SYSCALLS,
)
from nettop.snapshots.snapshot import Snapshot, known, unknown_value
from tests.options import source_options

from . import bpf_objects, traffic
from .lab import PATIENCE, Lab, Namespace, Worker, until
from .test_cpu import process_row, read, rows
from .traffic import Memory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since("5.15", "the lens needs a helper of BPF programs that is new there (bpf_task_pt_regs)"),
]

FREQUENCY_HZ = 997 if PATIENCE == 1 else 199
DEADLINE_S = 120
"""On a machine whose CPUs are all busy, collecting samples takes ten times as long."""
ENOUGH = 200
"""Samples from which shares mean something."""
FEW = 0.03
PORT = 7
SIZE = 64
DATA_READY = pytest.mark.since(
    "6.3", "before, no hook shows the UDP socket that a softirq serves (sk_data_ready)"
)

ENOUGH_NS = ENOUGH * 1_000_000_000 // FREQUENCY_HZ
"""The time that so many samples stand for."""
NO_PID = unknown_value(PROCESSES.dtype["pid"])
"""The PID of the row `(no process)`."""
SOFTIRQ_WORK = [TIME_OF[entry] for entry in (TX_SOFTIRQ, RX_SOFTIRQ, NAPI_THREADS)]

CONNTRACK = """
table inet lab {
  chain forward { type filter hook forward priority 0; ct state established,related accept; }
}
"""
OF_MODULES = {"bridging", "netfilter", "connection tracking"}
Scene = Callable[[Lab], tuple[Namespace, Namespace, str]]
"""Returns the namespaces of the sender and the receiver, and the receiver's address."""


# --- what workers do ------------------------------------------------------------------------------------------


def udp_socket(address: str) -> socket.socket:
    """Return a socket of the address's family."""
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)


def flood(memory: Memory, address: str) -> None:
    """Send UDP packets until killed."""
    with udp_socket(address) as sender:
        sender.connect((address, PORT))
        while True:
            try:
                sender.send(b"n" * SIZE)
            except OSError:
                continue  # nobody listens yet, or there is no room


def receive(memory: Memory, address: str) -> None:
    """Receive UDP packets until killed."""
    with udp_socket(address) as receiver:
        receiver.bind((address, PORT))
        while True:
            receiver.recv(SIZE)


def ignore(memory: Memory, address: str) -> None:
    """Bind a socket and never read: once it is full, packets wake nobody.

    Waking a process on another CPU takes half of a virtual machine's softirq time, and would hide forwarding.
    """
    with udp_socket(address) as receiver:
        receiver.bind((address, PORT))
        signal.pause()


def serve(memory: Memory, address: str) -> None:
    """Read from the first connection until killed."""
    with socket.create_server((address, PORT)) as listener, listener.accept()[0] as connection:
        while connection.recv(1 << 16):
            pass


def stream(memory: Memory, address: str) -> None:
    """Send over one connection until killed."""

    def connected() -> socket.socket | None:
        try:
            return socket.create_connection((address, PORT))
        except OSError:
            return None

    with until(connected, "somebody listens") as connection:
        while True:
            connection.send(b"n" * (1 << 16))


# --- scenes -----------------------------------------------------------------------------------------------------


def directly(lab: Lab) -> tuple[Namespace, Namespace, str]:
    """Return two namespaces, connected directly."""
    first, second = lab.pair()
    return first.namespace, second.namespace, second.v4


def routed(lab: Lab, rules: str = "") -> tuple[Namespace, Namespace, str]:
    """Return two namespaces with a router between them, which has these nftables rules."""
    near, router, far = lab.routed_pair()
    if rules:
        command = ["ip", "netns", "exec", router.name, "nft", "-f", "-"]
        subprocess.run(command, input=rules, text=True, check=True, capture_output=True)
    return near, far, "10.76.2.1"


def tracked(lab: Lab) -> tuple[Namespace, Namespace, str]:
    """Have the router track connections."""
    return routed(lab, CONNTRACK)


def bridged(lab: Lab) -> tuple[Namespace, Namespace, str]:
    """Return two namespaces with a bridge between them."""
    left, middle, right = (lab.namespace() for _ in range(3))
    middle.ip("link", "add", "br0", "up", "type", "bridge")
    for number, end in ((1, left), (2, right)):
        middle.ip("link", "add", f"to{number}", "type", "veth", "peer", "name", "wire", "netns", end.name)
        middle.ip("link", "set", f"to{number}", "master", "br0", "up")
        end.ip("addr", "add", f"10.79.2.{number}/24", "dev", "wire")
        end.ip("link", "set", "wire", "up")
    return left, right, "10.79.2.2"


# --- the lens ---------------------------------------------------------------------------------------------------


class Lens:
    """The probe and its parts."""

    def __init__(self, **mechanisms: str) -> None:
        self.probe = Cpu()
        self.probe.configure(source_options(mechanisms=mechanisms, frequency=FREQUENCY_HZ))
        self.probe.start()

    @property
    def samples(self) -> Samples:
        """The part of the probe that samples."""
        assert self.probe._samples is not None
        return self.probe._samples

    def read(self) -> SampleReading:
        """Return the samples since the start, and since the last reading."""
        running_ns = self.samples.running_ns()
        return self.samples.read(time.monotonic_ns(), running_ns, read_cpu_times(Path("/proc")))

    @contextmanager
    def at_rest(self) -> Iterator[SampleReading]:
        """Pause the clocks inside the `with` block; yield all samples so far."""
        assert self.samples._clocks is not None
        with self.samples._clocks.paused():
            yield self.read()

    def counted(self) -> Any:
        """Return the program's own counts, summed over all CPUs."""
        assert self.probe._program is not None
        counts = maps.read_per_cpu(self.probe._program.maps["sampled"], 0, SAMPLED)
        return {name: int(counts[name].sum()) for name in SAMPLED.names or ()}


@pytest.fixture(scope="module")
def lens() -> Iterator[Lens]:
    """Yield one probe for all tests: compiling takes half a minute in an emulated machine."""
    lens = Lens()
    yield lens
    lens.probe.close()


def shares(before: SampleReading, now: SampleReading, entry: int) -> dict[str, float]:
    """Return the share of each category in an entry point's samples between two readings; none if there are too few."""
    counts: Counter[str] = Counter()
    for reading, sign in ((before, -1), (now, 1)):
        rows = reading.stacks.array[reading.stacks.array["entry"] == entry]
        for category, samples in zip(rows["category"].tolist(), rows["samples"].tolist(), strict=True):
            counts[CATEGORIES[category].label] += sign * samples
    total = counts.total()
    return {label: count / total for label, count in counts.items()} if total >= ENOUGH else {}


def leads(lens: Lens, entry: int, expected: set[str], share: float) -> Callable[[], dict[str, float]]:
    """Return the shares, once all these categories have enough samples and together reach this share."""
    before = lens.read()

    def they_lead() -> dict[str, float]:
        nonlocal before
        now = lens.read()
        all_shares = shares(before, now, entry)
        if all_shares:
            before = now
        of_expected = [all_shares.get(label, 0.0) for label in expected]
        return all_shares if all(of_expected) and sum(of_expected) >= share else {}

    return they_lead


# --- tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "expected", "share"),
    [
        pytest.param(
            directly, {"UDP", "socket wake-up", "IPv4 receive"}, 0.3, marks=pytest.mark.core, id="UDP"
        ),
        pytest.param(routed, {"forwarding", "IPv4 receive", "transmit"}, 0.3, id="forwarding"),
        pytest.param(tracked, {"connection tracking", "netfilter"}, 0.1, id="conntrack"),
        pytest.param(bridged, {"bridging"}, 0.05, id="bridge"),
    ],
)
def test_the_work_of_a_flood_is_sampled(
    lab: Lab, lens: Lens, scene: Scene, expected: set[str], share: float
) -> None:
    """In the receiving softirq each category on the packets' path has its share, and few samples have no category."""
    sender, receiver, address = scene(lab)
    lab.worker(receiver).start(receive if scene is directly else ignore, address)
    lab.worker(sender).start(flood, address)
    all_shares = until(leads(lens, RX_SOFTIRQ, expected, share), f"{expected} lead", DEADLINE_S)
    assert all_shares.get(CATEGORIES[OTHER].label, 0.0) <= FEW
    reading = lens.read()
    assert reading.counts["unresolved"] <= FEW * reading.counts["samples"]


@pytest.mark.core
def test_a_stream_is_sampled_in_its_system_calls(lab: Lab, lens: Lens) -> None:
    """TCP has the largest share where it is sent and where it is received, each in its own process only."""
    left, right, address = directly(lab)
    server, client = lab.worker(right), lab.worker(left)
    server.start(serve, address)
    client.start(stream, address)
    until(leads(lens, TX_SYSCALLS, {"TCP"}, 0.2), "TCP leads where it is sent", DEADLINE_S)
    until(leads(lens, RX_SYSCALLS, {"TCP"}, 0.2), "TCP leads where it is received", DEADLINE_S)
    assert calls_of(lens, client) == {TX_SYSCALLS}
    assert calls_of(lens, server) == {RX_SYSCALLS}


def calls_of(lens: Lens, worker: Worker) -> set[int]:
    """Return the entry points of a process's calls, in the first reading that has some."""
    return until(lambda: entries_of(lens.read(), worker), "the process is sampled", DEADLINE_S)


def entries_of(reading: SampleReading, worker: Worker) -> set[int]:
    """Return the entry points of a process's calls in a reading."""
    return set(reading.call_ns["entry"][reading.call_ns["pid"] == worker.pid].tolist())


@pytest.mark.core
def test_emptying_the_maps_loses_nothing(lab: Lab, lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample that the program counts is in a row, or counted as lost, however often maps are emptied."""
    monkeypatch.setattr(cpu_samples, "_FULL", 0)  # at each reading that has a stack
    emptied = 0
    clear = lens.samples._maps.clear

    def counted_clear() -> None:
        nonlocal emptied
        emptied += 1
        clear()

    monkeypatch.setattr(lens.samples._maps, "clear", counted_clear)
    left, right, address = directly(lab)
    lab.worker(right).start(receive, address)
    lab.worker(left).start(flood, address)
    until(
        lambda: lens.read().counts["samples"] >= 10 * ENOUGH and emptied >= 30, "maps are emptied", DEADLINE_S
    )
    with lens.at_rest() as reading:
        counted = lens.counted()
    lost = reading.lost["walks"] + reading.lost["collisions"] + reading.lost["stacks"]
    assert counted["uncounted"] == 0
    assert reading.counts["samples"] + reading.counts["elsewhere"] + lost == counted["samples"]
    assert reading.counts["ticks"] == counted["ticks"]
    assert lost <= FEW * counted["samples"]


def test_categories_of_modules_alone_may_be_missing(lens: Lens) -> None:
    """Only categories of modules may be missing: every kernel has functions for the rest of the network stack."""
    categories = lens.read().categories.array
    missing = categories["category"][~known(categories["samples"])].tolist()
    assert {CATEGORIES[number].label for number in missing} <= OF_MODULES


# --- whom softirqs serve -----------------------------------------------------------------------------------------


def spent_ns(source: Cpu, pid: int) -> int:
    """Return softirq time charged to a process, or to none (NO_PID)."""
    return int(sum(row["softirq_ns"] for row in rows(read(source), "processes") if row["pid"] == pid))


def grows(spent: Callable[[], int]) -> Callable[[], bool]:
    """Return whether enough time has passed since now for samples to show it."""
    enough = spent() + ENOUGH_NS
    return lambda: spent() >= enough


def test_forwarding_is_charged_to_no_process(lab: Lab, lens: Lens) -> None:
    """Neither the sender nor the owner of an idle socket is charged softirq time."""
    left, right, address = routed(lab)
    idle, sender = lab.worker(right), lab.worker(left)
    idle.call(traffic.udp, "idle", address)
    sender.start(flood, address)
    until(grows(lambda: spent_ns(lens.probe, NO_PID)), "softirqs that serve no process", DEADLINE_S)
    assert process_row(lens.probe, sender.pid)["tx_syscalls_ns"] > 0
    assert spent_ns(lens.probe, sender.pid) == 0
    assert idle.pid not in {row["pid"] for row in rows(read(lens.probe), "processes")}


@DATA_READY
def test_receiving_is_charged_to_the_receiver(lab: Lab, lens: Lens) -> None:
    """Receiving is charged to the receiver. All rows, with ended processes, sum up to the time on all CPUs."""
    left, right, address = directly(lab)
    receiver, sender = lab.worker(right), lab.worker(left)
    receiver.start(receive, address)
    sender.start(flood, address)
    until(grows(lambda: spent_ns(lens.probe, receiver.pid)), "the receiver is served", DEADLINE_S)
    assert spent_ns(lens.probe, sender.pid) == 0
    snapshot = read(lens.probe)
    ended = int(snapshot.ended[PROCESSES.name].total.array["softirq_ns"].sum())
    assert sum(row["softirq_ns"] for row in rows(snapshot, "processes")) + ended == on_cpus_ns(snapshot)


def on_cpus_ns(snapshot: Snapshot) -> int:
    """Return time of softirqs and of threads that poll devices, on all CPUs."""
    return sum(row[name] for row in rows(snapshot, "cpus") for name in SOFTIRQ_WORK)


def test_without_sockets_no_process_is_charged(lab: Lab) -> None:
    """If the sockets of softirqs are unknown, no process is charged, and the column is n/a."""
    left, right, address = directly(lab)
    receiver = lab.worker(right)
    receiver.start(receive, address)
    lab.worker(left).start(flood, address)
    lens = Lens(served=NO_MECHANISM)
    until(grows(lambda: spent_ns(lens.probe, NO_PID)), "softirqs run", DEADLINE_S)
    snapshot = read(lens.probe)
    assert "softirq_ns" in snapshot.missing
    assert spent_ns(lens.probe, receiver.pid) == 0
    (no_process,) = (row for row in rows(snapshot, "processes") if row["pid"] == NO_PID)
    assert no_process["network_ns"] == on_cpus_ns(snapshot)
    lens.probe.close()


# --- clocks ---------------------------------------------------------------------------------------------------


def tick_without_rights(memory: Memory) -> int:
    """Open clocks, drop privileges, and attach a program to the clocks; return its run count."""
    program = Loader().load(program_text())
    with open_clocks() as opened:
        privileges.keep_only(privileges.for_reading())
        with pytest.raises(PermissionError):
            perf_events._open(0)
        clocks = Clocks(program.functions[TICK], FREQUENCY_HZ, opened)
        clocks.start()
        ticks = until(lambda: int(read_ticks(program).sum()), "a tick")
        clocks.close()
    program.close()
    return ticks


def read_ticks(program: Program) -> Any:
    """Return the ticks of each CPU."""
    return maps.read_per_cpu(program.maps["sampled"], 0, SAMPLED)["ticks"]


def test_clocks_that_are_open_need_no_rights(lab: Lab) -> None:
    """A lens may be opened after nettop has dropped its privileges."""
    assert lab.worker().call(tick_without_rights) > 0


def test_without_samples_times_are_not_available() -> None:
    """Without samples all times but those of /proc/stat are unknown, and no process has a row."""
    lens = Lens(samples=NO_MECHANISM)
    snapshot = read(lens.probe)
    lens.probe.close()
    assert snapshot.why_not("samples") == "disabled by --mechanism"
    assert snapshot.why_not("served") == "there are no samples"
    assert {"network_ns", "rx_softirq_ns", "tx_syscalls_ns", "softirq_ns", "rcu_ns"} <= set(snapshot.missing)
    cpus = snapshot.tables["cpus"].array
    assert not known(cpus["network_ns"]).any() and known(cpus["stat_softirq_ns"]).all()
    assert not len(snapshot.tables["processes"].array)


def test_nothing_stays_in_the_kernel() -> None:
    """A closed probe leaves no programs, maps or links."""
    before = bpf_objects.existing()
    lens = Lens()
    until(lambda: lens.read().counts["ticks"], "a tick")
    lens.probe.close()
    bpf_objects.nothing_new_since(before)
