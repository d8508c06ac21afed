# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: everything that the kernel needs, so that they are loaded without a compiler."""

from __future__ import annotations

import base64
import errno
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nettop.errors import NettopError, PermissionMissing, Unsupported, limit_reached
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import kprobes
from nettop.kernel.bpf.program_text import ProgramText

_LOAD_64_BITS = 0x18
"""Opcode of the instruction that loads 64 bits: BPF_LD | BPF_DW | BPF_IMM (include/uapi/linux/bpf.h)."""
_MAP_DESCRIPTOR = 1
"""Its source register if the operand is the descriptor of a map (BPF_PSEUDO_MAP_FD)."""
_LOAD = struct.Struct("=BBxxI4xI")
"""The two instructions of which it consists: opcode, registers, and half of the operand in each."""
_OPCODE_BYTES = 8
_FIRST_MARK = 0x6E65_7474_6F70_0000
"""The number that stands for the first value until it is set; the others follow."""


class LoadFailed(Unsupported):
    """Error for a program that does not compile or that the verifier rejects."""


@dataclass(frozen=True, slots=True)
class Function:
    """A program: its name in the kernel, type (BPF_PROG_TYPE_*), hook and instructions.

    `attach_type` and `btf_id` describe the hook of a typed program; they are 0 for others. `tables` and `values` map
    offsets of instructions to the names of the tables and values that they load.
    """

    name: str
    type: int
    attach_type: int
    btf_id: int
    instructions: bytes
    tables: Mapping[int, str]
    values: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled text: its tables and functions by name, and why the kernel lacks the hooks of others (`missing`)."""

    tables: Mapping[str, bpf.MapAttributes]
    functions: Mapping[str, Function]
    missing: Mapping[str, str]

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self), default=lambda code: base64.b64encode(code).decode()).encode()

    @classmethod
    def decode(cls, encoded: bytes) -> Compiled:
        """Return what `encode` encoded. Raise ValueError, LookupError, TypeError or AttributeError for anything
        else."""
        fields = json.loads(encoded)
        tables = {name: bpf.MapAttributes(*table) for name, table in fields["tables"].items()}
        functions = {name: _decoded_function(**function) for name, function in fields["functions"].items()}
        return cls(tables, functions, dict(fields["missing"]))


def _decoded_function(
    instructions: str, tables: dict[str, str], values: dict[str, str], **others: Any
) -> Function:
    """Return a function from its JSON, where keys are strings and instructions are encoded."""
    return Function(
        **others,
        instructions=base64.b64decode(instructions, validate=True),
        tables={int(at): name for at, name in tables.items()},
        values={int(at): name for at, name in values.items()},
    )


# --- values and tables in instructions ------------------------------------------------------------------------------


def marks_of(values: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers that stand for these values while a text is compiled."""
    return {name: _FIRST_MARK + number for number, name in enumerate(sorted(values))}


