# SPDX-License-Identifier: Apache-2.0
"""Snapshots of one lens as bytes: what changed since the last one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from nettop.errors import ExitCode
from nettop.recording.declared import Conversion, Declared, declare, dtype_of, names_of
from nettop.recording.numbers import Bytes, Damaged, write_number
from nettop.recording.tables import read_rows, write_rows
from nettop.snapshots.arrays import Array
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Kind, Lens
from nettop.snapshots.snapshot import Ended, Rows, Snapshot

_COLUMNS = "columns "
"""Begins the names of the declarations in a head."""
_ROWS, _TOTAL, _LEFT = "rows", "total", "left"
"""Parts of a snapshot: a table's rows, the sum of the rows that left it, and a new piece of these rows."""


class ReadingWriter:
    """Writes the snapshots of a lens, each as the change from the one before."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._rows: dict[tuple[str, str], Array] = {}
        self._texts: dict[tuple[str, str], list[str]] = {}
        self._pieces: dict[str, tuple[Rows, ...]] = {}

    def write(self, snapshot: Snapshot) -> bytes:
        """Return a snapshot as bytes."""
        head: dict[str, Any] = {
            "wall_ns": snapshot.wall_ns,
            "boot_ns": snapshot.boot_ns,
            "complete_since_ns": snapshot.complete_since_ns,
            "counts": dict(snapshot.counts),
            "lost": dict(snapshot.lost),
            "gaps": dict(snapshot.gaps),
            "hooks": [_hook(status) for status in snapshot.hooks],
            "ended": {name: [ended.count, self._kept(name, ended)] for name, ended in snapshot.ended.items()},
            "parts": [],
        }
        bodies = []
        for part, rows in self._parts(snapshot):
            table = rows.table
            head["parts"].append([part, table.name, rows.variant, rows.taken_ns, self._new_texts(rows)])
            declared = head[f"{_COLUMNS}{table.name}"] = self._declared(rows)
            before = self._rows.get((part, table.name), rows.array[:0])
            if part != _LEFT:
                self._rows[part, table.name] = rows.array
            bodies.append(write_rows(rows.array, before, names_of(declared), table.key))
        self._pieces = {name: ended.rows for name, ended in snapshot.ended.items()}
        return b"".join([self._head_of(head), *bodies])

    def write_events(self, batch: Rows) -> bytes:
        """Return rows of an append table as bytes."""
        table = batch.table
        declared = self._declared(batch)
        text = self._head_of(
            {
                "batch": [table.name, batch.variant, batch.taken_ns, self._new_texts(batch)],
                f"{_COLUMNS}{table.name}": declared,
            }
        )
        return text + write_rows(batch.array, batch.array[:0], names_of(declared), table.key)

    def _declared(self, rows: Rows) -> Declared:
        """Return the declaration of a table's columns, which are the same in a whole group."""
        known: Declared | None = self._head.get(f"{_COLUMNS}{rows.table.name}")
        return known or declare(rows.table, rows.array.dtype)

    def _head_of(self, head: dict[str, Any]) -> bytes:
        """Return what a reader does not know of a head, preceded by its size."""
        changed = {name: value for name, value in head.items() if self._head.get(name) != value}
        self._head |= head
        text = json.dumps(changed, separators=(",", ":"), ensure_ascii=False).encode()
        return write_number(len(text)) + text

    def _kept(self, name: str, ended: Ended) -> list[int]:
        """Return which earlier pieces of rows that left a table are still listed, by their place."""
        known = self._pieces.get(name, ())
        return [place for place, piece in enumerate(known) if any(piece is rows for rows in ended.rows)]

    def _parts(self, snapshot: Snapshot) -> Iterator[tuple[str, Rows]]:
        for rows in snapshot.tables.values():
            yield _ROWS, rows
        for name, ended in snapshot.ended.items():
            yield _TOTAL, ended.total
            known = self._pieces.get(name, ())
            yield from ((_LEFT, rows) for rows in ended.rows if not any(rows is piece for piece in known))

    def _new_texts(self, rows: Rows) -> dict[str, list[Any]]:
        """Return the texts that a reader does not know, by field: how many it keeps, and those that follow."""
        changed = {}
        for field, values in rows.texts.items():
            known = self._texts.get((rows.table.name, field))
            kept = len(known) if known is not None and known == values[: len(known)] else 0
            if known is None or not kept == len(known) == len(values):
                self._texts[rows.table.name, field] = list(values)
                changed[field] = [kept, list(values[kept:])]
        return changed


