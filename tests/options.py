# SPDX-License-Identifier: Apache-2.0
"""The options of a source, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from nettop.snapshots import lenses
from nettop.snapshots.schema import Option
from nettop.snapshots.source import SourceOptions

OPTIONS: Mapping[str, Option[Any]] = {option.name: option for lens in lenses() for option in lens.options}


def source_options(
    tables: Collection[str] = (), mechanisms: Mapping[str, str] | None = None, **named: Any
) -> SourceOptions:
    """Return the options with these tables in use; `named` are lens options and other fields of SourceOptions."""
    values = {OPTIONS[name]: value for name, value in named.items() if name in OPTIONS}
    others = {name: value for name, value in named.items() if name not in OPTIONS}
    return replace(SourceOptions(frozenset(tables), mechanisms or {}, values=values), **others)
