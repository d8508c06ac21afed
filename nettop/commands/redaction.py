# SPDX-License-Identifier: Apache-2.0
"""The key of --redact. Only commands that redact import this: hashes map OpenSSL."""

from __future__ import annotations

import secrets
import shlex
from hashlib import blake2b
from pathlib import Path

from nettop.commands.invoker import invoking_user, open_files_as
from nettop.errors import NettopError, PermissionMissing, UsageError
from nettop.process.importing import importing
from nettop.reading import read_file
from nettop.settings.shared import Redacting

_LEAST_BYTES, _MOST_BYTES = 16, 1 << 16


def redaction_key(settings: Redacting) -> bytes | None:
    """Return the key in a file that the caller of sudo may read; without a file a random one, if nettop redacts at
    all, else None.

    Raise UsageError for an unusable file, PermissionMissing for an unreadable one.
    """
    path = settings.redact_key
    if path is None and not settings.redact:
        return None
    with importing():
        from nettop.recording.redaction.pseudonyms import KEY_BYTES

    if path is None:
        return secrets.token_bytes(KEY_BYTES)
    with open_files_as(invoking_user()):
        content = _read(path)
    if len(content) < _LEAST_BYTES:
        raise UsageError(f"the key file {path} has fewer than {_LEAST_BYTES} bytes", _remedy(path))
    return blake2b(content, digest_size=KEY_BYTES).digest()


def _read(path: Path) -> bytes:
    try:
        return read_file(path, _MOST_BYTES)
    except OSError as error:
        kind: type[NettopError] = PermissionMissing if isinstance(error, PermissionError) else UsageError
        is_missing = isinstance(error, FileNotFoundError)  # else a new key might replace one that is in use
        remedy = _remedy(path) if is_missing else "name a file with a key that you may read"
        raise kind(f"the key file {path} cannot be read: {error.strerror}", remedy) from error


def _remedy(path: Path) -> str:
    return f"(umask 077; openssl rand -hex 32 > {shlex.quote(str(path))})"
