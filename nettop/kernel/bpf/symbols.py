# SPDX-License-Identifier: Apache-2.0
"""The kernel's functions by address (/proc/kallsyms; kernel/kallsyms.c, kernel/ksyms_common.c).

The kernel shows addresses to processes with CAP_SYSLOG unless the sysctl kernel.kptr_restrict is 2, and to everyone if
it is 0 and kernel.perf_event_paranoid is at most 1. Otherwise every address reads as 0.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np

from nettop.errors import NettopError, Unsupported
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host, Kept
from nettop.kernel.host.privileges import CAP_SYSLOG, missing_for
from nettop.kernel.host.proc_files import read_required, read_text
from nettop.snapshots.arrays import Array
from nettop.snapshots.safe_text import safe_bytes

_ADDRESS = slice(0, 16)
_KIND, _NAME_AT = slice(16, 19), 19
_FUNCTIONS = (b" t ", b" T ", b" w ", b" W ")
"""A line is `ffffffff81e3f970 t name`, followed by a tab and `[module]` for module functions."""

_PADDING = (b"__pfx_", b"__cfi_")
"""Prefixes of the symbols for padding before a function, from which no call comes."""

_KALLSYMS = "/proc/kallsyms"
_NOBODY = "2"
"""The value of kernel.kptr_restrict that hides addresses from everyone."""

_LONGEST = 1 << 20
"""No function is longer: an address further past a symbol is in memory without symbols."""


def open_symbols(host: Host) -> None:
    """Open /proc/kallsyms for later reading: the kernel decides at open who may see addresses."""
    with suppress(OSError):
        host.kept.symbols = os.open(host.proc / "kallsyms", os.O_RDONLY | os.O_CLOEXEC)


def why_hidden(proc: Path = Path("/proc")) -> NettopError:
    """Return the error, with the remedy, for missing function names when `are_shown` is False."""
    try:
        read_required(_KALLSYMS, proc.parent)
    except Unsupported as error:
        return error
    restriction = read_text(proc / "sys/kernel/kptr_restrict").strip()
    if restriction != _NOBODY and CAP_SYSLOG not in privileges.effective():
        return missing_for("seeing kernel symbols", [CAP_SYSLOG], privileges.held())
    return Unsupported(
        "the kernel hides its symbols from everyone (sysctl kernel.kptr_restrict=2)",
        "sysctl kernel.kptr_restrict=1",
    )


def are_shown(proc: Path = Path("/proc"), kept: Kept | None = None) -> bool:
    """Return whether this process sees addresses; read only up to the first one."""
    return any(start for start, _ in _functions(proc, kept))


def bounds_of(
    functions: Sequence[str], proc: Path = Path("/proc"), kept: Kept | None = None
) -> tuple[int, int] | None:
    """Return the address and the size of the first of these functions that exists; None if none does or is shown.

    Read only until the first one is found, which comes early: all symbols take 0.2 s.
    """
    wanted = [function.encode() for function in functions]
    found: dict[bytes, tuple[int, int]] = {}
    begun: tuple[bytes, int] | None = None
    for start, name in _functions(proc, kept):
        if begun is not None and start > begun[1]:
            found[begun[0]] = begun[1], start - begun[1]
            begun = None
            if wanted[0] in found:
                break
        own, _, suffix = name.partition(b" ")[0].partition(b".")
        if start and own in wanted and b"cold" not in suffix:  # rarely used parts are elsewhere
            begun = own, start
    if begun is not None:
        found[begun[0]] = begun[1], _LONGEST
    return next((found[name] for name in wanted if name in found), None)


class Symbols:
    """The functions of the kernel and its modules, empty before the first `refresh`. A function takes about 40 bytes.

    `present` is the subset of `wanted` functions that exist, even if addresses are hidden.
    """

    def __init__(
        self, proc: Path = Path("/proc"), wanted: Collection[str] = (), kept: Kept | None = None
    ) -> None:
        self._proc = proc
        self._kept = kept
        self._wanted = frozenset(name.encode() for name in wanted)
        self.present: frozenset[str] = frozenset()
        self._modules: frozenset[str] | None = None
        self._starts: Array = np.empty(0, np.uint64)
        self._ends: Array = np.empty(0, np.intp)
        self._order: Array = self._ends
        self._text = b""

    def refresh(self) -> bool:
        """Read the functions (about 0.1 s), unless the same modules are loaded as at the last read.

        Return True if they were read. A file that cannot be read, or that hides its addresses, yields none.
        """
        lines = read_text(self._proc / "modules").splitlines()
        modules = frozenset(line.partition(" ")[0] for line in lines)
        if modules == self._modules:
            return False
        self._modules = modules
        # Use a few large buffers: Python objects would take 20 MB or more.
        starts, ends, text = array("Q"), array("Q"), bytearray()
        present = set()
        for start, name in _functions(self._proc, self._kept):
            # Strip the module and suffixes such as .isra.0.
            if (own := name.partition(b" ")[0].partition(b".")[0]) in self._wanted:
                present.add(own.decode())
            if start:
                starts.append(start)
                text += name
                ends.append(len(text))
        self.present = frozenset(present)
        unsorted = np.array(starts, np.uint64)
        self._order = np.argsort(unsorted, kind="stable")
        self._starts, self._ends, self._text = unsorted[self._order], np.array(ends, np.intp), bytes(text)
        return True

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, address: int) -> tuple[str, int] | None:
        """Return the function at an address and the offset from its start; None if no function is known there.

        The name includes suffixes such as .isra.0, and ` [module]` for a module function. If an address has several
        names, return the first, as the kernel does.
        """
        behind = int(self._starts.searchsorted(np.uint64(address), "right"))
        if not behind:
            return None
        start = self._starts[behind - 1]
        if address - int(start) >= _LONGEST:
            return None
        place = int(self._order[self._starts.searchsorted(start)])
        begin = int(self._ends[place - 1]) if place else 0
        return safe_bytes(self._text[begin : int(self._ends[place])]), address - int(start)


def _functions(proc: Path, kept: Kept | None) -> Iterator[tuple[int, bytes]]:
    """Yield start and name of every function in /proc/kallsyms; a hidden or malformed start is 0."""
    early = None if kept is None else kept.symbols
    path = proc / "kallsyms" if early is None else early
    with (
        suppress(OSError),
        kept.lock if kept else nullcontext(),
        open(path, "rb", closefd=early is None) as file,
    ):
        file.seek(0)  # if opened early, it may have been read before
        for line in file:
            if line[_KIND] in _FUNCTIONS and not line.startswith(_PADDING, _NAME_AT):
                try:
                    start = int(line[_ADDRESS], 16)
                except ValueError:
                    start = 0
                yield start, line[_NAME_AT:].rstrip().replace(b"\t", b" ")
