# SPDX-License-Identifier: Apache-2.0
"""Flows stored by ClickHouse servers: by one, or by those of a cluster, over HTTP."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from socket import gaierror
from typing import Any, TypeVar
from urllib.parse import urlsplit

import zstandard

from nettop.errors import NettopError, SourceFailed, Unsupported, UsageError
from nettop.flows.store.queries import QueryLimits, check_format, check_kind, code_and_text, query_failure
from nettop.flows.store.schema import (
    DATABASE,
    EXISTING,
    INSERT_SETTINGS,
    TABLES,
    Retention,
    existing_tables,
    statements,
)

OLDEST_VERSION = (24, 8)
"""Since then a block's token also holds for what views make of the block."""

_SETTINGS = {
    **INSERT_SETTINGS,
    "insert_deduplicate": 1,
    # The insert ends when the rows are stored, on every shard that has some.
    "async_insert": 0,
    "distributed_foreground_insert": 1,
    "wait_end_of_query": 1,
}
_CREATION_SETTINGS = {"distributed_ddl_task_timeout": 60}
"""In seconds, less than what an answer may take: the server then says which others it has waited for."""
_CONNECT_S, _ANSWER_S = 5, 120
_REST_S, _REST_MAX_S = 1.0, 60.0
"""For how long a server is left alone after it failed once, and at most."""
_LEVEL = 1
_RANDOM = random.SystemRandom()
_WRONG_PASSWORD, _NO_RIGHT = 516, 497
"""ClickHouse's codes AUTHENTICATION_FAILED and ACCESS_DENIED."""
_AWAY = frozenset((32, 198, 202, 203, 209, 210, 279, 369, 519, 999))
"""Its codes for a query that is right, while other servers do not answer, or this one has too much to do."""

