# SPDX-License-Identifier: Apache-2.0
"""Names, control groups and containers of the rows' processes, looked up once per process."""

from __future__ import annotations

import pwd
import time
from collections.abc import Mapping, Sequence

import numpy as np

from nettop.kernel.host.facts import ROOT_CGROUP, Host, container_of
from nettop.snapshots.arrays import Array, copy_columns, distinct_rows, take_rows
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
        self._processes = processes
        self._is_reading = tables is not None
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

    def name(self, rows: Array) -> None:
        """Set the columns process, cgroup and container of rows that are grouped by process.

        Reads the columns pid, start_time, css_set, cgroup_id and comm. A row with a start time but no PID is a process
        outside nettop's PID namespace, and is named as such.
        """
        pids, started = (np.ascontiguousarray(rows[name]) for name in ("pid", "start_time"))
        is_next = (pids[1:] != pids[:-1]) | (started[1:] != started[:-1])
        starts = np.flatnonzero(np.append([True], is_next))[: len(rows)]
        codes = np.full((len(_FIELDS), len(starts)), _UNKNOWN, np.uint32)
        heads = rows[starts]
        columns = (heads[name].tolist() for name in ("pid", "start_time", "css_set", "cgroup_id", "comm"))
        for at, (pid, start_time, css_set, group_id, comm) in enumerate(zip(*columns, strict=True)):
            if start_time == _NO_START_TIME:
                continue
            name = safe_bytes(comm)
            codes[0, at] = self.code(outside_name(name) if pid == _UNKNOWN else name)
            group = self._processes.find_group(
                (pid, start_time, css_set), group_id, is_last_chance=self._is_reading
            )
            if group is not None:
                codes[1, at] = self._tables["cgroup"].code(group)
                container = container_of(group)
                if container is not None:
                    codes[2, at] = self._tables["container"].code(container)
        lengths = np.diff(starts, append=len(rows))
        for field, of_run in zip(_FIELDS, codes, strict=True):
            rows[field] = np.repeat(of_run, lengths)

    def name_any(self, rows: Array) -> None:
        """Do what `name` does for rows in any order; rows without a process are unchanged."""
        owned = np.flatnonzero(known(rows["start_time"]))
        firsts, places = distinct_rows([rows[name][owned] for name in ("pid", "start_time")])
        heads = take_rows(rows, owned[firsts])
        self.name(heads)
        copy_columns(rows, heads, _FIELDS, to=owned, of=places)


class Processes:
    """Control groups of processes, looked up once for those of the last two readings and of the events in between.

    `vanished` counts processes that were gone before their control group could be read.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tables = {name: TextTable() for name in _FIELDS}
        self._found: dict[tuple[int, ...], str | None] = {}
        self._earlier = self._found
        """Control groups by process, and by css_set and id: tasks of a css_set share them."""
        self._path_of: dict[int, str] = {}
        """Paths of control groups by id, for processes that are gone; listed again if an id is missing."""
        self._listing_due_at = 0.0
        self.vanished = 0

    def begin(self) -> ProcessNames:
        """Begin a reading: return the names of its rows, without most texts of processes that are gone."""
        self._tables = {name: table.renewed(len(self._found)) for name, table in self._tables.items()}
        self._earlier, self._found = self._found, {}
        return ProcessNames(self, self._tables)

    def find_group(self, identity: Identity, group_id: int, *, is_last_chance: bool) -> str | None:
        """Return the control group of a process, given the lower half of its id; None if unknown.

        At its last chance, an unknown one is counted. Without a css_set, read it each time: otherwise a move of the
        process would go unnoticed.
        """
        pid, _, css_set = identity
        of_set = css_set, group_id
        has_set = css_set != _NO_CSS_SET
        # The kernel soon uses the address of a css_set again, but not a group's id, which v1 hierarchies lack.
        group = self._recall(identity) or (self._recall(of_set) if group_id != ROOT_CGROUP else None)
        if group is None and identity not in self._found and identity not in self._earlier:
            read = self._host.cgroup(pid) or self._listed_path(group_id)
            group = safe_text(read) if read else self._recall(of_set)
            self.vanished += is_last_chance and group is None
        if has_set and (group is not None or is_last_chance):
            self._found[identity] = group
        if has_set and group is not None:
            self._found[of_set] = group
        return group

    def _recall(self, key: tuple[int, ...]) -> str | None:
        return self._found.get(key) or self._earlier.get(key)

    def describe(self, owners: list[tuple[int, int]]) -> dict[str, str]:
        """Return details of the processes (PID, descriptor) that own a socket."""
        if not owners:
            return {"Held by": "no process"}
        lines = [f"{self._host.process_name(pid) or 'gone'} {pid}, descriptor {fd}" for pid, fd in owners]
        details = {"Held by": "\n".join(lines)}
        for pid in sorted({pid for pid, _ in owners}):
            details[f"Command {pid}"] = self._host.command_line(pid) or "–"
        return details

    def _listed_path(self, group_id: int) -> str | None:
        """Return the path of a control group; None if it has none, or if listing again would be too soon."""
        begun = time.monotonic()
        if group_id not in self._path_of and group_id != _UNKNOWN and begun >= self._listing_due_at:
            self._path_of = self._host.cgroups_by_id()
            ended = time.monotonic()
            self._listing_due_at = ended + _PAUSE_PER_LISTING * (ended - begun)
        return self._path_of.get(group_id)


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
