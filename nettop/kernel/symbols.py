# SPDX-License-Identifier: Apache-2.0
"""The kernel's functions by address (/proc/kallsyms; kernel/kallsyms.c, kernel/ksyms_common.c).

The kernel shows addresses to processes with CAP_SYSLOG, unless the sysctl kernel.kptr_restrict is 2, and to all if it
is 0 and kernel.perf_event_paranoid at most 1. For others every address reads as 0.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from nettop.errors import NettopError, Unsupported
from nettop.kernel.capabilities import missing_for
from nettop.kernel.facts import Host
from nettop.kernel.privileges import CAP_SYSLOG
from nettop.kernel.proc_files import read_required, read_text
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Array

_ADDRESS = slice(0, 16)
_KIND, _NAME_AT = slice(16, 19), 19
_FUNCTIONS = (b" t ", b" T ", b" w ", b" W ")
"""A line is `ffffffff81e3f970 t name`, followed by a tab and `[module]` for functions of modules."""

_PADDING = (b"__pfx_", b"__cfi_")
"""Prefixes of the padding before a function, which calls nothing."""

_KALLSYMS = "/proc/kallsyms"
_NOBODY = "2"
"""The value of kernel.kptr_restrict with which the kernel shows addresses to nobody."""

_LONGEST = 1 << 20
"""No function is longer: an address further behind a symbol is in memory without symbols."""


_opened: dict[Path, int] = {}
"""Descriptors of kallsyms that were opened with CAP_SYSLOG, by path."""


def open_symbols(proc: Path = Path("/proc")) -> None:
    """Open the file for later reading: who may see its addresses is decided when it is opened."""
    path = proc / "kallsyms"
    if path not in _opened:
        with suppress(OSError):
            _opened[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def why_hidden(proc: Path = Path("/proc")) -> NettopError:
    """Return why no function has a name where `are_shown` is False, with what would show them."""
    try:
        read_required(_KALLSYMS, proc.parent)
    except Unsupported as error:
        return error
    restriction = read_text(proc / "sys/kernel/kptr_restrict").strip()
    host = Host(proc.parent)
    if restriction != _NOBODY and CAP_SYSLOG not in host.effective():
        return missing_for("seeing the kernel's symbols", [CAP_SYSLOG], host.permitted())
    return Unsupported(
        "the kernel shows its symbols to nobody (sysctl kernel.kptr_restrict=2)",
        "sysctl kernel.kptr_restrict=1",
    )


def are_shown(proc: Path = Path("/proc")) -> bool:
    """Whether this process is shown addresses; reads only as far as the first one."""
    return any(start for start, _ in _functions(proc / "kallsyms"))


class Symbols:
    """The functions of the kernel and its modules, empty before the first `refresh`. Each takes some 40 bytes.

    `present` are those of the `wanted` functions that exist, even if addresses are hidden.
    """

    def __init__(self, proc: Path = Path("/proc"), wanted: Collection[str] = ()) -> None:
        self._proc = proc
        self._wanted = frozenset(name.encode() for name in wanted)
        self.present: frozenset[str] = frozenset()
        self._modules: frozenset[str] | None = None
        self._starts: Array = np.empty(0, np.uint64)
        self._ends: Array = np.empty(0, np.intp)
        self._order: Array = self._ends
        self._text = b""

    def refresh(self) -> bool:
        """Read them, which takes some 0.1 s, unless that was done and the same modules are loaded.

        True if they were read. A file that cannot be read, or that hides its addresses, gives none.
        """
        lines = read_text(self._proc / "modules").splitlines()
        modules = frozenset(line.partition(" ")[0] for line in lines)
        if modules == self._modules:
            return False
        self._modules = modules
        # Into few large buffers: as Python objects they would take 20 MB and more.
        starts, ends, text = array("Q"), array("Q"), bytearray()
        present = set()
        for start, name in _functions(self._proc / "kallsyms"):
            # Without its module, and without suffixes such as .isra.0.
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
        """The function at an address and the offset from its start; None if no function is known there.

        The name has suffixes such as .isra.0, and ` [module]` for a module's function. Of several names for an address
        the first is taken, as the kernel does.
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


def _functions(path: Path) -> Iterator[tuple[int, bytes]]:
    """Start and name of every function in a file like /proc/kallsyms; a hidden or malformed start is 0."""
    with suppress(OSError), open(_opened.get(path, path), "rb", closefd=path not in _opened) as file:
        file.seek(0)  # one that was opened early may have been read before
        for line in file:
            if line[_KIND] in _FUNCTIONS and not line.startswith(_PADDING, _NAME_AT):
                try:
                    start = int(line[_ADDRESS], 16)
                except ValueError:
                    start = 0
                yield start, line[_NAME_AT:].rstrip().replace(b"\t", b" ")
