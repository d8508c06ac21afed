# SPDX-License-Identifier: Apache-2.0
"""Samples of real traffic: the part of the network stack that works is met, and none of them is lost untold."""

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.kernel import maps, perf_events, privileges
from nettop.kernel.perf_events import Clocks, open_clocks
from nettop.kernel.proc_stat import read_cpu_times
from nettop.kernel.program import Loader, Program
from nettop.probes.cpu import samples as cpu_samples
from nettop.probes.cpu.probe import Cpu, program_text
from nettop.probes.cpu.samples import BY_HOOKS, SAMPLED, SampleReading, Samples
from nettop.probes.cpu.stacks import UNKNOWN
from nettop.snapshots.cpu import (
    CATEGORIES,
    OTHER,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    TX_SYSCALLS,
)
from nettop.snapshots.snapshot import known

from . import bpf_objects
from .lab import PATIENCE, Lab, Namespace, Worker, until
from .traffic import Memory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since(
        "5.12", "the lens asks for what BPF programs are told since then (bpf_get_current_task_btf)"
    ),
]

FREQUENCY_HZ = 997 if PATIENCE == 1 else 199
ENOUGH = 200
"""Samples that an interval needs before its shares mean something."""
FEW = 0.03
PORT = 7
SIZE = 64
PT_REGS = pytest.mark.since("5.15", "samples cannot tell system calls (bpf_task_pt_regs)")
DATA_READY = pytest.mark.since("6.3", "nothing tells whose UDP socket a softirq serves (sk_data_ready)")

CONNTRACK = """
table inet lab {
  chain forward { type filter hook forward priority 0; ct state established,related accept; }
}
"""
OF_MODULES = {"bridging", "netfilter", "connection tracking"}
Scene = Callable[[Lab], tuple[Namespace, Namespace, str]]
"""Makes the sender's namespace, the receiver's, and the receiver's address."""


# --- what workers do ------------------------------------------------------------------------------------------


def udp_socket(address: str) -> socket.socket:
    """A socket that takes such an address."""
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)


def flood(memory: Memory, address: str) -> None:
    """Sends UDP packets as fast as others leave time for, to the end."""
    os.nice(19)
    with udp_socket(address) as sender:
        sender.connect((address, PORT))
        while True:
            try:
                sender.send(b"n" * SIZE)
            except OSError:
                continue  # nobody listens yet, or there is no room


def receive(memory: Memory, address: str) -> None:
    """Reads UDP packets, to the end."""
    with udp_socket(address) as receiver:
        receiver.bind((address, PORT))
        while True:
            receiver.recv(SIZE)


def ignore(memory: Memory, address: str) -> None:
    """Has UDP packets come and reads none: once the socket is full, nobody is woken for them.

    To wake a process on another CPU takes half of a virtual machine's softirq time, and what forwards little of it.
    """
    with udp_socket(address) as receiver:
        receiver.bind((address, PORT))
        signal.pause()


def serve(memory: Memory, address: str) -> None:
    """Reads what the first connection sends, to the end."""
    with socket.create_server((address, PORT)) as listener, listener.accept()[0] as connection:
        while connection.recv(1 << 16):
            pass


def stream(memory: Memory, address: str) -> None:
    """Sends over one connection what others leave time for, to the end."""
    os.nice(19)

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
    """Two namespaces side by side."""
    first, second = lab.pair()
    return first.namespace, second.namespace, second.v4


def between(lab: Lab) -> tuple[Namespace, Namespace, Namespace]:
    """Two namespaces and one in between: their device is `out`, its devices are `left` and `right`."""
    left, middle, right = (lab.namespace() for _ in range(3))
    for end, name in ((left, "left"), (right, "right")):
        end.ip("link", "add", "out", "type", "veth", "peer", "name", name, "netns", middle.name)
        end.ip("link", "set", "out", "up")
        middle.ip("link", "set", name, "up")
    right.ip("addr", "add", "10.79.2.1/24", "dev", "out")
    return left, middle, right