def find_operands(
    instructions: bytes, maps: Mapping[int, str], marks: Mapping[str, int]
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the offsets of the instructions that load a map, given the maps' names by descriptor, and of those that
    load a mark."""
    names = {mark: name for name, mark in marks.items()}
    tables, values = {}, {}
    for at in range(0, len(instructions) - _OPCODE_BYTES, _OPCODE_BYTES):
        opcode, registers, low, high = _LOAD.unpack_from(instructions, at)
        if opcode != _LOAD_64_BITS:
            continue
        if registers >> 4 == _MAP_DESCRIPTOR:
            tables[at] = maps[low]
        elif (number := high << 32 | low) in names:
            values[at] = names[number]
    return tables, values


def with_numbers(instructions: bytes, numbers: Mapping[int, int]) -> bytes:
    """Return the instructions with these operands, by the offset of the instruction that loads them."""
    changed = bytearray(instructions)
    for at, number in numbers.items():
        opcode, registers, _, _ = _LOAD.unpack_from(changed, at)
        _LOAD.pack_into(changed, at, opcode, registers, number & 0xFFFFFFFF, number >> 32)
    return bytes(changed)


# --- loading ------------------------------------------------------------------------------------------------------


def load(
    compiled: Compiled, text: ProgramText, earlier: Mapping[str, int], require_loading: Callable[[], None]
) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
    """Create the tables of a text, except for shared ones that are among the `earlier` ones, and load its functions.

    Return the descriptors of its functions and of its own `text.maps` by name, and why optional functions are missing.
    Calls `require_loading` before each function, as the verifier takes seconds for all. Raise what that raises,
    LoadFailed with the verifier's output, PermissionMissing, the error for a limit, or OSError for too many open
    files.
    """
    functions: dict[str, int] = {}
    tables: dict[str, int] = {}
    refused = dict(compiled.missing)
    taken = earlier.keys() & set(text.shared)
    try:
        for name, table in compiled.tables.items():
            sized = table._replace(entries=text.entries.get(name, table.entries))
            tables[name] = os.dup(earlier[name]) if name in taken else _create(name, sized)
        for name, function in compiled.functions.items():
            require_loading()
            try:
                functions[name] = _load(function, tables, text.values)
            except OSError as error:
                limit = limit_reached(f"cannot load BPF program {name}", error)
                if limit is not None or name not in text.optional:
                    raise limit or _refusal(name, error) from error
                refused[name] = _why_missing(name, error)
    except BaseException:
        _close((*functions.values(), *tables.values()))
        raise
    _close(tables.pop(name) for name in tables.keys() - (set(text.maps) - taken))
    return functions, tables, refused


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _load(function: Function, tables: Mapping[str, int], values: Mapping[str, int]) -> int:
    numbers = {at: tables[table] for at, table in function.tables.items()}
    numbers |= {at: values[value] for at, value in function.values.items()}
    instructions = with_numbers(function.instructions, numbers)
    name = function.name.removeprefix("bpf_iter__")  # the kernel keeps 15 characters
    return bpf.load_program(function.type, name, instructions, function.attach_type, function.btf_id)


def _why_missing(name: str, error: OSError) -> str:
    """Return why the kernel refuses an optional function. It cannot hook one that has another symbol."""
    if error.errno == errno.ENOENT:
        function, _, elsewhere = name.partition("@")
        return kprobes.why_not_found(elsewhere or function.partition("__")[2])
    return f"the kernel refuses it: {error.strerror}"


def _create(name: str, table: bpf.MapAttributes) -> int:
    """Create a table. Raise PermissionMissing, the error for a limit, or LoadFailed."""
    try:
        return bpf.create_map(name, table)
    except PermissionError as error:
        raise refused_table(name, str(error.strerror)) from error
    except OSError as error:
        what = f"the kernel refuses to create the table {name}: {str(error.strerror).lower()}"
        raise limit_reached("cannot load the programs", error) or LoadFailed(what) from error


def refused_table(name: str, why: str) -> PermissionMissing:
    """Return the error for a table that the kernel refuses to a privileged user."""
    return PermissionMissing(
        f"the kernel refuses to create the table {name}: {why.lower()}",
        "before Linux 5.11, raise the locked-memory limit: ulimit -l unlimited (in a systemd unit: "
        "LimitMEMLOCK=infinity); later, a security module refuses it: allow bpf in its policy",
    )


def _refusal(name: str, error: OSError) -> NettopError:
    """Return the error for a program that the kernel does not load."""
    why = error.strerror
    if error.errno == errno.EPERM:
        return PermissionMissing(
            f"the kernel refuses to load BPF program {name} ({why}), likely by a security module",
            "allow bpf in its policy; it logs what it denies: dmesg, or /var/log/audit/audit.log",
        )
    return LoadFailed(
        f"the kernel refuses BPF program {name} ({why}){reason_in(getattr(error, 'log', ''))}",
        "nettop needs Linux 5.12 or later, not booted with lockdown=confidentiality; if this is one, please report "
        "this message",
    )


def reason_in(written: str) -> str:
    """Return the compiler's first error, or the last meaningful line of another output, as a suffix for a message."""
    lines = [
        line.strip() for line in written.splitlines() if line.strip() and not line.startswith("processed ")
    ]
    reasons = [line for line in lines if " error: " in line] or lines[-1:]
    return f": {reasons[0]}" if reasons else ""
