# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description: openapi.json, and a path and a schema per table, made from the lens declarations."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from importlib import resources
from typing import Any, Final

import numpy as np

from nettop.query.units import unit_of
from nettop.serve.api.parameters import default_columns
from nettop.snapshots import view_name
from nettop.snapshots.schema import Field, Kind, Lens, Table

Json = dict[str, Any]

_COUNT_OR_NULL: Final = {"type": ["integer", "null"], "minimum": 0}
_BUCKET: Final = {
    "type": "array",
    "description": "[low, high, count]: number of values ≥ low and < high; high is null in the last bucket",
    "prefixItems": [{"type": "integer", "minimum": 0}, _COUNT_OR_NULL, {"type": "integer", "minimum": 0}],
    "minItems": 3,
    "maxItems": 3,
}
_NUMBERS: Final = frozenset({Kind.KEY, Kind.LABEL, Kind.GAUGE, Kind.COUNTER})
_VALUES: Final[dict[Kind, Json]] = {
    Kind.TIME: {"type": ["string", "null"], "format": "date-time"},
    Kind.HISTOGRAM: {"type": ["array", "null"], "items": _BUCKET},
    Kind.RATIO: {"type": ["number", "null"], "minimum": 0},
    Kind.SUM: _COUNT_OR_NULL,
    Kind.QUANTILE: _COUNT_OR_NULL,
}


def description(lenses: Sequence[Lens], version: str, without: Collection[str] = ()) -> Json:
    """Return the description of an API with the tables of these lenses, and the other paths but those `without`."""
    described: Json = json.loads(
        resources.files("nettop.serve.api").joinpath("openapi.json").read_text("utf-8")
    )
    template = json.dumps(described.pop("x-table"))
    known = [(lens, table) for lens in lenses for table in lens.tables]
    paths = {f"/api/v1/{view_name(lens, table)}": _table_path(template, lens, table) for lens, table in known}
    others = {path: item for path, item in described["paths"].items() if path not in without}
    schemas = {view_name(lens, table): _row(table) for lens, table in known}
    described["info"]["version"] = version
    described["tags"] = [{"name": lens.id, "description": lens.question} for lens in lenses] + described[
        "tags"
    ]
    described["paths"] = paths | others
    described["components"]["schemas"] |= schemas
    return described


def _table_path(template: str, lens: Lens, table: Table) -> Json:
    """Return the path item of a table."""
    view = view_name(lens, table)
    item: Json = json.loads(template.replace("{view}", view))
    schemas = {
        parameter["name"]: parameter["schema"]
        for parameter in item["get"]["parameters"]
        if "schema" in parameter
    }
    schemas["sort"] |= {
        "enum": [sign + name for name in table.sortable for sign in ("", "-")],
        "default": table.sort,
    }
    schemas["columns"]["default"] = list(default_columns(table))
    schemas["columns"]["items"]["enum"] = list(table.names)
    named = {
        "operationId": view.replace(".", "_"),
        "tags": [lens.id],
        "summary": f"{lens.title}: {table.name}",
        "description": _about(table),
    }
    return {"get": named | item["get"]}


def _about(table: Table) -> str:
    if table.append:
        return "The newest events."
    moved = f", and those with {' or '.join(table.watched_parts)}" if table.watched else ""
    shown = f"Without `all`, only rows that pass {table.default_filter!r}{moved} are returned. "
    ended = "With per-interval columns, rows that ended in the interval are included, so that numbers add up."
    return (shown if table.default_filter else "") + ended


def _row(table: Table) -> Json:
    return {
        "type": "object",
        "description": f"A row of {table.name}, with the requested columns.",
        "properties": {name: _column(table, name) for name in table.names},
        "additionalProperties": False,
    }


def _column(table: Table, name: str) -> Json:
    field = table.by_name.get(name)
    unit = unit_of(table, name)
    if field is None:
        of = table.by_name[name.removesuffix("_per_s")]
        about = f"{of.help}: per second, in the last interval"
        schema: Json = {"type": ["number", "null"], "minimum": 0}
    else:
        about, schema = field.help, _values(field)
    formula = f"; {field.formula}" if field is not None and field.formula else ""
    return schema | {"description": f"{about}{formula}{f' ({unit})' if unit else ''}"}


def _values(field: Field) -> Json:
    """Return the schema of a field's values, including null for unknown."""
    if field.kind in _NUMBERS:
        kind = np.dtype(field.dtype).kind
        number = {"type": ["number" if kind == "f" else "integer", "null"]}
        return number | ({"minimum": 0} if kind == "u" else {})
    if field.kind is Kind.ENUM:
        # Numbers may share a label.
        return {"type": ["string", "null"], "enum": [*dict.fromkeys(field.labels.values()), None]}
    return _VALUES.get(field.kind, {"type": ["string", "null"]})
