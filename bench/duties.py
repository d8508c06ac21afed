# SPDX-License-Identifier: Apache-2.0
"""Compare the CPU lens's times with a thread's own clock: `sudo .venv/bin/python bench/duties.py [--calls send,recv]`.

One thread makes one kind of call for a share of the time (duty.c). What it sends is dropped by a device whose other end
is down, so that no softirq interrupts it; what it receives is there already. Each ratio has the standard error of its
number of samples; bounds are two of them wider.
"""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace as Options
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpu_scenes import PORT, Namespace, Traffic
from measure import Figure, Report, arguments, judge
from programs import LAST_CPU, NETTOP, built, running, until

from nettop.snapshots.cpu import FREQUENCY

CALLS = {
    "send": "tx_syscalls_ns",
    "sendmsg": "tx_syscalls_ns",
    "sendfile": "tx_syscalls_ns",
    "splice": "tx_syscalls_ns",
    "io_uring": "tx_syscalls_ns",
    "recv": "rx_syscalls_ns",
}
"""The column that has the time of each call."""
PERCENTS = (1, 10, 50, 100)
LEAST, MOST = 0.98, 1.02
NEAR, FAR, MAC = "10.79.9.1", "10.79.9.2", "02:00:00:00:00:02"
HERE = "127.0.0.1"


def prepared(traffic: Traffic) -> Namespace:
    """Return a namespace where FAR is reached through a device whose other end is down."""
    namespace = traffic.namespace()
    namespace.ip("link add near type veth peer name far")
    namespace.ip(f"addr add {NEAR}/24 dev near")
    namespace.ip("link set near up")
    namespace.ip(f"neigh replace {FAR} lladdr {MAC} dev near")
    return namespace


def rows_in(output: Path) -> list[dict[str, Any]]:
    """Return the rows that nettop has printed completely."""
    return [json.loads(line) for line in output.read_text().splitlines(keepends=True) if line.endswith("\n")]


def times_in(output: Path) -> set[str]:
    """Return the times of its readings."""
    return {row["time"] for row in rows_in(output)}


def ratio_seen(command: list[str], column: str) -> tuple[float, float]:
    """Run duty.c while nettop prints the times of processes.

    Return its time there relative to its own clock, and the standard error.
    """
    view = ("--table", "--view", "cpu.processes", "-d", "--format", "jsonl", "--all", "-t", "1")
    with tempfile.NamedTemporaryFile("w+") as output, running(NETTOP, *view, out=output, err=sys.stderr):
        seen = Path(output.name)
        until(lambda: rows_in(seen), "a first reading")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as duty:
            own_ns = float(duty.communicate()[0])
        before = times_in(seen)
        until(lambda: len(times_in(seen) - before) > 1, "two more readings")
        times = [
            row[column] for row in rows_in(seen) if row.get("pid") == duty.pid
        ]  # lines about lost ticks have none
    samples = max(own_ns / 1e9 * FREQUENCY.default, 1)
    return max(times, default=0) / own_ns, samples**-0.5


def duties(options: Options) -> Iterator[Report]:
    """Compare the times of each kind of call at each duty."""
    with built("duty.c") as program, Traffic(0) as traffic:
        namespace = prepared(traffic)
        for what in options.calls.split(","):
            column, to = CALLS[what], HERE if what == "recv" else FAR
            figures = []
            for percent in PERCENTS:
                words = (program, what, str(percent), str(options.seconds), str(LAST_CPU), to, PORT)
                ratio, error = ratio_seen(namespace.inside(*words), column)
                about = f"{percent} % of the time (± {error:.3f})"
                figures += [
                    Figure(f"{about}, at most", ratio, "×", MOST + 2 * error),
                    Figure(f"{about}, at least", ratio, "×", LEAST - 2 * error, at_least=True),
                ]
            yield f"{what}: {column} ÷ the thread's own clock, {options.seconds} s", figures


if __name__ == "__main__":
    sys.exit(
        judge(
            duties(
                arguments(
                    __doc__, calls=(",".join(CALLS), "kinds of calls"), seconds=(10, "seconds of each duty")
                )
            )
        )
    )
