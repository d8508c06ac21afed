# SPDX-License-Identifier: Apache-2.0
"""Parts of the engine's tables that belong to complete inserts.

An insert adds a part to each of several tables. If it fails, or the process ends meanwhile, some of them have it. So a
file names the last complete insert, and the last block that each table has of it. Parts with later blocks are removed
before the engine starts, and the insert is repeated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from nettop.collector.files import sync, write_file

_FILE = "confirmed"
_PART = re.compile(r"[^_]+_\d+_(?P<last>\d+)_\d+(?:_\d+)?")
"""Name of a part: partition, first and last block, merge level, and mutation version."""


class Confirmed(NamedTuple):
    """Name of the last complete insert, and the last block of each table, by its directory below the store's."""

    token: str
    blocks: Mapping[str, int]


def read_confirmed(directory: Path) -> Confirmed:
    """Return what the file says; nothing, and no tables, if there is none. Raise OSError."""
    try:
        return Confirmed(*json.loads((directory / _FILE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return Confirmed("", {})


def confirmed_now(directory: Path, tables: Iterable[Path], token: str) -> Confirmed:
    """Return that all current parts of these tables are complete, after an insert of this name. Raise OSError."""
    return Confirmed(
        token,
        {
            str(table.relative_to(directory)): max((last for last, _ in _parts(table)), default=0)
            for table in tables
        },
    )


def write_confirmed(directory: Path, confirmed: Confirmed) -> None:
    """Write the file durably. Raise OSError."""
    with write_file(directory / f"{_FILE}.new", json.dumps(confirmed).encode(), is_synced=True) as temporary:
        temporary.replace(directory / _FILE)
    sync(directory)


def unconfirmed_parts(directory: Path, confirmed: Confirmed) -> list[Path]:
    """Return the parts with later blocks, including those they were merged into: these are so new that their other
    source parts still exist.
    """
    return [
        path
        for table, confirmed_last in confirmed.blocks.items()
        if (directory / table).is_dir()
        for last, path in _parts(directory / table)
        if last > confirmed_last
    ]


def broken_parts(directory: Path) -> frozenset[Path]:
    """Return the damaged parts that the engine detached on startup."""
    return frozenset(directory.glob("store/*/*/detached/broken-on-start*"))


def _parts(table: Path) -> Iterator[tuple[int, Path]]:
    """Yield the parts of a table, with their last block. Raise OSError."""
    for entry in os.listdir(table):
        if match := _PART.fullmatch(entry):
            yield int(match["last"]), table / entry
