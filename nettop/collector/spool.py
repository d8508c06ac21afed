# SPDX-License-Identifier: Apache-2.0
"""Blocks of rows on their way to the store: files that survive a crash, in a directory of bounded size.

A file has blocks for several tables, and the counts since the previous file: both are stored, or neither. It consists
of a prefix (magic, version, lengths and CRC-32s of header and body), a JSON header, and the blocks as its body, each
compressed with Zstandard: level 1 reduces flows to an eighth at 630 MB/s; LZ4 reduces them to a fifth at 800 MB/s.
"""

from __future__ import annotations

import json
import os
import random
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nettop.collector.columns import Coded
from nettop.collector.files import make_directory, sync, write_file
from nettop.collector.store.native import Values, native_block
from nettop.collector.store.schema import TABLES
from nettop.errors import NettopError, SourceFailed

if TYPE_CHECKING:
    from nettop.collector.store import Store

MAGIC = b"nettop\0\n"
"""First bytes of a file. The newline reveals corruption by a transfer in text mode."""
FORMAT_VERSION = 1

WAITING, TEMPORARY, BROKEN = ".block", ".tmp", ".broken"
"""File suffixes: waiting to be stored, incomplete, and unreadable."""

DROPPED = "_dropped_by_spool"
"""Suffix of a table's name in the ledger, for rows that the spool dropped."""
BROKEN_BLOCKS = "broken_blocks"
"""Ledger counter of unreadable files."""

BATCH_S = 5.0
"""Minimum seconds between inserts, unless BATCH_BYTES wait. An insert takes 70 ms of CPU time and writes 400 kB for
whatever it contains.
"""
_CATCH_UP_S = 5.0
"""Maximum seconds for which a query waits for an insert."""
BATCH_BYTES, _BATCH_FILES_MAX = 32 << 20, 1000
"""Size from which a batch is complete, and the maximum number of its files."""
_WAITING_BYTES = BATCH_BYTES // 8
"""Size of the files, which are compressed, of about one batch."""
_BATCH, _STORED = "batch", "stored"
"""Files with the names of the files that are stored together next, and of those that were stored last."""
_PREFIX = struct.Struct("<8sIIQII")
_LEVEL = 1
_RETRY_S, _RETRY_MAX_S = 0.5, 30.0
_RANDOM = random.SystemRandom()
_IDLE_S = 1.0
"""Seconds between scans for files of other processes, which cannot wake this one."""


class Block(NamedTuple):
    """Rows of a table as encoded by `native_block`, and their number."""

    content: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class Spooled:
    """Contents of a file: blocks by table, and the ledger of counts since the previous file.

    For a broken file, `broken` says why. It has no blocks; the ledger, like `dropped`, counts their rows as dropped
    where they are known.
    """

    token: str
    ledger: dict[str, int]
    blocks: dict[str, Block]
    broken: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def time_ms(self) -> int:
        """Time at which the file was written."""
        return int(self.token.partition("-")[0]) // 1_000_000


