# SPDX-License-Identifier: Apache-2.0
"""Flows stored by ClickHouse over HTTP, on one server or a cluster."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from socket import gaierror
from typing import Any, TypeVar
from urllib.parse import urlsplit

import zstandard

from nettop.collector.store import queries, schema
from nettop.errors import NettopError, SourceFailed, Unsupported, UsageError

OLDEST_VERSION = (24, 8)
"""Oldest supported version: the first whose views also deduplicate by a block's token."""

_SETTINGS = {
    **schema.INSERT_SETTINGS,
    "insert_deduplicate": 1,
    # The insert returns once the rows are stored on every shard involved.
    "async_insert": 0,
    "distributed_foreground_insert": 1,
    "wait_end_of_query": 1,
}
_CREATION_SETTINGS = {"distributed_ddl_task_timeout": 60}
"""In seconds, below the answer timeout: the server then says which others it waited for."""
_CONNECT_S, _ANSWER_S = 5, 120
_BACKOFF_S, _BACKOFF_MAX_S = 1.0, 60.0
"""Seconds to avoid a server after its first failure, and at most."""
_LEVEL = 1
_RANDOM = random.SystemRandom()
_AUTHENTICATION_FAILED, _ACCESS_DENIED = 516, 497
"""ClickHouse's codes AUTHENTICATION_FAILED and ACCESS_DENIED."""
_UNAVAILABLE = frozenset((32, 198, 202, 203, 209, 210, 279, 369, 519, 999))
"""ClickHouse's codes for a valid query when other servers do not answer, or this one is overloaded."""