_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class _Server:
    """A server, and since when it does not answer."""

    url: str
    client: Any = None
    failures: int = 0
    rests_until: float = 0.0

    @property
    def name(self) -> str:
        """Its URL, without user and password."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class ServerStore:
    """The tables of flows on servers: a Store. Servers are used in turn; one that fails is left alone for a while.

    Nothing is connected before the first use, so that a collector may start before its servers do.
    """

    def __init__(
        self,
        urls: Sequence[str],
        cluster: str = "",
        retention: Retention | None = None,
        limits: QueryLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        """`urls` are as http://user:password@host:8123, several of them those of one cluster, which is then named.

        `clock` gives seconds, `jitter` numbers from 0 to 1. Raises UsageError for URLs that cannot be used, Unsupported
        without clickhouse-connect.
        """
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise UsageError(
                    f"{url!r} is not the URL of a ClickHouse server", "write as http://HOST:8123"
                )
        if not urls or (len(urls) > 1 and not cluster):
            raise UsageError(
                f"{len(urls)} servers are given, without the name of a cluster",
                "name the cluster that they belong to, or give one server",
            )
        self._connect, self._error = _imported_driver()
        self._servers = [_Server(url) for url in urls]
        self._cluster, self._retention = cluster, retention
        self._limits = limits or QueryLimits()
        self._clock, self._jitter = clock, jitter
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._is_prepared = False
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Creates what is missing of the tables; `insert` does it where nobody has.

        Raises UsageError for a wrong password, a missing right, an old server, or a newer nettop's tables; SourceFailed
        if no server answers.
        """
        self._on_a_server(self._create)
        self._is_prepared = True

    def insert(self, blocks: Mapping[str, bytes], token: str) -> None:
        """As of Store. What is stored of the blocks after a failure stays."""
        if not blocks.keys() <= TABLES.keys():
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
                f"INSERT INTO {DATABASE}.{table} FORMAT Native",
                data=content,
                settings=settings,
                transport_settings={"Content-Encoding": "zstd"},
            )
            # Where it is understood too late that an insert fails, the status is 200, and the answer is not empty.
            if isinstance(answer, str | int | list) and answer != "":
                raise self._error(str(answer))

        self._on_a_server(insert)

    def check(self) -> None:
        """As of Store: servers do that themselves."""

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """As of Store, within the limits."""
        check_format(form)
        sql, settings = sql.rstrip().rstrip(";"), self._limits.settings()

        def answer(client: Any) -> bytes:
            check_kind(client.raw_query(f"EXPLAIN AST {sql}", fmt="TSVRaw", settings=settings).decode())
            content: bytes = client.raw_query(sql, fmt=form, settings=settings)
            return content

        return self._on_a_server(answer, is_query=True)

    def close(self) -> None:
        """Closes all connections; a later use opens them again."""
        for server in self._servers:
            if server.client is not None:
                server.client.close()
                server.client = None

    def _create(self, client: Any) -> None:
        existing = existing_tables(client.raw_query(EXISTING, use_database=False))
        for statement in statements(existing, self._retention, self._cluster):
            client.command(statement, settings=_CREATION_SETTINGS, use_database=False)

    def _on_a_server(self, action: Callable[[Any], _Answer], *, is_query: bool = False) -> _Answer:
        """What the action returns, given the client of a server, or after a failure that of the next one."""
        failure: NettopError = SourceFailed("no server is given")
        for server in self._in_turn():
            try:
                answer = action(self._client(server))
            except self._error as error:
                failure = self._failure(server, error, is_query=is_query)
                failure.__cause__ = error
                if isinstance(failure, UsageError):
                    raise failure from error
                self._leave_alone(server)
            else:
                server.failures, server.rests_until = 0, 0.0
                return answer
        raise failure

    def _in_turn(self) -> list[_Server]:
        """The servers to try, each time another one first: those not left alone, or else the next one to be."""
        with self._lock:
            self._servers.append(self._servers.pop(0))
            servers = list(self._servers)
        now = self._clock()
        ready = [server for server in servers if server.rests_until <= now]
        return ready or [min(servers, key=lambda server: server.rests_until)]

    def _leave_alone(self, server: _Server) -> None:
        rest_s = min(_REST_S * 2**server.failures, _REST_MAX_S)
        server.failures += 1
        server.rests_until = self._clock() + rest_s * (1 + self._jitter()) / 2

    def _client(self, server: _Server) -> Any:
        if server.client is None:
            client = self._connect(
                dsn=server.url,
                connect_timeout=_CONNECT_S,
                send_receive_timeout=_ANSWER_S,
                # With a session, only one thread at a time could use the server.
                autogenerate_session_id=False,
            )
            version = tuple(int(number) for number in client.server_version.split(".")[:2])
            if version < OLDEST_VERSION:
                client.close()
                raise UsageError(
                    f"{server.name} is ClickHouse {client.server_version}, too old for flows",
                    f"use version {'.'.join(map(str, OLDEST_VERSION))} or later",
                )
            # Not before: while the database does not exist, no connection to it can be made.
            client.database = DATABASE
            server.client = client
        return server.client

    def _failure(self, server: _Server, error: Exception, *, is_query: bool) -> NettopError:
        code, what = code_and_text(error)
        if code == _WRONG_PASSWORD:
            return UsageError(
                f"{server.name} refuses the user or the password",
                "give them as http://USER:PASSWORD@HOST:8123",
            )
        if code == _NO_RIGHT:
            return UsageError(f"{server.name} refuses: {what}", f"grant the user the rights on {DATABASE}")
        if code and is_query and code not in _AWAY:
            return query_failure(code, what, self._limits)
        if code:
            return SourceFailed(f"{server.name} failed: {what}", "see the log of that server")
        return SourceFailed(
            f"{server.name} does not answer: {_reason(error)}", "see whether it runs, and its address"
        )


def _reason(error: BaseException) -> str:
    """What a failure of the network goes back to, in few words."""
    while cause := getattr(error, "reason", None) or error.__cause__:
        if not isinstance(cause, BaseException):
            break
        error = cause
    if isinstance(error, gaierror):
        return "its name is not known"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


def _imported_driver() -> tuple[Any, type[Exception]]:
    """What connects to a server, and the class of the errors of what it returns."""
    try:
        from clickhouse_connect import get_client
        from clickhouse_connect.driver.exceptions import Error
    except ImportError as error:
        raise Unsupported(
            f"flows cannot be stored on a server: {error}",
            "install clickhouse-connect, by pip install 'nettop[flows]'",
        ) from error
    # It writes of every failure to the log of Python, which would be standard error.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    return get_client, Error