class Spool:
    """A directory of blocks for one writer. Others may write to the same directory, each with its own `worker` number.

    One process takes blocks out, oldest first. The writer drops blocks that do not fit in the directory or on its disk,
    and counts them in the next file's ledger.
    """

    def __init__(self, directory: Path, max_bytes: int, worker: int = 0) -> None:
        """Create the directory if it is missing. Raise UsageError if that fails."""
        import zstandard

        self._directory, self._max_bytes, self._worker = directory, max_bytes, worker
        self._batch_path, self._stored_path = directory / _BATCH, directory / _STORED
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._carried: Counter[str] = Counter()
        self._was_empty = False
        """Whether nothing waited since the names of a batch could not be written, so that no file was stored alone."""
        self.failure: OSError | None = None
        """Reason that the last blocks were dropped; None if they were written."""
        make_directory(directory, "blocks")
        names = os.listdir(directory)
        # Keep the order even if the clock was set back.
        self._last_ns = max((int(name[:19]) for name in names if name[:19].isdecimal()), default=0)

    def recover(self) -> None:
        """Remove incomplete files. Call this only in the process that takes blocks out, before others write."""
        for path in self._directory.glob(f"*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def put(
        self, blocks: Mapping[str, Block], ledger: Mapping[str, int], then: Callable[[], None] = lambda: None
    ) -> str | None:
        """Write blocks by table, and the counts since the last call, to disk, then call `then`.

        Return the file's name, or None if the blocks were dropped; the counts then go into the next file. A file
        without blocks may exceed the bound.
        """
        self._carried.update(ledger)
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        token = f"{self._last_ns:019}-{self._worker}"
        content = self._encoded(blocks)
        try:
            if blocks and self.waiting_bytes() + len(content) > self._max_bytes:
                raise OSError(f"the spool is full ({self._max_bytes} bytes)")
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with write_file(self._directory / f"{token}{TEMPORARY}", content, is_synced=True) as temporary:
                os.rename(temporary, self._path(token))
                then()
        except OSError as error:
            self.failure = error
            self._carried.update({f"{table}{DROPPED}": block.rows for table, block in blocks.items()})
            return None
        # If the disk loses the name, ledger and blocks are lost together, so totals stay consistent.
        with suppress(OSError):
            sync(self._directory)
        self.failure = None
        self._carried.clear()
        return token

    def waiting(self) -> list[str]:
        """Return the names of files to be stored, oldest first."""
        return sorted(entry.name.removesuffix(WAITING) for entry in self._files())

    def waiting_bytes(self) -> int:
        """Return the total size of the files to be stored."""
        total = 0
        for entry in self._files():
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
        return total

    def _files(self) -> list[os.DirEntry[str]]:
        """Return the files to be stored; none if the directory was removed, which `put` recreates."""
        try:
            with os.scandir(self._directory) as entries:
                return [entry for entry in entries if entry.name.endswith(WAITING)]
        except FileNotFoundError:
            return []

    def next_batch(self) -> tuple[str, list[Spooled]]:
        """Return the files to store together, oldest first, and their name for the store. If they are stored, but not
        yet removed, the name is empty.

        The store recognizes a name that is repeated with the same content. So the names of the files are on disk before
        they are returned, and remain the next batch until `note_stored`, even after a crash. If they cannot be written,
        or never were while files waited, the batch is the oldest file alone. Raise OSError.
        """
        waiting = self.waiting()
        lists = {path: self._named(path) for path in (self._stored_path, self._batch_path)}
        for path, named in lists.items():
            if left := sorted({*named} & {*waiting}):
                return named[0] if path == self._batch_path else "", [self.read(token) for token in left]
        is_noted = self._was_empty or any(lists.values())
        batch = list(self._read_until_full(waiting if is_noted else waiting[:1]))
        if not batch:
            self._was_empty = True
            return "", []
        try:
            names = "\n".join(message.token for message in batch).encode()
            with write_file(self._batch_path.with_suffix(TEMPORARY), names, is_synced=True) as temporary:
                temporary.replace(self._batch_path)
                sync(self._directory)
        except OSError:
            self._was_empty = False
            for path in lists:
                path.unlink(missing_ok=True)
            batch = batch[:1]
        return batch[0].token, batch

    def note_stored(self) -> None:
        """Note that the last batch is stored, before its files are removed. Raise OSError."""
        with suppress(FileNotFoundError):
            self._batch_path.rename(self._stored_path)

    def _named(self, path: Path) -> list[str]:
        try:
            return path.read_text().split()
        except FileNotFoundError:
            return []

    def _read_until_full(self, tokens: list[str]) -> Iterator[Spooled]:
        size = 0
        for token in tokens[:_BATCH_FILES_MAX]:
            yield (spooled := self.read(token))
            size += sum(len(block.content) for block in spooled.blocks.values())
            if size >= BATCH_BYTES:
                return

    def read(self, token: str) -> Spooled:
        """Return the contents of a file. Raise OSError if it cannot be read."""
        return _decoded(token, self._path(token).read_bytes())

    def remove(self, token: str, *, is_broken: bool = False) -> None:
        """Remove a stored file; rename a broken one, so that it stays but is not stored."""
        path = self._path(token)
        if is_broken:
            path.rename(path.with_suffix(BROKEN))
        else:
            path.unlink(missing_ok=True)

    def _path(self, token: str) -> Path:
        return self._directory / f"{token}{WAITING}"

    def _encoded(self, blocks: Mapping[str, Block]) -> bytes:
        bodies = [self._compressor.compress(block.content) for block in blocks.values()]
        tables = [
            {"name": table, "rows": block.rows, "bytes": len(body)}
            for (table, block), body in zip(blocks.items(), bodies, strict=True)
        ]
        header = json.dumps({"ledger": self._carried, "tables": tables}).encode()
        body = b"".join(bodies)
        lengths, checks = (len(header), len(body)), (zlib.crc32(header), zlib.crc32(body))
        return b"".join((_PREFIX.pack(MAGIC, FORMAT_VERSION, *lengths, *checks), header, body))


