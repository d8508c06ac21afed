# SPDX-License-Identifier: Apache-2.0
"""The price of connection events: a storm of short connections over loopback (storm.c), on one CPU."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from bpf_stats import program_runs, runs_since, statistics_on
from cpu_cost import PEERS, Switch, all_switches
from harness import NOTHING, OURS, Sample, Scale, Target, Turns, benchmark
from programs import (
    LAST_CPU,
    NETTOP,
    Process,
    built,
    cpu_ns,
    drain,
    in_background,
    readable_folder,
    run,
    running,
    until,
)
from sockets import own_namespace

STATE, NESTED, SEND = "tp_btf__inet_so", "tp_btf__nested", "tp_btf__sock_se"
TURN_S = 0.5
WARM_UP_S = 0.3
"""Seconds of a storm before the measured one: nettop goes on starting after its hooks work."""


@dataclass(frozen=True)
class Storm:
    """Result of a storm: connections, elapsed seconds, CPU seconds of both ends."""

    connections: int
    seconds: float
    cpu_s: float


def run_storm(program: str, seconds: float) -> Storm:
    """Run storm.c to its end on the last CPU."""
    made, took, cpu = run("taskset", "-c", f"{LAST_CPU}", program, str(seconds)).split()
    return Storm(int(made), float(took), float(cpu))


def wait_for_hooks(pid: int) -> None:
    """Wait until the process has loaded the program for state changes."""
    until(lambda: STATE in program_runs(pid), "nettop attaches its hooks")


@contextmanager
def logging(*options: str) -> Iterator[Process]:
    """Run `nettop log` with its hooks attached, writing to files only."""
    with (
        readable_folder("log") as folder,
        running(NETTOP, "log", "--log-dir", str(folder), "--no-console", *options, err=sys.stderr) as process,
    ):
        wait_for_hooks(process.pid)
        until(lambda: any(folder.iterdir()), "nettop opens its files")
        yield process


@benchmark(
    "connections", "CPU time of a short connection beside a lens", "µs", rounds=3, base=NOTHING,
    needs=("cc",), peers=PEERS,
)  # fmt: skip
def connections(scale: Scale) -> Iterator[Turns]:
    """As many as one CPU makes, both ends in one process, relative to the adjacent turn without any tool."""
    own_namespace()

    def turn(program: str, switch: Switch) -> Sample:
        with switch():
            run_storm(program, WARM_UP_S)
            storm = run_storm(program, TURN_S)
            return storm.cpu_s / storm.connections * 1e6

    with built("storm.c") as program, all_switches(scale) as switches:
        yield {name: partial(turn, program, switch) for name, switch in switches.items()}


@benchmark(
    "log", "CPU time of a connection that is logged", "µs", rounds=11, needs=("cc",), base=NOTHING,
    targets=(
        *(Target(1.15, subject=name) for name in ("log, text", "log, JSON Lines")),
        Target(1.05, subject="log of groups"),
    ),
)  # fmt: skip
def log(scale: Scale) -> Iterator[Turns]:
    """That of the connection and that of nettop, together, relative to the adjacent turn without nettop."""
    own_namespace()

    def turn(program: str, switch: AbstractContextManager[Process | None]) -> Sample:
        with switch as process:
            run_storm(program, WARM_UP_S)
            before = cpu_ns(process.pid) if process else 0
            storm = run_storm(program, TURN_S)
            own_ns = cpu_ns(process.pid) - before if process else 0
            return (storm.cpu_s * 1e6 + own_ns / 1e3) / storm.connections

    with built("storm.c") as program:
        yield {
            NOTHING: lambda: turn(program, nullcontext()),
            "log, text": lambda: turn(program, logging()),
            "log, JSON Lines": lambda: turn(program, logging("--format", "jsonl")),
            "log of groups": lambda: turn(program, logging("--lens", "connections.groups")),
        }


EVENTS = (
    *("a state change", "the nested program beside it", "a message while connections are accepted"),
    "all state changes of a connection",
)


@benchmark(
    "events_run",
    "Programs of the connection events",
    dict.fromkeys(EVENTS, "ns"),
    rounds=3,
    needs=("cc",),
)
def events_run(scale: Scale) -> Iterator[Turns]:
    """By the kernel's statistics of BPF programs, which include two clock readings."""
    own_namespace()

    def turn(program: str) -> Sample:
        before = program_runs(process.pid)
        made = run_storm(program, TURN_S)
        runs = runs_since(before, program_runs(process.pid))
        each = [runs[name].ns_each for name in (STATE, NESTED, SEND)]
        return dict(zip(EVENTS, (*each, runs[STATE].ns / made.connections), strict=True))

    words = ("--table", "-d", "--udp", "off")  # else the programs that count UDP see the messages too
    with built("storm.c") as program, in_background(*words) as process, statistics_on():
        wait_for_hooks(process.pid)
        drain(process, scale.pick(3, 1))
        yield {OURS: lambda: turn(program)}
