# SPDX-License-Identifier: Apache-2.0
"""Exporters' sequence numbers, saved to disk to detect losses while no process receives.

A file has a line of JSON with the checksum of the rest, then SAVED of each exporter. The worker replaces it with every
block, but syncs it only on exit, as that takes longer than everything else. So the file survives a killed process, but
not a crash of the host, after which `load` ignores it.
"""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from nettop.collector.decode.batch import keys_of
from nettop.collector.exporters import EXPORTERS_MAX, SAVED
from nettop.collector.files import report_save_errors, write_file
from nettop.snapshots.arrays import Array, take_rows

FORMAT, VERSION = "nettop sequence numbers", 3
NAME = "sequences"
FILE_BYTES_MAX = 4 * EXPORTERS_MAX * SAVED.itemsize
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SavedNumbers:
    """The sequence files of all workers in a directory; a worker writes only its own."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory = directory
        self._path = directory / f"{NAME}-{number}"
        self._temporary = directory / f"{NAME}-{number}.new"
        self._boot = ""
        """The kernel's boot ID; empty if unavailable."""
        with suppress(OSError):
            self._boot = _BOOT_ID.read_text().strip()

    def load(self) -> Array:
        """Return the newest saved state of each exporter, SAVED (k,).

        Another worker may have received from an exporter before. Unreadable files are skipped; losses are then unknown.
        """
        kept = [np.zeros(0, SAVED)]
        for path in self._directory.glob(f"{NAME}-*[0-9]"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                kept.append(self._read(path))
        together = np.concatenate(kept)
        order = np.argsort(together["state"]["seen_ns"], kind="stable")
        newest = {key: at for at, key in enumerate(keys_of(together[order]))}
        return take_rows(together, order[sorted(newest.values())[-EXPORTERS_MAX:]])

    def prepare(self, kept: Array, *, is_last: bool = False) -> None:
        """Write SAVED (k,) to a temporary file, for `replace`. Raise SourceFailed if that fails."""
        if not len(kept):
            return
        content = kept.tobytes()
        boot = "" if is_last else self._boot
        header = {"format": FORMAT, "version": VERSION, "crc32": zlib.crc32(content), "boot": boot}
        lines = json.dumps(header).encode() + b"\n" + content
        with (
            report_save_errors("sequence numbers", self._path),
            write_file(self._temporary, lines, is_synced=is_last),
        ):
            pass

    def replace(self) -> None:
        """Replace the file with the prepared one, if there is one."""
        with suppress(OSError):
            self._temporary.replace(self._path)

    def _read(self, path: Path) -> Array:
        with path.open("rb") as file:
            header, content = json.loads(file.readline(1024)), file.read(FILE_BYTES_MAX)
        if (header["format"], header["version"]) != (FORMAT, VERSION) or header["crc32"] != zlib.crc32(
            content
        ):
            raise ValueError
        kept = np.frombuffer(content, SAVED).copy()
        kept["state"]["is_current"] &= header["boot"] in ("", self._boot)
        return kept