def _decoded(token: str, content: bytes) -> Spooled:
    """Parse the contents of a file, or say why that fails."""
    if len(content) < _PREFIX.size or not content.startswith(MAGIC):
        return _broken(token, "it does not start with the magic bytes")
    _, version, header_length, body_length, header_check, body_check = _PREFIX.unpack_from(content)
    if version != FORMAT_VERSION:
        return _broken(token, f"it has format {version}; only format {FORMAT_VERSION} is supported")
    text = content[_PREFIX.size : _PREFIX.size + header_length]
    if len(text) != header_length or zlib.crc32(text) != header_check:
        return _broken(token, "its header is damaged")
    header = json.loads(text)
    body = memoryview(content)[_PREFIX.size + header_length :]
    if len(body) != body_length or zlib.crc32(body) != body_check:
        return _broken(token, "its blocks are damaged", header)
    return Spooled(token, header["ledger"], _decompressed(header["tables"], body))


def _decompressed(tables: list[dict[str, Any]], body: memoryview) -> dict[str, Block]:
    import zstandard

    decompressor, blocks = zstandard.ZstdDecompressor(), {}
    for table in tables:
        blocks[table["name"]] = Block(decompressor.decompress(body[: table["bytes"]]), table["rows"])
        body = body[table["bytes"] :]
    return blocks


def _broken(token: str, why: str, header: dict[str, Any] | None = None) -> Spooled:
    header = header or {"ledger": {}, "tables": []}
    dropped = {f"{table['name']}{DROPPED}": table["rows"] for table in header["tables"]}
    ledger = Counter(header["ledger"])
    ledger.update(dropped)
    ledger[BROKEN_BLOCKS] += 1
    return Spooled(token, dict(ledger), {}, why, dropped)


