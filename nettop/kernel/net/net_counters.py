# SPDX-License-Identifier: Apache-2.0
"""Protocol counters of a network namespace, and drops of each CPU's receive backlog (/proc/net).

Protocol counters are those of the calling thread's namespace. Counters that this kernel lacks are omitted: IPv6 may be
missing altogether, and new kernels add counters.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from nettop.kernel.host.proc_files import read_text

_OWN = "thread-self/net"
_CPU_AT = 12
"""Index of the CPU column."""


def read_counters(proc: Path = Path("/proc")) -> dict[str, int]:
    """Read every counter of /proc/net/{netstat,snmp,snmp6} under its nstat name, such as TcpExtListenOverflows.

    Includes the protocol settings in snmp, which are not packet counts.
    """
    folder = proc / _OWN
    counters = _in_pairs_of_lines(read_text(folder / "netstat")) | _in_pairs_of_lines(
        read_text(folder / "snmp")
    )
    return counters | _in_lines(read_text(folder / "snmp6"))


def read_softnet(proc: Path = Path("/proc")) -> dict[int, tuple[int, int, int]]:
    """Read what each CPU received: packets processed, packets dropped because its backlog was full, and the times that
    its softirq ended with packets left. Skip malformed lines.

    The kernel counts them for the whole machine (softnet_seq_show in net/core/net-procfs.c).
    """
    counts: dict[int, tuple[int, int, int]] = {}
    for line in read_text(proc / _OWN / "softnet_stat").splitlines():
        with suppress(ValueError, IndexError):
            columns = [int(word, 16) for word in line.split()]
            processed, dropped, squeezed = columns[:3]
            counts[columns[_CPU_AT]] = processed, dropped, squeezed
    return counts


def read_backlog_drops(proc: Path = Path("/proc")) -> dict[int, int]:
    """Read the packets dropped on a full receive backlog, by CPU."""
    return {cpu: dropped for cpu, (_, dropped, _) in read_softnet(proc).items()}


def _in_lines(text: str) -> dict[str, int]:
    """Parse lines such as `Udp6InDatagrams 5`; nothing if one is different."""
    words = text.split()
    with suppress(ValueError):
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return {}


def _in_pairs_of_lines(text: str) -> dict[str, int]:
    """Parse pairs of lines: `Udp: InDatagrams NoPorts` above `Udp: 5 7`; skip pairs that do not match."""
    counters: dict[str, int] = {}
    lines = text.splitlines()
    for heading, line in zip(lines[::2], lines[1::2], strict=False):
        group, names = _names_in(heading)
        if line.startswith(group):
            with suppress(ValueError):
                counters |= dict(zip(names, map(int, line.split()[1:]), strict=True))
    return counters


@lru_cache
def _names_in(heading: str) -> tuple[str, list[str]]:
    """Return the group of a heading, and the names of its counters; they stay the same while the kernel runs."""
    group, *names = heading.split() or [""]
    return group, [group.rstrip(":") + name for name in names]
