# SPDX-License-Identifier: Apache-2.0
"""Bundles: a recording with texts about it, in a gzipped tar archive."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

FOLDER = "nettop-bundle"
RECORDING = "recording.nettop"
"""The name of the recording in a bundle."""
SUFFIX = ".tar.gz"
_GZIP = b"\x1f\x8b"
_UNPACKERS = {_GZIP: "zcat", b"\x28\xb5\x2f\xfd": "zstdcat", b"\xfd7zXZ": "xzcat", b"BZh": "bzcat"}
"""Commands that unpack files which begin like this."""
_MEMBERS_MAX = 8
_PIECE, _PAGE = 1 << 20, 1 << 12
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
    if not is_packed(descriptor):
        return None
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)  # a copy of a pipe was just written
        try:
            return _copied(file)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
            return None


def unpacker(descriptor: int) -> str:
    """Return the command that unpacks a compressed file; empty if this is none."""
    begins = _begins(descriptor)
    return next((command for magic, command in _UNPACKERS.items() if begins.startswith(magic)), "")


def is_packed(descriptor: int) -> bool:
    """Return whether a file may be a bundle."""
    return _begins(descriptor).startswith(_GZIP)


def _begins(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, max(map(len, _UNPACKERS)), 0)
    except OSError:  # a pipe, or a directory
        return b""


def _copied(file: IO[bytes]) -> int | None:
    """Copy the recording. Read only what `write_bundle` writes: headers of other kinds say how long they are, and
    tarfile would keep all of one in memory."""
    with gzip.GzipFile(fileobj=file) as packed:
        for _ in range(_MEMBERS_MAX):
            header = packed.read(tarfile.BLOCKSIZE)
            entry = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
            if entry.type != tarfile.REGTYPE or not 0 <= entry.size <= _RECORDING_MAX:
                return None
            if entry.name == f"{FOLDER}/{RECORDING}":
                with tempfile.TemporaryFile() as copy:
                    _copy(packed, copy, entry.size)
                    copy.flush()
                    return os.dup(copy.fileno())
            packed.seek(-entry.size % tarfile.BLOCKSIZE + entry.size, os.SEEK_CUR)
    return None


def _copy(source: gzip.GzipFile, target: IO[bytes], size: int) -> None:
    """Copy so many bytes, or up to where the archive is damaged: a recording can be read without its end. What is there
    instead shows that it has not merely not been written yet."""
    with suppress(EOFError, zlib.error, gzip.BadGzipFile):
        while size and (piece := source.read1(min(size, _PIECE))):
            target.write(piece)
            size -= len(piece)
    target.write(bytes(min(size, _PAGE)))
