# SPDX-License-Identifier: Apache-2.0
"""Flows stored by ClickHouse's engine in this process (chDB), in a directory that it has for itself."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import chdir, closing, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from nettop.errors import SourceFailed, Unsupported, UsageError
from nettop.flows.store.deduplication import remove_unfinished, sync_notes
from nettop.flows.store.queries import (
    FUNCTIONS,
    QueryLimits,
    check_format,
    check_query,
    code_and_text,
    is_description,
    parse_failure,
    parsing,
    query_failure,
    refused_functions,
)
from nettop.flows.store.schema import (
    DATABASE,
    EXISTING,
    INSERT_SETTINGS,
    TABLES,
    Retention,
    existing_tables,
    statements,
)

_LOCK, _CONFIGURATION = "lock", "engine.xml"
_ENGINE = """<clickhouse>
    <logger><level>fatal</level><console>0</console></logger>
    <mark_cache_size>134217728</mark_cache_size>
    <background_pool_size>2</background_pool_size>
    <merge_tree>
        <!-- The defaults, for a pool of 16 threads, would let this pool make small merges only. -->
        <number_of_free_entries_in_pool_to_lower_max_size_of_merge>1</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
        <number_of_free_entries_in_pool_to_execute_mutation>1</number_of_free_entries_in_pool_to_execute_mutation>
        <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>1</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
    </merge_tree>
</clickhouse>
"""
"""Settings of the engine: those of a server would take a machine for itself."""
_SETTINGS = {
    **INSERT_SETTINGS,
    # Two views of the same table are filled at the same time: a quarter more rows per second on two cores.
    "parallel_view_processing": 1,
}
_PATHS = (
    "SELECT database, arrayJoin(data_paths) FROM system.tables WHERE engine LIKE '%MergeTree' FORMAT TSVRaw"
)
_TOKEN = re.compile(r"[\w.-]+")


class EmbeddedStore:
    """The tables of flows in a directory: a Store."""

    def __init__(
        self, directory: Path, retention: Retention | None = None, limits: QueryLimits | None = None
    ) -> None:
        """Opens the tables in this directory, or creates them; a process has one such store at a time. Without a
        `retention`, tables keep that which they have.

        The working directory is another one meanwhile, so no thread may depend on it.

        Raises Unsupported without chDB, UsageError if the directory cannot be used or is of a newer nettop, and
        SourceFailed if another process uses it, or the engine does not start.
        """
        self._directory = _usable(directory)
        self._limits = limits or QueryLimits()
        self._lock = _locked(self._directory)
        try:
            self._chdb = _imported_chdb(self._directory)
            with self._failures():
                remove_unfinished(self._directory)
                (self._directory / _CONFIGURATION).write_text(_ENGINE)
            self._session = self._opened({})
        except BaseException:
            self._lock.close()
            raise
        try:
            self._create(retention)
            self._refused = refused_functions(self._answer(FUNCTIONS))
            rows = (line.split("\t", 1) for line in self._answer(_PATHS).decode().splitlines())
            self._tables = [Path(path) for database, path in rows if database == DATABASE]
        except BaseException:
            self.close()
            raise

    def insert(self, table: str, block: bytes, token: str) -> None:
        """As of Store: the rows are on the disk when it returns, and so is the token."""
        if table not in TABLES or not _TOKEN.fullmatch(token):
            raise ValueError(f"cannot insert a block {token!r} into {table!r}")
        settings = ", ".join(f"{name} = {value}" for name, value in _SETTINGS.items())
        statement = (
            f"INSERT INTO {DATABASE}.{table} SETTINGS insert_deduplication_token = '{token}', {settings}"
        )
        with self._failures():
            with self._session.send_insert(statement, "Native") as inserter:
                inserter.append(block)
                inserter.finish()
            sync_notes(self._tables)

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """As of Store, within the limits; several queries run at the same time."""
        check_format(form)
        # A session does one thing after the other, so each query has its own.
        with closing(self._opened({"database": DATABASE, **self._limits.settings()})) as session:
            if not is_description(sql):
                check_query(self._parsed(session, sql), self._refused)
            try:
                return _bytes(session.query(sql, form))
            except RuntimeError as error:
                raise query_failure(*code_and_text(error), self._limits) from error

    def close(self) -> None:
        """Ends the engine, and lets other processes use the directory."""
        self._session.close()
        self._lock.close()

    def _opened(self, options: Mapping[str, int | str]) -> Any:
        """A session of the engine; the first one starts it."""
        words = {"config-file": self._directory / _CONFIGURATION, **options}
        with self._failures():
            return self._chdb.session.Session(
                f"{self._directory}?{'&'.join(f'{name}={value}' for name, value in words.items())}"
            )

    def _create(self, retention: Retention | None) -> None:
        for statement in statements(existing_tables(self._answer(EXISTING)), retention):
            self._answer(statement)

    def _answer(self, sql: str) -> bytes:
        """The answer to a statement of nettop's, not of a user."""
        with self._failures():
            return _bytes(self._session.query(sql, "TSVRaw"))

    def _parsed(self, session: Any, sql: str) -> str:
        """The syntax tree of a query, in JSON."""
        try:
            return _bytes(session.query(parsing(sql), "TSVRaw")).decode(errors="replace")
        except RuntimeError as error:
            raise parse_failure(*code_and_text(error)) from error

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns what the engine and the disk raise into SourceFailed."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            _, what = code_and_text(error)
            raise SourceFailed(
                f"the store in {self._directory} failed: {what}", "see whether its disk is full"
            ) from error


def _usable(directory: Path) -> Path:
    """The directory as an absolute path, made if it is not there."""
    directory = directory.resolve()
    if set("?&") & set(str(directory)):
        raise UsageError(
            f"flows cannot be stored in {directory}", "use a directory without ? and & in its name"
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"flows cannot be stored in {directory}: {error.strerror}", "use a directory that can be written"
        ) from error
    return directory


def _locked(directory: Path) -> TextIOWrapper:
    """The file whose lock belongs to this process, until it is closed; it says which process that is."""
    try:
        file = (directory / _LOCK).open("a+")
    except OSError as error:
        raise UsageError(
            f"flows cannot be stored in {directory}: {error.strerror}", "use a directory that can be written"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        user = file.read().strip() or "another process"
        file.close()
        raise SourceFailed(
            f"the flows in {directory} are in use by {user}", "stop it, or query the flows through it"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()}\n")
    file.flush()
    return file


def _imported_chdb(directory: Path) -> Any:
    """chDB, which on its import reads a config.xml of the working directory: let it be this one, which has none."""
    try:
        with chdir(directory):
            import chdb.session
    except ImportError as error:
        raise Unsupported(
            f"flows cannot be stored here: {error}", "install chDB, by pip install 'nettop[flows]'"
        ) from error
    except RuntimeError as error:  # before its first session it makes a temporary directory
        raise SourceFailed(
            f"flows cannot be stored here: {str(error).partition(', Stack trace')[0]}",
            "chDB needs a /tmp that can be written, such as a tmpfs; TMPDIR names another place",
        ) from error
    return chdb


def _bytes(result: Any) -> bytes:
    content: bytes = result.bytes()
    return content
