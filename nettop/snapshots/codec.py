# SPDX-License-Identifier: Apache-2.0
"""Self-describing serialisation of snapshots, which older and newer versions of nettop can read.

Layout: a fixed prefix (magic, version, header length, rows length, CRC-32 of both), a JSON header (times, texts,
counts, the fields of each table), then the rows of each table as they are in memory.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from nettop.errors import SourceFailed
from nettop.snapshots import lenses
from nettop.snapshots.arrays import Array
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Field, Kind, Lens, Table
from nettop.snapshots.snapshot import Rows, Snapshot, unknown_value

MAGIC = b"nettop\r\n"
"""The line end reveals a file damaged by a transfer in text mode."""

FORMAT_VERSION = 2
NOT_RECORDED = "not in this recording"

_PREFIX = struct.Struct("<8sHxxIQI")
_PLAIN_DTYPE = re.compile(r"[<>|][uif][1248]|\|S\d{1,5}")

Header = dict[str, Any]


def encode(snapshot: Snapshot) -> bytes:
    """Serialise a snapshot, without columns the source passes through and without unused texts."""
    tables, bodies = [], []
    for rows in snapshot.tables.values():
        array, texts = _drop_unused_texts(rows, _copy_own_columns(rows.array, rows.table))
        tables.append(_table_header(rows, array, texts))
        bodies.append(array.tobytes())
    header = {
        "lens": snapshot.lens,
        "wall_ns": int(snapshot.wall_ns),
        "boot_ns": int(snapshot.boot_ns),
        "tables": tables,
        "counts": {name: int(number) for name, number in snapshot.counts.items()},
        "lost": {name: int(number) for name, number in snapshot.lost.items()},
        "hooks": [[hook.hook, hook.mechanism, hook.refused, hook.fields] for hook in snapshot.hooks],
        "gaps": dict(snapshot.gaps),
        "whole_since_ns": int(snapshot.complete_since_ns),
    }
    text, body = json.dumps(header, separators=(",", ":")).encode(), b"".join(bodies)
    check = zlib.crc32(body, zlib.crc32(text))
    return _PREFIX.pack(MAGIC, FORMAT_VERSION, len(text), len(body), check) + text + body


def decode(data: bytes, known: Iterable[Lens] | None = None) -> Snapshot:
    """Deserialise a snapshot into a copy, in the layout of this version's tables.

    Drop tables and fields that this version does not know. Fields that the recording lacks are unknown, and named in
    `Snapshot.missing`. `known` are the lenses to search, by default all. Raise SourceFailed for bytes that are foreign,
    damaged, or in another format version.
    """
    header, body = _unpacked(data)
    try:
        return _snapshot(header, body, lenses() if known is None else known)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(f"its header is invalid ({type(error).__name__}: {safe_text(str(error))})") from None


def _unpacked(data: bytes) -> tuple[Header, memoryview]:
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise SourceFailed("this is not a nettop recording", "give a file that nettop record wrote")
    if len(data) < _PREFIX.size:
        raise _damaged("it ends within its first bytes")
    _, version, header_size, body_size, check = _PREFIX.unpack_from(data)
    if version != FORMAT_VERSION:
        raise SourceFailed(
            f"the recording has format {version}, but this version of nettop reads {FORMAT_VERSION}",
            "use the version of nettop that wrote it",
        )
    content = memoryview(data)[_PREFIX.size :]
    if len(content) != header_size + body_size:
        raise _damaged(f"it has {len(content)} bytes instead of {header_size + body_size}")
    if zlib.crc32(content) != check:
        raise _damaged("its checksum is wrong")
    try:
        header = json.loads(bytes(content[:header_size]))
    except (ValueError, RecursionError):
        raise _damaged("its header is not JSON") from None
    return header, content[header_size:]


def _damaged(why: str) -> SourceFailed:
    return SourceFailed(f"the recording is damaged: {why}", "record again, or give an earlier part of it")


# --- writing ------------------------------------------------------------------------------------------------


def _copy_own_columns(array: Array, table: Table) -> Array:
    """Copy the rows with the table's own fields only, padding cleared."""
    whole = np.zeros(len(array), table.dtype)
    fields, own = _fields(array.dtype), _fields(table.dtype)
    if own.items() <= fields.items():
        # Copy bytes: field by field takes many times longer.
        size = max((offset + dtype.itemsize for dtype, offset in own.values()), default=0)
        _bytes_of(whole)[:, :size] = _bytes_of(np.ascontiguousarray(array))[:, :size]
        return whole
    for field in table.stored:
        whole[field.name] = array[field.name]
    return whole


