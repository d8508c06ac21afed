# SPDX-License-Identifier: Apache-2.0
"""nettop's exceptions. Each has a cause, a remedy and an exit code."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
from collections.abc import Iterable
from copy import copy
from enum import IntEnum
from typing import Self

from nettop.process import limits

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
"""Errors of the kernel when descriptors run out: the process's, or the host's."""
_MIN_FILES = 64
_TOO_MANY_FILES = re.compile(r"too many open files", re.IGNORECASE)
_NO_THREAD = re.compile(r"can't start new thread|resource temporarily unavailable", re.IGNORECASE)
"""Python's messages if no thread or process can be started."""
_INSTALL = "run scripts/install-deps.sh again, which installs what nettop needs"
_NO_MEMORY = re.compile(
    "MemoryError|bad_alloc|cannot allocate memory|out of memory|unable to allocate|failed to map segment",
    re.IGNORECASE,
)
"""The out-of-memory messages of Python, C++, the C library, LLVM and the dynamic linker."""


class ExitCode(IntEnum):
    """Exit codes. An interrupt by the user counts as done."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    UNSUPPORTED = 3
    PERMISSION = 4
    SOURCE = 5


class NettopError(Exception):
    """An error with its cause (`what`) and its `remedy`."""

    exit_code: ExitCode = ExitCode.FAILURE
    is_retried = False
    """Whether the lens that failed is tried again."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def in_words(self, what: str, remedy: str) -> Self:
        """Return the same error in other words."""
        changed = copy(self)
        changed.what, changed.remedy, changed.args = what, remedy, (what,)
        changed.__cause__, changed.__traceback__ = self.__cause__, self.__traceback__
        return changed


class UsageError(NettopError):
    """An invalid command line or filter."""

    exit_code = ExitCode.USAGE


class FilterError(UsageError):
    """An invalid filter: `reason`, at the position `at` of `text`, in the term `term`."""

    def __init__(self, reason: str, remedy: str, text: str, at: int, term: str) -> None:
        super().__init__(f"filter term ‘{term}’: {reason}" if term else f"filter: {reason}", remedy)
        self.reason = reason
        self.text = text
        self.at = at


class Unsupported(NettopError):
    """A feature that this kernel or host does not support."""

    exit_code = ExitCode.UNSUPPORTED


class PermissionMissing(NettopError):
    """A feature that the kernel supports, but this user may not use."""

    exit_code = ExitCode.PERMISSION


class SourceFailed(NettopError):
    """A failed source or store."""

    exit_code = ExitCode.SOURCE


def refusal(code: ExitCode, what: str, remedy: str) -> NettopError:
    """Return the error, with this exit code, for something ruled out by the host, the user or an option."""
    error = (PermissionMissing if code is ExitCode.PERMISSION else Unsupported)(what, remedy)
    error.exit_code = code
    return error


class TooManyFiles(Unsupported):
    """An exhausted limit of open files, which refuses a mechanism or ends a running source."""

    exit_code = ExitCode.SOURCE


def failure_of(lens: str, error: Exception) -> NettopError:
    """Return the error to report for one in a lens's source; unexpected ones are bugs, limits or missing packages."""
    if isinstance(error, NettopError):
        return error
    what = f"the {lens} source failed"
    bug = SourceFailed(f"{what}: {error!r}", "please report this as a bug")
    failure: NettopError = missing_package(error) or limit_reached(what, error) or bug
    failure.__cause__ = error
    return failure


def limit_reached(what: str, why: Exception | str) -> Unsupported | None:
    """Return the error for a failure caused by a limit, naming the limit and how to raise it; else None.

    `why` is the exception or its message.
    """
    words = why if isinstance(why, str) else repr(why)
    number = why.errno if isinstance(why, OSError) else None
    if number in TOO_MANY_FILES or _TOO_MANY_FILES.search(words):
        return too_many_files(what, number or errno.EMFILE)
    if number == errno.EAGAIN or _NO_THREAD.search(words):
        found = [*limits.process_limits(), *limits.of_address_space()]
        return limit_error(f"{what}: no thread or process can be started", found or [limits.ALL_THREADS])
    return out_of_memory(what, words)


def too_many_files(what: str, number: int) -> TooManyFiles:
    """Return the error for running out of descriptors; `number` is in TOO_MANY_FILES."""
    limit = limits.of_files()
    where = limit.what if number == errno.EMFILE else "all processes together reached fs.file-max"
    remedy = limit.remedy if number == errno.EMFILE else "raise the limit: sysctl fs.file-max"
    return TooManyFiles(f"{what}: {os.strerror(number).lower()}: {where}", remedy)


def file_limit_error() -> Unsupported | None:
    """Return why the limit of open files is too low for any command; None if it is not."""
    hard = limits.open_files()
    if hard is None or hard >= _MIN_FILES:
        return None
    return Unsupported(
        f"nettop may open only {hard} files (hard limit of RLIMIT_NOFILE), and needs at least {_MIN_FILES}",
        limits.of_files().remedy,
    )


def out_of_memory(what: str, why: str) -> Unsupported | None:
    """Return the error for running out of memory, if the message `why` says so and a limit applies; else None."""
    found = limits.memory_limits() if _NO_MEMORY.search(why) else []
    return limit_error(f"{what}: out of memory", found) if found else None


def limit_error(what: str, found: Iterable[limits.ProcessLimit]) -> Unsupported:
    """Return the error for a failure caused by one of these limits, naming each of them and how to raise it."""
    where, remedies = zip(*found, strict=True)
    return Unsupported(f"{what}: {'; '.join(where)}", "; or ".join(filter(None, remedies)))


def missing_package(error: Exception) -> Unsupported | None:
    """Return the error for a missing package if that is the cause of `error`, else None."""
    if not isinstance(error, (ImportError, AttributeError)):
        return None
    name = (getattr(error, "name", None) or "nettop").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name not in ("nettop", "numpy"):
        return Unsupported(f"{name} cannot be imported: {error}", _INSTALL)
    return numpy_error()


def numpy_error() -> Unsupported | None:
    """Return why numpy, which all tables need, cannot be used; None if it can."""
    try:
        importlib.import_module("numpy").ndarray  # noqa: B018 - missing in a leftover folder
    except (ImportError, AttributeError, OSError, MemoryError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        what = "numpy cannot be imported"
        return limit_reached(what, error) or Unsupported(f"{what}: {why}", _INSTALL)
    return None


def unknown_word(kind: str, word: str, known: Iterable[str], others: Iterable[str] = ()) -> UsageError:
    """Return the error for a `word` that is not `known`, with the nearest words, including the `others`."""
    known = sorted(known)
    # The dashes of options are alike in all of them, and would make short ones look near.
    folded = {name.casefold().lstrip("-"): name for name in (*others, *known)}
    near = [folded[name] for name in difflib.get_close_matches(word.casefold().lstrip("-"), folded, 3, 0.55)]
    remedy = f"did you mean {' or '.join(near)}?" if near else f"choose from: {', '.join(known)}"
    return UsageError(f"unknown {kind} {word!r}", remedy)
