# SPDX-License-Identifier: Apache-2.0
"""The files in which the engine notes the tokens of blocks, made as dependable as the blocks.

ClickHouse (MergeTreeSink.cpp, MergeTreeDeduplicationLog.cpp) notes an inserted part some 0.1 ms before it gives the
part its final name, and never syncs the note. Ended in between, it would later take the block for stored, and drop it;
had the note not reached the disk when the machine failed, it would store the block twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_LOGS = "deduplication_logs"
_PART = re.compile(r"(?P<partition>.+)_(?P<first>\d+)_(?P<last>\d+)_\d+(?:_\d+)?")
"""The name of a part: its partition, first and last block, level, and version of a mutation."""
_ADDED = "1"
"""The operation of a line `operation, part, block`, divided by tabs, that notes a new part."""

_Blocks = tuple[str, int, int]


def remove_unfinished(directory: Path) -> int:
    """Removes the notes of parts that do not exist, before the engine is started in this directory.

    Returns how many there were: at most one for each table, unless parts were deleted since.
    """
    return sum(_remove_unfinished(log, directory) for log in directory.glob(f"store/*/*/{_LOGS}/*.txt"))


def _remove_unfinished(log: Path, directory: Path) -> int:
    parts = [blocks for entry in os.listdir(log.parent.parent) if (blocks := _blocks(entry))]
    lines = log.read_text().splitlines(keepends=True)
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
    """Whether the line is cut off, or notes a part that neither exists nor was merged into one of the parts."""
    if not line.endswith("\n"):
        return True
    operation, part, _ = line.split("\t", 2)
    noted = _blocks(part)
    if operation != _ADDED or noted is None:
        return False
    partition, first, last = noted
    return not any(kept == partition and start <= first and end >= last for kept, start, end in parts)


def _blocks(part: str) -> _Blocks | None:
    match = _PART.fullmatch(part)
    return (match["partition"], int(match["first"]), int(match["last"])) if match else None


def sync_notes(tables: Iterable[Path]) -> None:
    """Returns when the notes of these tables, directories of parts, are on the disk."""
    for table in tables:
        logs = table / _LOGS
        newest = max(logs.iterdir(), key=lambda log: int(log.stem.rpartition("_")[2]))
        for path in (newest, logs):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