def _fields(dtype: np.dtype[Any]) -> Mapping[str, tuple[np.dtype[Any], int]]:
    """Return each field's dtype and offset."""
    return {name: (place[0], place[1]) for name, place in (dtype.fields or {}).items()}


def _bytes_of(array: Array) -> Array:
    return array.view(np.uint8).reshape(len(array), array.dtype.itemsize)


def _drop_unused_texts(rows: Rows, array: Array) -> tuple[Array, dict[str, list[str]]]:
    """Drop unused texts and renumber the codes: text tables only grow."""
    used: dict[str, list[str]] = {}
    for field in rows.table.stored:
        if field.kind is Kind.TEXT:
            texts, codes = rows.texts[field.name], array[field.name]
            distinct, places = np.unique(codes, return_inverse=True)
            kept = distinct < len(texts)
            used[field.name] = [texts[code] for code in distinct[kept].tolist()]
            # Codes ascend, so unknown (no text) comes last and leaves no gap in the new codes.
            renumbered = np.arange(len(distinct)).astype(codes.dtype)
            renumbered[~kept] = unknown_value(codes.dtype)
            array[field.name] = renumbered[places.ravel()]
    return array, used


def _table_header(rows: Rows, array: Array, texts: Mapping[str, Sequence[str]]) -> Header:
    places = _fields(array.dtype)
    return {
        "name": rows.table.name,
        "taken_ns": int(rows.taken_ns),
        "rows": len(array),
        "row_bytes": array.dtype.itemsize,
        "texts": texts,
        "fields": [
            {
                "name": field.name,
                "kind": field.kind.value,
                "unit": field.unit,
                "dtype": places[field.name][0].base.str,
                "shape": list(places[field.name][0].shape),
                "offset": places[field.name][1],
            }
            | ({"buckets": astuple(field.buckets)} if field.buckets else {})
            for field in rows.table.stored
        ],
    }


# --- reading ------------------------------------------------------------------------------------------------


def _snapshot(header: Header, body: memoryview, known: Iterable[Lens]) -> Snapshot:
    lens = next((lens for lens in known if lens.id == header["lens"]), None)
    if lens is None:
        raise SourceFailed(
            f"the recording is of a lens {safe_text(str(header['lens']))!r}, which this version of nettop does not have"
        )
    hooks = [_hook(*hook) for hook in header["hooks"]]
    tables: dict[str, Rows] = {}
    lacking: set[str] = set()
    at = 0
    for stored in header["tables"]:
        size = _whole_number(stored["rows"]) * _whole_number(stored["row_bytes"])
        if at + size > len(body):
            raise _damaged("it has fewer rows than its header says")
        table = lens.table(stored["name"])
        if table is not None:
            tables[table.name] = _rows(table, stored, body[at : at + size])
            lacking |= _missing_fields(table, stored)
        at += size
    if at != len(body):
        raise _damaged("it has more rows than its header says")
    if lacking:
        refused = (("recording", NOT_RECORDED),)
        hooks.insert(0, HookStatus("recorded", None, refused, tuple(sorted(lacking))))
    return Snapshot(
        lens=lens.id,
        wall_ns=_whole_number(header["wall_ns"]),
        boot_ns=_whole_number(header["boot_ns"]),
        tables=tables,
        counts=_numbers(header["counts"]),
        lost=_numbers(header["lost"]),
        hooks=tuple(hooks),
        gaps={safe_text(name): safe_text(why) for name, why in header["gaps"].items()},
        complete_since_ns=_whole_number(header.get("whole_since_ns", 0)),
    )


