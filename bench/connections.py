# SPDX-License-Identifier: Apache-2.0
"""The speed of the connections lens, beside ss: `sudo .venv/bin/python bench/connections.py [--quick]`.

All figures of a run are taken on the same sockets in the same minute; each stands beside its bound. Single figures on a
shared machine are noise, ratios of one run hold.
"""

import argparse
import contextlib
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bpf_stats import run_counts, statistics_on
from measure import (
    NETTOP,
    Figure,
    Terminal,
    cpu_seconds,
    drain,
    in_background,
    on_terminal,
    report,
    resident_mb,
    run,
    side_by_side,
)
from sockets import NAME, connections, own_namespace

JSON = ("--table", "-d", "--format", "jsonl")
KEYS = {"the next row": b"j", "sort by the next column": b"s", "the reverse order": b"S"}
SS, SS_OWNERS = ("ss", "-tinH", "-O"), ("ss", "-tinpH", "-O")


def passes(rows: int, runs: int) -> None:
    """A snapshot, taken in this process: the walk over descriptors alone, and with the hash tables, beside ss.

    nettop pauses between two walks over the hash tables where these are expensive; here the last ones seem to be long
    ago, so that each reading walks them.
    """
    from nettop.probes.connections.probe import Connections

    probe = Connections()

    def read_both() -> None:
        table = probe.table
        table._last_walks = {inode: replace(walk, begun_ns=0) for inode, walk in table._last_walks.items()}
        probe.read(time.monotonic_ns())

    probe.start()
    try:
        with connections(rows):
            snapshot = probe.read(time.monotonic_ns())
            table = next(iter(snapshot.tables.values()))
            both, first, ss, owners = side_by_side(
                runs,
                read_both,
                lambda: probe.table.read_owned(table.array),
                run(*SS),
                run(*SS_OWNERS),
            )
            whole, once = side_by_side(max(runs // 2, 1), run(*SS_OWNERS), run(NETTOP, *JSON, "--once"))
    finally:
        probe.close()
    report(
        f"Snapshot of {len(table):,} sockets (second walk in {snapshot.counts['namespaces_walked']} namespaces)",
        [
            Figure("descriptor pass", first * 1e3, "ms"),
            Figure("both passes, a whole snapshot", both * 1e3, "ms"),
            Figure("ss -tin", ss * 1e3, "ms"),
            Figure("ss -tinp", owners * 1e3, "ms"),
            Figure("descriptor pass against ss -tin", ss / first, "×", 8, at_least=True),
            Figure("descriptor pass against ss -tinp", owners / first, "×", 20, at_least=True),
            Figure("both passes against ss -tin", ss / both, "×", 4, at_least=True),
            Figure("both passes against ss -tinp", owners / both, "×", 14, at_least=True),
        ],
    )
    report(
        "Whole process, all those rows as JSON Lines",
        [Figure("nettop --table -d --once --format jsonl", once, "s", whole), Figure("ss -tinp", whole, "s")],
    )


def start_up(rows: int, runs: int) -> None:
    """From the command to the first row, plain and on the screen."""
    with connections(rows):
        plain = []
        screen = []
        for _ in range(runs):
            plain.append(first_line())
            with on_terminal() as terminal:
                screen.append(terminal.read_for(10, NAME.encode()) or float("nan"))
    report(
        f"Start to first rows, {rows:,} sockets",
        [
            Figure("--table", sorted(plain)[runs // 2], "s", 0.8),
            Figure("screens", sorted(screen)[runs // 2], "s", 1.0),
        ],
    )


def first_line() -> float:
    """Seconds from the start of nettop until its first row can be read."""
    start = time.perf_counter()
    with in_background("--table", "-d", "--format", "jsonl") as process:
        assert process.stdout
        process.stdout.readline()
        return time.perf_counter() - start


def memory(rows: int, seconds: float) -> None:
    """Resident memory of the main process after some refreshes."""
    with connections(rows):
        with in_background("--table", "-d", "-t", "0.5") as process:
            drain(process, seconds)
            plain = resident_mb(process.pid)
        with on_terminal("-t", "0.5") as terminal:
            terminal.read_for(seconds)
            screen = resident_mb(terminal.pid)
    report(
        f"Resident memory of the main process, {rows:,} sockets",
        [Figure("--table", plain, "MB", 50), Figure("screens", screen, "MB", 90)],
    )


def processor(rows: int, seconds: float) -> None:
    """CPU time of nettop and its children at one refresh a second."""
    with connections(rows):
        with in_background("--table", "-d", "-t", "1") as process:
            drain(process, 3)
            before, begin = cpu_seconds(process.pid), time.perf_counter()
            drain(process, seconds)
            plain = (cpu_seconds(process.pid) - before) / (time.perf_counter() - begin)
        with on_terminal("-t", "1") as terminal:
            terminal.read_for(3)
            before, begin = cpu_seconds(terminal.pid), time.perf_counter()
            terminal.read_for(seconds)
            screen = (cpu_seconds(terminal.pid) - before) / (time.perf_counter() - begin)
    report(
        f"CPU at one refresh a second, {rows:,} sockets, over {seconds:g} s",
        [Figure("--table", 100 * plain, "%", 5), Figure("screens", 100 * screen, "%", 5)],
    )


def descriptors() -> int:
    """Open descriptors of all processes."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/fd"):
        try:
            total += len(os.listdir(path))
        except OSError:
            continue
    return total


def packets() -> int:
    """Packets that loopback has received in this namespace."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if "lo:" in line)
    return int(line.split()[2])


def program_runs(seconds: int) -> None:
    """BPF program runs while iperf3 sends, and with more sockets: they follow descriptors, not packets."""
    with statistics_on(), in_background("--table", "-d", "--format", "csv", "-t", "1") as process:
        drain(process, 2)
        idle = watch(process, seconds)
        server = subprocess.Popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        client = subprocess.Popen(
            ["iperf3", "-c", "127.0.0.1", "-t", str(seconds + 2)], stdout=subprocess.DEVNULL
        )
        busy = watch(process, seconds)
        client.wait()
        server.wait()
        with connections(4_000):
            many = watch(process, seconds)
    names = idle.runs.keys() | busy.runs.keys() | many.runs.keys()
    figures = []
    for label, activity in (("idle", idle), ("iperf3", busy), ("4,000 sockets more", many)):
        figures += [
            Figure(f"{label}: packets", activity.packets, ""),
            Figure(f"{label}: descriptors", activity.descriptors, ""),
        ]
        figures += [
            Figure(f"{label}: runs of {name} a second", activity.runs[name], "") for name in sorted(names)
        ]
    per_packet = sum(busy.runs.values()) * seconds / max(busy.packets, 1)
    report(
        f"BPF program runs in {seconds} s at one refresh a second",
        [*figures, Figure("iperf3: runs a packet", per_packet, "", 0.5)],
    )


@dataclass
class Activity:
    """What happened while nettop ran: packets, and runs a second of each program; open descriptors at the end."""

    packets: int
    descriptors: int
    runs: dict[str, float]


def watch(process: "subprocess.Popen[bytes]", seconds: int) -> Activity:
    """Count for `seconds`."""
    runs, packets_before = run_counts(process.pid), packets()
    drain(process, seconds)
    later = run_counts(process.pid)
    return Activity(
        packets() - packets_before,
        descriptors(),
        {name: (later[name] - runs.get(name, 0)) / seconds for name in later},
    )


@contextlib.contextmanager
def changing_screen(rows: int) -> Iterator[tuple[Terminal, int]]:
    """The screens at 120 × 40, every row new at each refresh; and the pipe that has the time of each publication.

    That is the moment before the bus has the snapshot, by the clock of time.perf_counter (ns, 8 bytes). A frame has
    ended when nothing came for 0.2 s; the next is due after 0.7 s.
    """
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    script = str(Path(__file__).with_name("changing_screen.py"))
    terminal = Terminal(sys.executable, script, str(rows), str(writer))
    os.close(writer)
    try:
        yield terminal, reader
    finally:
        terminal.end()
        os.close(reader)


def screen_refresh(rows: int, frames: int) -> None:
    """Publish → last byte written, sorted by a rate, the sampler running."""
    taken = []
    with changing_screen(rows) as (terminal, publications):
        for frame in range(frames + 3):
            published = int.from_bytes(os.read(publications, 8), sys.byteorder)
            last = terminal.last_byte(0.2)
            if frame > 2 and last is not None:  # the first draw the frame around the table too
                taken.append((last * 1e9 - published) / 1e6)
    taken.sort()
    report(
        f"Screen refresh, {rows:,} rows that all change, 120 × 40, {len(taken)} frames",
        [
            Figure("publish → last byte written, median", taken[len(taken) // 2], "ms", 80),
            Figure("publish → last byte written, the slowest", taken[-1], "ms"),
        ],
    )


def keystrokes(rows: int, presses: int) -> None:
    """Keystroke → last byte written, in the pause between two refreshes."""
    figures = []
    with changing_screen(rows) as (terminal, publications):
        for what, key in KEYS.items():
            taken: list[float] = []
            while len(taken) < presses:
                os.read(publications, 8)
                terminal.last_byte(0.2)
                pressed = time.perf_counter()
                terminal.press(key)
                last = terminal.last_byte(0.2)
                if last is not None and not select.select([publications], [], [], 0)[0]:
                    taken.append((last - pressed) * 1e3)
            figures.append(
                Figure(f"{what}: keystroke → last byte written, median", statistics.median(taken), "ms")
            )
    report(f"Keystrokes, {rows:,} rows, 120 × 40, {presses} of each", figures)


def main() -> None:
    """Runs all parts, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", help="passes start memory cpu screen keys runs (default: all)")
    parser.add_argument("--rows", type=int, default=90_000, help="sockets for the snapshot")
    parser.add_argument("--runs", type=int, default=7, help="runs for each median")
    parser.add_argument("--quick", action="store_true", help="small and short: proves that the bench works")
    chosen = parser.parse_args()
    quick = chosen.quick
    parts = {
        "passes": lambda: passes(4_000 if quick else chosen.rows, 3 if quick else chosen.runs),
        "start": lambda: start_up(2_000, 3 if quick else chosen.runs),
        "memory": lambda: memory(4_000, 3 if quick else 10),
        "cpu": lambda: processor(10_000, 5 if quick else 20),
        "screen": lambda: screen_refresh(5_000 if quick else 50_000, 5 if quick else 20),
        "keys": lambda: keystrokes(5_000 if quick else 20_000, 5 if quick else 20),
        "runs": lambda: program_runs(3 if quick else 10),
    }
    own_namespace()
    for name in chosen.parts or parts:
        parts[name]()
    sys.exit(0)


if __name__ == "__main__":
    main()
