# SPDX-License-Identifier: Apache-2.0
"""Flows stored by ClickHouse's engine in this process (chDB), in a directory of its own.

chDB hides failures: an insert by `send_insert` reports none, and when the disk refuses a write (WriteBufferFromFile-
Descriptor.cpp) the engine carries on as if it had succeeded. So the store inserts blocks by a query, which raises; it
detects refused writes by a counter, and removes whatever a failed insert left behind.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, closing, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from nettop.collector.store import confirmed, queries, schema
from nettop.errors import SourceFailed, Unsupported, UsageError
from nettop.writing import path_in_memory

_LOCK, _CONFIGURATION = "lock", "config.xml"
_ENGINE = """<clickhouse>
    <logger><level>fatal</level><console>0</console></logger>
    <mark_cache_size>134217728</mark_cache_size>
    <!-- Twenty times a second is meant for servers. -->
    <memory_worker_period_ms>1000</memory_worker_period_ms>
    <!-- Without /sys/fs/cgroup, the failure to read it would be written to the terminal. -->
    <memory_worker_use_cgroup>0</memory_worker_use_cgroup>
    <background_pool_size>2</background_pool_size>
    <merge_tree>
        <!-- The defaults are for a pool of 16 threads; this pool would only do small merges. -->
        <number_of_free_entries_in_pool_to_lower_max_size_of_merge>1</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
        <number_of_free_entries_in_pool_to_execute_mutation>1</number_of_free_entries_in_pool_to_execute_mutation>
        <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>1</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
        <!-- In seconds: the sources of a merge are needed again if it was not written, or is removed. -->
        <old_parts_lifetime>480</old_parts_lifetime>
    </merge_tree>
</clickhouse>
"""
"""Engine settings: a server's defaults would claim the whole machine."""
_ALLOCATOR = (
    "JE_MALLOC_CONF",
    "narenas:2,percpu_arena:disabled,prof:false,dirty_decay_ms:200,muzzy_decay_ms:0",
)
"""Variable that the engine's allocator reads when it is loaded, and a value that keeps 60 MB less than the default: few
arenas, which return memory soon.
"""
_SETTINGS = {
    **schema.INSERT_SETTINGS,
    # Fill two views of the same table in parallel: 25% more rows per second on two cores.
    "parallel_view_processing": 1,
}
_PATHS = (
    "SELECT database, arrayJoin(data_paths) FROM system.tables WHERE engine LIKE '%MergeTree' FORMAT TSVRaw"
)
_REFUSED_WRITES = (
    "SELECT value FROM system.events WHERE event = 'WriteBufferFromFileDescriptorWriteFailed' FORMAT TSVRaw"
)
_TOKEN = re.compile(r"[\w.-]+")
_RESERVED_BYTES = 8 << 20
"""Bytes to keep free on the disk beyond those a block takes. The engine reserves 1 MiB per part."""
_QUERIES_MAX = 16
"""Maximum number of concurrent queries."""