def _rows(table: Table, stored: Header, body: memoryview) -> Rows:
    recorded = np.frombuffer(body, _stored_dtype(stored), _whole_number(stored["rows"]))
    lacking = _missing_fields(table, stored)
    if table.key in lacking:
        raise _damaged(f"the rows of {table.name} have no {table.key}")
    same = recorded.dtype == table.dtype and not lacking
    array = recorded.copy() if same else _converted(recorded, table, lacking)
    texts = {}
    for field in table.stored:
        if field.kind is Kind.TEXT:
            texts[field.name] = [safe_text(text) for text in stored["texts"].get(field.name, ())]
            codes = array[field.name]
            if not ((codes < len(texts[field.name])) | (codes == unknown_value(codes.dtype))).all():
                raise _damaged("a row refers to a missing text")
    keys = array[table.key]
    if not (keys[1:] > keys[:-1]).all():
        raise _damaged(f"the rows of {table.name} are not sorted by key")
    return Rows(table, array, texts, _whole_number(stored["taken_ns"]))


def _stored_dtype(stored: Header) -> np.dtype[Any]:
    """Return the dtype described by the header. Accept only plain numbers, never numpy objects."""
    fields = stored["fields"]
    for field in fields:
        if not _PLAIN_DTYPE.fullmatch(field["dtype"]) or field["offset"] < 0:
            raise ValueError(f"field of dtype {field['dtype']!r}")
    return np.dtype(
        {
            "names": [field["name"] for field in fields],
            "formats": [
                (field["dtype"], tuple(field["shape"])) if field["shape"] else field["dtype"]
                for field in fields
            ],
            "offsets": [field["offset"] for field in fields],
            "itemsize": stored["row_bytes"],
        }
    )


def _converted(recorded: Array, table: Table, lacking: set[str]) -> Array:
    """Convert recorded rows to this version's layout; missing fields are unknown."""
    array = np.zeros(len(recorded), table.dtype)
    for name, (dtype, _) in _fields(table.dtype).items():
        if name in lacking:
            array[name] = unknown_value(dtype)
        else:
            old = recorded[name]
            wide = old.astype(dtype.base)
            wide[old == unknown_value(old.dtype)] = unknown_value(dtype)
            array[name] = wide
    return array


def _missing_fields(table: Table, stored: Header) -> set[str]:
    """Return the table's fields for which the recording has no compatible column."""
    there = {field["name"]: field for field in stored["fields"]}
    dtypes, own = _fields(_stored_dtype(stored)), _fields(table.dtype)

    def usable(field: Field) -> bool:
        old = there.get(field.name)
        if old is None or (old["kind"], old["unit"]) != (field.kind.value, field.unit):
            return False
        if field.buckets is not None and old.get("buckets") != list(astuple(field.buckets)):
            return False
        before, now = dtypes[field.name][0], own[field.name][0]
        same_kind = before.shape == now.shape and before.base.kind == now.base.kind
        return same_kind and np.can_cast(before.base, now.base)

    return {field.name for field in table.stored if not usable(field)}


def _hook(hook: str, mechanism: str | None, refused: list[tuple[str, str]], fields: list[str]) -> HookStatus:
    return HookStatus(
        safe_text(hook),
        None if mechanism is None else safe_text(mechanism),
        tuple((safe_text(other), safe_text(why)) for other, why in refused),
        tuple(map(safe_text, fields)),
    )


def _numbers(numbers: Mapping[str, Any]) -> dict[str, int]:
    return {safe_text(name): _whole_number(number) for name, number in numbers.items()}


def _whole_number(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is not a whole number")
    return number
