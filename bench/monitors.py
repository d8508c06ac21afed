# SPDX-License-Identifier: Apache-2.0
"""CPU and memory of monitors that refresh once a second, over sockets, namespaces, interfaces and processes."""

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from harness import OURS, Sample, Scale, Target, Turns, benchmark
from programs import Screens, cpu_ns_of, drain, family, in_background, resident_mb, run, running
from sockets import connections, own_namespace

TEXT, SCREENS = "text", "screens"
UNITS = {"CPU": "% of a CPU", "memory": "MB"}
SETTLE_S, WINDOW_S, WINDOWS = 3.0, 2.0, 3
BESIDE_PEERS = (1_000, 10_000)
"""Sockets at which the other tools are measured."""
TOOL_WITHIN_S = 10.0
TOOLS = {
    "nethogs": ("nethogs", "-t", "-a", "-C", "-d", "1", "lo"),
    "iftop": ("iftop", "-t", "-n", "-N", "-i", "lo"),
    "tcptop": ("tcptop-bpfcc", "1"),
}


def spent(pid: int, wait: Callable[[float], object], scale: Scale) -> Sample:
    """Return the CPU share of a process with its children in some windows, and its memory after each."""
    wait(scale.pick(SETTLE_S, 1))
    shares, memory = [], []
    for _ in range(scale.pick(WINDOWS, 1)):
        before, began = cpu_ns_of(pid), time.monotonic()
        wait(scale.pick(WINDOW_S, 1))
        shares.append((cpu_ns_of(pid) - before) / (time.monotonic() - began) / 1e7)
        memory.append(sum(map(resident_mb, family(pid))))
    return {"CPU": shares, "memory": memory}


def of_text(scale: Scale, *options: str) -> Sample:
    """Measure text output."""
    with in_background("--table", "-d", "-t", "1", *options) as process:
        return spent(process.pid, lambda seconds: drain(process, seconds), scale)


def of_screens(scale: Scale, *options: str) -> Sample:
    """Measure the screens."""
    with Screens("-t", "1", *options) as screens:
        return spent(screens.pid, screens.read_for, scale)