def routed(lab: Lab, rules: str = "") -> tuple[Namespace, Namespace, str]:
    """The one in between forwards, by these rules of nftables."""
    left, middle, right = between(lab)
    left.ip("addr", "add", "10.79.1.1/24", "dev", "out")
    for end, name, number in ((left, "left", 1), (right, "right", 2)):
        middle.ip("addr", "add", f"10.79.{number}.254/24", "dev", name)
        end.ip("route", "add", "default", "via", f"10.79.{number}.254")
    middle.sysctl("net.ipv4.ip_forward", 1)
    if rules:
        command = ["ip", "netns", "exec", middle.name, "nft", "-f", "-"]
        subprocess.run(command, input=rules, text=True, check=True, capture_output=True)
    return left, right, "10.79.2.1"


def tracked(lab: Lab) -> tuple[Namespace, Namespace, str]:
    """It forwards what belongs to a connection."""
    return routed(lab, CONNTRACK)


def bridged(lab: Lab) -> tuple[Namespace, Namespace, str]:
    """The one in between is a bridge."""
    left, middle, right = between(lab)
    middle.ip("link", "add", "br0", "type", "bridge")
    for name in ("left", "right"):
        middle.ip("link", "set", name, "master", "br0")
    middle.ip("link", "set", "br0", "up")
    left.ip("addr", "add", "10.79.2.2/24", "dev", "out")
    return left, right, "10.79.2.1"


# --- the lens ---------------------------------------------------------------------------------------------------


class Lens:
    """The probe at work, with samples in place of hooks at system calls."""

    def __init__(self) -> None:
        self.probe = Cpu()
        self.probe.set("frequency", FREQUENCY_HZ)
        self.probe.set("mechanisms", {"syscalls": "samples"})
        self.probe.start()

    @property
    def samples(self) -> Samples:
        """What samples."""
        assert self.probe._samples is not None
        return self.probe._samples

    def read(self) -> SampleReading:
        """What was met so far."""
        return self.samples.read(time.monotonic_ns(), read_cpu_times(Path("/proc")))

    @contextmanager
    def at_rest(self) -> Iterator[SampleReading]:
        """It looks at nothing meanwhile, whatever happens; all that was met before."""
        self.samples.detach()
        try:
            yield self.read()
        finally:
            self.samples.attach()

    def counted(self) -> Any:
        """What the program counts of its own, on all CPUs."""
        assert self.probe._program is not None
        here = maps.read_per_cpu(self.probe._program.maps["sampled"], 0, SAMPLED)
        return {name: int(here[name].sum()) for name in SAMPLED.names or ()}


@pytest.fixture(scope="module")
def lens() -> Iterator[Lens]:
    """The probe at work, for all tests: to compile it takes half a minute in an emulated machine."""
    made = Lens()
    yield made
    made.probe.close()


def shares(before: SampleReading, now: SampleReading, entry: int) -> dict[str, float]:
    """What part of an entry point's samples between two readings each category has; none where they are few."""
    counts: Counter[str] = Counter()
    for reading, sign in ((before, -1), (now, 1)):
        rows = reading.stacks.array[reading.stacks.array["entry"] == entry]
        for category, samples in zip(rows["category"].tolist(), rows["samples"].tolist(), strict=True):
            counts[CATEGORIES[category].label] += sign * samples
    total = counts.total()
    return {label: count / total for label, count in counts.items()} if total >= ENOUGH else {}


def leads(lens: Lens, entry: int, expected: set[str], share: float) -> Callable[[], dict[str, float]]:
    """Whether all these categories were met, with that share together, since there last were enough samples."""
    before = lens.read()

    def met() -> dict[str, float]:
        nonlocal before
        now = lens.read()
        found = shares(before, now, entry)
        if found:
            before = now
        met_here = [found.get(label, 0.0) for label in expected]
        return found if all(met_here) and sum(met_here) >= share else {}

    return met


