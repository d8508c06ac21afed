# SPDX-License-Identifier: Apache-2.0
"""Make the engine's deduplication logs, which note the tokens of blocks, as durable as the blocks.

ClickHouse (MergeTreeSink.cpp, MergeTreeDeduplicationLog.cpp) notes an inserted part about 0.1 ms before renaming the
part to its final name, and never syncs the note. If it exits in between, or the rename fails, it would later take the
block for stored and drop it; if the note is lost, it would store the block twice.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from nettop.collector.decode.kept import sync, write_file

_LOGS = "deduplication_logs"
_PART = re.compile(r"(?P<partition>[^_]+)_(?P<first>\d+)_(?P<last>\d+)_\d+(?:_\d+)?")
"""Name of a part: partition, first and last block, merge level, and mutation version."""
_NEW_PART = re.compile(r"[^_]+_(?P<first>\d+)_\d+_0")
"""Name of a part that is unchanged since its insertion."""
_NOTE = re.compile(r"(?P<operation>\d)\t(?P<part>[^\t\n]+)\t[^\t\n]+\n")
_ADDED = "1"
"""Operation in the note of a new part."""


class _Blocks(NamedTuple):
    """Blocks contained in a part."""

    partition: str
    first: int
    last: int

    def has(self, other: _Blocks) -> bool:
        """Return whether the other part's blocks are among these."""
        return self.partition == other.partition and self.first <= other.first and self.last >= other.last


class NotesEnd(NamedTuple):
    """End of a table's notes: the number of the newest log, and its length."""

    log: int
    size: int


_START = NotesEnd(0, 0)


def remove_unfinished(directory: Path) -> None:
    """Remove notes of missing parts, and set aside parts without a note, before the engine starts in this directory.
    None of them was reported as stored.
    """
    for logs in directory.glob(f"store/*/*/{_LOGS}"):
        _set_aside_unnoted(logs.parent)
        for _, log in _logs(logs.parent):
            _remove_unfinished(log, directory)


def _remove_unfinished(log: Path, directory: Path) -> None:
    parts = [blocks for entry in os.listdir(log.parent.parent) if (blocks := _blocks(entry))]
    lines = _lines(log.read_bytes())
    kept = [line for line in lines if not _is_unfinished(line, parts)]
    if len(kept) < len(lines):
        # Written in another directory, because the engine takes every file in the log's directory for a log.
        with write_file(
            directory / "deduplication_log.new", "".join(kept).encode(), is_synced=True
        ) as changed:
            changed.replace(log)


def _is_unfinished(line: str, parts: Iterable[_Blocks]) -> bool:
    """Return whether a line is damaged, or notes a part that neither exists nor was merged into another."""
    note = _NOTE.fullmatch(line)
    if note is None:
        # The engine would stop reading at the damaged line.
        return True
    noted = _blocks(note["part"])
    if note["operation"] != _ADDED or noted is None:
        return False
    return not any(part.has(noted) for part in parts)


def _set_aside_unnoted(table: Path) -> None:
    """Set aside parts that are as new as the notes but have none."""
    noted = {blocks for part in _noted(table) if (blocks := _blocks(part))}
    # Blocks are numbered from 1. The notes of older ones have been dropped.
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
        # Block numbers are reused.
        shutil.rmtree(aside, ignore_errors=True)
        (table / part).rename(aside)


def broken_parts(directory: Path) -> frozenset[Path]:
    """Return the damaged parts that the engine detached on startup. It keeps their notes."""
    return frozenset(directory.glob("store/*/*/detached/broken-on-start*"))


def has_new_parts(ends: Mapping[Path, NotesEnd]) -> bool:
    """Return whether a part was noted after these ends."""
    return any(_noted(table, end) for table, end in ends.items())


def remove_new_parts(ends: Mapping[Path, NotesEnd]) -> None:
    """Remove the parts noted after these ends. The engine must not be running.

    Parts they were merged into are removed too: they are so new that their other source parts still exist.
    """
    for table, end in ends.items():
        new = [blocks for part in _noted(table, end) if (blocks := _blocks(part))]
        for entry in os.listdir(table):
            blocks = _blocks(entry)
            if blocks is not None and any(blocks.has(each) for each in new):
                shutil.rmtree(table / entry)


def sync_notes(tables: Iterable[Path]) -> dict[Path, NotesEnd]:
    """Sync the notes of these tables (directories of parts), and return where they end."""
    ends = {}
    for table in tables:
        number, newest = max(_logs(table))
        sync(newest)
        sync(newest.parent)
        ends[table] = NotesEnd(number, newest.stat().st_size)
    return ends


def _noted(table: Path, since: NotesEnd = _START) -> list[str]:
    """Return the names of the parts noted after an end."""
    logs = ((number, log.read_bytes()) for number, log in sorted(_logs(table)) if number >= since.log)
    lines = (line for number, log in logs for line in _lines(log[since.size * (number == since.log) :]))
    notes = (note for line in lines if (note := _NOTE.fullmatch(line)))
    return [note["part"] for note in notes if note["operation"] == _ADDED]


def _lines(log: bytes) -> list[str]:
    return log.decode(errors="replace").splitlines(keepends=True)


def _logs(table: Path) -> list[tuple[int, Path]]:
    """Return the logs of a table with their numbers."""
    return [(int(log.stem.rpartition("_")[2]), log) for log in (table / _LOGS).iterdir()]


def _blocks(part: str) -> _Blocks | None:
    match = _PART.fullmatch(part)
    return _Blocks(match["partition"], int(match["first"]), int(match["last"])) if match else None
