# SPDX-License-Identifier: Apache-2.0
"""The one tree of errors: each says what happened, what to do, and how the program exits."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
from collections.abc import Iterable
from enum import IntEnum

from nettop import limits

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
"""How the kernel refuses a descriptor: to the process, or to all."""
_LEAST_FILES = 32
_TOO_MANY_FILES = re.compile(r"too many open files", re.IGNORECASE)
_NO_THREAD = re.compile(r"can't start new thread|resource temporarily unavailable", re.IGNORECASE)
"""How Python says that no thread or process can be started."""
_INSTALL = "run scripts/install-deps.sh again, which installs what nettop needs"
_NO_MEMORY = re.compile(
    "MemoryError|bad_alloc|cannot allocate memory|out of memory|unable to allocate|failed to map segment",
    re.IGNORECASE,
)
"""How Python, C++, the C library, LLVM and the dynamic linker say so."""


class ExitCode(IntEnum):
    """Exit codes. Interrupted by the user counts as done."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    UNSUPPORTED = 3
    PERMISSION = 4
    SOURCE = 5


class NettopError(Exception):
    """What happened (`what`), and what to do about it (`remedy`)."""

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


class UsageError(NettopError):
    """The command line or a filter asks for something that does not exist."""

    exit_code = ExitCode.USAGE


class FilterError(UsageError):
    """A filter is wrong: `reason`, at the place `at` of its `text`, in the term `term`."""

    def __init__(self, reason: str, remedy: str, text: str, at: int, term: str) -> None:
        super().__init__(f"filter term ‘{term}’: {reason}" if term else f"filter: {reason}", remedy)
        self.reason = reason
        self.text = text
        self.at = at


class Unsupported(NettopError):
    """This kernel or this host cannot do it."""

    exit_code = ExitCode.UNSUPPORTED


class PermissionMissing(NettopError):
    """The kernel supports it, but this user lacks the permission."""

    exit_code = ExitCode.PERMISSION


class SourceFailed(NettopError):
    """A source or a store stopped working."""

    exit_code = ExitCode.SOURCE


def refusal(code: ExitCode, what: str, remedy: str) -> NettopError:
    """Return the error for something that this host, this user or an option rules out, with this exit code."""
    error = (PermissionMissing if code is ExitCode.PERMISSION else Unsupported)(what, remedy)
    error.exit_code = code
    return error


class TooManyFiles(Unsupported):
    """A limit of open files is reached: a refusal for a mechanism, the end of a source that is running."""

    exit_code = ExitCode.SOURCE


def failure_of(lens: str, error: Exception) -> NettopError:
    """The error to report for an unexpected one in a lens's source: a bug, a limit, or a package that is missing."""
    what = f"the {lens} source failed"
    bug = SourceFailed(f"{what}: {error!r}", "please report this as a bug")
    failure: NettopError = missing_package(error) or limit_reached(what, error) or bug
    failure.__cause__ = error
    return failure


def limit_reached(what: str, why: Exception | str) -> Unsupported | None:
    """Return the error for something that failed where a limit is the cause, else None.

    It names the limit and what raises it. `why` is the exception, or what was written about it.
    """
    words = why if isinstance(why, str) else repr(why)
    number = why.errno if isinstance(why, OSError) else None
    if number in TOO_MANY_FILES or _TOO_MANY_FILES.search(words):
        return too_many_files(what, number or errno.EMFILE)
    if number == errno.EAGAIN or _NO_THREAD.search(words):
        found = [*limits.of_processes(), *limits.of_address_space()]
        return limited_by(f"{what}: no thread or process can be started", found or [limits.ALL_THREADS])
    return want_of_memory(what, words)


def too_many_files(what: str, number: int) -> TooManyFiles:
    """Return the error for something that ran out of descriptors, with one of these numbers."""
    limit = limits.of_files()
    where = limit.what if number == errno.EMFILE else "of all processes together (fs.file-max)"
    remedy = limit.remedy if number == errno.EMFILE else "raise the limit: sysctl fs.file-max"
    return TooManyFiles(f"{what}: {os.strerror(number).lower()}: {where}", remedy)


def why_too_few_files() -> Unsupported | None:
    """Return why no command can run with the files that the process may have open; None where it can."""
    hard = limits.open_files()
    if hard is None or hard >= _LEAST_FILES:
        return None
    return Unsupported(
        f"nettop may have only {hard} files open (hard limit of RLIMIT_NOFILE), and needs {_LEAST_FILES} or more",
        limits.of_files().remedy,
    )


def want_of_memory(what: str, why: str) -> Unsupported | None:
    """Return the error for something that ran out of memory, by what was written about it, where memory is
    limited."""
    found = limits.of_memory() if _NO_MEMORY.search(why) else []
    return limited_by(f"{what}: it ran out of memory", found) if found else None


def limited_by(what: str, found: Iterable[limits.Limit]) -> Unsupported:
    """Return the error for what failed by one of these limits: it names all of them, and what raises each."""
    where, remedies = zip(*found, strict=True)
    return Unsupported(f"{what}: {'; '.join(where)}", "; or ".join(filter(None, remedies)))


def missing_package(error: Exception) -> Unsupported | None:
    """The error for a package that cannot be imported, where that is what made this one; None elsewhere."""
    if not isinstance(error, (ImportError, AttributeError)):
        return None
    name = (getattr(error, "name", None) or "nettop").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name not in ("nettop", "numpy"):
        return Unsupported(f"{name} cannot be imported: {error}", _INSTALL)
    return why_no_numpy()


def why_no_numpy() -> Unsupported | None:
    """Why numpy cannot be used, of which all tables are made; None where it can."""
    try:
        importlib.import_module("numpy").ndarray  # noqa: B018 - a folder that is left over has none
    except (ImportError, AttributeError, OSError, MemoryError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        what = "numpy cannot be imported"
        return limit_reached(what, error) or Unsupported(f"{what}: {why}", _INSTALL)
    return None


def unknown_word(kind: str, word: str, known: Iterable[str], others: Iterable[str] = ()) -> UsageError:
    """The error for a `word` that is not among the `known`: it suggests the nearest ones, of the `others` too."""
    known = sorted(known)
    folded = {name.casefold(): name for name in (*others, *known)}
    near = [folded[name] for name in difflib.get_close_matches(word.casefold(), folded, 3, 0.5)]
    remedy = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(known)}"
    return UsageError(f"unknown {kind} {word!r}", remedy)