class Storing:
    """Transfer of blocks from a spool into a store, each once and in order, whatever fails in between.

    For each batch of files it stores the blocks, then the ledger, then removes the files. Starting over is harmless, as
    the store ignores batches it already has.
    """

    def __init__(
        self,
        spool: Spool,
        store: Store,
        report: Callable[[NettopError], None] = lambda _: None,
        earlier: Collection[str] = (),
    ) -> None:
        """Call `report` with every failure, from the thread of `run`. `earlier` are the names of files found at the
        start; their rows are counted separately.
        """
        self._spool, self._store, self._report = spool, store, report
        self._earlier = frozenset(earlier)
        self._work, self._stopping = threading.Event(), threading.Event()
        self._is_finishing = False
        self._last_at = -inf
        """Time of the last insert, or of the last look that found nothing to insert."""
        self._is_running = self._is_queried = False
        self._queries = threading.Condition()
        store.before_query = self.catch_up
        self.stored: Counter[str] = Counter()
        """Stored rows by table, and unreadable ones as in the ledger."""
        self.stored_earlier: Counter[str] = Counter()
        """Stored rows of earlier files, counted likewise."""
        self.failure: NettopError | None = None
        """Reason that storing currently fails; None if it succeeds or was not tried."""

    def run(self) -> None:
        """Store blocks as they arrive, until `stop`; the rest stays in the spool.

        After a failure, retry within half a second at first, then less often, up to every 30 seconds.
        """
        self._is_running = True
        try:
            self._store_until_stopped()
        finally:
            self._is_running = False
            self._release_queries()

    def _store_until_stopped(self) -> None:
        delay_s = _RETRY_S
        while not self._stopping.is_set():
            self._work.clear()
            if not self._is_due():
                self._work.wait(_IDLE_S)
                continue
            try:
                is_stored = self.store_oldest()
            except NettopError as error:
                self.failure = error
                self._release_queries()
                self._report(error)
                if self._is_finishing:
                    return
                # Collectors that share a store do not retry simultaneously.
                self._stopping.wait(_RANDOM.uniform(delay_s / 2, delay_s))
                delay_s = min(2 * delay_s, _RETRY_MAX_S)
                continue
            self.failure, delay_s = None, _RETRY_S
            self._last_at = time.monotonic()
            self._release_queries()
            if not is_stored:
                if self._is_finishing:
                    return
                self._work.wait(_IDLE_S)

    def _is_due(self) -> bool:
        pause_s = BATCH_S if self._is_queried else self._store.batch_s
        is_time = self._is_finishing or self.failure or time.monotonic() >= self._last_at + pause_s
        return bool(is_time) or self._spool.waiting_bytes() >= _WAITING_BYTES

    def catch_up(self) -> None:
        """Have what waits inserted before a query, unless the last insert was less than BATCH_S ago, storing fails, or
        no thread is in `run`; from any thread.
        """
        with self._queries:
            if self._is_running and self.failure is None and time.monotonic() >= self._last_at + BATCH_S:
                self._is_queried = True
                self._work.set()
                self._queries.wait_for(lambda: not self._is_queried, _CATCH_UP_S)

    def _release_queries(self) -> None:
        with self._queries:
            self._is_queried = False
            self._queries.notify_all()

    def wake(self) -> None:
        """Signal a new block; from any thread."""
        self._work.set()

    def finish(self) -> None:
        """Let `run` return once nothing is left to store, or storing fails; from any thread."""
        self._is_finishing = True
        self._work.set()

    def stop(self) -> None:
        """Let `run` return after the current block; from any thread."""
        self._stopping.set()
        self._work.set()

    def store_oldest(self) -> bool:
        """Store the oldest files and remove them; return whether there were any.

        Raise NettopError if the store does not accept them, or they cannot be read.
        """
        try:
            name, batch = self._spool.next_batch()
            if not batch:
                self._store.check()
                return False
            self._store_batch(name, batch)
        except OSError as error:
            raise SourceFailed(f"cannot read the spool: {error}", "check its disk") from error
        return True

    def _store_batch(self, name: str, batch: Sequence[Spooled]) -> None:
        blocks: dict[str, bytes] = {}
        for spooled in batch:
            for table, block in spooled.blocks.items():
                blocks[table] = blocks.get(table, b"") + block.content
        if name:
            self._store.insert({**blocks, "ledger": ledger_block(batch)}, name)
            self._spool.note_stored()
        for spooled in batch:
            self._remove(spooled)

    def _remove(self, spooled: Spooled) -> None:
        """Count a stored file and remove it, or set it aside if it is broken."""
        token = spooled.token
        stored = self.stored_earlier if token in self._earlier else self.stored
        stored.update({table: block.rows for table, block in spooled.blocks.items()})
        stored.update(spooled.dropped)
        self._spool.remove(token, is_broken=bool(spooled.broken))
        if spooled.broken:
            self._report(
                SourceFailed(
                    f"cannot store block {token}: {spooled.broken}",
                    f"it is kept as {token}{BROKEN}; its rows are counted as dropped",
                )
            )


def ledger_block(batch: Sequence[Spooled]) -> bytes:
    """Return the files' rows for the table `ledger`."""
    row: dict[str, Values] = {
        "time": np.array([spooled.time_ms for spooled in batch], "i8"),
        "token": Coded.of([spooled.token for spooled in batch]),
        "counters": [spooled.ledger for spooled in batch],
    }
    return native_block(TABLES["ledger"].types, row)
