# SPDX-License-Identifier: Apache-2.0
"""CPU time of the network stack is charged once, at its entry point, in agreement with the threads' usage."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.program import Loader
from nettop.kernel.bpf.program_text import ProgramText
from nettop.probes.cpu.probe import Cpu
from nettop.probes.probe import with_types
from nettop.snapshots.cpu import CPUS, NAPI_THREADS, TIME_OF, VECTORS
from nettop.snapshots.snapshot import Snapshot
from tests.options import source_options

from . import traffic
from .lab import PATIENCE, End, Lab, Namespace, compiled, process_state, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since("5.15", "the lens needs a helper of BPF programs that is new there (bpf_task_pt_regs)"),
]

SPIN = Path(__file__).with_name("cpu_spin.c")
MILLISECONDS = 400
TRIALS_S = 60
"""For at most this long results are collected: the first that is close enough ends the search. Noise of other processes
may last for seconds."""
MESSAGES = 30_000
PART = 0.02 if PATIENCE == 1 else 0.25
"""How far the time charged may be from the time used: an emulated machine's clock stops at times."""
SOFTIRQS_PART = 0.03
CALLS = ["send", "write", "writev", "sendmsg", "sendmmsg", "sendfile", "splice", "io_uring", "io_worker"]
FREQUENCY_HZ = 4999
RULES = 4000
BURSTS, PACKETS = 1000, 20 if PATIENCE == 1 else 3
PERIOD_NS = 2_000_000
"""The receiving CPU handles a burst in a third to a half of this, before ksoftirqd has to help."""
RULESET = "table inet lab {\n chain long {\n  type filter hook prerouting priority 0; policy drop;\n"
DISCARD = ("10.78.0.2", 9)
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
LONG_HEADERS = 300
"""An MTU at which a message is two hundred packets, so that the work of a call outweighs entering the kernel."""
EXCLUSIVE = {*TIME_OF.values(), *(f"{name}_ns" for name in VECTORS)}
"""Times that do not overlap."""
NAPI = TIME_OF[NAPI_THREADS]
SWITCH_NS = 2_000
"""What the scheduler charges a thread at each switch, before the switch is complete."""
SOFTIRQS = {"tx_softirq_ns", "rx_softirq_ns"} | {f"{name}_ns" for name in VECTORS} & CPUS.by_name.keys()

Row = dict[str, Any]


@pytest.fixture(scope="module")
def source() -> Iterator[Cpu]:
    """Yield one probe for all tests: compiling takes half a minute in an emulated machine."""
    with contextlib.closing(Cpu()) as source:
        source.configure(source_options(frequency=FREQUENCY_HZ))
        source.start()
        read(source)
        yield source


@pytest.fixture(scope="module")
def spinner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program that spends CPU time in system calls."""
    return compiled(SPIN, tmp_path_factory.mktemp("cpu"))


@pytest.fixture
def void(lab: Lab) -> End:
    """Return a device whose other end is down: sending there raises no softirq."""
    near, far = lab.pair()
    far.namespace.ip("link", "set", far.device, "down")
    near.namespace.ip("link", "set", near.device, "mtu", str(LONG_HEADERS))
    near.namespace.ip("neigh", "replace", far.v4, "lladdr", "02:00:00:00:00:02", "dev", near.device)
    return near


class Spin:
    """A process that spends time in one kind of call, on the last CPU by default."""

    def __init__(
        self, program: Path, call: str, near: End, to: tuple[str, int], cpu: int | None = None
    ) -> None:
        self.cpu = max(os.sched_getaffinity(0)) if cpu is None else cpu
        words = [
            str(program),
            call,
            str(self.cpu),
            str(MILLISECONDS),
            to[0],
            str(to[1]),
        ]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", near.namespace.name, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.worked = self._answer() == "ready"

    def run(self) -> int:
        """Make the calls; return their CPU time in ns."""
        self._resume()
        return int(self._answer())

    def begin(self) -> None:
        """Start a loop that only reads the clock."""
        self._resume()
        assert self._answer() == "began"

    def stop(self) -> list[int]:
        """Stop reading the clock. Return, in ns, the CPU time lost in short and in long interruptions, all CPU time,
        and elapsed time.
        """
        os.kill(self.pid, signal.SIGUSR1)
        return list(map(int, self._answer().split()))

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()

    def _resume(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout
        return str(self._process.stdout.readline().strip())


@contextlib.contextmanager
def spinning(*words: Any) -> Iterator[Spin]:
    """Yield a Spin that is killed at the end of the block."""
    spin = Spin(*words)
    try:
        yield spin
    finally:
        spin.end()


def read(source: Cpu) -> Snapshot:
    """Return the probe's reading now."""
    return source.read(time.monotonic_ns())