# --- tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "expected", "share"),
    [
        pytest.param(
            directly, {"UDP", "socket wake-up", "IP receive"}, 0.3, marks=pytest.mark.core, id="UDP"
        ),
        pytest.param(routed, {"forwarding", "IP receive", "transmit"}, 0.3, id="forwarding"),
        pytest.param(tracked, {"connection tracking", "netfilter"}, 0.1, id="conntrack"),
        pytest.param(bridged, {"bridging"}, 0.05, id="bridge"),
    ],
)
def test_a_flood_is_met_where_it_works(
    lab: Lab, lens: Lens, scene: Scene, expected: set[str], share: float
) -> None:
    """In the softirq that receives the categories of what the packets pass have their part, and few are in none."""
    sender, receiver, address = scene(lab)
    lab.worker(receiver).start(receive if scene is directly else ignore, address)
    lab.worker(sender).start(flood, address)
    found = until(leads(lens, RX_SOFTIRQ, expected, share), f"{expected} lead", 60)
    assert found.get(CATEGORIES[OTHER].label, 0.0) <= FEW
    reading = lens.read()
    assert reading.counts["unresolved"] <= FEW * reading.counts["samples"]


@pytest.mark.core
@PT_REGS
def test_a_stream_is_met_in_its_system_calls(lab: Lab, lens: Lens) -> None:
    """TCP leads where it is sent and where it is received, each in its process alone."""
    left, right, address = directly(lab)
    server, client = lab.worker(right), lab.worker(left)
    server.start(serve, address)
    client.start(stream, address)
    until(leads(lens, TX_SYSCALLS, {"TCP"}, 0.2), "TCP leads where it is sent", 60)
    until(leads(lens, RX_SYSCALLS, {"TCP"}, 0.2), "TCP leads where it is received", 60)
    times = until(lambda: both_met(lens.read(), client, server), "both processes are met", 60)
    assert set(times[0]) == {TX_SYSCALLS}
    assert set(times[1]) == {RX_SYSCALLS}


def both_met(reading: SampleReading, *workers: Worker) -> list[dict[int, int]]:
    """The times of these processes by entry point, once each has some."""
    times = [dict(reading.process_ns.get(worker.pid, {})) for worker in workers]
    return times if all(times) else []


@PT_REGS
def test_a_process_that_has_ended_is_forgotten(lab: Lab, lens: Lens) -> None:
    """Its times are dropped, and what has its number later begins at 0."""
    left, _, address = directly(lab)
    sender = lab.worker(left)
    sender.start(flood, address)
    until(lambda: sender.pid in lens.read().process_ns, "the sender is met", 60)
    with lens.at_rest() as met:
        assert sender.pid in met.process_ns
        lens.samples.forget([sender.pid])
        assert sender.pid not in lens.read().process_ns


@DATA_READY
def test_softirqs_serve_the_process_that_holds_the_socket(lab: Lab, lens: Lens) -> None:
    """Who receives has softirq time, who sends has none; no system call of the one is the other's."""
    left, right, address = directly(lab)
    receiver, sender = lab.worker(right), lab.worker(left)
    receiver.start(receive, address)
    sender.start(flood, address)

    def served() -> SampleReading | None:
        reading = lens.read()
        enough_ns = ENOUGH * 1_000_000_000 // FREQUENCY_HZ
        return reading if reading.served_ns.get(receiver.pid, 0) >= enough_ns else None

    reading = until(served, "the receiver is served", 60)
    assert sender.pid not in reading.served_ns
    assert set(reading.process_ns.get(sender.pid, {})) <= {TX_SYSCALLS}


