# SPDX-License-Identifier: Apache-2.0
"""What a network namespace counts of its own protocols, and each CPU of its receive queue (/proc/net).

Everything is read for the namespace of the calling thread. What a kernel does not have is not there: IPv6 may
be missing altogether, and counters come with new kernels.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_HERE = "thread-self/net"
_IN_LINES = re.compile(r"^(\w+)\s+(-?\d+)$", re.MULTILINE | re.ASCII)
_CPU_AT = 12
"""The column that tells the CPU, since Linux 5.10; before, the lines are those of the CPUs in turn."""


class Softnet(NamedTuple):
    """The receive queue of one CPU since the boot (softnet_seq_show in net/core/net-procfs.c).

    `dropped` are packets that found its backlog full, `squeezed` how often it had to stop with work left,
    `flow_limited` packets of one flow that took too much of a long backlog (part of `dropped`).
    """

    cpu: int
    processed: int
    dropped: int
    squeezed: int
    flow_limited: int


def read_counters(proc: Path = Path("/proc")) -> dict[str, int]:
    """Every counter of /proc/net/{netstat,snmp,snmp6}, by the names that nstat gives them: TcpExtListenOverflows.

    Those that are not about a namespace's packets (the protocols' settings in snmp) are there too.
    """
    here = proc / _HERE
    found = _in_pairs_of_lines(_read(here / "netstat")) | _in_pairs_of_lines(_read(here / "snmp"))
    return found | {name: int(value) for name, value in _IN_LINES.findall(_read(here / "snmp6"))}


def read_softnet(proc: Path = Path("/proc")) -> list[Softnet]:
    """One line for each CPU that is online; a line that cannot be read is left out. The same in all namespaces."""
    found = (
        _softnet(line, place) for place, line in enumerate(_read(proc / _HERE / "softnet_stat").splitlines())
    )
    return [one for one in found if one is not None]


def _in_pairs_of_lines(text: str) -> dict[str, int]:
    """`Udp: InDatagrams NoPorts` above `Udp: 5 7`; a pair that does not match is left out."""
    found: dict[str, int] = {}
    lines = text.splitlines()
    for heading, line in zip(lines[::2], lines[1::2], strict=False):
        names, (group, *values) = _names(heading), line.split() or [""]
        if len(names) == len(values) and heading.startswith(group):
            with suppress(ValueError):
                found |= dict(zip(names, map(int, values), strict=True))
    return found


@lru_cache(maxsize=64)
def _names(heading: str) -> tuple[str, ...]:
    """The counters that a heading announces; it is the same in every namespace, as long as the kernel runs."""
    group, _, names = heading.partition(":")
    return tuple(group + name for name in names.split())


def _softnet(line: str, place: int) -> Softnet | None:
    try:
        columns = [int(word, 16) for word in line.split()]
        processed, dropped, squeezed = columns[:3]
    except ValueError:
        return None
    cpu = columns[_CPU_AT] if len(columns) > _CPU_AT else place
    return Softnet(cpu, processed, dropped, squeezed, columns[10] if len(columns) > 10 else 0)


def _read(path: Path) -> str:
    """The text of a file, empty when it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
