# SPDX-License-Identifier: Apache-2.0
"""The vocabulary: what a lens, a table, a field and a snapshot are. Each lens is a module of its own here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

from nettop.errors import unknown_word
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Lens, Table

_NO_LENS = frozenset(
    {
        "arrays",
        "codec",
        "histograms",
        "hooks",
        "ip_protocols",
        "left_rows",
        "own_cost",
        "row_ids",
        "safe_text",
        "schema",
        "snapshot",
        "source",
    }
)
"""Modules here that declare no lens. Some load numpy, which --help and completion do without."""


@cache
def lenses() -> tuple[Lens, ...]:
    """Every lens that has a module in this package, in the order in which the screens show them."""
    modules = (
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
        if module.name not in _NO_LENS
    )
    declared = (module.LENS for module in modules if hasattr(module, "LENS"))
    return tuple(sorted(declared, key=lambda lens: lens.order))


def find_table(view: str) -> tuple[Lens, Table]:
    """The lens and table that `view` (LENS or LENS.TABLE) names, nettop's own cost included.

    Raises UsageError when there is none, with the nearest names.
    """
    lens_id, _, table_name = view.partition(".")
    for lens in (*lenses(), SELF):
        if lens.id == lens_id:
            table = lens.table(table_name) if table_name else lens.main
            if table is not None:
                return lens, table
    raise unknown_word("view", view, views())


def all_views() -> list[tuple[Lens, Table]]:
    """Every table of every lens; nettop's own cost, which is no lens, not among them."""
    return [(lens, table) for lens in lenses() for table in lens.tables]


def logged_views(views: Iterable[str]) -> list[tuple[Lens, Table]]:
    """What `nettop log` logs of these views, each table once: with a lens's main one those of its events, which come
    first.
    """
    logged: list[tuple[Lens, Table]] = []
    for lens, named in map(find_table, views):
        events = [table for table in lens.tables if table.append] if named is lens.main else []
        logged += [(lens, table) for table in (*events, named) if (lens, table) not in logged]
    return logged


def views() -> tuple[str, ...]:
    """Every name that --view accepts."""
    return tuple(view_name(lens, table) for lens in (*lenses(), SELF) for table in lens.tables)


def view_name(lens: Lens, table: Table) -> str:
    """What --view calls a table of a lens."""
    return lens.id if table.name == lens.main.name else f"{lens.id}.{table.name}"
