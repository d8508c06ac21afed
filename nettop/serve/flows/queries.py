# SPDX-License-Identifier: Apache-2.0
"""The read-only part of ClickHouse's HTTP interface (https://clickhouse.com/docs/interfaces/http)."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import NamedTuple

import numpy as np
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nettop.collector.columns import Coded
from nettop.collector.store import Store
from nettop.collector.store.native import native_block
from nettop.collector.store.queries import QUERY_MAX, split_format
from nettop.collector.store.schema import DATABASE
from nettop.errors import NettopError, UsageError
from nettop.serve.problems import Problem
from nettop.snapshots.safe_text import safe_text

_QUERIES_AT_ONCE = 4
"""Maximum concurrent queries; others wait. Each may use a CPU and its share of memory."""
_DEFAULT_FORMAT = "TabSeparated"
_QUERY_ID = re.compile(r"[\x21-\x7e]{1,200}")
_MEDIA_TYPES = {
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    **dict.fromkeys(("JSON", "JSONColumns", "JSONCompact"), "application/json; charset=UTF-8"),
    **dict.fromkeys(("JSONCompactEachRow", "JSONEachRow"), "application/x-ndjson; charset=UTF-8"),
    **dict.fromkeys(
        ("TSV", "TSVWithNames", "TabSeparated", "TabSeparatedWithNames"),
        "text/tab-separated-values; charset=UTF-8",
    ),
}
_BINARY = frozenset(("Arrow", "ArrowStream", "Native", "Parquet", "RowBinary", "RowBinaryWithNamesAndTypes"))
_HELLO = {"displayName()": "String", "version()": "String", "revision()": "UInt32", "timezone()": "String"}
"""Columns and types of the handshake SELECT that ClickHouse's Go client, and so Grafana's data source, sends first."""
_HELLO_QUERY = f"SELECT {', '.join(_HELLO)}"
_SERVER_NAME = "nettop"
_NO_REVISION = 0
"""Revision of the blocks in all answers, as for clients that send none."""
_BAD_QUERY, _NO_ANSWER = 62, 1002
"""ClickHouse's codes SYNTAX_ERROR and UNKNOWN_EXCEPTION: clients recognise errors only by code."""


class _FlowsQuery(NamedTuple):
    sql: str
    form: str
    revision: int
    """Protocol revision that the client sent; 0 if it sent none."""


def query_routes(store: Store) -> list[Route]:
    """Return the routes: queries at /, and /ping."""
    at_once = asyncio.Semaphore(_QUERIES_AT_ONCE)

    async def query(request: Request) -> Response:
        try:
            wanted = await _query_of(request)
            if wanted is None:
                return Response("Ok.\n", media_type="text/plain")
            async with at_once:
                answer = await run_sync(_answer, store, wanted)
        except Problem:
            raise
        except NettopError as error:
            return _failure(error)
        form = wanted.form
        kind = "application/octet-stream" if form in _BINARY else "text/plain; charset=UTF-8"
        headers = {
            "X-ClickHouse-Server-Display-Name": _SERVER_NAME,
            "X-ClickHouse-Query-Id": _query_id(request),
            "X-ClickHouse-Format": form,
            "X-ClickHouse-Timezone": "UTC",
        }
        return Response(answer, headers=headers, media_type=_MEDIA_TYPES.get(form, kind))

    async def ping(_request: Request) -> Response:
        return Response("Ok.\n", media_type="text/plain")

    return [Route("/", query, methods=["GET", "POST"]), Route("/ping", ping, methods=["GET"])]


async def _query_of(request: Request) -> _FlowsQuery | None:
    """Return the query of a request; None if it is empty.

    Raise UsageError if it is too long or names another database.
    """
    parameters = request.query_params
    database = parameters.get("database") or request.headers.get("x-clickhouse-database") or DATABASE
    if database not in (DATABASE, "default"):
        raise UsageError(f"there is no database {database!r}", f"query {DATABASE}")
    parts = [parameters.get("query", ""), (await _body(request)).decode(errors="replace")]
    sql = "\n".join(filter(None, parts)).strip()
    if not sql:
        return None
    form = parameters.get("default_format") or request.headers.get("x-clickhouse-format") or _DEFAULT_FORMAT
    sql, form = split_format(sql, form)
    revision = parameters.get("client_protocol_version", "")
    return _FlowsQuery(sql, form, int(revision) if re.fullmatch("[0-9]{1,9}", revision) else _NO_REVISION)


def _answer(store: Store, wanted: _FlowsQuery) -> bytes:
    if wanted.form == "Native" and wanted.sql == _HELLO_QUERY:
        return _hello(store, wanted.revision)
    return store.query(wanted.sql, wanted.form)


def _hello(store: Store, revision: int) -> bytes:
    """Return the answer to _HELLO_QUERY: a block in the format that the client expects before it knows the server's
    revision.

    The engines write blocks without a revision; this answer tells the client to expect that.
    """
    version, timezone = json.loads(store.query("SELECT version(), timezone()", "JSONCompactEachRow"))
    values = (
        Coded.of([_SERVER_NAME]),
        Coded.of([version]),
        np.array([_NO_REVISION], "<u4"),
        Coded.of([timezone]),
    )
    return native_block(_HELLO, dict(zip(_HELLO, values, strict=True)), revision)


def _query_id(request: Request) -> str:
    """Return the client's query id if a header can hold it, else a new one."""
    given = request.query_params.get("query_id", "")
    return given if _QUERY_ID.fullmatch(given) else str(uuid.uuid4())


async def _body(request: Request) -> bytes:
    """Return the body, at most as long as QUERY_MAX four-byte characters. Raise UsageError if it is longer."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > 4 * QUERY_MAX:
            raise UsageError(f"the query has more than {QUERY_MAX} characters", "shorten it")
    return bytes(body)


def _failure(error: NettopError) -> Response:
    """Format an error as ClickHouse does."""
    is_usage = isinstance(error, UsageError)
    code, name = (_BAD_QUERY, "SYNTAX_ERROR") if is_usage else (_NO_ANSWER, "UNKNOWN_EXCEPTION")
    text = f"Code: {code}. DB::Exception: {safe_text(error.what)}; {safe_text(error.remedy)}. ({name})\n"
    headers = {"X-ClickHouse-Exception-Code": str(code)}
    return Response(text, 400 if is_usage else 503, headers, "text/plain; charset=UTF-8")
