# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description, made of what the lenses declare: a path for each table, and the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from nettop.query.units import unit_of
from nettop.serve import problems
from nettop.serve.api import parameters, stream
from nettop.serve.api.parameters import FILTER, FORMATS, LONGEST_FILTER, MOST_ROWS, default_columns
from nettop.serve.api.tables import MEDIA_TYPES
from nettop.snapshots import view_name
from nettop.snapshots.schema import Field, Kind, Lens, Table

Json = dict[str, Any]

STREAM_TAG: Final = "stream"
_ABOUT: Final = """\
The tables of nettop as JSON or CSV. Numbers are in base units (bytes, µs, ns, bytes per second), times RFC 3339 in
UTC; what is unknown is null. Every error is a problem document (RFC 9457). HEAD answers as GET does, without a body.
"""
_TOTAL: Final = "rows that pass the filters, those beyond the limit included"
_ANSWERS: Final = {
    "400": ("BadRequest", "a parameter is wrong: the problem names it, and says what to do"),
    "401": ("Unauthorized", "the token is missing or wrong"),
    "404": ("NotFound", "there is no such table, or its lens is not served"),
    "405": ("MethodNotAllowed", "only GET and HEAD are understood"),
    "421": (
        "Misdirected",
        "without a token this host is only answered for by an address or a name of its own",
    ),
    "431": ("TooLarge", "the URL and the headers are longer than 64 KiB, or there are more than 100 headers"),
    "503": ("Unavailable", "the lens failed or was not read yet, or too much is requested at once"),
}
"""By status: the name of the response, and when it comes."""
_OF_ANY_PATH: Final = ("401", "405", "421", "431")

_NUMBERS: Final = frozenset({Kind.KEY, Kind.LABEL, Kind.GAUGE, Kind.COUNTER})


def description(
    lenses: Sequence[Lens], version: str, others: Mapping[str, Any] = MappingProxyType({})
) -> Json:
    """The description of an API that serves the tables of these lenses, and the path items of `others`."""
    tables = [(lens, table) for lens in lenses for table in lens.tables]
    paths = {f"/api/v1/{view_name(lens, table)}": _table_path(lens, table) for lens, table in tables}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nettop",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [
            *({"name": lens.id, "description": lens.question} for lens in lenses),
            {"name": STREAM_TAG, "description": "tables whenever they change"},
        ],
        # The token is needed where there is one.
        "security": [{}, {"token": []}, {"password": []}],
        "paths": paths | {stream.PATH: _stream_path()} | dict(others),
        "components": {
            "schemas": {view_name(lens, table): _row(table) for lens, table in tables}
            | {"Document": _document(), "Problem": _problem()},
            "parameters": _shared_parameters(),
            "responses": {name: _problem_answer(status, text) for status, (name, text) in _ANSWERS.items()},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic", "description": "the token is the password"},
            },
        },
    }


def problem_answers(*statuses: str) -> Json:
    """Return the responses with these statuses, and with those that every path may have."""
    names = {status: _ANSWERS[status][0] for status in sorted({*statuses, *_OF_ANY_PATH})}
    return {status: {"$ref": f"#/components/responses/{name}"} for status, name in names.items()}


# --- a table ------------------------------------------------------------------------------------------------


def _table_path(lens: Lens, table: Table) -> Json:
    view = view_name(lens, table)
    row = {"$ref": f"#/components/schemas/{view}"}
    rows = {"properties": {"view": {"const": view}, "rows": {"type": "array", "items": row}}}
    document = {"allOf": [{"$ref": "#/components/schemas/Document"}, rows]}
    chosen = default_columns(table)
    return {
        "get": {
            "operationId": view.replace(".", "_"),
            "tags": [lens.id],
            "summary": f"{lens.title}: {table.name}",
            "description": _about(table),
            "parameters": [
                _shared(FILTER),
                _parameter(
                    "sort",
                    "column to sort by, descending with - before it; what is unknown comes last",
                    {
                        "type": "string",
                        "enum": [sign + name for name in table.sortable for sign in ("", "-")],
                    },
                    table.sort,
                ),
                _shared("limit"),
                _parameter(
                    "columns",
                    "columns to give, in this order, with commas between them",
                    {"type": "array", "minItems": 1, "items": {"type": "string", "enum": list(table.names)}},
                    list(chosen),
                )
                | {"style": "form", "explode": False},
                *map(_shared, ("all", "deltas", "format")),
            ],
            "responses": {
                "200": {
                    "description": "the rows",
                    "content": {
                        MEDIA_TYPES["json"]: {"schema": document},
                        MEDIA_TYPES["csv"]: {"schema": {"type": "string"}},
                    },
                },
                **problem_answers("400", "404", "503"),
            },
        }
    }


def _about(table: Table) -> str:
    if table.append:
        return "The newest events."
    moved = f", and those with {' or '.join(table.watched_parts)}" if table.watched else ""
    shown = f"Without `all` those rows are given that pass {table.default_filter!r}{moved}. "
    ended = "Where columns tell of the last interval, what ended in it is given too, so that numbers add up."
    return (shown if table.default_filter else "") + ended


def _row(table: Table) -> Json:
    return {
        "type": "object",
        "description": f"A row of {table.name}: the columns that were requested.",
        "properties": {name: _column(table, name) for name in table.names},
        "additionalProperties": False,
    }


def _column(table: Table, name: str) -> Json:
    field = table.by_name.get(name)
    unit = unit_of(table, name)
    if field is None:
        of = table.by_name[name.removesuffix("_per_s")]
        about = f"{of.help}: in the last interval, per second"
        schema: Json = {"type": ["number", "null"], "minimum": 0}
    else:
        about, schema = field.help, _values(field)
    formula = f"; {field.formula}" if field is not None and field.formula else ""
    return schema | {"description": f"{about}{formula}{f' ({unit})' if unit else ''}"}


