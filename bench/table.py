# SPDX-License-Identifier: Apache-2.0
"""The socket table beside ss and psutil: one read, and a whole process that prints all rows."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from harness import OURS, Sample, Scale, Target, Turns, benchmark
from programs import NETTOP, run
from sockets import connections, own_namespace

SS, SS_OWNERS = ("ss", "-tinH", "-O"), ("ss", "-tinpH", "-O")
ALL_ROWS = ("--table", "-d", "--once", "--format", "jsonl")
DESCRIPTORS, WHOLE = "nettop, descriptors", "nettop, whole snapshot"


def milliseconds(call: Callable[[], object]) -> Callable[[], Sample]:
    """Return a turn that measures a call."""

    def turn() -> Sample:
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e3

    return turn


@benchmark(
    "table", "Reading the socket table", "ms", over="sockets", sizes=(100, 1_000, 10_000, 90_000), rounds=5,
    peers={"ss -tin": "ss", "ss -tinp": "ss", "psutil": "python3-psutil"},
)  # fmt: skip
def table(scale: Scale) -> Iterator[Turns]:
    """One read of all TCP sockets of a network namespace, the same ones for all. Nettop pauses between walks over the
    hash tables where they are expensive; in its whole snapshot the last walk is backdated, so that each walks them.
    """
    from nettop.probes.connections.probe import Connections
    from nettop.probes.connections.socket_table import SocketTable

    own_namespace()
    with closing(Connections()) as probe, connections(scale.size):
        probe.start()
        snapshot = probe.read(time.monotonic_ns())
        array = next(iter(snapshot.tables.values())).array
        # If the kernel refuses the walk over descriptors, sock_diag lists the sockets.
        walks = isinstance(probe.table, SocketTable)

        def read_whole() -> None:
            if walks:
                last = probe.table._last_walks
                probe.table._last_walks = {inode: replace(walk, begun_ns=0) for inode, walk in last.items()}
            probe.read(time.monotonic_ns())

        def read_descriptors() -> None:
            probe.table.read_owned(probe.table.processes.begin(), array, array[:0])

        def read_by_psutil() -> None:
            import psutil

            psutil.net_connections("tcp")

        yield ({DESCRIPTORS: milliseconds(read_descriptors)} if walks else {}) | {
            WHOLE: milliseconds(read_whole),
            "ss -tin": milliseconds(lambda: run(*SS)),
            "ss -tinp": milliseconds(lambda: run(*SS_OWNERS)),
            "psutil": milliseconds(read_by_psutil),
        }


MEASURED = """import os, resource, sys, time
begin = time.perf_counter()
status = os.spawnvp(os.P_WAIT, sys.argv[1], sys.argv[1:])
took = time.perf_counter() - begin
print(status, took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"""
"""Runs a command from a small process: the kernel counts as a program's what the process that started it took."""


def to_its_end(words: Sequence[str]) -> Sample:
    """Run a command; return its seconds and its largest resident set in MB."""
    measured = (sys.executable, "-I", "-S", "-c", MEASURED, *words)
    done = subprocess.run(
        measured,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    status, seconds, kilobytes = done.stderr.splitlines()[-1].split()
    if status != "0":
        raise SystemExit(f"{' '.join(words)}: status {status}\n{done.stderr}")
    return {"time": float(seconds), "memory": int(kilobytes) * 1024 / 1e6}


@benchmark(
    "once", "All sockets printed once", {"time": "s", "memory": "MB"}, over="sockets", sizes=(1_000, 10_000, 90_000),
    rounds=3, peers={"ss -tinp": "ss"}, has_reference=True, targets=(Target(150, "memory", 90_000),),
)  # fmt: skip
def once(scale: Scale) -> Iterator[Turns]:
    """A whole process: nettop prints all rows as JSON Lines, ss as text. Memory is the largest resident set."""
    own_namespace()
    with connections(scale.size):
        run(NETTOP, *ALL_ROWS)  # compiles what is missing
        yield {OURS: lambda: to_its_end((NETTOP, *ALL_ROWS)), "ss -tinp": lambda: to_its_end(SS_OWNERS)}
