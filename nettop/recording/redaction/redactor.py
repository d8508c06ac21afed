# SPDX-License-Identifier: Apache-2.0
"""Redaction of snapshots, events and the beginnings of groups, as they are written to a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nettop.query.address import distinct_addresses
from nettop.recording.chunks import Group
from nettop.recording.redaction import findings, texts
from nettop.recording.redaction.pseudonyms import Pseudonyms
from nettop.recording.redaction.texts import Texts, treatment_of
from nettop.snapshots.arrays import Array, as_list, take_rows
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Field, FieldRole, Kind
from nettop.snapshots.snapshot import Ended, Rows, Snapshot, TextTable, known, unknown_value

_ID_BITS = {4: 31, 8: 53}
"""Bits of a replaced id, by the bytes of its column."""
_SHARED_FACTS = {"kernel": texts.version, "machine": texts.declared, "cpus": texts.declared}
"""Facts that many hosts share."""


class Redactor:
    """Redaction with one key: what is the same in two readings is the same afterwards."""

    def __init__(self, key: bytes) -> None:
        self._pseudonyms = Pseudonyms(key)
        self.texts = Texts(self._pseudonyms)
        self._pieces: dict[tuple[str, str], list[tuple[Rows, Rows]]] = {}
        """The listed pieces of rows that left a table, and each redacted: a writer tells them by their identity."""
        self._tables: dict[tuple[str, ...], TextTable] = {}
        """The texts of each field, which keep their codes from reading to reading."""

    def group(self, group: Group) -> Group:
        """Return the beginning of a group in place of another."""
        scrubbed = self.texts.scrubbed
        return replace(
            group,
            nettop=texts.version(self.texts, group.nettop),
            host={
                scrubbed(name): _SHARED_FACTS.get(name, texts.host)(self.texts, value)
                for name, value in group.host.items()
            },
            failures={scrubbed(lens): list(map(scrubbed, why)) for lens, why in group.failures.items()},
        )

    def host(self, name: str) -> str:
        """Return a host's name in place of another."""
        return texts.host(self.texts, name)

    def snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot in place of another."""
        lens, scrubbed = snapshot.lens, self.texts.scrubbed
        return replace(
            snapshot,
            tables={name: self.rows(lens, rows) for name, rows in snapshot.tables.items()},
            ended={name: self._ended(lens, name, ended) for name, ended in snapshot.ended.items()},
            counts={scrubbed(name): count for name, count in snapshot.counts.items()},
            lost={scrubbed(name): count for name, count in snapshot.lost.items()},
            gaps={scrubbed(name): scrubbed(why) for name, why in snapshot.gaps.items()},
            hooks=tuple(map(self._hook, snapshot.hooks)),
        )

    def rows(self, lens: str, rows: Rows, part: str = "") -> Rows:
        """Return the rows of a table in place of others, sorted by their new keys; `part` tells other rows of the table
        apart, which have their own texts."""
        table, array = rows.table, rows.array.copy()
        for field in table.stored:
            if field.kind is Kind.ADDRESS:
                array[field.name] = self._addresses(array[field.name])
            elif field.role is FieldRole.ID:
                array[field.name] = self._ids(array[field.name])
        redacted = replace(rows, array=array, variant=self.texts.scrubbed(rows.variant))
        if lens == FINDINGS_LENS.id and table.name == FINDINGS.name:
            redacted = self._findings(redacted)
        else:
            redacted = replace(redacted, texts=self._texts((lens, rows.table.name, part), rows, array))
        order = np.argsort(redacted.array[table.key], kind="stable")
        return replace(redacted, array=take_rows(redacted.array, order))

    # --- parts of snapshots -------------------------------------------------------------------------------------

    def _ended(self, lens: str, name: str, ended: Ended) -> Ended:
        known_pieces = self._pieces.get((lens, name), [])
        pieces = []
        for rows in ended.rows:
            redacted = next((other for piece, other in known_pieces if piece is rows), None)
            pieces.append((rows, self.rows(lens, rows, "left") if redacted is None else redacted))
        self._pieces[lens, name] = pieces
        return replace(
            ended, rows=tuple(other for _, other in pieces), total=self.rows(lens, ended.total, "total")
        )

    def _hook(self, status: HookStatus) -> HookStatus:
        return HookStatus(*(self._scrubbed(getattr(status, name)) for name in HookStatus.__slots__))

    def _scrubbed(self, value: Any) -> Any:
        """Return a value with other texts, also those in tuples."""
        if isinstance(value, tuple):
            return tuple(map(self._scrubbed, value))
        return self.texts.scrubbed(value) if isinstance(value, str) else value

    # --- columns ------------------------------------------------------------------------------------------------

    def _addresses(self, column: Array) -> Array:
        """Return addresses in place of others, shape (n, 2)."""
        distinct, places = distinct_addresses(column)
        replaced = b"".join(map(self._pseudonyms.address, distinct))
        addresses: Array = np.frombuffer(replaced, ">u8").reshape(-1, 2)[places]
        return addresses

    def _ids(self, column: Array) -> Array:
        """Return ids in place of others; 0 and unknown stay."""
        distinct, places = np.unique(column, return_inverse=True)
        bits, unknown = _ID_BITS[column.dtype.itemsize], unknown_value(column.dtype)
        replaced = [
            number if number in (0, unknown) else self._pseudonyms.number(number, bits)
            for number in as_list(distinct)
        ]
        ids: Array = np.array(replaced, column.dtype)[places.ravel()]
        return ids

    def _texts(self, place: tuple[str, str, str], rows: Rows, array: Array) -> dict[str, tuple[str, ...]]:
        """Put the codes of other texts into `array`, and return these texts. Only texts of rows are replaced and kept:
        a source may have more, also those of other fields."""
        replaced = {}
        for field in rows.table.stored:
            if field.kind is not Kind.TEXT or field.name not in rows.texts:
                continue
            codes, key = rows.array[field.name], (*place, field.name)
            is_known = known(codes)
            distinct, places = np.unique(codes[is_known], return_inverse=True)
            treatment, values = treatment_of(field), rows.texts[field.name]
            others = [treatment(self.texts, values[code]) for code in as_list(distinct)]
            table = self._tables[key] = self._tables.get(key, TextTable()).renewed(len(others))
            array[field.name][is_known] = np.array(list(map(table.code, others)), codes.dtype)[places]
            replaced[field.name] = table.frozen()
        return replaced

    def _findings(self, rows: Rows) -> Rows:
        """Return findings with other texts, and only those texts."""
        fields = [field for field in rows.table.stored if field.kind is Kind.TEXT]
        columns = {field.name: _texts_in(rows, field) for field in fields}
        columns |= {name: as_list(rows.array[name]) for name in ("id", "cause")}
        found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        redacted, array = findings.redacted(self.texts, found), rows.array.copy()
        values = {field.name: _encoded(array, field, redacted) for field in fields}
        return replace(rows, array=array, texts=values)


def _texts_in(rows: Rows, field: Field) -> list[str | None]:
    """Return the text of each row; None is unknown."""
    codes, values = rows.array[field.name], rows.texts.get(field.name, ())
    return [
        values[code] if is_known else None
        for code, is_known in zip(as_list(codes), known(codes), strict=True)
    ]


def _encoded(array: Array, field: Field, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Put the codes of texts into a column, and return the texts."""
    table, unknown = TextTable(), unknown_value(array.dtype[field.name])
    texts_of_rows = [row[field.name] for row in rows]
    array[field.name] = [unknown if text is None else table.code(text) for text in texts_of_rows]
    return list(table.frozen())
