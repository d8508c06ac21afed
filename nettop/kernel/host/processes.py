# SPDX-License-Identifier: Apache-2.0
"""Names, control groups and containers of the rows' processes, looked up once per process."""

from __future__ import annotations

import pwd
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nettop.kernel.host.facts import Host, container_of
from nettop.snapshots.arrays import Array, distinct_rows, take_rows
from nettop.snapshots.safe_text import safe_bytes, safe_text
from nettop.snapshots.snapshot import TextTable, known

_FIELDS = ("process", "cgroup", "container")
_UNKNOWN = np.iinfo(np.uint32).max

_PAUSE_PER_LISTING = 100
"""Pausing for this multiple of the time that listing control groups took keeps it below 1 % of a CPU."""
_NO_CSS_SET = _NO_START_TIME = np.iinfo(np.uint64).max

Identity = tuple[int, int, int]
"""A process and its place: PID, start time, address of its css_set (which changes when the process moves)."""


class ProcessNames:
    """The names of the processes in one reading, or one batch of events.

    Its tables are not replaced while it is in use, so `texts` has whatever it coded. Rows of another reading have other
    codes: `adopt` them.
    """

    def __init__(self, processes: Processes, tables: Mapping[str, TextTable] | None = None) -> None:
        self.processes = processes
        self._tables = tables or {name: TextTable() for name in _FIELDS}

    def texts(self) -> dict[str, Sequence[str]]:
        """Return the texts of the rows coded so far, by column."""
        return {name: table.frozen() for name, table in self._tables.items()}

    def code(self, process: str) -> int:
        """Return the code of a process name, which must be safe to display."""
        return self._tables["process"].code(process)

    def adopt(self, rows: Array, texts: Mapping[str, Sequence[str]]) -> None:
        """Translate the codes of rows copied from an earlier reading, whose texts were these."""
        for name, table in self._tables.items():
            rows[name] = table.adopted(rows[name], texts.get(name, ()))

    def name(self, rows: Array, groups: dict[int, str] | None = None, *, keep_earlier: bool = False) -> None:
        """Set the columns process, cgroup and container of rows that are grouped by process.

        Reads the columns pid, start_time, css_set, cgroup_id and comm. A row with a start time but no PID is a process
        outside nettop's PID namespace, and is named as such. `groups` maps a css_set to its control group if already
        known; new ones are added to it. With `keep_earlier`, keep the processes of earlier rows too, and do not count
        processes of these rows as vanished, as they may have exited.
        """
        is_next = [rows[name][1:] != rows[name][:-1] for name in ("pid", "start_time")]
        starts = np.flatnonzero(np.append([True], is_next[0] | is_next[1]))[: len(rows)]
        codes = np.full((len(_FIELDS), len(starts)), _UNKNOWN, np.uint32)
        heads = rows[starts]
        columns = (heads[name].tolist() for name in ("pid", "start_time", "css_set"))
        identities = list(zip(*columns, strict=True))
        by_css_set = {} if groups is None else groups
        found = self.processes.find_groups(
            zip(identities, heads["cgroup_id"].tolist(), strict=True), by_css_set, keep_earlier=keep_earlier
        )
        for at, (identity, comm) in enumerate(zip(identities, heads["comm"].tolist(), strict=True)):
            if identity not in found:
                continue
            name, group = safe_bytes(comm), found[identity]
            codes[0, at] = self.code(outside_name(name) if identity[0] == _UNKNOWN else name)
            if group is not None:
                codes[1, at] = self._tables["cgroup"].code(group)
                container = container_of(group)
                if container is not None:
                    codes[2, at] = self._tables["container"].code(container)
        lengths = np.diff(starts, append=len(rows))
        for field, of_run in zip(_FIELDS, codes, strict=True):
            rows[field] = np.repeat(of_run, lengths)

    def name_any(
        self, rows: Array, groups: dict[int, str] | None = None, *, keep_earlier: bool = False
    ) -> None:
        """Do what `name` does for rows in any order; rows without a process are unchanged."""
        owned = np.flatnonzero(known(rows["start_time"]))
        firsts, places = distinct_rows([rows[name][owned] for name in ("pid", "start_time")])
        heads = take_rows(rows, owned[firsts])
        self.name(heads, groups, keep_earlier=keep_earlier)
        for name in _FIELDS:
            rows[name][owned] = heads[name][places]