def _values(field: Field) -> Json:
    """The schema of a field's values, null among them: which is what is unknown."""
    if field.kind in _NUMBERS:
        kind = np.dtype(field.dtype).kind
        number = {"type": ["number" if kind == "f" else "integer", "null"]}
        return number | ({"minimum": 0} if kind == "u" else {})
    if field.kind is Kind.ENUM:
        # Numbers may share a label.
        return {"type": ["string", "null"], "enum": [*dict.fromkeys(field.labels.values()), None]}
    if field.kind is Kind.TIME:
        return {"type": ["string", "null"], "format": "date-time"}
    if field.kind is Kind.HISTOGRAM:
        return {"type": ["array", "null"], "items": _bucket()}
    if field.kind is Kind.RATIO:
        return {"type": ["number", "null"], "minimum": 0}
    if field.kind in (Kind.SUM, Kind.QUANTILE):
        return {"type": ["integer", "null"], "minimum": 0}
    return {"type": ["string", "null"]}


def _bucket() -> Json:
    number = {"type": "integer", "minimum": 0}
    high = {"type": ["integer", "null"], "minimum": 0}
    about = (
        "[low, high, count]: how many numbers from low on and below high, which is null in the last bucket"
    )
    return {
        "type": "array",
        "description": about,
        "prefixItems": [number, high, number],
        "minItems": 3,
        "maxItems": 3,
    }


def _document() -> Json:
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    counts = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
    number = {"type": "integer", "minimum": 0}
    members: Json = {
        "view": {"type": "string"},
        "time": {"type": "string", "format": "date-time", "description": "when it was read"},
        "interval_s": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "description": "seconds since the reading that rates and differences are taken from",
        },
        "shown": number | {"description": "rows that are given"},
        "total": number | {"description": _TOTAL},
        "lost": counts | {"description": "what a bound or a race dropped since nettop began, by name"},
        "not_available": texts
        | {"description": "columns, or the table, that this kernel or host does not have, and why"},
        "rows": {"type": "array", "items": {"type": "object"}},
    }
    about = "A table, or the part of it that was requested."
    return {"type": "object", "description": about, "properties": members, "required": list(members)}


# --- parameters ---------------------------------------------------------------------------------------------


def _parameter(name: str, text: str, schema: Json, default: object = None) -> Json:
    default_schema = {} if default is None else {"default": default}
    return {"name": name, "in": "query", "description": text, "schema": schema | default_schema}


def _shared(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _shared_parameters() -> Json:
    flag = {"type": "boolean"}
    terms = {"type": "array", "items": {"type": "string", "maxLength": LONGEST_FILTER}}
    given = (
        _parameter(
            FILTER,
            "rows to give: process=nginx rtt_us>10ms, also with and, or, not, parentheses; several must all hold",
            terms,
        )
        | {"style": "form", "explode": True},
        _parameter("limit", "how many rows to give at most", _rows_up_to(MOST_ROWS)),
        _parameter("all", "give also what the table leaves out by default", flag, default=False),
        _parameter("deltas", "counters are what the last interval added, not totals", flag, default=False),
        _parameter("format", "how to write them", {"type": "string", "enum": list(FORMATS)}, "json"),
    )
    return {parameter["name"]: parameter for parameter in given}


def _rows_up_to(most: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": most}


# --- the stream and problems --------------------------------------------------------------------------------


def _stream_path() -> Json:
    about = f"""\
Server-sent events. `event: view` has the document of a table, `event: problem` why there is none; both name the
`query` that they answer, as it was written. The first events come at once, others whenever a lens was read again. A
client that reads slowly misses readings; one that reads nothing is closed. Without a limit a table has
{parameters.STREAMED_ROWS} rows; {parameters.MOST_STREAMED_ROWS} are the most. At most {stream.MOST_STREAMS} streams are
open at once.
"""
    example = ["connections?limit=50&sort=-bytes_per_s", "bandwidth"]
    views = {"type": "array", "minItems": 1, "maxItems": stream.MOST_VIEWS, "items": {"type": "string"}}
    text = "the name of a table, and its parameters but `format`: what stands behind /api/v1/ in its path"
    return {
        "get": {
            "operationId": "stream",
            "tags": [STREAM_TAG],
            "summary": "Tables as server-sent events",
            "description": about,
            "parameters": [
                _parameter(stream.VIEW, text, views)
                | {"required": True, "style": "form", "explode": True, "example": example}
            ],
            "responses": {
                "200": {
                    "description": "events, until either side ends",
                    "content": {stream.MEDIA_TYPE: {}},
                },
                **problem_answers("400", "503"),
            },
        }
    }


def _problem() -> Json:
    members: Json = {
        "type": {"const": "about:blank"},
        "title": {"type": "string", "description": "what the status is called"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what happened"},
        "remedy": {"type": "string", "description": "what to do about it"},
        "parameter": {"type": "string", "description": "the query parameter that is wrong"},
        "instance": {"type": "string", "format": "uri-reference", "description": "the path"},
    }
    required = ["type", "title", "status", "detail"]
    about = "Why a request failed (RFC 9457)."
    return {"type": "object", "description": about, "properties": members, "required": required}


def _problem_answer(status: str, text: str) -> Json:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answer: Json = {"description": text, "content": content}
    header = {"503": "Retry-After", "405": "Allow", "401": "WWW-Authenticate"}.get(status)
    return answer if header is None else answer | {"headers": {header: {"schema": {"type": "string"}}}}