def rows(snapshot: Snapshot, table: str) -> list[Row]:
    """Return the rows of a table by their columns' names."""
    array = snapshot.tables[table].array
    return [dict(zip(array.dtype.names or (), row, strict=True)) for row in array.tolist()]


def process_row(source: Cpu, pid: int) -> Row:
    """Return the row of a process; all zeros if it has none."""
    matching = [row for row in rows(read(source), "processes") if row["pid"] == pid]
    return matching[0] if matching else dict.fromkeys((*TIME_OF.values(), "network_ns"), 0)


def cpu_row(source: Cpu, cpu: int) -> Row:
    """Return the row of a CPU."""
    return next(row for row in rows(read(source), "cpus") if row["cpu"] == cpu)


def softirqs_ns(source: Cpu, cpu: int) -> int:
    """Return the time of all softirqs on a CPU."""
    row = cpu_row(source, cpu)
    return sum(row[name] for name in SOFTIRQS)


def stolen_ns(cpu: int | str) -> int:
    """Return the stolen time of a CPU, or of all (""), from /proc/stat. No thread is charged for it, but it passes in
    calls.
    """
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{cpu} "))
    return int(line.split()[8]) * TICK_NS


def beyond(value: float, least: float, most: float) -> float:
    """Return how far a value is outside a range."""
    return min(0.0, value - least) + max(0.0, value - most)


# --- calls --------------------------------------------------------------------------------------------------------


def error_of(source: Cpu, spin: Spin, column: str) -> float:
    """Return the relative error in the time charged to a process for its sending calls.

    Softirqs that interrupt calls are charged as such; stolen time is known only in ticks.
    """
    softirqs, stolen = softirqs_ns(source, spin.cpu), stolen_ns(spin.cpu)
    used = spin.run()
    row = process_row(source, spin.pid)
    softirqs, stolen = softirqs_ns(source, spin.cpu) - softirqs, stolen_ns(spin.cpu) - stolen
    assert row["rx_syscalls_ns"] == 0
    assert row["io_workers_ns"] == 0 or column == "io_workers_ns"
    return beyond(row[column] / used, 1 - softirqs / used, 1 + stolen / used)


def least_error(source: Cpu, spinner: Path, call: str, near: End, *, column: str) -> float | None:
    """Return the least error of several runs: noise of other processes varies, a systematic error of hooks would not.

    Return None if the call is not allowed (sysctl kernel.io_uring_disabled).
    """
    best, end = None, time.monotonic() + TRIALS_S * PATIENCE
    while best is None or (abs(best) > PART and time.monotonic() < end):
        with spinning(spinner, call, near, DISCARD) as spin:
            if not spin.worked:
                return None
            error = error_of(source, spin, column)
        best = error if best is None else min(best, error, key=abs)
    return best


@pytest.mark.core
@pytest.mark.parametrize("call", CALLS)
def test_sending_is_charged(source: Cpu, spinner: Path, void: End, call: str) -> None:
    """Each sending call charges its process the CPU time of its thread; io_uring's workers charge the ring's owner."""
    column = "io_workers_ns" if call == "io_worker" else "tx_syscalls_ns"
    error = least_error(source, spinner, call, void, column=column)
    if error is None:
        assert call.startswith("io_")
        pytest.skip("io_uring is not allowed here")
    assert abs(error) <= PART


def test_time_is_charged_once(source: Cpu, spinner: Path, lab: Lab) -> None:
    """Time of softirqs inside calls does not count for the calls, and the times of a CPU sum up to at most the elapsed
    time.
    """
    near = lab.pair()[0]
    port = lab.worker(near.namespace).call(traffic.udp, "full", "127.0.0.1")
    with spinning(spinner, "send", near, ("127.0.0.1", port)) as spin:
        began, before = time.monotonic_ns(), cpu_row(source, spin.cpu)
        used = spin.run()
        after, ended = cpu_row(source, spin.cpu), time.monotonic_ns()
        sent = process_row(source, spin.pid)["tx_syscalls_ns"]
    spent = {name: after[name] - before[name] for name in EXCLUSIVE & after.keys()}
    assert spent["rx_softirq_ns"] > 0
    assert 0 < sent <= used * (1 + PART)
    assert sent <= spent["tx_syscalls_ns"]
    assert min(spent.values()) >= 0
    assert sum(spent.values()) <= (ended - began) * (1 + PART)


