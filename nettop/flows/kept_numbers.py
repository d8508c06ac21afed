# SPDX-License-Identifier: Apache-2.0
"""Sequence numbers of exporters on disk, so that what is lost while no process receives is seen afterwards.

A file has a line of JSON, with the checksum of the rest, then KEPT of every exporter. It is replaced with every block,
and flushed to the disk only at the end, as that takes longer than all the rest: it outlives a process that is killed,
and is not believed after a crash of the host.
"""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from nettop.flows.decode.domains import keys_of
from nettop.flows.decode.kept import saving, written
from nettop.flows.decode.numbering import WAYS
from nettop.flows.exporters import EXPORTERS_MAX, KEPT
from nettop.snapshots.arrays import Mask, take
from nettop.snapshots.snapshot import Array

FORMAT, VERSION = "nettop sequence numbers", 1
NAME = "sequences"
FILE_BYTES_MAX = 4 * EXPORTERS_MAX * KEPT.itemsize
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class KeptNumbers:
    """The files of all workers in a directory, one of which a worker writes."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory = directory
        self._path = directory / f"{NAME}-{number}"
        self._beside = directory / f"{NAME}-{number}.new"
        self._boot = _boot_id()

    def load(self) -> tuple[Array, Mask]:
        """Return what was kept, KEPT (k,), of each exporter the newest, and which of it was in the worker's own file.

        An exporter may have had another worker before. What cannot be read is left out: nobody knows then what was
        lost.
        """
        kept, is_own = [np.zeros(0, KEPT)], [np.zeros(0, bool)]
        for path in self._directory.glob(f"{NAME}-*[0-9]"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                part = self._read(path)
                kept.append(part)
                is_own.append(np.full(len(part), path == self._path))
        together = np.concatenate(kept)
        order = np.argsort(together["seen_ns"], kind="stable")
        newest = {key: at for at, key in enumerate(keys_of(together[order]))}
        which = order[sorted(newest.values())[-EXPORTERS_MAX:]]
        return take(together, which), np.concatenate(is_own)[which]

    def prepare(self, kept: Array, *, is_last: bool = False) -> None:
        """Write KEPT (k,), to take its place by `replace`. Raises SourceFailed if that is not possible."""
        if not len(kept):
            return
        content = kept.tobytes()
        boot = "" if is_last else self._boot
        header = {"format": FORMAT, "version": VERSION, "crc32": zlib.crc32(content), "boot": boot}
        lines = json.dumps(header).encode() + b"\n" + content
        with saving("sequence numbers", self._path), written(self._beside, lines, is_synced=is_last):
            pass

    def replace(self) -> None:
        """Replace the file by what was prepared, if that was written."""
        with suppress(OSError):
            self._beside.replace(self._path)

    def _read(self, path: Path) -> Array:
        with path.open("rb") as file:
            header, content = json.loads(file.readline(1024)), file.read(FILE_BYTES_MAX)
        if (header["format"], header["version"]) != (FORMAT, VERSION) or header["crc32"] != zlib.crc32(
            content
        ):
            raise ValueError
        kept = np.frombuffer(content, KEPT).copy()
        kept["is_current"] &= header["boot"] in ("", self._boot)
        return kept[kept["way"] < WAYS]


def _boot_id() -> str:
    """What tells this start of the kernel from others; empty where it does not say."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""
