# SPDX-License-Identifier: Apache-2.0
"""Lenses whose rows come from several hosts: every table has the column `host`."""

from __future__ import annotations

from dataclasses import replace

from nettop.snapshots.schema import Field, Kind, Lens, Table

HOST = Field(
    "host", Kind.TEXT, "HOST", "the host of the row, as named by --host", "u4", width=12, importance=98
)
_ID = Field("id", Kind.KEY, "ID", "number made of the host and the row", "u8", width=6, importance=1)
"""The key of tables whose own key is no number of 64 bits, and so cannot tell hosts apart."""


def with_host(lens: Lens) -> Lens:
    """Return a lens whose tables have the column `host`. It has no options: they belong to the sources, which are on
    other hosts."""
    tables = tuple(map(_with_host, lens.tables))
    common = tuple((HOST.name, *names) for names in lens.common)
    return replace(lens, tables=tables, options=(), common=common)


def _with_host(table: Table) -> Table:
    has_room = table.by_name[table.key].dtype == _ID.dtype
    # Keys that are numbered as rows come have no order among hosts.
    in_order = "time" if table.append else table.text_sort
    (heading, names), *sections = table.details or (("", ()),)
    return replace(
        table,
        fields=(HOST, *(() if has_room else (_ID,)), *table.fields),
        key=table.key if has_room else _ID.name,
        screen=table.screen
        if table.name == "findings"
        else (HOST.name, *table.screen),  # its sentences name it
        text=(HOST.name, *table.text),
        text_sort=in_order,
        details=((heading, (HOST.name, *names)), *sections) if names else (),
    )
