# SPDX-License-Identifier: Apache-2.0
"""The price of each lens for others: CPU time of bulk TCP, turns, datagrams and connections, beside other tools.

Times are the scheduler's, which other load hardly affects. The loads run one at a time, all beside the same start of a
tool: the others are stopped meanwhile.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import NOTHING, Sample, Scale, Target, Turns, benchmark
from hooked import Hooked, empty_text
from monitors import TOOLS, watching
from programs import LAST_CPU, built, cpu_ns, printing, run, running, until
from traffic import B, Traffic, neighbours

from nettop.snapshots import own_lenses
from nettop.snapshots.cpu import FREQUENCY

TURN_S, SETTLED_AFTER_S = 0.2, 0.02
PERF = "perf record"
PERF_COMMAND = f"perf record -a -g -F {FREQUENCY.default + 2}"
"""At nearly nettop's frequency, so that both are compared at the same one but do not sample in step."""
EMPTY = "empty programs"

Switch = Callable[[], AbstractContextManager[object]]
"""Has something cost CPU time meanwhile."""


# --- workloads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A task that some processes repeat, with threads of the kernel; `done` counts its units."""

    done: Callable[[], int]
    processes: Sequence[int]
    threads: Sequence[int] = ()

    def cpu_ns(self) -> int:
        """Return the exact CPU time of all processes, including the measured interrupts."""
        return sum(map(cpu_ns, (*self.processes, *self.threads)))

    def send(self, number: int) -> None:
        """Send a signal to the processes, such as SIGSTOP."""
        for pid in self.processes:
            os.kill(pid, number)


def ksoftirqd() -> int:
    """Return the PID of the last CPU's ksoftirqd, which runs softirqs under load."""
    return int(run("pgrep", "--exact", f"ksoftirqd/{LAST_CPU}"))


def received(pid: int, device: str, column: int) -> int:
    """Return a column of /proc/net/dev in the namespace of a process."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    return int(next(line for line in lines if f"{device}:" in line).split(":")[1].split()[column])


@contextlib.contextmanager
def tcp() -> Iterator[Work]:
    """Run iperf3 with both ends on one CPU; count bytes received."""
    with Traffic(LAST_CPU) as traffic:
        near, far = neighbours(traffic)
        ends = traffic.stream(near, far, B)
        yield Work(lambda: received(far.pid, "vb", 0), ends, (ksoftirqd(),))


@contextlib.contextmanager
def calls(what: str) -> Iterator[Work]:
    """Run calls.c; count calls, or steps of a loop."""
    with built("calls.c") as program, tempfile.NamedTemporaryFile() as file, Traffic(LAST_CPU) as traffic:
        pid = traffic.start([program, what, file.name])
        until(lambda: os.path.getsize(file.name), "calls.c")
        yield Work(lambda: int.from_bytes(os.pread(file.fileno(), 8, 0), sys.byteorder), (pid,))


JOBS: Mapping[str, Callable[[], AbstractContextManager[Work]]] = {
    "bulk TCP": tcp,
    "16-kB turns": lambda: calls("tcp"),
    "64-byte UDP": lambda: calls("udp"),
    "getppid": lambda: calls("getppid"),
}


def ns_of_each(work: Work, seconds: float = TURN_S) -> float:
    """Return the CPU nanoseconds per unit, measured over `seconds` of CPU time."""
    done, begin = work.done(), work.cpu_ns()
    until(lambda: work.cpu_ns() - begin >= seconds * 1e9, "the processes to run", 0.002)
    return (work.cpu_ns() - begin) / max(work.done() - done, 1)


def of_jobs(works: Mapping[str, Work], switch: Switch) -> Sample:
    """Return the CPU nanoseconds per unit of each job, one after the other, with the switch on."""
    taken = {}
    with switch():
        for name, work in works.items():
            work.send(signal.SIGCONT)
            time.sleep(SETTLED_AFTER_S)
            taken[name] = ns_of_each(work)
            work.send(signal.SIGSTOP)
    return taken


# --- switches ---------------------------------------------------------------------------------------------------------


def lens_view(lens: str) -> Switch:
    """Return a switch that shows a lens as text."""
    return lambda: printing("--table", "--view", lens, "-d", "-t", "1")


def lens_switches() -> dict[str, Switch]:
    """Return a switch for each lens with hooks."""
    lenses = [lens.id for lens in own_lenses() if lens.id not in ("collector", "findings", "self")]
    return {lens: lens_view(lens) for lens in lenses}


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Have perf record the stacks of all CPUs."""
    with running(*PERF_COMMAND.split(), "-o", os.devnull, "sleep", "3600") as process:
        descriptors = Path(f"/proc/{process.pid}/fd")

        def samples_all() -> bool:
            with contextlib.suppress(FileNotFoundError):  # it closes some meanwhile
                return sum("perf_event" in os.readlink(path) for path in descriptors.iterdir()) > LAST_CPU
            return False

        until(samples_all, PERF)
        yield


@contextlib.contextmanager
def empty_switch() -> Iterator[Switch]:
    """Yield a switch that attaches empty programs to the hooks of the services lens."""
    from services import best_hooks

    from nettop.kernel.bpf.program import Loader

    names = best_hooks()
    with contextlib.closing(Loader().load(empty_text(names))) as program:
        yield Hooked(program, names).attached


@contextlib.contextmanager
def all_switches(scale: Scale) -> Iterator[dict[str, Switch]]:
    """Yield the switches that every load is measured with."""
    with empty_switch() as empty:
        switches: dict[str, Switch] = {NOTHING: nullcontext, EMPTY: empty}
        if scale.quick:
            yield switches | {"cpu": lens_view("cpu")}
        else:
            yield (
                switches
                | lens_switches()
                | {PERF: recording}
                | {name: lambda name=name: watching(name) for name in TOOLS}
            )


PEERS: Any = {PERF: "perf", "nethogs": "nethogs", "iftop": "iftop", "tcptop": "tcptop-bpfcc"}


@benchmark(
    "price", "CPU time of traffic beside a lens", dict.fromkeys(JOBS, "ns"), rounds=11, base=NOTHING,
    needs=("iperf3", "cc"), peers=PEERS,
    targets=(Target(1.03, "bulk TCP", subject="cpu"), Target(1.05, "64-byte UDP", subject="cpu")),
)  # fmt: skip
def price(scale: Scale) -> Iterator[Turns]:
    """CPU time per byte of a TCP connection over veth, per turn of one thread that writes and reads over loopback
    (16 kB of TCP, 64 bytes of UDP), and per getppid(), relative to the adjacent turn without any tool. Empty programs
    are attached to the hooks of the services lens.
    """
    with ExitStack() as ends:
        works = {name: ends.enter_context(job()) for name, job in JOBS.items()}
        for work in works.values():
            work.send(signal.SIGSTOP)
            ends.callback(work.send, signal.SIGCONT)  # a stopped process does not end
        switches = ends.enter_context(all_switches(scale))
        yield {name: lambda switch=switch: of_jobs(works, switch) for name, switch in switches.items()}
