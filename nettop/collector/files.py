# SPDX-License-Identifier: Apache-2.0
"""Write files of the collector as a whole, durably, in directories of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nettop.errors import SourceFailed, UsageError


@contextmanager
def report_save_errors(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError into SourceFailed."""
    try:
        yield
    except OSError as error:
        raise SourceFailed(
            f"cannot save {what} to {path}: {(error.strerror or str(error)).lower()}",
            "free some space, or choose a directory that nettop can write to",
        ) from error


@contextmanager
def write_file(path: Path, content: bytes, *, is_synced: bool) -> Iterator[Path]:
    """Write a file readable only by its owner, and yield its path; remove it if that or the enclosed block fails. Raise
    OSError.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if is_synced:
                os.fsync(descriptor)
        yield path
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def make_directory(directory: Path, what: str) -> None:
    """Create a directory for some content if it is missing. Raise UsageError if it cannot be created or read."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.scandir(directory).close()
    except OSError as error:
        raise UsageError(
            f"cannot store {what} in {directory}: {error.strerror}", "use a writable directory"
        ) from error


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's names, are on disk. Raise OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
