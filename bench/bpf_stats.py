# SPDX-License-Identifier: Apache-2.0
"""How often BPF programs ran and for how long, by the kernel's own statistics."""

import contextlib
import ctypes
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, ENABLE_STATS = 13, 15, 32
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, request: bytes) -> int:
    """bpf(2)."""
    buffer = ctypes.create_string_buffer(request, max(len(request), 128))
    result = int(libc.syscall(SYS_BPF, command, buffer, len(request)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return result


@contextlib.contextmanager
def statistics_on() -> Iterator[None]:
    """The kernel counts program runs meanwhile."""
    descriptor = bpf(ENABLE_STATS, struct.pack("=I60x", 0))
    try:
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Runs:
    """How often a program ran, and for how many nanoseconds in all, the kernel's two clock readings included."""

    count: int
    ns: int


def run_counts(pid: int) -> dict[str, int]:
    """How often each BPF program that the process holds has run, by the program's name."""
    return {name: runs.count for name, runs in program_runs(pid).items()}


def program_runs(pid: int) -> dict[str, Runs]:
    """The runs of each BPF program that the process holds, by the program's name.

    The kernel cuts names after 15 characters: programs whose names are then equal are added up.
    """
    numbers = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a descriptor that is gone by now
            numbers.update(re.findall(r"^prog_id:\s*(\d+)", path.read_text(), re.MULTILINE))
    by_name: dict[str, Runs] = {}
    for number in numbers:
        with contextlib.suppress(FileNotFoundError):  # a program that is gone by now
            name, runs = runs_of(int(number))
            before = by_name.get(name, Runs(0, 0))
            by_name[name] = Runs(before.count + runs.count, before.ns + runs.ns)
    return by_name


def runs_of(number: int) -> tuple[str, Runs]:
    """A program's name and runs (struct bpf_prog_info)."""
    descriptor = bpf(PROG_GET_FD_BY_ID, struct.pack("=I12x", number))
    info = ctypes.create_string_buffer(232)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, 232, ctypes.addressof(info)))
    os.close(descriptor)
    ns, count = struct.unpack_from("=QQ", info, 192)
    return info.raw[64:80].split(b"\0")[0].decode(), Runs(count, ns)
