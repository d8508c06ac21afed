# SPDX-License-Identifier: Apache-2.0
"""The counters of a network namespace's protocols, and of each CPU's receive backlog (/proc/net).

Protocols are those of the calling thread's namespace. Counters that this kernel lacks are left out: IPv6 may be missing
altogether, and new kernels add counters.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from nettop.kernel.proc_files import read_text

_OWN = "thread-self/net"
_IN_LINES = re.compile(r"^(\w+)\s+(-?\d+)$", re.MULTILINE | re.ASCII)
_CPU_AT = 12
"""The column with the CPU, since Linux 5.10; before, the lines are those of the CPUs in turn."""


def read_counters(proc: Path = Path("/proc")) -> dict[str, int]:
    """Every counter of /proc/net/{netstat,snmp,snmp6}, by the names that nstat gives them: TcpExtListenOverflows.

    The protocols' settings in snmp, which count no packets, are among them.
    """
    folder = proc / _OWN
    counters = _in_pairs_of_lines(read_text(folder / "netstat")) | _in_pairs_of_lines(
        read_text(folder / "snmp")
    )
    return counters | {name: int(value) for name, value in _IN_LINES.findall(read_text(folder / "snmp6"))}


def read_backlog_drops(proc: Path = Path("/proc")) -> dict[int, int]:
    """Packets that found the receive backlog full, by CPU; lines that cannot be read are left out.

    They are counted for the whole machine (softnet_seq_show in net/core/net-procfs.c).
    """
    drops: dict[int, int] = {}
    for number, line in enumerate(read_text(proc / _OWN / "softnet_stat").splitlines()):
        with suppress(ValueError, IndexError):
            columns = [int(word, 16) for word in line.split()]
            drops[columns[_CPU_AT] if len(columns) > _CPU_AT else number] = columns[1]
    return drops


def _in_pairs_of_lines(text: str) -> dict[str, int]:
    """`Udp: InDatagrams NoPorts` above `Udp: 5 7`; a pair that does not match is left out."""
    counters: dict[str, int] = {}
    lines = text.splitlines()
    for heading, line in zip(lines[::2], lines[1::2], strict=False):
        names, (group, *values) = _names(heading), line.split() or [""]
        if len(names) == len(values) and heading.startswith(group):
            with suppress(ValueError):
                counters |= dict(zip(names, map(int, values), strict=True))
    return counters


@lru_cache(maxsize=64)
def _names(heading: str) -> tuple[str, ...]:
    """The counters that a heading names; it is the same in every namespace, as long as the kernel runs."""
    group, _, names = heading.partition(":")
    return tuple(group + name for name in names.split())
