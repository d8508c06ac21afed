# SPDX-License-Identifier: Apache-2.0
"""Definitions of lenses, tables, fields and snapshots. Each lens has a module here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from nettop.errors import Unsupported, unknown_word
from nettop.snapshots.hosts import HOSTS_LENS, with_host
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.plugins import Plugin, find_plugins, import_part
from nettop.snapshots.schema import FORMER_LENSES, Lens, Rule, Table

_WITH_NUMPY = ("arrays", "left_rows", "row_ids", "snapshot")
"""Modules here that declare no lens and import numpy, which would slow down --help and completion."""


_shows_hosts = False


def lenses() -> tuple[Lens, ...]:
    """Return every lens of nettop and of other packages, in screen order; within `several_hosts`, with the host of
    each row."""
    return _lenses_of_hosts() if _shows_hosts else lenses_of_one_host()


@cache
def lenses_of_one_host() -> tuple[Lens, ...]:
    """Return every lens as its source reads it, in screen order."""
    others = (plugin.lens for plugin in all_plugins() if plugin.lens is not None)
    return tuple(sorted((*own_lenses(), *others), key=lambda lens: lens.order))


@cache
def _lenses_of_hosts() -> tuple[Lens, ...]:
    return (*(with_host(lens) for lens in lenses_of_one_host() if lens.of_hosts), HOSTS_LENS)


@contextmanager
def several_hosts() -> Iterator[None]:
    """Have rows of every table come from several hosts: `lenses` and what follows from it have the column `host`."""
    global _shows_hosts  # noqa: PLW0603 - declared once for the whole process, like the lenses themselves
    _shows_hosts = True
    try:
        yield
    finally:
        _shows_hosts = False


@cache
def own_lenses() -> tuple[Lens, ...]:
    """Return every lens declared in this package."""
    modules = (
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
        if module.name not in _WITH_NUMPY
    )
    return tuple(module.LENS for module in modules if hasattr(module, "LENS"))


@cache
def all_plugins() -> tuple[Plugin, ...]:
    """Return the installed packages that declare lenses, including unusable ones."""
    return tuple(find_plugins(own_lenses()))


@cache
def lens_part(lens: str, name: str) -> ModuleType | None:
    """Import a part of a lens, or return None if the lens has no such part; see `import_part`."""
    package = next(
        (plugin.package for plugin in all_plugins() if plugin.lens and plugin.lens.id == lens), None
    )
    return import_part(lens, name, package)


def find_table(view: str) -> tuple[Lens, Table]:
    """Return the lens and table that `view` (LENS or LENS.TABLE) names, including nettop's own cost.

    Raise UsageError with the nearest names if there is none, Unsupported if the package that declares it is broken.
    """
    lens_id, table_name = parts_of(view)
    for lens in (*lenses(), SELF):
        if lens.id == lens_id:
            table = lens.table(table_name) if table_name else lens.main
            if table is not None:
                return lens, table
    for plugin in all_plugins():
        if plugin.name == lens_id and plugin.problem:
            raise Unsupported(f"the lens {lens_id} cannot be used: {plugin.problem}", plugin.remedy)
    raise unknown_word("view", view, views())


def parts_of(view: str) -> tuple[str, str]:
    """Return the lens id that a view names, which may be one of version 0.2, and its table; "" for the main one."""
    lens_id, _, table_name = view.partition(".")
    return FORMER_LENSES.get(lens_id, lens_id), table_name


def all_views() -> list[tuple[Lens, Table]]:
    """Return every table of every lens. nettop's own cost, which is not a lens, is excluded."""
    return [(lens, table) for lens in lenses() for table in lens.tables]


def all_rules() -> dict[str, tuple[Lens, Table, Rule]]:
    """Return the rule of every kind of finding, with its table."""
    return {rule.name: (lens, table, rule) for lens, table in all_views() for rule in table.rules}


def logged_views(views: Iterable[str]) -> list[tuple[Lens, Table]]:
    """Return the tables that `nettop log` writes for these views, without duplicates.

    A lens's main table implies its event tables, which come first.
    """
    logged: list[tuple[Lens, Table]] = []
    for lens, named in map(find_table, views):
        events = [table for table in lens.tables if table.append] if named is lens.main else []
        logged += [(lens, table) for table in (*events, named) if (lens, table) not in logged]
    return logged


def views() -> tuple[str, ...]:
    """Return every name that --view accepts."""
    return tuple(view_name(lens, table) for lens in (*lenses(), SELF) for table in lens.tables)


def view_name(lens: Lens, table: Table) -> str:
    """Return the name of a lens's table in --view."""
    return lens.id if table.name == lens.main.name else f"{lens.id}.{table.name}"