_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class _ClickHouse:
    """A server, its client, and its recent failures."""

    url: str
    client: Any = None
    failures: int = 0
    avoid_until: float = 0.0

    @property
    def name(self) -> str:
        """URL without user and password."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class ServerStore:
    """A Store with its tables on servers. It uses servers in turn, and avoids one that failed for a while.

    It connects on first use, so that a collector may start before its servers. Others query them directly.
    """

    batch_s = 5.0

    def __init__(
        self,
        urls: Sequence[str],
        cluster: str = "",
        retention: schema.Retention | None = None,
        limits: queries.QueryLimits | None = None,
        report: Callable[[str], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        """Use the servers at URLs such as http://user:password@host:8123. Several belong to one cluster, which must be
        named.

        `report` is called with the progress of an upgrade. `clock` returns seconds, `jitter` a number from 0 to 1.
        Raise UsageError for unusable URLs, Unsupported without clickhouse-connect.
        """
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise UsageError(
                    f"{url!r} is not the URL of a ClickHouse server", "write it like http://HOST:8123"
                )
        if not urls or (len(urls) > 1 and not cluster):
            raise UsageError(
                f"{len(urls)} servers given without a cluster name",
                "name their cluster with --cluster, or give one server",
            )
        self._connect, self._error = _import_driver()
        self._servers = [_ClickHouse(url) for url in urls]
        self._cluster, self._retention = cluster, retention
        self._limits, self._report = limits or queries.QueryLimits(), report
        self._clock, self._jitter = clock, jitter
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._is_prepared = False
        self.damage: SourceFailed | None = None
        self.before_query: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Create missing tables. `insert` calls this if it has not been called.

        Raise UsageError for a wrong password, missing rights, an old server, or tables of a newer nettop; SourceFailed
        if no server answers.
        """
        self._with_server(self._create)
        self._is_prepared = True

    def insert(self, blocks: Mapping[str, bytes], token: str) -> None:
        """Implement `Store.insert`. After a failure, blocks already stored remain."""
        if not blocks.keys() <= schema.TABLES.keys():
            raise ValueError(f"cannot insert into {', '.join(blocks)}")
        if not self._is_prepared:
            self.prepare()
        for table, block in blocks.items():
            self._insert(table, block, f"{token}-{table}")

    def _insert(self, table: str, block: bytes, token: str) -> None:
        content = self._compressor.compress(block)
        settings = {**_SETTINGS, "insert_deduplication_token": token}

        def insert(client: Any) -> None:
            answer = client.command(
                f"INSERT INTO {schema.DATABASE}.{table} FORMAT Native",
                data=content,
                settings=settings,
                transport_settings={"Content-Encoding": "zstd"},
            )
            # If an insert fails too late, the status is already 200, and the answer is not empty.
            if isinstance(answer, str | int | list) and answer != "":
                raise self._error(str(answer))

        self._with_server(insert)

    def check(self) -> None:
        """Do nothing: servers check their own data."""

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """Implement `Store.query`, within the limits."""
        queries.check_format(form)
        sql, settings = sql.rstrip().rstrip(";"), self._limits.settings()

        def answer(client: Any) -> bytes:
            queries.check_kind(
                client.raw_query(f"EXPLAIN AST {sql}", fmt="TSVRaw", settings=settings).decode()
            )
            content: bytes = client.raw_query(sql, fmt=form, settings=settings)
            return content

        return self._with_server(answer, is_query=True)

    def close(self) -> None:
        """Close all connections; later calls reopen them."""
        for server in self._servers:
            if server.client is not None:
                server.client.close()
                server.client = None

    def _create(self, client: Any) -> None:
        existing = schema.existing_tables(client.raw_query(schema.EXISTING_TABLES_QUERY, use_database=False))
        execute = partial(client.command, settings=_CREATION_SETTINGS, use_database=False)
        schema.run_statements(
            schema.statements(existing, self._retention, self._cluster), execute, self._report
        )

    def _with_server(self, action: Callable[[Any], _Answer], *, is_query: bool = False) -> _Answer:
        """Run an action with a server's client, trying the next server after a failure."""
        failure: NettopError = SourceFailed("no servers given")
        for server in self._candidates():
            try:
                answer = action(self._client(server))
            except self._error as error:
                failure = self._failure(server, error, is_query=is_query)
                failure.__cause__ = error
                if isinstance(failure, UsageError):
                    raise failure from error
                self._back_off(server)
            else:
                server.failures, server.avoid_until = 0, 0.0
                return answer
        raise failure

    def _candidates(self) -> list[_ClickHouse]:
        """Return the servers to try, starting with a different one each time: those not avoided, else the one due
        soonest.
        """
        with self._lock:
            self._servers.append(self._servers.pop(0))
            servers = list(self._servers)
        now = self._clock()
        ready = [server for server in servers if server.avoid_until <= now]
        return ready or [min(servers, key=lambda server: server.avoid_until)]

    def _back_off(self, server: _ClickHouse) -> None:
        backoff_s = min(_BACKOFF_S * 2**server.failures, _BACKOFF_MAX_S)
        server.failures += 1
        server.avoid_until = self._clock() + backoff_s * (1 + self._jitter()) / 2

    def _client(self, server: _ClickHouse) -> Any:
        if server.client is None:
            client = self._connect(
                dsn=server.url,
                connect_timeout=_CONNECT_S,
                send_receive_timeout=_ANSWER_S,
                # A session would serialize all threads.
                autogenerate_session_id=False,
            )
            version = tuple(int(number) for number in client.server_version.split(".")[:2])
            if version < OLDEST_VERSION:
                client.close()
                raise UsageError(
                    f"{server.name} is ClickHouse {client.server_version}, too old for flows",
                    f"use version {'.'.join(map(str, OLDEST_VERSION))} or later",
                )
            # Set only now: a connection to a database that does not exist would fail.
            client.database = schema.DATABASE
            server.client = client
        return server.client

    def _failure(self, server: _ClickHouse, error: Exception, *, is_query: bool) -> NettopError:
        code, what = queries.code_and_text(error)
        if code == _AUTHENTICATION_FAILED:
            return UsageError(
                f"{server.name} rejected the user or password",
                "write them like http://USER:PASSWORD@HOST:8123",
            )
        if code == _ACCESS_DENIED:
            return UsageError(
                f"{server.name} denied access: {what}", f"grant the user rights on {schema.DATABASE}"
            )
        if code and is_query and code not in _UNAVAILABLE:
            failure = queries.query_failure(code, what, self._limits)
            self.damage = failure if isinstance(failure, SourceFailed) else self.damage
            return failure
        if code:
            return SourceFailed(f"{server.name} failed: {what}", "see that server's log")
        return SourceFailed(
            f"{server.name} does not answer: {_reason(error)}", "check that it is running, and its address"
        )


def _reason(error: BaseException) -> str:
    """Return the root cause of a network failure, in a few words."""
    while cause := getattr(error, "reason", None) or error.__cause__:
        if not isinstance(cause, BaseException):
            break
        error = cause
    if isinstance(error, gaierror):
        return "unknown host name"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


def _import_driver() -> tuple[Any, type[Exception]]:
    """Return the driver's connect function, and its base exception."""
    try:
        from clickhouse_connect import get_client
        from clickhouse_connect.driver.exceptions import Error
    except ImportError as error:
        raise Unsupported(
            f"flows cannot be stored on a server: {error}",
            "install clickhouse-connect: pip install 'nettop[flows]'",
        ) from error
    # The driver logs every failure, by default to standard error.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    return get_client, Error
