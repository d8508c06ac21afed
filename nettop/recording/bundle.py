# SPDX-License-Identifier: Apache-2.0
"""Bundles: a recording with texts about it, in a gzipped tar archive."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from itertools import islice
from typing import IO

FOLDER = "nettop-bundle"
RECORDING = "recording.nettop"
"""The name of the recording in a bundle."""
SUFFIX = ".tar.gz"
_GZIP = b"\x1f\x8b"
_MEMBERS_MAX = 8
_RECORDING_MAX = 1 << 32
"""Maximum bytes of a recording that is taken out of a bundle."""


def write_bundle(file: IO[bytes], members: Mapping[str, str | IO[bytes]], wall_ns: int) -> None:
    """Write texts and files as a bundle; nothing in it says who made it. Raise OSError."""
    seconds = wall_ns // 1_000_000_000
    with (
        gzip.GzipFile("", "wb", fileobj=file, mtime=seconds) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, content in members.items():
            source = io.BytesIO(content.encode("utf-8", "replace")) if isinstance(content, str) else content
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mtime, entry.mode = source.seek(0, os.SEEK_END), seconds, 0o600
            source.seek(0)
            archive.addfile(entry, source)


def recording_in(descriptor: int) -> int | None:
    """Return the descriptor of a copy of the recording in a bundle, a file without a name; None if this is no bundle.

    Raise OSError if it cannot be copied.
    """
    if not _is_packed(descriptor):
        return None
    with os.fdopen(os.dup(descriptor), "rb") as file:
        try:
            return _copied(file)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
            return None


def _is_packed(descriptor: int) -> bool:
    try:
        return os.pread(descriptor, len(_GZIP), 0) == _GZIP
    except OSError:  # a pipe, or a directory
        return False


def _copied(file: IO[bytes]) -> int | None:
    with tarfile.open(fileobj=file, mode="r|gz") as archive:
        for entry in islice(archive, _MEMBERS_MAX):
            if entry.name == f"{FOLDER}/{RECORDING}" and entry.isreg() and entry.size <= _RECORDING_MAX:
                content = archive.extractfile(entry)
                assert content is not None
                with tempfile.TemporaryFile() as copy:
                    shutil.copyfileobj(content, copy)
                    copy.flush()
                    return os.dup(copy.fileno())
    return None
