# SPDX-License-Identifier: Apache-2.0
"""The texts of BPF programs: what is compiled, and what is set when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nettop.kernel.bpf.btf import Slice

HEADERS = Path(__file__).parent / "headers"
"""The headers that every text may include."""
PART_OF_NETTOP = "which is part of nettop"
"""Part of the error for a file that is missing from the installation."""


@dataclass(frozen=True, slots=True)
class ProgramText:
    """The input of the compiler: `header` (C text), slices of kernel structs, then the files `sources`.

    `functions` maps the programs to load to their type (BPF_PROG_TYPE_*); the kernel may refuse the `optional` ones. A
    name starts with its kind of hook: `bpf_iter__` for an iterator, `tp_btf__` for a tracepoint with BTF types,
    `fentry__` and `fexit__` for entry and exit of a kernel function, `entry__` and `return__` for a kprobe and a
    kretprobe. A function loaded for several hooks is listed once per hook, appended to its name
    (`fexit__call@__sys_sendto`). `maps` are the maps to return; `defines` are passed to the compiler with -D. Nothing
    is loaded if the kernel lacks a function in `needs`.

    The rest is set when the program is loaded, so that one compiled program serves for all: `values` are numbers that
    the text reads by VALUE(name) (nettop/value.h), `entries` are sizes of tables, and the tables in `shared` are those
    of programs that were loaded before, if they have them.
    """

    sources: tuple[str, ...]
    header: str
    slices: tuple[Slice, ...]
    functions: Mapping[str, int]
    maps: tuple[str, ...] = ()
    defines: Mapping[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    values: Mapping[str, int] = field(default_factory=dict)
    entries: Mapping[str, int] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