# --- softirqs -------------------------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """CPU time that an idle-looping thread lost, in ns: in short and in long interruptions. `softirqs` is the share of
    the network's softirqs by the probe, `calls` how often other CPUs interrupted this one."""

    short: int
    long: int
    softirqs: float
    calls: int


def test_softirqs_take_what_a_thread_loses(source: Cpu, spinner: Path, lab: Lab) -> None:
    """A thread that only reads the clock loses the CPU time that softirqs and interrupts take on its CPU.

    Another CPU sends bursts of packets that go through many nftables rules, and receive packet steering hands them to
    the thread's CPU, with one interrupt for each burst: softirqs take half of that CPU, half a millisecond at a time.
    Short losses are other interrupts (the timer's), or within softirqs and part of their time: neither is in the
    difference. The interrupts that start bursts are subtracted: their number (function calls in /proc/interrupts)
    times what the same thread loses by each while another CPU makes many (membarrier). Time of other threads and of
    the hypervisor is no CPU time of the thread; softirqs are taken to have run then in proportion. The best of several
    results counts.
    """
    crossing = make_crossing(lab)
    lose = partial(loss, source, spinner, crossing.near)

    def trial() -> float:
        called = lose(lambda: call_often(spinner, crossing.near, crossing.sends_on))
        loaded = lose(crossing.send)
        interrupts = loaded.calls * called.short / called.calls
        return (loaded.long - interrupts) / loaded.softirqs - 1

    assert abs(best_of(trial, SOFTIRQS_PART)) <= SOFTIRQS_PART


TRACER = """
int tp_btf__softirq_entry(u64 *ctx) {
  for (int at = 0; at < 20; at++)
    bpf_ktime_get_ns();
  return 0;
}
"""


def test_hooks_of_other_tracers_are_a_gap(source: Cpu, tmp_path: Path) -> None:
    """Say which share of the softirqs' time belongs to hooks of a tracer; without one, there is no such gap."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def gap() -> str | None:
            for _ in range(MESSAGES):
                sock.sendto(b"x", sock.getsockname())  # one softirq each
            return read(source).gaps.get("hooks")

        read(source)
        assert gap() is None
        with tracing(tmp_path / "tracer.bpf.c"):
            until(lambda: "is their hooks'" in str(gap()), "the tracer's hooks")


@contextlib.contextmanager
def tracing(file: Path) -> Iterator[None]:
    """Hook the start of softirqs inside the `with` block."""
    file.write_text(TRACER)
    functions = with_types(["tp_btf__softirq_entry"])
    with contextlib.ExitStack() as opened:
        text = ProgramText((str(file),), "#include <linux/types.h>\n", (), functions)
        program = opened.enter_context(contextlib.closing(Loader().load(text)))
        opened.callback(os.close, bpf.attach_tracing(program.functions["tp_btf__softirq_entry"]))
        yield


class Crossing(NamedTuple):
    """Packets sent from one CPU to another that processes them slowly: the sending end, and its sender."""

    near: End
    sends_on: int
    receives_on: int
    send: Callable[[], object]


def make_crossing(lab: Lab) -> Crossing:
    """Return a sender on the first CPU, and a receiving device whose softirqs run on the last one."""
    near, far = lab.pair()
    cpus = os.sched_getaffinity(0)
    sends_on, receives_on = min(cpus), max(cpus)
    if sends_on == receives_on:
        pytest.skip("there is one CPU")
    run_in(far.namespace, f"echo {1 << receives_on:x} > /sys/class/net/{far.device}/queues/rx-0/rps_cpus")
    run_in(far.namespace, "nft -f -", RULESET + "  meta mark 1 accept\n" * RULES + " }\n}\n")
    sender = lab.worker(near.namespace)
    sender.call(pin, sends_on)
    return Crossing(near, sends_on, receives_on, partial(sender.call, send_bursts, far.v4))


def best_of(trial: Callable[[], float], part: float) -> float:
    """Return the best of several results; stop at the first that is close enough."""
    best, end = trial(), time.monotonic() + TRIALS_S * PATIENCE
    while abs(best) > part and time.monotonic() < end:
        best = min(best, trial(), key=abs)
    return best


def loss(source: Cpu, spinner: Path, near: End, meanwhile: Callable[[], object]) -> Loss:
    """Return the time that a thread loses while `meanwhile` runs."""
    with spinning(spinner, "nothing", near, DISCARD) as spin:
        softirqs, calls = network_softirqs_ns(source, spin.cpu), calls_of(spin.cpu)
        spin.begin()
        meanwhile()
        short, long, used, elapsed = spin.stop()
        softirqs, calls = network_softirqs_ns(source, spin.cpu) - softirqs, calls_of(spin.cpu) - calls
    return Loss(short, long, softirqs * used / elapsed, calls)


def network_softirqs_ns(source: Cpu, cpu: int) -> int:
    """Return the time of network softirqs on a CPU."""
    row = cpu_row(source, cpu)
    return int(row["tx_softirq_ns"] + row["rx_softirq_ns"])


def calls_of(cpu: int) -> int:
    """Return how often other CPUs have interrupted a CPU to run a function."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    return next(int(line.split()[1 + cpu]) for line in lines if "Function call interrupts" in line)


