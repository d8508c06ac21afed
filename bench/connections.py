# SPDX-License-Identifier: Apache-2.0
"""Compare the speed of the connections lens with ss: `sudo .venv/bin/python bench/connections.py [--quick]`.

All figures of a run are measured on the same sockets in the same minute, and printed with their bounds. On a shared
machine absolute figures are noisy; ratios within a run are reliable.
"""

import contextlib
import os
import sys
import time
from argparse import Namespace as Options
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bpf_stats import program_runs, runs_since, statistics_on
from measure import QUICK, Figure, Report, arguments, at_least, judge, side_by_side
from programs import (
    NETTOP,
    Screens,
    cpu_while,
    drain,
    in_background,
    printing,
    resident_mb,
    run,
    running,
)
from sockets import NAME, connections, own_namespace

JSON = ("--table", "-d", "--format", "jsonl")
SS, SS_OWNERS = ("ss", "-tinH", "-O"), ("ss", "-tinpH", "-O")


def passes(options: Options) -> Iterator[Report]:
    """Measure a snapshot in this process against ss: the walk over descriptors alone, and with the hash tables.

    nettop pauses between walks over the hash tables where they are expensive; here the last walks are backdated, so
    that each reading walks the tables.
    """
    from nettop.probes.connections.probe import Connections

    rows, runs = (4_000, 3) if options.quick else (options.rows, options.runs)
    probe = Connections()

    def read_both() -> None:
        table = probe.table
        table._last_walks = {inode: replace(walk, begun_ns=0) for inode, walk in table._last_walks.items()}
        probe.read(time.monotonic_ns())

    with contextlib.closing(probe), connections(rows):
        probe.start()
        snapshot = probe.read(time.monotonic_ns())
        table = next(iter(snapshot.tables.values()))
        both, first, ss, owners = side_by_side(
            runs,
            read_both,
            lambda: probe.table.read_owned(table.array),
            lambda: run(*SS),
            lambda: run(*SS_OWNERS),
        )
        whole, once = side_by_side(
            max(runs // 2, 1), lambda: run(*SS_OWNERS), lambda: run(NETTOP, *JSON, "--once")
        )
    walked = snapshot.counts["namespaces_walked"]
    yield (
        f"Snapshot of {len(table):,} sockets (second walk in {walked} namespaces)",
        [
            Figure("descriptor pass", first * 1e3, "ms"),
            Figure("both passes, a whole snapshot", both * 1e3, "ms"),
            Figure("ss -tin", ss * 1e3, "ms"),
            Figure("ss -tinp", owners * 1e3, "ms"),
            at_least("descriptor pass against ss -tin", ss / first, "×", 8),
            at_least("descriptor pass against ss -tinp", owners / first, "×", 20),
            at_least("both passes against ss -tin", ss / both, "×", 4),
            at_least("both passes against ss -tinp", owners / both, "×", 14),
        ],
    )
    yield (
        "Whole process, all those rows as JSON Lines",
        [
            Figure("nettop --table -d --once --format jsonl", once, "s", whole),
            Figure("ss -tinp", whole, "s"),
        ],
    )


def start_up(options: Options) -> Iterator[Report]:
    """Measure the time from the command to the first row, as a table and on the screen."""
    rows, runs = 2_000, 3 if options.quick else options.runs
    plain, screen = [], []
    with connections(rows):
        for _ in range(runs):
            start = time.perf_counter()
            with printing(*JSON):
                plain.append(time.perf_counter() - start)
            with Screens() as terminal:
                screen.append(terminal.read_for(10, NAME.encode()) or float("nan"))
    yield (
        f"Start to first rows, {rows:,} sockets",
        [
            Figure("--table", sorted(plain)[runs // 2], "s", 0.8),
            Figure("screens", sorted(screen)[runs // 2], "s", 1.0),
        ],
    )


def memory(options: Options) -> Iterator[Report]:
    """Measure the resident memory of the main process after some refreshes."""
    rows, seconds = 4_000, 3 if options.quick else 10
    with connections(rows):
        with in_background("--table", "-d", "-t", "0.5") as process:
            drain(process, seconds)
            plain = resident_mb(process.pid)
        with Screens("-t", "0.5") as terminal:
            terminal.read_for(seconds)
            screen = resident_mb(terminal.pid)
    yield (
        f"Resident memory of the main process, {rows:,} sockets",
        [
            Figure("--table", plain, "MB", 50),
            Figure("screens", screen, "MB", 90),
        ],
    )


def processor(options: Options) -> Iterator[Report]:
    """Measure the CPU time of nettop and its children at one refresh per second."""
    rows, seconds = 10_000, 5 if options.quick else 20
    with connections(rows):
        with in_background("--table", "-d", "-t", "1") as process:
            drain(process, 3)
            plain = cpu_while(process.pid, lambda: drain(process, seconds))
        with Screens("-t", "1") as terminal:
            terminal.read_for(3)
            screen = cpu_while(terminal.pid, lambda: terminal.read_for(seconds))
    yield (
        f"CPU at one refresh per second, {rows:,} sockets, over {seconds:g} s",
        [
            Figure("--table", 100 * plain, "%", 5),
            Figure("screens", 100 * screen, "%", 5),
        ],
    )


def packets() -> int:
    """Return the packets that loopback received in this namespace."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if "lo:" in line)
    return int(line.split()[2])


def runs_of_programs(options: Options) -> Iterator[Report]:
    """Count BPF program runs while iperf3 sends: they depend on descriptors, not packets."""
    seconds = 3 if options.quick else 10
    with statistics_on(), in_background("--table", "-d", "--format", "csv", "-t", "1") as process:
        drain(process, 2)
        with running("iperf3", "-s", "-1"), running("iperf3", "-c", "127.0.0.1", "-t", f"{seconds + 2}"):
            before, packets_before = program_runs(process.pid), packets()
            drain(process, seconds)
            runs = runs_since(before, program_runs(process.pid))
            sent = packets() - packets_before
    yield (
        f"BPF program runs while iperf3 sends {sent:,} packets in {seconds} s",
        [
            *(Figure(f"runs/s of {name}", each.count / seconds) for name, each in sorted(runs.items())),
            Figure("runs per packet", sum(each.count for each in runs.values()) / max(sent, 1), "", 0.5),
        ],
    )


@contextlib.contextmanager
def changing_screen(
    rows: int, sort: str = "-bytes_sent_per_s", nth: int = 1
) -> Iterator[tuple[Screens, int]]:
    """Yield the screens, with one row in `nth` new at each refresh, and a pipe with the publication times.

    A publication time is taken just before the snapshot goes to the bus, by the clock of time.perf_counter (ns, 8
    bytes). A frame has ended when no output came for 0.2 s; the next is due after 0.7 s.
    """
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    script = str(Path(__file__).with_name("changing_screen.py"))
    run_it = ("env", "COLORTERM=truecolor", sys.executable, script, str(rows), str(writer), sort, str(nth))
    with Screens(around=run_it) as screens:
        os.close(writer)
        yield screens, reader
    os.close(reader)


def screen_refresh(options: Options) -> Iterator[Report]:
    """Measure publish → last byte written, sorted by a rate, with the sampler running."""
    rows, frames = (5_000, 5) if options.quick else (50_000, 20)
    taken = []
    with changing_screen(rows) as (terminal, publications):
        for frame in range(frames + 3):
            published = int.from_bytes(os.read(publications, 8), sys.byteorder)
            last = terminal.last_byte(0.2)
            if frame > 2 and last is not None:  # the first ones also draw the frame around the table
                taken.append((last * 1e9 - published) / 1e6)
    yield (
        f"Screen refresh, {rows:,} rows, all changing, 120 × 40, {len(taken)} frames",
        [
            Figure("publish → last byte written, median", sorted(taken)[len(taken) // 2], "ms", 80),
            Figure("publish → last byte written, slowest", max(taken), "ms"),
        ],
    )


def bytes_of_refreshes(rows: int, sort: str, nth: int, frames: int) -> list[int]:
    """Return how many bytes each refresh writes to the terminal, without the first ones."""
    sizes = []
    with changing_screen(rows, sort, nth) as (terminal, publications):
        for frame in range(frames + 3):
            os.read(publications, 8)
            before = len(terminal.output)
            terminal.last_byte(0.2)
            if frame > 2:
                sizes.append(len(terminal.output) - before)
    return sizes


def terminal_output(options: Options) -> Iterator[Report]:
    """Measure the bytes that a refresh writes to the terminal, with rows in a fixed order and rows that move."""
    rows, frames = 4_000, 5 if options.quick else 20
    some = sorted(bytes_of_refreshes(rows, "id", 5, frames))
    moving = sorted(bytes_of_refreshes(rows, "-bytes_sent_per_s", 1, frames))
    yield (
        f"Output of a refresh, {rows:,} rows, 120 × 40, {frames} frames",
        [
            Figure("one row in five changes, median", some[frames // 2] / 1e3, "kB", 6),
            Figure("one row in five changes, largest", some[-1] / 1e3, "kB"),
            Figure("all rows change and move, median", moving[frames // 2] / 1e3, "kB"),
            Figure("all rows change and move, largest", moving[-1] / 1e3, "kB"),
        ],
    )


PARTS = {
    "passes": passes,
    "start": start_up,
    "memory": memory,
    "cpu": processor,
    "screen": screen_refresh,
    "output": terminal_output,
    "runs": runs_of_programs,
}


def main() -> int:
    """Run all parts, or the named ones."""
    rows, runs = (90_000, "sockets for the snapshot"), (7, "runs for each median")
    options = arguments(__doc__, PARTS, rows=rows, runs=runs, quick=QUICK)
    own_namespace()
    return judge(report for name in options.parts for report in PARTS[name](options))


if __name__ == "__main__":
    sys.exit(main())