@pytest.mark.core
def test_generations_lose_nothing(lab: Lab, lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample that the program counts is in a row, or counted as something else, however often they turn."""
    monkeypatch.setattr(cpu_samples, "_CROWDED", 1 << 30)  # each reading that finds a stack
    turns = 0
    turn = lens.samples._kept.turn

    def counted_turn() -> int:
        nonlocal turns
        turns += 1
        return turn()

    monkeypatch.setattr(lens.samples._kept, "turn", counted_turn)
    left, right, address = directly(lab)
    lab.worker(right).start(receive, address)
    lab.worker(left).start(flood, address)
    until(lambda: lens.read().counts["samples"] >= 10 * ENOUGH and turns >= 30, "generations turn", 120)
    with lens.at_rest():
        reading, counted = lens.read(), lens.counted()
    lost = reading.lost["walks"] + reading.lost["collisions"] + reading.lost["stacks"]
    assert counted["uncounted"] == 0
    assert reading.counts["samples"] + reading.counts["elsewhere"] + lost == counted["samples"]
    assert reading.counts["ticks"] == counted["ticks"]
    assert lost <= FEW * counted["samples"]


def test_shares_add_up(lab: Lab, lens: Lens) -> None:
    """Categories and stacks have the same samples, by entry point; a stack without a name in it says so."""
    left, right, address = directly(lab)
    lab.worker(right).start(receive, address)
    lab.worker(left).start(flood, address)
    reading = until(
        lambda: reading if (reading := lens.read()).counts["samples"] >= ENOUGH else None, "samples", 60
    )
    stacks, categories = reading.stacks.array, reading.categories.array
    categories = categories[known(categories["samples"])]
    for entry in np.unique(stacks["entry"]):
        total = stacks["samples"][stacks["entry"] == entry].sum()
        of_entry = categories[categories["entry"] == entry]
        assert of_entry["samples"].sum() == total
        assert set(of_entry["entry_samples"].tolist()) == {total}
    assert stacks["samples"].sum() == reading.counts["samples"]
    texts = reading.stacks.texts["stack"]
    nameless = sum(int(row["samples"]) for row in stacks if UNKNOWN in texts[row["stack"]].split(";"))
    assert reading.counts["unresolved"] == nameless


def test_categories_of_modules_alone_may_be_missing(lens: Lens) -> None:
    """The rest of the network stack has functions on every kernel: none of it is n/a."""
    categories = lens.read().categories.array
    missing = categories["category"][~known(categories["samples"])].tolist()
    assert {CATEGORIES[number].label for number in missing} <= OF_MODULES


def test_it_rests_while_it_is_left_out(lens: Lens) -> None:
    """Not a tick, and what was met stays; then it goes on."""
    until(lambda: lens.read().counts["ticks"], "a tick")
    with lens.at_rest() as before:
        after = lens.read()
    assert after.counts == before.counts and after.lost == before.lost
    until(lambda: lens.read().counts["ticks"] > before.counts["ticks"], "another tick")


def tick_without_rights(memory: Memory) -> int:
    """Opens clocks, gives up its rights, and has a program run by them; returns how often that ran."""
    program = Loader().load(program_text())
    with open_clocks():
        privileges.keep_only(privileges.for_reading())
        with pytest.raises(PermissionError):
            perf_events._open(0)
        clocks = Clocks(program.functions[BY_HOOKS], FREQUENCY_HZ)
        clocks.start()
        ticks = until(lambda: int(read_ticks(program).sum()), "a tick")
        clocks.close()
    program.close()
    return ticks


def read_ticks(program: Program) -> Any:
    """The ticks of each CPU."""
    return maps.read_per_cpu(program.maps["sampled"], 0, SAMPLED)["ticks"]


def test_clocks_that_were_opened_early_take_no_rights_later(lab: Lab) -> None:
    """As for a lens that is opened when rights are given up already."""
    assert lab.worker().call(tick_without_rights) > 0


def test_nothing_stays_in_the_kernel() -> None:
    """Neither programs nor maps nor links, once it is closed."""
    before = bpf_objects.existing()
    made = Lens()
    until(lambda: made.read().counts["ticks"], "a tick")
    made.probe.close()
    bpf_objects.nothing_new_since(before)
