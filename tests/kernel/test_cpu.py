# SPDX-License-Identifier: Apache-2.0
"""CPU time of the network stack is charged to where it was entered, once: compared with what threads have used."""

import contextlib
import gzip
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nettop.kernel import bpf, kprobes
from nettop.kernel.facts import Host
from nettop.kernel.mechanisms import NO_MECHANISM
from nettop.kernel.program import Loader, Program, ProgramText
from nettop.probes import cpu
from nettop.probes.cpu.probe import Cpu, program_text
from nettop.snapshots.cpu import CPUS, HOOK_NAPI_THREADS, NAPI_THREADS, TIME_OF, VECTORS
from nettop.snapshots.snapshot import Snapshot, unknown_value

from . import traffic
from .lab import PATIENCE, End, Lab, Namespace, process_state, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since(
        "5.12", "the lens asks for what BPF programs are told since then (bpf_get_current_task_btf)"
    ),
]

SPIN = Path(__file__).with_name("cpu_spin.c")
MILLISECONDS = 400
TRIALS = 8
"""At most: the first that comes near enough is the last."""
MESSAGES = 30_000
PART = 0.02 if PATIENCE == 1 else 0.25
"""How far what is charged may be from what was used: an emulated machine's clock stands still at times."""
SOFTIRQS_PART = 0.03
BY_HOOKS = ["fexit", "kretprobe", "raw_syscalls"]
CALLS = ["send", "write", "writev", "sendmsg", "sendmmsg", "sendfile", "splice", "io_uring"]
FREQUENCY_HZ = 4999
RULES = 4000
BURSTS, PACKETS = 1000, 20 if PATIENCE == 1 else 3
PIECE_NS = 300_000
RUN_AROUND = 0.2
"""The part of softirqs' time that threads made for them may be between them, or that others may run."""
SENDINGS = 4
"""So many times the bursts, for what is told in ticks."""
PERIOD_NS = 2_000_000
"""The CPU that receives is through with a burst in a third to a half of that, before ksoftirqd has to help."""
RULESET = "table inet lab {\n chain long {\n  type filter hook prerouting priority 0; policy drop;\n"
NOBODY = ("10.78.0.2", 9)
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
LONG_HEADERS = 300
"""An MTU at which a message is two hundred packets, so that a call takes long beside the way into the kernel."""
EXCLUSIVE = {*TIME_OF.values(), *(f"{name}_ns" for name in VECTORS)}
"""Times that have nothing in common."""
NAPI = TIME_OF[NAPI_THREADS]
SWITCH_NS = 2_000
"""What the scheduler counts of a thread's time before it has switched to it, since it was woken."""
SOFTIRQS = {"tx_softirq_ns", "rx_softirq_ns"} | {f"{name}_ns" for name in VECTORS} & CPUS.by_name.keys()

Start = Callable[..., Cpu]
Row = dict[str, Any]


class OneLoad:
    """In place of the loader: what was compiled and loaded once serves every test, from where it stands by then.

    To compile it takes half a minute in an emulated machine.
    """

    def __init__(self) -> None:
        with contextlib.closing(Loader()) as loader:
            self._program = loader.load(program_text())
        self.open_probes = kprobes.open_probes
        self.close = lambda: None

    def ask(self, _: ProgramText) -> None:
        """There is no other."""

    def answer(self) -> Program:
        """Descriptors of its own."""
        functions, its_maps = (
            {name: os.dup(one) for name, one in some.items()}
            for some in (self._program.functions, self._program.maps)
        )
        return Program(functions, its_maps, self._program.refused)

    def unload(self) -> None:
        """At the end of all."""
        self._program.close()


@pytest.fixture(scope="module")
def loaded() -> Iterator[OneLoad]:
    """What all tests of this file start with."""
    one = OneLoad()
    yield one
    one.unload()