class EmbeddedStore:
    """A Store with its tables in a directory, which are queried only here."""

    batch_s = 60.0

    def __init__(
        self,
        directory: Path,
        retention: schema.Retention | None = None,
        limits: queries.QueryLimits | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open the tables in a directory, or create them. A process has at most one such store. Without `retention`,
        existing tables keep theirs. `report` is called with the progress of an upgrade, and with damage.

        The working directory changes temporarily, so no thread may depend on it.

        Raise Unsupported without chDB; UsageError if the directory is unusable or was written by a newer nettop;
        SourceFailed if another process uses it, or the engine does not start.
        """
        self._directory = _prepared_directory(directory)
        self._limits, self._report = limits or queries.QueryLimits(), report
        self._queries = threading.Semaphore(_QUERIES_MAX)
        self._session: Any = None
        self.damage: SourceFailed | None = None
        self.before_query: Callable[[], None] = lambda: None
        self._tables: list[Path] = []
        self._lock = _lock_directory(self._directory)
        try:
            file = self._directory / _CONFIGURATION
            with self._failures():
                # Rewriting the file on a full disk would leave it empty.
                if not file.is_file() or file.read_text() != _ENGINE:
                    file.write_text(_ENGINE)
                self._confirmed = confirmed.read_confirmed(self._directory)
            self._chdb = _import_chdb(self._directory)
            self._start()
            self._create(retention)
            self._refused = queries.refused_functions(self._execute(queries.FUNCTIONS))
            rows = (line.split("\t", 1) for line in self._execute(_PATHS).decode().splitlines())
            self._tables = [Path(path) for database, path in rows if database == schema.DATABASE]
            self._confirm(self._confirmed.token)
        except BaseException:
            self.close()
            raise

    def insert(self, blocks: Mapping[str, bytes], token: str) -> None:
        """Implement `Store.insert`. On return, the rows and the token are on disk. Only the last token is remembered.

        After a failure, no table has any of the blocks.
        """
        if not blocks.keys() <= schema.TABLES.keys() or not _TOKEN.fullmatch(token):
            raise ValueError(f"cannot insert blocks {token!r} into {', '.join(blocks)}")
        if self._session is None:
            self._start()
        if token == self._confirmed.token:
            return
        self._check_space(sum(map(len, blocks.values())))
        try:
            for table, block in blocks.items():
                self._insert(table, block, f"{token}-{table}")
            self.check()
            self._confirm(token)
        except SourceFailed:
            with self._failures():
                has_left_parts = any(confirmed.unconfirmed_parts(self._directory, self._confirmed))
            if self._session is not None and has_left_parts:
                self._restart()
            raise

    def _insert(self, table: str, block: bytes, token: str) -> None:
        settings = ", ".join(f"{name} = {value}" for name, value in _SETTINGS.items())
        with self._failures(), path_in_memory(os.memfd_create("block"), block) as path:
            self._session.query(
                f"INSERT INTO {schema.DATABASE}.{table} FROM INFILE '{path}' COMPRESSION 'none' "
                # Different each time: the engine never takes a block for one that it has.
                f"SETTINGS insert_deduplication_token = '{token}-{time.time_ns()}', {settings} FORMAT Native"
            )

    def check(self) -> None:
        """Implement `Store.check`: restart the engine after a refused write, including one by a merge."""
        if self._session is not None and self._refused_writes() > self._refused_before:
            self._restart()
            raise self._failure("the disk refused to write")

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """Implement `Store.query`, within the limits. Several queries may run concurrently."""
        queries.check_format(form)
        self.before_query()
        # A session runs one query at a time, so each query gets its own.
        options: dict[str, int | str] = {"database": schema.DATABASE, **self._limits.settings()}
        with self._queries:
            if self._session is None:
                raise self._failure("it could not be restarted")
            with closing(self._open_session(options)) as session:
                if not queries.is_description(sql):
                    queries.check_query(self._parsed(session, sql), self._refused)
                try:
                    return _bytes(session.query(sql, form))
                except RuntimeError as error:
                    failure = queries.query_failure(*queries.code_and_text(error), self._limits)
                    self.damage = failure if isinstance(failure, SourceFailed) else self.damage
                    raise failure from error

    def close(self) -> None:
        """Stop the engine, and release the directory."""
        self._stop()
        self._lock.close()

    def _start(self) -> None:
        """Start the engine with the parts of complete inserts.

        Raise SourceFailed, with the engine stopped, if that is not possible.
        """
        self._stop()
        try:
            with self._failures():
                for part in confirmed.unconfirmed_parts(self._directory, self._confirmed):
                    shutil.rmtree(part)
            known = confirmed.broken_parts(self._directory)
            self._session = self._open_session({})
            # The engine answers only once the tables are loaded.
            self._execute(schema.EXISTING_TABLES_QUERY)
            for part in sorted(confirmed.broken_parts(self._directory) - known):
                self._report(f"a damaged part of the store is set aside, and its rows are missing: {part}")
            self._refused_before = self._refused_writes()
            if self._tables:
                self._confirm(self._confirmed.token)
        except BaseException:
            self._stop()
            raise

    def _restart(self) -> None:
        """Restart the engine without the parts that are not known to be stored."""
        for _ in range(_QUERIES_MAX):
            self._queries.acquire()
        try:
            self._start()
        finally:
            self._queries.release(_QUERIES_MAX)

    def _stop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _confirm(self, token: str) -> None:
        """Note that all parts belong to complete inserts, of which this is the last."""
        with self._failures():
            now = confirmed.confirmed_now(self._directory, self._tables, token)
            # Without a change, a store on a full disk can be opened.
            if now != self._confirmed:
                confirmed.write_confirmed(self._directory, now)
            self._confirmed = now

    def _refused_writes(self) -> int:
        return int(self._execute(_REFUSED_WRITES) or 0)

    def _check_space(self, size: int) -> None:
        """Raise SourceFailed unless the disk has room for a block of this size."""
        with self._failures():
            disk = os.statvfs(self._directory)
        # The engine buffers the rows of a block and of its sums before it knows their compressed size.
        if disk.f_bavail * disk.f_frsize < _RESERVED_BYTES + 2 * size:
            raise self._failure("not enough disk space for a block")

    def _open_session(self, options: Mapping[str, int | str]) -> Any:
        """Open a session of the engine; the first one starts it."""
        words = {"config-file": self._directory / _CONFIGURATION, **options}
        with self._failures():
            return self._chdb.session.Session(
                f"{self._directory}?{'&'.join(f'{name}={value}' for name, value in words.items())}"
            )

    def _create(self, retention: schema.Retention | None) -> None:
        missing = schema.statements(
            schema.existing_tables(self._execute(schema.EXISTING_TABLES_QUERY)), retention
        )
        if missing:
            self._check_space(0)
        schema.run_statements(missing, self._execute, self._report)

    def _execute(self, sql: str) -> bytes:
        """Return the answer to one of nettop's own statements."""
        with self._failures():
            return _bytes(self._session.query(sql, "TSVRaw"))

    def _parsed(self, session: Any, sql: str) -> str:
        """Return the syntax tree of a query, as JSON."""
        try:
            return _bytes(session.query(queries.syntax_tree_query(sql), "TSVRaw")).decode(errors="replace")
        except RuntimeError as error:
            raise queries.parse_failure(*queries.code_and_text(error)) from error

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn errors of the engine and the disk into SourceFailed."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            _, what = queries.code_and_text(error)
            raise self._failure(what) from error

    def _failure(self, what: str) -> SourceFailed:
        return SourceFailed(
            f"the store in {self._directory} failed: {what}", "check whether its disk is full or read-only"
        )


def _prepared_directory(directory: Path) -> Path:
    """Return the directory as an absolute path. Raise UsageError for one that the engine cannot name."""
    directory = directory.resolve()
    if set("?&") & set(str(directory)):
        raise UsageError(
            f"flows cannot be stored in {directory}", "use a directory without ? and & in its path"
        )
    return directory


def _lock_directory(directory: Path) -> TextIOWrapper:
    """Create the directory if missing, and lock it until the returned file is closed; the file names the process."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / _LOCK).open("a+")
    except OSError as error:
        raise UsageError(
            f"flows cannot be stored in {directory}: {error.strerror}", "use a writable directory"
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
    # On a full disk the name is missing, but the lock still works.
    with suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
    return file


def _import_chdb(directory: Path) -> Any:
    """Import chDB, which reads a config.xml from the working directory on import."""
    try:
        os.environ.setdefault(*_ALLOCATOR)
        with chdir(directory), _hidden("pyarrow"):
            import chdb.session
    except ImportError as error:
        raise Unsupported(
            f"flows cannot be stored here: {error}", "install chDB: pip install 'nettop[flows]'"
        ) from error
    except RuntimeError as error:  # it creates a temporary directory before the first session
        raise SourceFailed(
            f"flows cannot be stored here: {str(error).partition(', Stack trace')[0]}",
            "chDB needs a writable /tmp, such as a tmpfs; or set TMPDIR to another directory",
        ) from error
    return chdb


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Let imports of an optional module fail: chDB needs pyarrow, which takes 25 MB, only for functions unused here."""
    imported = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if imported is not None:
            sys.modules[module] = imported


def _bytes(result: Any) -> bytes:
    content: bytes = result.bytes()
    return content
