# SPDX-License-Identifier: Apache-2.0
"""Snapshots of one lens as bytes: what changed since the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from nettop.errors import ExitCode
from nettop.recording.declared import Conversion, Declared, declare, dtype_of, names_of
from nettop.recording.numbers import (
    Bytes,
    Damaged,
    TooLarge,
    checked,
    checked_dict,
    checked_list,
    read_json,
    write_json,
    write_number,
)
from nettop.recording.tables import ROWS_MAX, read_rows, write_rows
from nettop.snapshots.arrays import Array
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Kind, Lens
from nettop.snapshots.snapshot import Ended, Rows, Snapshot, known

_ROWS, _TOTAL, _LEFT, _BATCH = "rows", "total", "left", "batch"
"""Parts: a table's rows, the sum of the rows that left it, a new piece of these rows, rows of an append table."""
_WHOLE = (_LEFT, _BATCH)
"""Parts whose rows are new each time."""
_HEAD = frozenset(
    ("wall_ns", "boot_ns", "counts", "lost", "hooks", "gaps", "ended", "complete_since_ns", "parts")
)
"""What precedes the rows of a reading."""
_TEXTS_MAX = 1 << 20
"""Maximum texts of a field."""


class ReadingWriter:
    """Writes the snapshots of a lens, each as the change from the one before."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._rows: dict[tuple[str, str], Array] = {}
        self._declared: dict[tuple[str, str], Declared] = {}
        self._names: dict[tuple[str, str], tuple[str, ...]] = {}
        self._texts: dict[tuple[str, str, str], tuple[str, ...]] = {}
        self._pieces: dict[str, tuple[Rows, ...]] = {}

    def write(self, snapshot: Snapshot) -> bytes:
        """Return a snapshot as bytes; raise TooLarge if it has more rows than a reader accepts."""
        head: dict[str, Any] = {
            "wall_ns": snapshot.wall_ns,
            "boot_ns": snapshot.boot_ns,
            "complete_since_ns": snapshot.complete_since_ns,
            "counts": dict(snapshot.counts),
            "lost": dict(snapshot.lost),
            "gaps": dict(snapshot.gaps),
            "hooks": [_hook(status) for status in snapshot.hooks],
            "ended": {name: [ended.count, self._kept(name, ended)] for name, ended in snapshot.ended.items()},
        }
        content = self._content(head, list(self._parts(snapshot)))
        self._pieces = {name: ended.rows for name, ended in snapshot.ended.items()}
        return content

    def write_events(self, batch: Rows) -> bytes:
        """Return rows of an append table as bytes; raise TooLarge if there are more than a reader accepts."""
        return self._content({}, [(_BATCH, batch)])

    def _content(self, head: dict[str, Any], parts: list[tuple[str, Rows]]) -> bytes:
        """Return what a reader does not know of a head, preceded by its size, and the rows of these parts."""
        if sum(rows.array.nbytes for _, rows in parts) > ROWS_MAX:
            raise TooLarge(f"a reading has more than {ROWS_MAX >> 20} MiB of rows, too many for a recording")
        described, bodies = (
            zip(*(self._described(*part) for part in parts), strict=True) if parts else ((), ())
        )
        head["parts"] = list(described)
        changed = {name: value for name, value in head.items() if self._head.get(name) != value}
        self._head |= head
        text = write_json(changed)
        return b"".join([write_number(len(text)), text, *bodies])

    def _described(self, part: str, rows: Rows) -> tuple[list[Any], bytes]:
        """Return the description of a part, with its columns if a reader does not know them, and its rows: as the
        change from the last ones, or whole after new columns."""
        table, array, place = rows.table, rows.array, (part, rows.table.name)
        before, new_columns = self._rows.get(place), None
        if before is None or before.dtype != array.dtype:
            declared = declare(table, array.dtype)
            if declared != self._declared.get(place):
                before, new_columns = array[:0], declared
                self._declared[place] = declared
                self._names[place] = names_of(declared)
        assert before is not None
        self._rows[place] = array[:0].copy() if part in _WHOLE else array
        description = [
            part,
            table.name,
            rows.variant,
            rows.taken_ns,
            self._new_texts(part, rows),
            new_columns,
        ]
        return description, write_rows(array, before, self._names[place], table.key)

    def _kept(self, name: str, ended: Ended) -> list[int]:
        """Return which earlier pieces of rows that left a table are still listed, by their place."""
        listed = set(map(id, ended.rows))
        return [place for place, piece in enumerate(self._pieces.get(name, ())) if id(piece) in listed]

    def _parts(self, snapshot: Snapshot) -> Iterator[tuple[str, Rows]]:
        for rows in snapshot.tables.values():
            yield _ROWS, rows
        for name, ended in snapshot.ended.items():
            yield _TOTAL, ended.total
            written = set(map(id, self._pieces.get(name, ())))
            yield from ((_LEFT, rows) for rows in ended.rows if id(rows) not in written)

    def _new_texts(self, part: str, rows: Rows) -> dict[str, list[Any]]:
        """Return the texts that a reader does not know, by field: how many it keeps, and those that follow."""
        changed = {}
        for field, texts in rows.texts.items():
            place, values = (part, rows.table.name, field), tuple(texts)
            known = self._texts.get(place, ())
            kept = len(known) if known == values[: len(known)] else 0
            if not kept == len(known) == len(values):
                self._texts[place] = values
                changed[field] = [kept, list(values[kept:])]
        return changed


def _hook(status: HookStatus) -> list[Any]:
    refused, fields = [list(pair) for pair in status.refused], list(status.fields)
    return [status.hook, status.mechanism, refused, fields, status.remedy, int(status.code)]


P = ParamSpec("P")
R = TypeVar("R")


def _refusing_impossible(read: Callable[P, R]) -> Callable[P, R]:
    """Let a function raise Damaged for impossible content.

    No context manager made of a generator: in Python 3.13, what it raises is part of a reference cycle, which keeps the
    content in memory until the garbage collector runs.
    """

    @wraps(read)
    def refusing(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(*args, **kwargs)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise error if isinstance(error, Damaged) else Damaged(str(error)) from error

    return refusing


class _RecordedRows(NamedTuple):
    """Recorded rows of a part of a snapshot."""

    what: str
    table: str
    variant: str
    taken_ns: int
    array: Array


class ReadingReader:
    """Reads what a ReadingWriter has written, from its first snapshot on, as tables of this version of a lens.

    `unread` names the tables and columns that this version does not know.
    """

    def __init__(self, lens: Lens) -> None:
        self._lens = lens
        self._head: dict[str, Any] = {}
        self._rows: dict[tuple[str, str], Array] = {}
        self._texts: dict[tuple[str, str, str], list[str]] = {}
        self._pieces: dict[str, list[Rows | None]] = {}
        self._parts: list[_RecordedRows] = []
        self._conversions: dict[tuple[str, str], Conversion | None] = {}
        self.unread: set[str] = set()

    @_refusing_impossible
    def read(self, content: bytes) -> None:
        """Take the next snapshot; raise Damaged."""
        rest = self._begun(content)
        self._pieces = {
            name: [self._pieces[name][place] for place in checked_list(int, kept)]
            for name, (_, kept) in checked(dict, self._head["ended"]).items()
        }
        kept_pieces = (rows for pieces in self._pieces.values() for rows in pieces if rows is not None)
        room = ROWS_MAX - sum(rows.array.nbytes for rows in kept_pieces)
        self._parts = []
        for described in self._head["parts"]:
            part = self._read_part(rest, room, described)
            room -= part.array.nbytes
            if part.what == _LEFT:
                self._pieces[part.table].append(self._rows_of(part))
            else:
                self._parts.append(part)

    @_refusing_impossible
    def snapshot(self) -> Snapshot:
        """Return the snapshot that was read last; raise Damaged."""
        head = self._head
        rows = {(part.what, part.table): self._rows_of(part) for part in self._parts}
        known = {place: row for place, row in rows.items() if row is not None}
        return Snapshot(
            lens=self._lens.id,
            wall_ns=checked(int, head["wall_ns"]),
            boot_ns=checked(int, head["boot_ns"]),
            tables={name: each for (part, name), each in known.items() if part == _ROWS},
            counts=checked_dict(int, head["counts"]),
            lost=checked_dict(int, head["lost"]),
            hooks=tuple(self._status(status) for status in head["hooks"]),
            gaps=checked_dict(str, head["gaps"]),
            ended={
                name: Ended(self._listed(name), known[_TOTAL, name], checked(int, count))
                for name, (count, _) in head["ended"].items()
                if (_TOTAL, name) in known
            },
            complete_since_ns=checked(int, head["complete_since_ns"]),
        )

    @_refusing_impossible
    def read_events(self, content: bytes) -> Rows | None:
        """Return the next rows of an append table, None if this version has no such table; raise Damaged."""
        rest = self._begun(content)
        (described,) = self._head["parts"]
        return self._rows_of(self._read_part(rest, ROWS_MAX, described))

    def _begun(self, content: bytes) -> Bytes:
        """Take what precedes the rows; return the rest."""
        rest = Bytes(content)
        head = read_json(rest.take(rest.number()))
        self._head |= {name: head[name] for name in _HEAD & head.keys()}
        return rest

    def _read_part(self, content: Bytes, room: int, described: list[Any]) -> _RecordedRows:
        """Read the rows of a part of a snapshot, no more than `room` bytes."""
        what, table, variant, taken_ns, texts, new_columns = described
        if new_columns is not None:
            self._declare(what, table, new_columns)
        for field, (kept, following) in checked(dict, texts).items():
            place = what, table, field
            self._texts[place] = [*self._texts.get(place, [])[:kept], *checked_list(str, following)]
            if len(self._texts[place]) > _TEXTS_MAX:
                raise Damaged("it has too many texts")
        array = read_rows(content, self._rows[what, table], room)
        if what not in _WHOLE:
            self._rows[what, table] = array
        return _RecordedRows(what, table, checked(str, variant), checked(int, taken_ns), array)

    def _declare(self, what: str, table: str, columns: Declared) -> None:
        """Take the columns of a part, whose rows follow whole."""
        known = self._lens.table(table)
        conversion = None if known is None else Conversion(known, columns)
        view = f"{self._lens.id}.{table}"
        if conversion is None or not conversion.has_key:
            self.unread.add(view)
            conversion = None
        else:
            self.unread |= {f"{view}.{column}" for column in conversion.unread}
        self._conversions[what, table] = conversion
        self._rows[what, table] = np.zeros(0, dtype_of(columns))

    def _rows_of(self, part: _RecordedRows) -> Rows | None:
        """Return the rows of a part that was just read; None if this version has no such table."""
        table, conversion = self._lens.table(part.table), self._conversions[part.what, part.table]
        if table is None or conversion is None:
            return None
        fields = [field.name for field in table.stored if field.kind is Kind.TEXT]
        texts = {field: self._texts.get((part.what, part.table, field), []) for field in fields}
        rows = Rows(table, conversion.convert(part.array), texts, part.taken_ns, part.variant)
        _check_values(rows)
        return rows

    def _listed(self, name: str) -> tuple[Rows, ...]:
        return tuple(rows for rows in self._pieces[name] if rows is not None)

    def _status(self, status: list[Any]) -> HookStatus:
        hook, mechanism, refused, fields, remedy, code = status
        if mechanism is not None:
            checked(str, mechanism)
        former = {name: now for table in self._lens.tables for name, now in table.former.items()}
        return HookStatus(
            checked(str, hook),
            mechanism,
            tuple((checked(str, name), checked(str, why)) for name, why in refused),
            tuple(former.get(name, name) for name in checked_list(str, fields)),
            checked(str, remedy),
            _code(code),
        )


def _check_values(rows: Rows) -> None:
    """Raise Damaged if a row has a text that is not there, or a number that is infinite."""
    floats = (rows.array[field.name] for field in rows.table.stored if np.dtype(field.dtype).base.kind == "f")
    if any(np.isinf(column).any() for column in floats):
        raise Damaged("a number is infinite")
    for field, values in rows.texts.items():
        codes = rows.array[field]
        if (codes[known(codes)] >= len(values)).any():
            raise Damaged("a text is missing")


def _code(code: int) -> ExitCode:
    """Return an exit code; those of newer versions count as UNSUPPORTED."""
    known_codes = {each.value for each in ExitCode}
    return ExitCode(code) if code in known_codes else ExitCode.UNSUPPORTED
