# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled programs in root's own directory, which every user may read.

An entry's name is the digest of everything that the compiled program depends on: texts, headers and defines, bcc, and
the kernel's build and types. Whatever is not an entry of root's is ignored, and compiled anew.
"""

from __future__ import annotations

import importlib.util
import json
import os
import stat
from _blake2 import blake2b  # hashlib would load OpenSSL too: 3 MB
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import nettop
from nettop.kernel.bpf.compiled import Compiled
from nettop.kernel.bpf.program_text import HEADERS, ProgramText
from nettop.kernel.host.facts import BTF_FILE, Host

DIRECTORY = Path("/var/cache/nettop")
OWNER = 0
"""The user to whom it and all entries belong: root."""
MAX_ENTRIES = 100
"""Entries kept, the newest ones: about 20 for each kernel, of 10 to 60 kB."""

_FORMAT = 1
"""Changes with what an entry contains."""
_BUILD_ID = Path("/sys/kernel/notes")
_DIGEST_BYTES = 32
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Distrusted(Exception):
    """Error for a file that nettop does not use, with the reason."""


def find(text: ProgramText) -> Compiled | None:
    """Return the compiled program of a text; None if there is none that can be trusted."""
    with suppress(OSError, Distrusted):
        key = key_of(text)
        with _trusted_directory() as directory:
            return _decoded(key, _read(directory, key.hex()))
    return None


def store(text: ProgramText, compiled: Compiled) -> None:
    """Keep a compiled program, and remove the oldest ones. Call it as root.

    Raise OSError, and Distrusted if others than root may change the directory.
    """
    key = key_of(text)
    DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    with _trusted_directory() as directory:
        content = compiled.encode()
        _write(directory, key.hex(), _digest(key, content) + content)
        _remove_oldest(directory)


def is_complete() -> bool:
    """Return whether the programs of all lenses were compiled for this kernel and PID namespace; see `set_complete`."""
    return find(_all_texts()) is not None


def set_complete() -> None:
    """Store that all programs are there, as an entry that depends on all texts. Raise what `store` raises."""
    store(_all_texts(), Compiled({}, {}, {}))


def _all_texts() -> ProgramText:
    package = Path(nettop.__file__).parent
    places = ("kernel/bpf/*.bpf.h", "probes/*/*.bpf.h", "probes/*/*.bpf.c")
    sources = sorted(str(source) for place in places for source in package.glob(place))
    return ProgramText(tuple(sources), f"{nettop.__version__} {Host().pid_namespace()}", (), {})


def check() -> tuple[int, list[str]]:
    """Return the number of sound programs, for any kernel, and why others are ignored. Raise OSError, Distrusted."""
    sound, ignored = 0, []
    with _trusted_directory() as directory:
        for name in sorted(os.listdir(directory)):
            try:
                entry = _decoded(bytes.fromhex(name), _read(directory, name))
                sound += bool(entry.functions)
            except Distrusted as error:
                ignored.append(f"{DIRECTORY / name} {error}")
            except ValueError:  # not the name of an entry: one that is being written, or was not finished
                continue
    return sound, ignored


# --- keys ---------------------------------------------------------------------------------------------------------


def key_of(text: ProgramText) -> bytes:
    """Return the digest of everything that the compiled text depends on. Raise OSError if a source is missing."""
    fields = asdict(replace(text, values=dict.fromkeys(text.values, 0), entries={}, shared=()))
    fields["sources"] = [(Path(source).name, Path(source).read_bytes().hex()) for source in text.sources]
    described = json.dumps([_FORMAT, _environment(), fields], sort_keys=True)
    return blake2b(described.encode(), digest_size=_DIGEST_BYTES).digest()


@cache
def _environment() -> list[object]:
    """Return what all texts depend on. The build id is a digest of the kernel's image, in which its types are."""
    headers = {str(path.relative_to(HEADERS)): path.read_text() for path in HEADERS.rglob("*.h")}
    return [
        headers,
        _compiler(),
        *os.uname()[2:],
        _BUILD_ID.read_bytes().hex(),
        os.stat(BTF_FILE).st_size,
    ]


def _compiler() -> list[str]:
    """Return where bcc is, and its version, without importing it."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        return []
    return [found.origin, Path(found.origin).with_name("version.py").read_text()]


# --- entries ------------------------------------------------------------------------------------------------------


@contextmanager
def _trusted_directory() -> Iterator[int]:
    """Open the directory. Raise OSError, and Distrusted if others than root may change it."""
    directory = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _require_of_root(os.fstat(directory))
        yield directory
    finally:
        os.close(directory)


def _require_of_root(status: os.stat_result) -> None:
    if status.st_uid != OWNER:
        raise Distrusted(f"belongs to user {status.st_uid}, not to root")
    if status.st_mode & _OTHERS_WRITE:
        raise Distrusted(f"can be changed by others than root (mode {stat.S_IMODE(status.st_mode):o})")


def _read(directory: int, name: str) -> bytes:
    """Read an entry. Raise FileNotFoundError if there is none, and Distrusted."""
    # O_NONBLOCK: a FIFO would wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(name, "rb", opener=lambda path, _: os.open(path, flags, dir_fd=directory)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Distrusted("is not a regular file")
            _require_of_root(status)
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Distrusted(f"cannot be read: {str(error.strerror).lower()}") from error


def _decoded(key: bytes, content: bytes) -> Compiled:
    """Return an entry's program. Raise Distrusted if it is damaged, or is not the one of this key."""
    digest, encoded = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if digest != _digest(key, encoded):
        raise Distrusted("is damaged")
    try:
        return Compiled.decode(encoded)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Distrusted("is from another version of nettop") from error


def _digest(key: bytes, content: bytes) -> bytes:
    """Return the digest of an entry: it includes the key, so that no entry passes for another."""
    return blake2b(key + content, digest_size=_DIGEST_BYTES).digest()


def _write(directory: int, name: str, content: bytes) -> None:
    """Write an entry. It appears under its name only when it is whole."""
    unfinished = f".{name}.{os.getpid()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(unfinished, flags, 0o644, dir_fd=directory), "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask
            file.write(content)
        os.rename(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=directory)
        raise


def _remove_oldest(directory: int) -> None:
    """Remove all but the newest entries, and with them what a killed nettop did not finish."""
    ages = {
        name: os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime
        for name in os.listdir(directory)
    }
    for name in sorted(ages, key=lambda name: ages[name])[:-MAX_ENTRIES]:
        os.unlink(name, dir_fd=directory)