class Processes:
    """Processes of the last rows and their control groups, which are looked up once.

    `vanished` counts processes that were gone before their control group could be read.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tables = {name: TextTable() for name in _FIELDS}
        self._groups: dict[Identity, str | None] = {}
        self._by_id = _GroupsById(host)
        self.vanished = 0

    def begin(self) -> ProcessNames:
        """Begin a reading: return the names of its rows, without most texts of processes that are gone."""
        self._tables = {name: table.renewed(len(self._groups)) for name, table in self._tables.items()}
        return ProcessNames(self, self._tables)

    def groups(self) -> dict[int, str]:
        """Return the control groups of the last rows' processes, by the address of their css_set."""
        groups = {css_set: group for (_, _, css_set), group in self._groups.items() if group is not None}
        groups.pop(_NO_CSS_SET, None)
        return groups

    def find_groups(
        self, processes: Iterable[tuple[Identity, int]], by_css_set: dict[int, str], *, keep_earlier: bool
    ) -> dict[Identity, str | None]:
        """Return the control group of each process, given the lower half of its group's id; see ProcessNames.name.

        Rows without a process have no start time, and are left out.
        """
        vanished = self.vanished
        found = {
            identity: self._group(identity, group_id, by_css_set)
            for identity, group_id in processes
            if identity[1] != _NO_START_TIME
        }
        self._groups = self._groups | found if keep_earlier else found
        if keep_earlier:
            self.vanished = vanished
        return found

    def describe(self, owners: list[tuple[int, int]]) -> dict[str, str]:
        """Return details of the processes (PID, descriptor) that own a socket."""
        if not owners:
            return {"Held by": "no process"}
        lines = [f"{self._host.process_name(pid) or 'gone'} {pid}, descriptor {fd}" for pid, fd in owners]
        details = {"Held by": "\n".join(lines)}
        for pid in sorted({pid for pid, _ in owners}):
            details[f"Command {pid}"] = self._host.command_line(pid) or "–"
        return details

    def _group(self, identity: Identity, group_id: int, by_css_set: dict[int, str]) -> str | None:
        """Return the control group of a process, read once; processes with the same css_set share it.

        Without a css_set, read it each time: otherwise a move of the process would go unnoticed.
        """
        css_set = identity[2]
        if css_set == _NO_CSS_SET:
            return self._read_group(identity[0], group_id)
        if css_set in by_css_set:
            return by_css_set[css_set]
        group = (
            self._groups[identity] if identity in self._groups else self._read_group(identity[0], group_id)
        )
        if group is not None:  # if this process is gone, others with its css_set may still exist
            by_css_set[css_set] = group
        return group

    def _read_group(self, pid: int, group_id: int) -> str | None:
        read = self._host.cgroup(pid) or self._by_id.path(group_id)
        self.vanished += read is None
        return None if read is None else safe_text(read)


class _GroupsById:
    """Control groups by id, for processes that are gone; listed again if an id is missing."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._paths: dict[int, str] = {}
        self._due_at = 0.0

    def path(self, group_id: int) -> str | None:
        """Return the path of a control group; None if it has none, or if listing again would be too soon."""
        begun = time.monotonic()
        if group_id not in self._paths and group_id != _UNKNOWN and begun >= self._due_at:
            self._paths = self._host.cgroups_by_id()
            ended = time.monotonic()
            self._due_at = ended + _PAUSE_PER_LISTING * (ended - begun)
        return self._paths.get(group_id)


def outside_name(name: str = "") -> str:
    """Return the display name of a process outside nettop's PID namespace; `name` is empty if unknown."""
    return f"{name} (outside)".lstrip()


def user_name(uid: int) -> str:
    """Return the name of a user, or its number if it has none."""
    if uid == _UNKNOWN:
        return "unknown"
    try:
        return safe_text(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)
