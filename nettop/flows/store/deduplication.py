# SPDX-License-Identifier: Apache-2.0
"""The files in which the engine notes the tokens of blocks, made as dependable as the blocks.

ClickHouse (MergeTreeSink.cpp, MergeTreeDeduplicationLog.cpp) notes an inserted part some 0.1 ms before it gives the
part its final name, and never syncs the note. Where it ends in between, or the name cannot be given, it would later
take the block for stored, and drop it; where the note is lost, it would store the block twice.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

_LOGS = "deduplication_logs"
_PART = re.compile(r"(?P<partition>[^_]+)_(?P<first>\d+)_(?P<last>\d+)_\d+(?:_\d+)?")
"""The name of a part: its partition, first and last block, how often it was merged, and version of a mutation."""
_NEW_PART = re.compile(r"[^_]+_(?P<first>\d+)_\d+_0")
"""That of one that is as it was inserted."""
_NOTE = re.compile(r"(?P<operation>\d)\t(?P<part>[^\t\n]+)\t[^\t\n]+\n")
_ADDED = "1"
"""The operation of a note of a new part."""


class _Blocks(NamedTuple):
    """The blocks that a part has."""

    partition: str
    first: int
    last: int

    def has(self, other: _Blocks) -> bool:
        """Whether they are those of the other part, or it was merged into this one."""
        return self.partition == other.partition and self.first <= other.first and self.last >= other.last


class End(NamedTuple):
    """Where the notes of a table end: the number of the newest log, and its length."""

    log: int
    size: int


_BEGIN = End(0, 0)


def remove_unfinished(directory: Path) -> int:
    """Leave only notes of parts that exist and parts that are noted, before the engine is started in this directory.

    Returns how many notes were removed and how many parts were set aside: none of them was reported as stored.
    """
    tables = [logs.parent for logs in directory.glob(f"store/*/*/{_LOGS}")]
    unnoted = sum(_set_aside_unnoted(table) for table in tables)
    return unnoted + sum(_remove_unfinished(log, directory) for table in tables for _, log in _logs(table))


def _remove_unfinished(log: Path, directory: Path) -> int:
    parts = [blocks for entry in os.listdir(log.parent.parent) if (blocks := _blocks(entry))]
    lines = _lines(log.read_bytes())
    kept = [line for line in lines if not _is_unfinished(line, parts)]
    if len(kept) < len(lines):
        # The engine takes every file in the directory of the log for a log.
        changed = directory / "deduplication_log.new"
        with changed.open("w") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        changed.replace(log)
    return len(lines) - len(kept)


def _is_unfinished(line: str, parts: Iterable[_Blocks]) -> bool:
    """Whether the line is damaged, or notes a part that neither exists nor was merged into one of the parts."""
    note = _NOTE.fullmatch(line)
    if note is None:
        # The engine would read nothing that is behind it.
        return True
    noted = _blocks(note["part"])
    if note["operation"] != _ADDED or noted is None:
        return False
    return not any(part.has(noted) for part in parts)


def _set_aside_unnoted(table: Path) -> int:
    """Set parts aside that are as new as the notes, and have none."""
    noted = {blocks for part in _noted(table) if (blocks := _blocks(part))}
    # Blocks are numbered from 1 on. Notes of older ones have been dropped.
    oldest = min((blocks.first for blocks in noted), default=0)
    unnoted = [
        entry
        for entry in os.listdir(table)
        if (match := _NEW_PART.fullmatch(entry))
        and int(match["first"]) > oldest
        and _blocks(entry) not in noted
    ]
    for part in unnoted:
        aside = table / "detached" / f"unnoted_{part}"
        # Numbers are given again.
        shutil.rmtree(aside, ignore_errors=True)
        (table / part).rename(aside)
    return len(unnoted)


def broken_parts(directory: Path) -> frozenset[Path]:
    """The parts that the engine has set aside as it started, as they were not whole. It keeps the notes of them."""
    return frozenset(directory.glob("store/*/*/detached/broken-on-start*"))


def have_grown(ends: Mapping[Path, End]) -> bool:
    """Whether a part was noted since the notes of these tables ended so."""
    return any(_noted(table, end) for table, end in ends.items())


def take_back(ends: Mapping[Path, End]) -> None:
    """Remove the parts that were noted since the notes of these tables ended so, while the engine is ended.

    One that they have been merged into is removed too: it is so young that the others that it was made of still exist.
    """
    for table, end in ends.items():
        new = [blocks for part in _noted(table, end) if (blocks := _blocks(part))]
        for entry in os.listdir(table):
            blocks = _blocks(entry)
            if blocks is not None and any(blocks.has(each) for each in new):
                shutil.rmtree(table / entry)


def sync_notes(tables: Iterable[Path]) -> dict[Path, End]:
    """Return where the notes of these tables, directories of parts, end, when they are on the disk."""
    ends = {}
    for table in tables:
        number, newest = max(_logs(table))
        for path in (newest, newest.parent):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        ends[table] = End(number, newest.stat().st_size)
    return ends


def _noted(table: Path, since: End = _BEGIN) -> list[str]:
    """The names of the parts that were noted behind an end."""
    logs = ((number, log.read_bytes()) for number, log in sorted(_logs(table)) if number >= since.log)
    lines = (line for number, log in logs for line in _lines(log[since.size * (number == since.log) :]))
    notes = (note for line in lines if (note := _NOTE.fullmatch(line)))
    return [note["part"] for note in notes if note["operation"] == _ADDED]


def _lines(log: bytes) -> list[str]:
    return log.decode(errors="replace").splitlines(keepends=True)


def _logs(table: Path) -> list[tuple[int, Path]]:
    """The logs of a table by their number."""
    return [(int(log.stem.rpartition("_")[2]), log) for log in (table / _LOGS).iterdir()]


def _blocks(part: str) -> _Blocks | None:
    match = _PART.fullmatch(part)
    return _Blocks(match["partition"], int(match["first"]), int(match["last"])) if match else None
