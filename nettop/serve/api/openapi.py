# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description, generated from the lens declarations: a path per table, and the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from nettop.query.units import unit_of
from nettop.serve import problems
from nettop.serve.api import parameters, tables
from nettop.serve.api.parameters import FILTER, FORMATS, MAX_FILTER_CHARS, MAX_ROWS, default_columns
from nettop.snapshots import view_name
from nettop.snapshots.schema import Field, Kind, Lens, Table

Json = dict[str, Any]

STREAM_TAG: Final = "stream"
_ABOUT: Final = """\
The tables of nettop as JSON or CSV. Numbers are in base units (bytes, µs, ns, bytes per second), times are RFC 3339 in
UTC, unknown values are null. Every error is a problem document (RFC 9457). HEAD works like GET, without a body.
"""
_ANSWERS: Final = {
    "400": ("BadRequest", "a parameter is invalid: the problem names it and says what to do"),
    "401": ("Unauthorized", "the token is missing or wrong"),
    "404": ("NotFound", "the table does not exist, or its lens is not served"),
    "405": ("MethodNotAllowed", "only GET and HEAD are supported"),
    "421": (
        "Misdirected",
        "without a token, requests must address this host by one of its own addresses or names",
    ),
    "431": ("TooLarge", "the URL and headers exceed 64 KiB, or there are more than 100 headers"),
    "503": ("Unavailable", "the lens failed or has not been read yet, or too many requests are being served"),
}
"""Name and meaning of each error response, by status."""
_OF_ANY_PATH: Final = ("401", "405", "421", "431")

_COUNT: Final = {"type": "integer", "minimum": 0}
_COUNT_OR_NULL: Final = {"type": ["integer", "null"], "minimum": 0}
_BUCKET: Final = {
    "type": "array",
    "description": "[low, high, count]: number of values ≥ low and < high; high is null in the last bucket",
    "prefixItems": [_COUNT, _COUNT_OR_NULL, _COUNT],
    "minItems": 3,
    "maxItems": 3,
}
_NUMBERS: Final = frozenset({Kind.KEY, Kind.LABEL, Kind.GAUGE, Kind.COUNTER})
_VALUES: Final[Mapping[Kind, Json]] = {
    Kind.TIME: {"type": ["string", "null"], "format": "date-time"},
    Kind.HISTOGRAM: {"type": ["array", "null"], "items": _BUCKET},
    Kind.RATIO: {"type": ["number", "null"], "minimum": 0},
    Kind.SUM: _COUNT_OR_NULL,
    Kind.QUANTILE: _COUNT_OR_NULL,
}


def description(
    lenses: Sequence[Lens], version: str, others: Mapping[str, Any] = MappingProxyType({})
) -> Json:
    """Return the description of an API with the tables of these lenses and the path items of `others`."""
    known = [(lens, table) for lens in lenses for table in lens.tables]
    paths = {f"/api/v1/{view_name(lens, table)}": _table_path(lens, table) for lens, table in known}
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
            {"name": STREAM_TAG, "description": "tables as they change"},
        ],
        # The token is required only if the server has one.
        "security": [{}, {"token": []}, {"password": []}],
        "paths": paths | {tables.STREAM_PATH: _stream_path()} | dict(others),
        "components": {
            "schemas": {view_name(lens, table): _row(table) for lens, table in known}
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
    """Return the responses for these statuses and for those common to all paths."""
    names = {status: _ANSWERS[status][0] for status in sorted({*statuses, *_OF_ANY_PATH})}
    return {status: {"$ref": f"#/components/responses/{name}"} for status, name in names.items()}


def operation(
    name: str,
    tag: str,
    summary: str,
    *parameters: Json,
    about: str = "",
    answer: str,
    schemas: Mapping[str, Json | None],
    others: Json,
) -> Json:
    """Return the path item of a GET: its successful response, with a schema per media type, and its error responses."""
    content = {form: {} if schema is None else {"schema": schema} for form, schema in schemas.items()}
    described: Json = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": about,
        "parameters": list(parameters),
        "responses": {"200": {"description": answer, "content": content}} | others,
    }
    return {"get": {member: value for member, value in described.items() if value}}


def parameter(name: str, text: str, schema: Json, default: object = None) -> Json:
    """Return a query parameter."""
    default_schema = {} if default is None else {"default": default}
    return {"name": name, "in": "query", "description": text, "schema": schema | default_schema}


# --- a table ------------------------------------------------------------------------------------------------