def call_often(spinner: Path, near: End, cpu: int) -> None:
    """Make a CPU interrupt the others repeatedly."""
    with spinning(spinner, "membarrier", near, DISCARD, cpu) as calls:
        calls.run()


def pin(memory: traffic.Memory, cpu: int) -> None:
    """Pin the process to that CPU, with high priority."""
    os.sched_setaffinity(0, {cpu})
    os.setpriority(os.PRIO_PROCESS, 0, -20)


def send_bursts(memory: traffic.Memory, to: str) -> None:
    """Send bursts of messages that nobody receives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((to, DISCARD[1]))
        began = time.monotonic_ns()
        for burst in range(1, 1 + BURSTS):
            for _ in range(PACKETS):
                sender.send(b"n")
            while time.monotonic_ns() < began + burst * PERIOD_NS:
                pass


# --- threads that poll ----------------------------------------------------------------------------------------------


def test_threads_that_poll_are_charged(source: Cpu, lab: Lab) -> None:
    """Time of a threaded-NAPI thread is charged to NAPI threads, and equals the scheduler's count."""
    near, far = lab.pair()
    run_in(far.namespace, f"ethtool -K {far.device} gro on && echo 1 > /sys/class/net/{far.device}/threaded")
    run_in(
        near.namespace, f"ethtool -K {near.device} tso off"
    )  # otherwise datagrams bypass the polling thread
    (thread,) = until(lambda: threads_called(f"napi/{far.device}"), "a thread polls the device")
    receiver, sender = lab.worker(far.namespace), lab.worker(near.namespace)
    port = receiver.call(traffic.udp, "full", far.v4)

    def trial() -> float:
        before, (ran, slices), stolen = charged(source), ran_ns(thread), stolen_ns("")
        sender.call(flood, far.v4, port, MESSAGES)
        until(lambda: process_state(thread) == "S", "the thread has polled all packets")
        after, (ran_then, slices_then) = charged(source), ran_ns(thread)
        stolen = stolen_ns("") - stolen
        ran, slices = ran_then - ran, slices_then - slices
        polled, between = after[NAPI] - before[NAPI], sum(after[name] - before[name] for name in SOFTIRQS)
        assert polled > 0
        least, most = ran * (1 - PART) - between - slices * SWITCH_NS, ran * (1 + PART) + stolen
        return beyond(polled, least, most) / ran

    assert best_of(trial, 0) == 0


def run_in(namespace: Namespace, command: str, text: str = "") -> None:
    """Run a shell command in a namespace, with its own /sys, and this text as standard input."""
    words = ["ip", "netns", "exec", namespace.name, "sh", "-c", command]
    subprocess.run(words, input=text, text=True, check=True, capture_output=True)


def threads_called(beginning: str) -> list[int]:
    """Return the kernel threads whose names have this prefix."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(beginning.encode()):
                pids.append(int(path.parent.name))
    return pids


def ran_ns(pid: int) -> tuple[int, int]:
    """Return a thread's run time and how often it was scheduled, as the scheduler counts them."""
    ran, _, slices = map(int, Path(f"/proc/{pid}/schedstat").read_text().split())
    return ran, slices


def charged(source: Cpu) -> Row:
    """Return the times, summed over all CPUs."""
    each = rows(read(source), "cpus")
    return {name: sum(row[name] for row in each) for name in (NAPI, *SOFTIRQS)}


def flood(memory: traffic.Memory, to: str, port: int, messages: int) -> None:
    """Send this many messages."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(messages):
            sender.sendto(b"n" * 1000, (to, port))
