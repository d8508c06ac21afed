# SPDX-License-Identifier: Apache-2.0
"""The C struct of a program's rows, generated from the dtype that reads them so that the two cannot differ."""

from __future__ import annotations

from typing import Any

import numpy as np


def row_header(name: str, dtype: np.dtype[Any], inside: tuple[str, np.dtype[Any]] | None = None) -> str:
    """Return C text that declares `struct name` with the dtype's fields, offsets and size.

    If `inside` is given, a name and a dtype, the struct starts with a member `struct name name` in place of the dtype's
    fields.
    """
    lines = [f"struct {name} {{"]
    fields = sorted(_fields(dtype), key=lambda field: field[1])
    if inside is not None:
        lines.append(f"  struct {inside[0]} {inside[0]};")
        fields = [field for field in fields if field[1] >= inside[1].itemsize]
    lines += [f"  {_declaration(field, form)};" for field, _, form in fields]
    lines.append("};")
    for field, at, _ in fields:
        lines.append(f'_Static_assert(__builtin_offsetof(struct {name}, {field}) == {at}, "{field}");')
    lines.append(f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "size of {name}");')
    return "\n".join(lines) + "\n"


def columns(form: str, *names: str) -> tuple[tuple[str, str], ...]:
    """Return the members of a dtype that have the same format."""
    return tuple((name, form) for name in names)


def extend_dtype(first: np.dtype[Any], more: tuple[tuple[str, str], ...]) -> np.dtype[Any]:
    """Return a dtype with all fields of `first` at their offsets, followed by `more`, aligned as in C."""
    rest = np.dtype(list(more), align=True)
    start = first.itemsize
    own, extra = _fields(first), _fields(rest)
    columns = own + [(name, start + at, form) for name, at, form in extra]
    names, offsets, formats = zip(*columns, strict=True)
    size = -(-(start + rest.itemsize) // 8) * 8
    return np.dtype({"names": names, "offsets": offsets, "formats": formats, "itemsize": size})


def _fields(dtype: np.dtype[Any]) -> list[tuple[str, int, np.dtype[Any]]]:
    assert dtype.fields is not None and dtype.names is not None
    return [(name, dtype.fields[name][1], dtype.fields[name][0]) for name in dtype.names]


def _declaration(name: str, dtype: np.dtype[Any]) -> str:
    if dtype.kind == "S":
        return f"char {name}[{dtype.itemsize}]"
    base = f"{'s' if dtype.base.kind == 'i' else 'u'}{dtype.base.itemsize * 8}"
    length = "".join(f"[{n}]" for n in dtype.shape)
    return f"{base} {name}{length}"