@pytest.fixture
def start(loaded: OneLoad, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the probe with ways that are asked for; skips where this kernel has none."""
    monkeypatch.setattr(cpu, "Loader", lambda: loaded)
    with contextlib.ExitStack() as started:

        def start(**mechanisms: str) -> Cpu:
            source = Cpu()
            started.callback(source.close)
            source.set("mechanisms", mechanisms)
            source.set("frequency", FREQUENCY_HZ)
            source.start()
            for point, way in mechanisms.items():
                why = read(source).why_not(point)
                if way != NO_MECHANISM and why is not None:
                    pytest.skip(f"{point}={way}: {why}")
            return source

        yield start


@pytest.fixture(scope="module")
def spinner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that spends time in calls."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = tmp_path_factory.mktemp("cpu") / "cpu_spin"
    subprocess.run([compiler, "-O1", "-o", program, SPIN], check=True)
    return program


@pytest.fixture
def void(lab: Lab) -> End:
    """A device from which nothing arrives anywhere, so that to send raises no softirq: the other end is down."""
    near, far = lab.pair()
    far.namespace.ip("link", "set", far.device, "down")
    near.namespace.ip("link", "set", near.device, "mtu", str(LONG_HEADERS))
    near.namespace.ip("neigh", "replace", far.v4, "lladdr", "02:00:00:00:00:02", "dev", near.device)
    return near


class Spin:
    """A process that will spend time in one kind of call on one CPU, which is the last one."""

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
        """Spins; returns the ns of CPU time that it used in the calls."""
        self._go_on()
        return int(self._answer())

    def begin(self) -> None:
        """Does nothing from now on but to look at the clock."""
        self._go_on()
        assert self._answer() == "began"

    def stop(self) -> list[int]:
        """Stops that; returns what it lost of its CPU time bit by bit and at length, that CPU time, and how long it
        took, in ns."""
        os.kill(self.pid, signal.SIGUSR1)
        return list(map(int, self._answer().split()))

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def _go_on(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout
        return str(self._process.stdout.readline().strip())


@contextlib.contextmanager
def spinning(*words: Any) -> Iterator[Spin]:
    """A Spin that ends with the block."""
    spin = Spin(*words)
    try:
        yield spin
    finally:
        spin.end()


def read(source: Cpu) -> Snapshot:
    """The probe's reading now."""
    return source.read(time.monotonic_ns())


def rows(snapshot: Snapshot, table: str) -> list[Row]:
    """The rows of a table by the names of their columns."""
    array = snapshot.tables[table].array
    return [dict(zip(array.dtype.names or (), row, strict=True)) for row in array.tolist()]


def process_row(source: Cpu, pid: int) -> Row:
    """The row of a process; all zeros where it has none."""
    found = [row for row in rows(read(source), "processes") if row["pid"] == pid]
    return found[0] if found else dict.fromkeys((*TIME_OF.values(), "network_ns"), 0)


def cpu_row(source: Cpu, cpu: int) -> Row:
    """The row of a CPU."""
    return next(row for row in rows(read(source), "cpus") if row["cpu"] == cpu)


def softirqs_ns(source: Cpu, cpu: int) -> int:
    """The time of all softirqs on a CPU."""
    row = cpu_row(source, cpu)
    return sum(row[name] for name in SOFTIRQS)


def stat_ns(cpu: int | str, column: str) -> int:
    """What /proc/stat says of a CPU, or of all (""): what was stolen is no thread's time, yet passes in calls too."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{cpu} "))
    return int(line.split()[{"irq": 6, "softirq": 7, "steal": 8}[column]]) * TICK_NS


def beyond(value: float, least: float, most: float) -> float:
    """How far a value is out of a range."""
    return min(0.0, value - least) + max(0.0, value - most)


# --- calls --------------------------------------------------------------------------------------------------------


def missed(source: Cpu, spin: Spin, column: str) -> float:
    """By what part of what was used in calls that send their process was charged too much, or too little.

    The softirqs that came between are theirs; what a hypervisor took meanwhile is told in ticks.
    """
    softirqs, stolen = softirqs_ns(source, spin.cpu), stat_ns(spin.cpu, "steal")
    used = spin.run()
    row = process_row(source, spin.pid)
    softirqs, stolen = softirqs_ns(source, spin.cpu) - softirqs, stat_ns(spin.cpu, "steal") - stolen
    assert row["rx_syscalls_ns"] == 0
    assert row["io_workers_ns"] == 0 or column == "io_workers_ns"
    return beyond(row[column] / used, 1 - softirqs / used, 1 + stolen / used)


def least_missed(
    source: Cpu, spinner: Path, call: str, near: End, *, column: str = "tx_syscalls_ns"
) -> float | None:
    """The best of some results: others that use the CPU disturb the clocks, what hooks miss they miss each time.

    None where the call may not be made, as the sysctl kernel.io_uring_disabled has it.
    """
    best = None
    for _ in range(TRIALS):
        with spinning(spinner, call, near, NOBODY) as spin:
            if not spin.worked:
                return None
            found = missed(source, spin, column)
        best = found if best is None else min(best, found, key=abs)
        if abs(best) <= PART:
            break
    return best


@pytest.mark.core
@pytest.mark.parametrize("mechanism", BY_HOOKS)
def test_sending_is_charged(
    start: Start, spinner: Path, void: End, way: str, record_property: Callable[[str, object], None]
) -> None:
    """Every call that sends is charged to its process what its thread used, whatever hooks time it."""
    source = start(syscalls=way)
    found = {call: least_missed(source, spinner, call, void) for call in CALLS}
    if found["io_uring"] is None or "io_uring" in read(source).gaps.get("calls", ""):
        del found["io_uring"]
    assert found == pytest.approx(dict.fromkeys(found, 0), abs=PART)
    for name, fact in (("hook", "syscalls"), ("mechanism", way), ("verdict", "same")):
        record_property(name, fact)


@pytest.mark.parametrize("call", ["send", "sendfile", "io_uring"])
def test_sending_is_charged_by_samples(start: Start, spinner: Path, void: End, call: str) -> None:
    """Where nothing is hooked the clock's ticks tell the same."""
    source = start(syscalls="samples")
    found = least_missed(source, spinner, call, void)
    if found is None:
        assert call == "io_uring"
        pytest.skip("io_uring is not allowed here")
    assert abs(found) <= PART


@pytest.mark.since(
    "5.15", "workers of io_uring are no threads of its process, and nobody tells them where to run"
)
@pytest.mark.parametrize("mechanism", ["samples", "raw_syscalls"])
def test_workers_are_charged_to_who_has_the_ring(start: Start, spinner: Path, void: End, way: str) -> None:
    """What io_uring's threads use to send for a process is its I/O workers' time: they make no system calls, ticks
    tell of them."""
    source = start(syscalls=way)
    found = least_missed(source, spinner, "io_worker", void, column="io_workers_ns")
    if found is None:
        pytest.skip("io_uring is not allowed here")
    assert abs(found) <= PART


def test_workers_are_unknown_where_nothing_tells_of_them(start: Start) -> None:
    """They make no system calls that could be hooked, and there are no ticks."""
    (each, *_) = rows(read(start(syscalls="raw_syscalls", samples=NO_MECHANISM)), "cpus")
    unknown = unknown_value(CPUS.dtype["io_workers_ns"])
    assert each["io_workers_ns"] == unknown
    assert each["tx_syscalls_ns"] < unknown


@pytest.mark.parametrize("mechanism", ["samples", *BY_HOOKS])
def test_waiting_is_charged_to_nobody(start: Start, spinner: Path, lab: Lab, void: End, way: str) -> None:
    """A process that waits in recv() is charged nothing for that, however long it is, and what it does then is."""
    source, worker = start(syscalls=way), lab.worker()
    port = worker.call(traffic.udp, "waits", "127.0.0.1")
    worker.start(receive, "waits")
    until(lambda: process_state(worker.pid) == "S", "the worker waits")
    before = process_row(source, worker.pid)
    with spinning(spinner, "send", void, NOBODY) as spin:
        assert spin.run() > 0  # for so long it has waited
    assert process_row(source, worker.pid)["network_ns"] == before["network_ns"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"n", ("127.0.0.1", port))
    assert worker.result() == 1
    charged = process_row(source, worker.pid)["rx_syscalls_ns"]
    assert way == "samples" or 0 < charged < MILLISECONDS * 1_000_000 // 4


def receive(memory: traffic.Memory, name: str) -> int:
    """Waits for a message; returns how long it is."""
    return len(memory[name].recv(100))


def test_time_is_charged_once(start: Start, spinner: Path, lab: Lab) -> None:
    """Softirqs that run inside of calls are no calls' time, and all that a CPU did is no more than passed."""
    source, near = start(syscalls="raw_syscalls"), lab.pair()[0]
    port = lab.worker(near.namespace).call(traffic.udp, "full", "127.0.0.1")
    with spinning(spinner, "send", near, ("127.0.0.1", port)) as spin:
        began, before = time.monotonic_ns(), cpu_row(source, spin.cpu)
        used = spin.run()
        after, ended = cpu_row(source, spin.cpu), time.monotonic_ns()
        sent = process_row(source, spin.pid)["tx_syscalls_ns"]
    spent = {name: after[name] - before[name] for name in EXCLUSIVE & after.keys()}
    assert spent["rx_softirq_ns"] > 0
    assert 0 < sent <= used
    assert sent <= spent["tx_syscalls_ns"]
    assert min(spent.values()) >= 0
    assert sum(spent.values()) <= ended - began


def test_no_other_call_is_hooked(start: Start, spinner: Path, void: End) -> None:
    """By default no program runs at system calls that are not of sockets."""
    source = start()
    statistics = bpf.open_statistics()
    try:
        before = source.programs()
        assert source.read(time.monotonic_ns()).hook("syscalls") is not None
        with spinning(spinner, "getppid", void, NOBODY) as spin:
            spin.run()
        after = source.programs()
    finally:
        os.close(statistics)
    ran = {name for name, (runs, _) in after.items() if runs > before[name][0]}
    assert "tp_btf__softirq_entry" in ran
    assert not {name for name in ran if "sys_enter" in name or "sys_exit" in name}


# --- softirqs -------------------------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """What a thread that does nothing lost of its CPU time, in ns: bit by bit, and at length. `softirqs` is what the
    network's took of that by the probe's account, `calls` is how often other CPUs interrupted its own."""

    bits: int
    bursts: int
    softirqs: float
    calls: int


def test_softirqs_take_what_a_thread_loses(start: Start, spinner: Path, lab: Lab) -> None:
    """What a thread that only looks at the clock loses of its CPU time is what softirqs take there, and interrupts.

    Another CPU sends bursts of packets, whose way through many rules of nftables takes long, and receive packet
    steering hands them to the thread's CPU, by one interrupt for a burst: softirqs take half of it, in stretches of
    half a millisecond. What the thread loses in short ones are interrupts, the timer's and others, or they came in
    softirqs and are in their time: neither is in the difference. The interrupts that begin bursts are subtracted, by
    their number (function calls in /proc/interrupts) times what the same thread loses by one while another CPU makes
    many (membarrier). What other threads and the hypervisor took is no CPU time of the thread: the softirqs that ran
    then are taken for the same share of it. It counts what the best of some results says.
    """
    source, crossing = start(samples=NO_MECHANISM, syscalls=NO_MECHANISM), make_crossing(lab)
    lose = partial(loss, source, spinner, crossing.near)

    def trial() -> float:
        called = lose(lambda: call_often(spinner, crossing.near, crossing.sends_on))
        loaded = lose(crossing.send)
        interrupts = loaded.calls * called.bits / called.calls
        return (loaded.bursts - interrupts) / loaded.softirqs - 1

    assert abs(best_of(trial, SOFTIRQS_PART)) <= SOFTIRQS_PART


@pytest.mark.core
def test_softirqs_take_what_the_kernel_accounts(start: Start, lab: Lab) -> None:
    """Where the kernel measures softirqs itself, /proc/stat has the same of them.

    Interrupts that come in a softirq are in its time here, and are told of by themselves there.
    """
    if not measures_softirqs():
        pytest.skip("nothing says that this kernel measures softirqs (CONFIG_IRQ_TIME_ACCOUNTING)")
    source, crossing = start(samples=NO_MECHANISM, syscalls=NO_MECHANISM), make_crossing(lab)
    cpu = crossing.receives_on

    def counted() -> tuple[int, int, int]:
        return softirqs_ns(source, cpu), stat_ns(cpu, "softirq"), stat_ns(cpu, "irq")

    before = counted()
    for _ in range(SENDINGS):
        crossing.send()
    ours, softirqs, interrupts = (now - then for now, then in zip(counted(), before, strict=True))
    assert softirqs > 100 * TICK_NS
    assert abs(beyond(ours / softirqs, 1, 1 + interrupts / softirqs)) <= SOFTIRQS_PART


@pytest.mark.core
def test_softirqs_wait_with_their_threads(start: Start, lab: Lab) -> None:
    """On a kernel for real time threads that run softirqs are stopped for others, whose time is not the softirqs'.

    It is what threads took that run nothing else, by the scheduler's account; others run a few softirqs, too.
    """
    if not Host().is_real_time():
        pytest.skip("this kernel changes no threads within softirqs (PREEMPT_RT)")
    source, crossing = start(samples=NO_MECHANISM, syscalls=NO_MECHANISM), make_crossing(lab)
    cpu = crossing.receives_on
    lab.worker().start(come_between, cpu)
    threads = [pid for name in ("ksoftirqd", "ktimers") for pid in threads_called(f"{name}/{cpu}")]

    def counted() -> tuple[int, int]:
        return softirqs_ns(source, cpu), sum(ran_ns(pid)[0] for pid in threads)

    before = counted()
    crossing.send()
    ours, theirs = (now - then for now, then in zip(counted(), before, strict=True))
    assert ours > 10 * TICK_NS
    assert abs(ours / theirs - 1) <= RUN_AROUND


@pytest.mark.parametrize(
    ("mechanisms", "is_seen"), [({}, True), ({HOOK_NAPI_THREADS.name: NO_MECHANISM}, False)]
)
def test_threads_within_softirqs_are_seen_or_told_of(
    start: Start, monkeypatch: pytest.MonkeyPatch, mechanisms: dict[str, str], is_seen: bool
) -> None:
    """On a kernel for real time changes of threads are followed all the time; what has them not says what it times."""
    monkeypatch.setattr(Host, "is_real_time", lambda _: True)
    source = start(samples=NO_MECHANISM, syscalls=NO_MECHANISM, **mechanisms)
    assert ("softirqs" in read(source).gaps) == (not is_seen)
    assert ("tp_btf__sched_switch" in source._attached.programs()) == is_seen


def come_between(memory: traffic.Memory, cpu: int) -> None:
    """Takes half of that CPU, in many pieces and before all others, to the end."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    while True:
        until_ns = time.monotonic_ns() + PIECE_NS
        while time.monotonic_ns() < until_ns:
            pass
        signal.sigtimedwait((signal.SIGUSR1,), PIECE_NS / 1e9)


def measures_softirqs() -> bool:
    """Whether this kernel reads the clock at each softirq, as its configuration says."""
    for path, opened in (("/proc/config.gz", gzip.open), (f"/boot/config-{os.uname().release}", open)):
        with contextlib.suppress(FileNotFoundError), opened(path, "rt", encoding="ascii") as config:
            return "CONFIG_IRQ_TIME_ACCOUNTING=y\n" in config
    return False


class Crossing(NamedTuple):
    """Packets go from one CPU to another, where their way takes long: from which end they go, and what sends them."""

    near: End
    sends_on: int
    receives_on: int
    send: Callable[[], object]


def make_crossing(lab: Lab) -> Crossing:
    """A sender on the first CPU that there is, and the way to the last one."""
    near, far = lab.pair()
    cpus = os.sched_getaffinity(0)
    sends_on, receives_on = min(cpus), max(cpus)
    if sends_on == receives_on:
        pytest.skip("there is one CPU")
    run_in(far.namespace, f"echo {1 << receives_on:x} > /sys/class/net/{far.device}/queues/rx-0/rps_cpus")
    run_in(far.namespace, "nft -f -", RULESET + "  meta mark 1 accept\n" * RULES + " }\n}\n")
    sender = lab.worker(near.namespace)
    sender.call(settle, sends_on)
    return Crossing(near, sends_on, receives_on, partial(sender.call, send_bursts, far.v4))


def best_of(trial: Callable[[], float], part: float) -> float:
    """The best of some results, of no more than it takes to come near enough."""
    best = trial()
    for _ in range(TRIALS - 1):
        if abs(best) <= part:
            break
        best = min(best, trial(), key=abs)
    return best


def loss(source: Cpu, spinner: Path, near: End, meanwhile: Callable[[], object]) -> Loss:
    """What a thread loses meanwhile."""
    with spinning(spinner, "nothing", near, NOBODY) as spin:
        softirqs, calls = network_softirqs_ns(source, spin.cpu), calls_of(spin.cpu)
        spin.begin()
        meanwhile()
        bits, bursts, used, passed = spin.stop()
        softirqs, calls = network_softirqs_ns(source, spin.cpu) - softirqs, calls_of(spin.cpu) - calls
    return Loss(bits, bursts, softirqs * used / passed, calls)


def network_softirqs_ns(source: Cpu, cpu: int) -> int:
    """The time of the network's softirqs on a CPU."""
    row = cpu_row(source, cpu)
    return int(row["tx_softirq_ns"] + row["rx_softirq_ns"])


def calls_of(cpu: int) -> int:
    """How often other CPUs have interrupted one to have it call a function."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    return next(int(line.split()[1 + cpu]) for line in lines if "Function call interrupts" in line)


def call_often(spinner: Path, near: End, cpu: int) -> None:
    """Has that CPU interrupt others."""
    with spinning(spinner, "membarrier", near, NOBODY, cpu) as calls:
        calls.run()


def settle(memory: traffic.Memory, cpu: int) -> None:
    """Stays on that CPU, in front of others."""
    os.sched_setaffinity(0, {cpu})
    os.setpriority(os.PRIO_PROCESS, 0, -20)


def send_bursts(memory: traffic.Memory, to: str) -> None:
    """Sends bursts of messages that nobody waits for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((to, NOBODY[1]))
        began = time.monotonic_ns()
        for burst in range(1, 1 + BURSTS):
            for _ in range(PACKETS):
                sender.send(b"n")
            while time.monotonic_ns() < began + burst * PERIOD_NS:
                pass


# --- threads that poll ----------------------------------------------------------------------------------------------


def test_threads_that_poll_are_charged(start: Start, lab: Lab) -> None:
    """What a thread of threaded NAPI runs is charged to NAPI threads, as the scheduler counts it."""
    source = start()
    near, far = lab.pair()
    run_in(far.namespace, f"ethtool -K {far.device} gro on && echo 1 > /sys/class/net/{far.device}/threaded")
    run_in(
        near.namespace, f"ethtool -K {near.device} tso off"
    )  # or datagrams take another way than by polling
    (thread,) = until(lambda: threads_called(f"napi/{far.device}"), "a thread polls the device")
    receiver, sender = lab.worker(far.namespace), lab.worker(near.namespace)
    port = receiver.call(traffic.udp, "full", far.v4)

    def trial() -> float:
        before, (ran, slices), stolen = charged(source), ran_ns(thread), stat_ns("", "steal")
        sender.call(flood, far.v4, port, MESSAGES)
        after, (ran_then, slices_then) = charged(source), ran_ns(thread)
        stolen = stat_ns("", "steal") - stolen
        ran, slices = ran_then - ran, slices_then - slices
        polled, between = after[NAPI] - before[NAPI], sum(after[name] - before[name] for name in SOFTIRQS)
        assert polled > 0
        least, most = ran * (1 - PART) - between - slices * SWITCH_NS, ran * (1 + PART) + stolen
        return beyond(polled, least, most) / ran

    assert best_of(trial, 0) == 0


def run_in(namespace: Namespace, command: str, text: str = "") -> None:
    """Runs a shell command in a namespace, whose devices /sys shows there, with that text to read."""
    words = ["ip", "netns", "exec", namespace.name, "sh", "-c", command]
    subprocess.run(words, input=text, text=True, check=True, capture_output=True)


def threads_called(beginning: str) -> list[int]:
    """The threads of the kernel whose name begins like that."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(beginning):
                found.append(int(path.parent.name))
    return found


def ran_ns(pid: int) -> tuple[int, int]:
    """How long a thread ran, as the scheduler has it, and how often it began to."""
    ran, _, slices = map(int, Path(f"/proc/{pid}/schedstat").read_text().split())
    return ran, slices


def charged(source: Cpu) -> Row:
    """The times on all CPUs."""
    each = rows(read(source), "cpus")
    return {name: sum(row[name] for row in each) for name in (NAPI, *SOFTIRQS)}


def flood(memory: traffic.Memory, to: str, port: int, messages: int) -> None:
    """Sends so many messages."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(messages):
            sender.sendto(b"n" * 1000, (to, port))
