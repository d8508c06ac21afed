# SPDX-License-Identifier: Apache-2.0
"""Flows stored by ClickHouse's engine in this process (chDB), in a directory that it has for itself.

chDB hides failures: an insert by `send_insert` reports none, and where the disk refuses to write (WriteBufferFromFile-
Descriptor.cpp) the engine goes on as if it had written. So blocks are inserted by a query, which raises; a counter
tells of refused writes; and whatever an insert has left behind that is not known to be stored is taken back.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import chdir, closing, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from nettop.errors import SourceFailed, Unsupported, UsageError
from nettop.flows.store.deduplication import (
    End,
    broken_parts,
    have_grown,
    remove_unfinished,
    sync_notes,
    take_back,
)
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
from nettop.writing import path_in_memory

_LOCK, _CONFIGURATION = "lock", "config.xml"
_ENGINE = """<clickhouse>
    <logger><level>fatal</level><console>0</console></logger>
    <mark_cache_size>134217728</mark_cache_size>
    <!-- Where there is no /sys/fs/cgroup, a failure to read it would be written to the terminal. -->
    <memory_worker_use_cgroup>0</memory_worker_use_cgroup>
    <background_pool_size>2</background_pool_size>
    <merge_tree>
        <!-- The defaults, for a pool of 16 threads, would let this pool make small merges only. -->
        <number_of_free_entries_in_pool_to_lower_max_size_of_merge>1</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
        <number_of_free_entries_in_pool_to_execute_mutation>1</number_of_free_entries_in_pool_to_execute_mutation>
        <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>1</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
        <!-- In seconds: what a merge was made of is needed again where the merge was not written, or is taken back. -->
        <old_parts_lifetime>480</old_parts_lifetime>
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
_REFUSED_WRITES = (
    "SELECT value FROM system.events WHERE event = 'WriteBufferFromFileDescriptorWriteFailed' FORMAT TSVRaw"
)
_TOKEN = re.compile(r"[\w.-]+")
_ROOM = 8 << 20
"""How many bytes stay free on the disk besides those that a block takes. The engine reserves a MiB for each part."""
_QUERIES_MOST = 16
"""How many queries may run at the same time."""


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
        self._queries = threading.Semaphore(_QUERIES_MOST)
        self._session: Any = None
        self._tables: list[Path] = []
        self._ends: dict[Path, End] = {}
        self._lock = _locked(self._directory)
        try:
            with self._failures():
                _write_configuration(self._directory / _CONFIGURATION)
            self._chdb = _imported_chdb(self._directory)
            self._start()
            self._create(retention)
            self._refused = refused_functions(self._answer(FUNCTIONS))
            rows = (line.split("\t", 1) for line in self._answer(_PATHS).decode().splitlines())
            self._tables = [Path(path) for database, path in rows if database == DATABASE]
            self._sync()
        except BaseException:
            self.close()
            raise

    def insert(self, blocks: Mapping[str, bytes], token: str) -> None:
        """As of Store: the rows are on the disk when it returns, and so is the token.

        After a failure nothing of the blocks is in any table.
        """
        if not blocks.keys() <= TABLES.keys() or not _TOKEN.fullmatch(token):
            raise ValueError(f"cannot insert blocks {token!r} into {', '.join(blocks)}")
        if self._session is None:
            self._start()
        self._check_room(sum(map(len, blocks.values())))
        try:
            for table, block in blocks.items():
                self._insert(table, block, f"{token}-{table}")
            self.check()
            self._sync()
        except SourceFailed:
            if self._session is not None and self._has_grown():
                self._start_again()
            raise

    def _insert(self, table: str, block: bytes, token: str) -> None:
        settings = ", ".join(f"{name} = {value}" for name, value in _SETTINGS.items())
        with self._failures(), path_in_memory(os.memfd_create("block"), block) as path:
            self._session.query(
                f"INSERT INTO {DATABASE}.{table} FROM INFILE '{path}' COMPRESSION 'none' "
                f"SETTINGS insert_deduplication_token = '{token}', {settings} FORMAT Native"
            )

    def check(self) -> None:
        """As of Store: begin anew after a refused write, of a merge too."""
        if self._session is not None and self._refused_writes() > self._refused_before:
            self._start_again()
            raise self._failure("the disk refused to write")

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """As of Store, within the limits; several queries run at the same time."""
        check_format(form)
        # A session does one thing after the other, so each query has its own.
        options: dict[str, int | str] = {"database": DATABASE, **self._limits.settings()}
        with self._queries:
            if self._session is None:
                raise self._failure("it could not be started again")
            with closing(self._opened(options)) as session:
                if not is_description(sql):
                    check_query(self._parsed(session, sql), self._refused)
                try:
                    return _bytes(session.query(sql, form))
                except RuntimeError as error:
                    raise query_failure(*code_and_text(error), self._limits) from error

    def close(self) -> None:
        """Ends the engine, and lets other processes use the directory."""
        self._stop()
        self._lock.close()

    def _start(self) -> None:
        """Start the engine on parts that are whole, and on notes of these alone.

        Raises SourceFailed; then it is not running.
        """
        try:
            known = self._start_once()
            while known != (known := broken_parts(self._directory)):
                self._start_once()
            self._refused_before = self._refused_writes()
            self._sync()
        except BaseException:
            self._stop()
            raise

    def _start_once(self) -> frozenset[Path]:
        """Start the engine, and return the broken parts from before."""
        self._stop()
        with self._failures():
            remove_unfinished(self._directory)
        known = broken_parts(self._directory)
        self._session = self._opened({})
        # The answer waits for the tables to be loaded.
        self._answer(EXISTING)
        return known

    def _start_again(self) -> None:
        """End the engine, and start it without what was not known to be stored."""
        for _ in range(_QUERIES_MOST):
            self._queries.acquire()
        try:
            self._stop()
            with self._failures():
                take_back(self._ends)
            self._start()
        finally:
            self._queries.release(_QUERIES_MOST)

    def _stop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _sync(self) -> None:
        with self._failures():
            self._ends = sync_notes(self._tables)

    def _has_grown(self) -> bool:
        """Return whether an insert has left parts behind."""
        with self._failures():
            return have_grown(self._ends)

    def _refused_writes(self) -> int:
        return int(self._answer(_REFUSED_WRITES) or 0)

    def _check_room(self, size: int) -> None:
        """Do nothing if the disk has room for a block of this size. Raises SourceFailed."""
        with self._failures():
            disk = os.statvfs(self._directory)
        # The engine has the rows of a block and of its sums in buffers before it knows how far they are compressed.
        if disk.f_bavail * disk.f_frsize < _ROOM + 2 * size:
            raise self._failure("its disk has no room for a block")

    def _opened(self, options: Mapping[str, int | str]) -> Any:
        """A session of the engine; the first one starts it."""
        words = {"config-file": self._directory / _CONFIGURATION, **options}
        with self._failures():
            return self._chdb.session.Session(
                f"{self._directory}?{'&'.join(f'{name}={value}' for name, value in words.items())}"
            )

    def _create(self, retention: Retention | None) -> None:
        missing = statements(existing_tables(self._answer(EXISTING)), retention)
        if missing:
            self._check_room(0)
        for statement in missing:
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
            raise self._failure(what) from error

    def _failure(self, what: str) -> SourceFailed:
        return SourceFailed(
            f"the store in {self._directory} failed: {what}", "see whether its disk is full or read-only"
        )


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
    # A full disk takes no name, and keeps nobody from the lock.
    with suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
    return file


def _write_configuration(file: Path) -> None:
    # A full disk would leave an empty one.
    if not file.is_file() or file.read_text() != _ENGINE:
        file.write_text(_ENGINE)


def _imported_chdb(directory: Path) -> Any:
    """chDB, which on its import reads the config.xml of the working directory, whatever that is."""
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