def _table_path(lens: Lens, table: Table) -> Json:
    view = view_name(lens, table)
    row = {"$ref": f"#/components/schemas/{view}"}
    rows = {"properties": {"view": {"const": view}, "rows": {"type": "array", "items": row}}}
    document = {"allOf": [{"$ref": "#/components/schemas/Document"}, rows]}
    chosen = default_columns(table)
    sortable = {"type": "string", "enum": [sign + name for name in table.sortable for sign in ("", "-")]}
    listed = {"type": "array", "minItems": 1, "items": {"type": "string", "enum": list(table.names)}}
    sort = "column to sort by; prefix it with - to sort descending; unknown values come last"
    columns = "columns to return, in this order, separated by commas"
    return operation(
        view.replace(".", "_"),
        lens.id,
        f"{lens.title}: {table.name}",
        _shared(FILTER),
        parameter("sort", sort, sortable, table.sort),
        _shared("limit"),
        parameter("columns", columns, listed, list(chosen)) | {"style": "form", "explode": False},
        *map(_shared, ("all", "deltas", "format")),
        about=_about(table),
        answer="the rows",
        schemas={tables.MEDIA_TYPES["json"]: document, tables.MEDIA_TYPES["csv"]: {"type": "string"}},
        others=problem_answers("400", "404", "503"),
    )


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


def _document() -> Json:
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    counts = {"type": "object", "additionalProperties": _COUNT}
    members: Json = {
        tables.AGE: {
            "type": "number",
            "description": "seconds since it was read; absent for a recording",
        },
        tables.RECORDING_OF: {
            "type": "string",
            "description": "the recorded host; only if a recording is served (--from)",
        },
        "view": {"type": "string"},
        "time": {"type": "string", "format": "date-time", "description": "time of the reading"},
        "interval_s": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "description": "seconds since the earlier reading, on which rates and differences are based",
        },
        "shown": _COUNT | {"description": "rows returned"},
        "total": _COUNT | {"description": "rows that pass the filters, including those beyond the limit"},
        "lost": counts | {"description": "losses from limits and races since nettop started, by name"},
        "not_available": texts
        | {"description": "columns, or the whole table, unavailable on this kernel or host, and why"},
        "rows": {"type": "array", "items": {"type": "object"}},
    }
    about = "A table, or the requested part of it."
    required = [name for name in members if name not in (tables.AGE, tables.RECORDING_OF)]
    return {"type": "object", "description": about, "properties": members, "required": required}


# --- parameters ---------------------------------------------------------------------------------------------


def _shared(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _shared_parameters() -> Json:
    flag = {"type": "boolean"}
    terms = {"type": "array", "items": {"type": "string", "maxLength": MAX_FILTER_CHARS}}
    given = (
        parameter(
            FILTER,
            "rows to return, as process=nginx rtt_us>10ms, with and, or, not and parentheses; if repeated, all apply",
            terms,
        )
        | {"style": "form", "explode": True},
        parameter("limit", "maximum number of rows", _COUNT | {"minimum": 1, "maximum": MAX_ROWS}),
        parameter("all", "include rows that the table omits by default", flag, default=False),
        parameter("deltas", "per-interval counters instead of totals", flag, default=False),
        parameter("format", "output format", {"type": "string", "enum": list(FORMATS)}, "json"),
    )
    return {each["name"]: each for each in given}


# --- the stream and problems --------------------------------------------------------------------------------


def _stream_path() -> Json:
    about = f"""\
Server-sent events. `event: view` carries the document of a table, `event: problem` why there is none; both repeat the
`query` that they answer verbatim. The first events are sent immediately, then one per reading of a lens. A client that
reads slowly misses readings; one that stops reading is disconnected. The default limit is {parameters.STREAMED_ROWS}
rows per table, the maximum {parameters.MAX_STREAMED_ROWS}. At most {tables.MAX_STREAMS} streams are open at once.
"""
    example = ["connections?limit=50&sort=-bytes_per_s", "bandwidth"]
    views = {"type": "array", "minItems": 1, "maxItems": tables.MAX_VIEWS, "items": {"type": "string"}}
    text = "name of a table and its parameters except `format`: what follows /api/v1/ in its URL"
    view = parameter(tables.VIEW, text, views)
    return operation(
        "stream",
        STREAM_TAG,
        "Tables as server-sent events",
        view | {"required": True, "style": "form", "explode": True, "example": example},
        about=about,
        answer="events, until either side closes the connection",
        schemas={tables.EVENT_STREAM: None},
        others=problem_answers("400", "503"),
    )


def _problem() -> Json:
    members: Json = {
        "type": {"const": "about:blank"},
        "title": {"type": "string", "description": "name of the status"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what happened"},
        "remedy": {"type": "string", "description": "what to do about it"},
        "parameter": {"type": "string", "description": "the invalid query parameter"},
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