def _hook(status: HookStatus) -> list[Any]:
    refused, fields = [list(pair) for pair in status.refused], list(status.fields)
    return [status.hook, status.mechanism, refused, fields, status.remedy, int(status.code)]


class ReadingReader:
    """Reads what a ReadingWriter has written, from its first snapshot on, as tables of this version of a lens.

    `unread` names the tables and columns that this version does not know.
    """

    def __init__(self, lens: Lens) -> None:
        self._lens = lens
        self._head: dict[str, Any] = {}
        self._rows: dict[tuple[str, str], Array] = {}
        self._texts: dict[tuple[str, str], list[str]] = {}
        self._pieces: dict[str, list[Rows]] = {}
        self._conversions: dict[str, tuple[np.dtype[np.void], Conversion | None]] = {}
        self.unread: set[str] = set()

    def read(self, content: bytes) -> Snapshot:
        """Return the next snapshot; raise Damaged."""
        with _checked():
            return self._read(Bytes(content))

    def read_events(self, content: bytes) -> Rows | None:
        """Return the next rows of an append table, None if this version has no such table; raise Damaged."""
        with _checked():
            rest = Bytes(content)
            name, variant, taken_ns, texts = self._read_head(rest)["batch"]
            self._add_texts(name, texts)
            return self._read_rows(rest, _LEFT, name, taken_ns, variant)

    def _read_head(self, content: Bytes) -> dict[str, Any]:
        changed = json.loads(bytes(content.take(content.number())))
        for name in changed:
            if name.startswith(_COLUMNS):
                self._declare(name.removeprefix(_COLUMNS), changed[name])
        self._head |= changed
        return self._head

    def _read(self, content: Bytes) -> Snapshot:
        head = self._read_head(content)
        pieces = {
            name: [self._pieces[name][place] for place in kept] for name, (_, kept) in head["ended"].items()
        }
        tables, totals = {}, {}
        for part, name, variant, taken_ns, texts in head["parts"]:
            self._add_texts(name, texts)
            rows = self._read_rows(content, part, name, taken_ns, variant)
            if rows is None:
                continue
            if part == _ROWS:
                tables[name] = rows
            elif part == _TOTAL:
                totals[name] = rows
            else:
                pieces[name].append(rows)
        self._pieces = pieces
        return Snapshot(
            lens=self._lens.id,
            wall_ns=head["wall_ns"],
            boot_ns=head["boot_ns"],
            tables=tables,
            counts=head["counts"],
            lost=head["lost"],
            hooks=tuple(map(_status, head["hooks"])),
            gaps=head["gaps"],
            ended={
                name: Ended(tuple(pieces[name]), total, head["ended"][name][0])
                for name, total in totals.items()
            },
            complete_since_ns=head["complete_since_ns"],
        )

    def _declare(self, name: str, declared: Declared) -> None:
        table = self._lens.table(name)
        conversion = None if table is None else Conversion(table, declared)
        self._conversions[name] = dtype_of(declared), conversion
        lacking = [f"{self._lens.id}.{name}"] if conversion is None else conversion.unread
        self.unread |= {
            column if conversion is None else f"{self._lens.id}.{name}.{column}" for column in lacking
        }

    def _add_texts(self, name: str, changed: Mapping[str, Any]) -> None:
        for field, (kept, following) in changed.items():
            self._texts[name, field] = [*self._texts.get((name, field), [])[:kept], *following]

    def _read_rows(self, content: Bytes, part: str, name: str, taken_ns: int, variant: str) -> Rows | None:
        """Return a part of a snapshot; None if this version has no such table."""
        dtype, conversion = self._conversions[name]
        array = read_rows(content, self._rows.get((part, name), np.zeros(0, dtype)))
        if part != _LEFT:
            self._rows[part, name] = array
        table = self._lens.table(name)
        if table is None or conversion is None:
            return None
        fields = (field.name for field in table.stored if field.kind is Kind.TEXT)
        texts = {field: self._texts.get((name, field), []) for field in fields}
        return Rows(table, conversion.convert(array), texts, taken_ns, variant)


@contextmanager
def _checked() -> Iterator[None]:
    """Turn what a damaged head causes into Damaged."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise error if isinstance(error, Damaged) else Damaged(str(error)) from error


def _status(status: list[Any]) -> HookStatus:
    hook, mechanism, refused, fields, remedy, code = status
    pairs = tuple((name, why) for name, why in refused)
    return HookStatus(hook, mechanism, pairs, tuple(fields), remedy, ExitCode(code))