@contextlib.contextmanager
def watching(tool: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run another monitor, and yield after its first output."""
    with running(*TOOLS[tool], source=subprocess.PIPE, out=subprocess.PIPE) as process:
        assert process.stdout
        is_ready = select.select([process.stdout], [], [], TOOL_WITHIN_S)[0]
        if not is_ready or not os.read(process.stdout.fileno(), 1 << 16):
            raise SystemExit(f"{' '.join(TOOLS[tool])} printed nothing")
        yield process


def of_tool(name: str, scale: Scale) -> Sample:
    """Measure another monitor; its output is discarded."""
    with watching(name) as process:

        def wait(seconds: float) -> None:
            drain(process, seconds)
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(TOOLS[name])} has ended")

        return spent(process.pid, wait, scale)


def both(scale: Scale, *options: str) -> Turns:
    """Return the turns of text and screens."""
    return {TEXT: lambda: of_text(scale, *options), SCREENS: lambda: of_screens(scale, *options)}


@benchmark(
    "monitors", "One refresh per second", UNITS, over="sockets", rounds=1,
    sizes=(100, 1_000, 4_000, 10_000, 90_000, 200_000), has_reference=True,
    peers={"nethogs": "nethogs", "iftop": "iftop", "tcptop": "tcptop-bpfcc"},
    targets=(
        Target(65, "memory", 4_000, SCREENS), Target(110, "memory", 10_000, SCREENS),
        Target(350, "memory", 90_000, SCREENS), Target(45, "memory", 4_000, TEXT),
        Target(5, "CPU", 10_000, SCREENS), Target(15, "CPU", 90_000, SCREENS),
    ),
)  # fmt: skip
def monitors(scale: Scale) -> Iterator[Turns]:
    """Idle TCP sockets, both ends here. CPU time includes that of children; memory is the resident set."""
    own_namespace()
    peers = {name: partial(of_tool, name, scale) for name in TOOLS} if scale.size in BESIDE_PEERS else {}
    with connections(scale.size):
        yield both(scale) | peers


# --- other things that there may be many of ---------------------------------------------------------------------------


def lines_to_ip(lines: Iterator[str]) -> None:
    """Have `ip` run many commands in one process."""
    run("ip", "-batch", "-", text="\n".join(lines) + "\n")


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[None]:
    """Hold more network namespaces, each by a name."""
    names = [f"nettopbench{number}" for number in range(count)]
    try:
        lines_to_ip(f"netns add {name}" for name in names)
        yield
    finally:
        lines_to_ip(f"netns delete {name}" for name in names if os.path.exists(f"/run/netns/{name}"))


@contextlib.contextmanager
def interfaces(count: int) -> Iterator[None]:
    """Hold more interfaces in this network namespace, which ends with this process."""
    names = [(f"near{number}", f"far{number}") for number in range(-(-count // 2))]
    lines_to_ip(f"link add {near} type veth peer name {far}" for near, far in names)
    lines_to_ip(f"link set {name} up" for pair in names for name in pair)
    yield


@contextlib.contextmanager
def processes(count: int) -> Iterator[None]:
    """Hold more processes, without sockets."""
    sleeper = (
        "import os, signal\nfor _ in range({}):\n if not os.fork(): os.closerange(0, 3), signal.pause()\n"
        "print(flush=True)\nsignal.pause()"
    )
    with running(sys.executable, "-c", sleeper.format(count), out=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield


MANY: Mapping[str, tuple[Callable[[int], contextlib.AbstractContextManager[None]], tuple[str, ...]]] = {
    "namespaces": (namespaces, ("--follow-namespaces",)),
    "interfaces": (interfaces, ("--view", "bandwidth")),
    "processes": (processes, ()),
}


def declare(what: str) -> None:
    """Declare the benchmark of one of MANY."""
    held, options = MANY[what]

    def many(scale: Scale) -> Iterator[Turns]:
        own_namespace()
        with held(scale.size), connections(100):
            yield both(scale, *options)

    shown = f"`nettop {' '.join(options)}`" if options else "`nettop`"
    many.__doc__ = f"{shown} with 100 sockets, and more and more {what}."
    title = f"One refresh per second beside many {what}"
    benchmark(what, title, UNITS, over=what, sizes=(1, 2_000), rounds=1)(many)


for count in MANY:
    declare(count)


# --- findings ---------------------------------------------------------------------------------------------------------


@benchmark(
    "findings", "Finding what is wrong", "% of a CPU", over="sockets", sizes=(10_000,), quick_size=200, rounds=1,
    targets=(Target(0.5),),
)  # fmt: skip
def findings(scale: Scale) -> Iterator[Turns]:
    """The sampler's share of a CPU for findings, beside that for reading the connections, once a second."""
    from nettop.engine.own_cost import READ
    from nettop.engine.session import Session
    from nettop.snapshots.connections import LENS as CONNECTIONS
    from nettop.snapshots.findings import LENS as FINDINGS

    own_namespace()
    with connections(scale.size), Session(1.0) as session, contextlib.ExitStack() as leases:
        for lens in (CONNECTIONS, FINDINGS):
            leases.callback(session.enable(lens.id).release)
        threading.Event().wait(scale.pick(SETTLE_S, 2))

        def share(lens: str) -> Sample:
            def read_ns() -> int:
                return sum(
                    step.time_ns
                    for (of, name), step in session.steps.all().items()
                    if (of, name) == (lens, READ)
                )

            before, seconds = read_ns(), scale.pick(8, 1)
            threading.Event().wait(seconds)
            return (read_ns() - before) / seconds / 1e7

        yield {OURS: lambda: share(FINDINGS.id), "reading the connections": lambda: share(CONNECTIONS.id)}
