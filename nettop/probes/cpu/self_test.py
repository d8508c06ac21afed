# SPDX-License-Identifier: Apache-2.0
"""Self-test of the CPU lens: compare its times with the CPU time of a process that does little but send."""

from __future__ import annotations

from collections.abc import Sequence

from nettop.process.clocks import monotonic_ns
from nettop.selftest.paths import TrafficPath
from nettop.selftest.process import CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.cpu import CPUS, HOOK_SAMPLES, LENS, PROCESSES
from nettop.snapshots.snapshot import Snapshot
from nettop.snapshots.source import Source

_FAMILY = "IPv4"
LOAD_NS = 200_000_000
"""CPU time of the sender: about 200 samples."""


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Send datagrams over loopback: the sender spends CPU time in system calls, and CPUs receive in a softirq."""
    path = paths[0]
    before_ns = monotonic_ns()
    before = source.read(before_ns)
    try:
        cpu_ns = _send(path)
    except CommandFailed as error:
        return [SelfTestResult(LENS.id, f"{path.name} {_FAMILY} UDP", skipped=error.what)]
    after = source.read(monotonic_ns())
    all_cpus_ns = (monotonic_ns() - before_ns) * len(after.tables[CPUS.name])
    then, now = (snapshot.tables[CPUS.name].array["rx_softirq_ns"] for snapshot in (before, after))
    softirqs_ns = int(now.sum()) - int(then.sum())
    return [
        _within(after, "TX SYS within the sender's CPU time", _calls_ns(after, path), cpu_ns),
        _within(after, "RX SOFT within the time of the CPUs", softirqs_ns, all_cpus_ns),
    ]


def _send(path: TrafficPath) -> int:
    """Make the client send to a socket that no process reads; return its CPU time. Raise CommandFailed."""
    client, server = path.ends()
    port = server.run("bind_udp", "load", path.server_address[_FAMILY])
    client.run("bind_udp", "load", path.client_address[_FAMILY])
    cpu_ns: int = client.run("send_load", "load", (path.server_address[_FAMILY], port), LOAD_NS)
    for end in (client, server):
        end.run("close", "load")
    return cpu_ns


def _calls_ns(snapshot: Snapshot, path: TrafficPath) -> int:
    """Return the time of the client's send calls, found by its name, and by its PID if known."""
    rows = snapshot.tables[PROCESSES.name]
    return sum(
        row["tx_syscalls_ns"] or 0
        for row in rows_of(rows, rows.array["id"] >= 0)
        if row["process"] == path.client.name and row["pid"] in (path.client.pid, None)
    )


def _within(snapshot: Snapshot, what: str, measured_ns: int, most_ns: int) -> SelfTestResult:
    """Check that a time is above 0 and within its upper bound."""
    what = f"loopback {_FAMILY} UDP, {what}"
    why = snapshot.why_not(HOOK_SAMPLES.name)
    if why is not None:
        return SelfTestResult(LENS.id, what, skipped=f"not available: {why}")
    detail = f"{measured_ns:,} of at most {most_ns:,} ns"
    is_right = 0 < measured_ns <= most_ns
    return SelfTestResult(LENS.id, what, 1, int(is_right), "entry points", detail=detail)
