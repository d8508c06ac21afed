# SPDX-License-Identifier: Apache-2.0
"""All symbols that a compiler emits for a kernel function, and probes at their entry and return.

A probe is a perf event of the kprobe PMU (perf_event_open(2); kernel/events/core.c, perf_kprobe): it needs no tracefs,
has no name visible to others, and does not outlive its descriptor.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
from collections import Counter
from pathlib import Path

from nettop.errors import Unsupported
from nettop.kernel.bpf.perf_events import SET_BPF, open_event
from nettop.kernel.host.proc_files import read_required, what_hides

KPROBES = Path("/sys/bus/event_source/devices/kprobe")
"""Holds the PMU's type, and the bit of `config` that selects a return probe."""

_ATTR = struct.Struct("=IIQQQQQIIQQ")
"""struct perf_event_attr up to config2 (include/uapi/linux/perf_event.h)."""
_ANY_CPU = 0
"""The event belongs to one CPU, but its program runs on all CPUs."""

_WHOLE = frozenset({"isra", "constprop", "lto_priv", "llvm"})
"""Suffixes of whole functions specialised for their callers. Others (.part, .cold) are parts of a function."""


def symbols_of(function: str, root: Path = Path("/")) -> tuple[str, ...]:
    """Return the symbols of a function in the kernel or a module; each call goes through one of them.

    Names are visible even to users who may not see addresses. Raise Unsupported if there is no symbol, if none covers
    the whole function, or if several functions have that name.
    """
    lines = rf" [tTwW] ({re.escape(function)}(?:\.[\w.]+)?)[\t\n]"
    symbols = Counter(re.findall(lines, read_required("/proc/kallsyms", root)))
    whole = sorted(name for name in symbols if _suffixes(name) <= _WHOLE)
    several = [name for name in whole if symbols[name] > 1]
    if several:
        raise Unsupported(f"this kernel has {symbols[several[0]]} functions named {several[0]}")
    if symbols and not whole:
        raise Unsupported(f"this kernel has only parts of {function}: {', '.join(sorted(symbols))}")
    if not symbols:
        raise Unsupported(f"this kernel has no function {function}")
    return tuple(whole)


def why_not_found(function: str) -> str:
    """Return why a function described in BTF cannot be found by name."""
    try:
        return f"this kernel has {function} only as {', '.join(symbols_of(function))}"
    except Unsupported as error:
        return error.what


def _suffixes(symbol: str) -> set[str]:
    """Return a symbol's suffixes: `isra` and `constprop` for name.constprop.0.isra.0."""
    return {word for word in symbol.split(".")[1:] if not word.isdigit()}


def open_probes(function: str, at_return: bool) -> dict[str, int]:
    """Open probes at a function's entry or return; return their descriptors by symbol.

    Needs CAP_PERFMON, on some distributions CAP_SYS_ADMIN. Raise Unsupported, or OSError with the kernel's errno.
    """
    device = _number(KPROBES / "type")
    config = int(at_return) << _number(KPROBES / "format/retprobe")
    probes: dict[str, int] = {}
    try:
        for symbol in symbols_of(function):
            name = ctypes.create_string_buffer(symbol.encode())
            attributes = _ATTR.pack(device, _ATTR.size, config, 0, 0, 0, 0, 0, 0, ctypes.addressof(name), 0)
            probes[symbol] = open_event(attributes, _ANY_CPU, symbol)
    except OSError:
        for probe in probes.values():
            os.close(probe)
        raise
    return probes


def _number(path: Path) -> int:
    """Read the number in a file of the PMU: `9`, or a bit such as `config:0`."""
    try:
        return int(path.read_text().rpartition(":")[2])
    except FileNotFoundError as error:
        raise why_no_kprobes() from error


def why_no_kprobes(root: Path = Path("/")) -> Unsupported:
    """Return the error for a kernel without kprobes or a host that hides them."""
    hiding, remedy = what_hides(str(KPROBES / "type"), root)
    return Unsupported(f"kprobes are hidden: {hiding}" if hiding else "this kernel has no kprobes", remedy)


def attach_program(probe: int, program: int) -> None:
    """Run a program at a probe as long as the probe is open. Raise OSError."""
    fcntl.ioctl(probe, SET_BPF, program)
