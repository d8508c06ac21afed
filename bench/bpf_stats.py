# SPDX-License-Identifier: Apache-2.0
"""How often BPF programs ran, by the kernel's own statistics."""

import contextlib
import ctypes
import os
import re
import struct
from collections.abc import Iterator
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


def run_counts(pid: int) -> dict[str, int]:
    """How often each BPF program that the process holds has run, by the program's name."""
    counts = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        match = re.search(r"^prog_id:\s*(\d+)", path.read_text(), re.MULTILINE)
        if match:
            name, runs = run_count(int(match[1]))
            counts[name] = runs
    return counts


def run_count(number: int) -> tuple[str, int]:
    """A program's name and runs."""
    descriptor = bpf(PROG_GET_FD_BY_ID, struct.pack("=I12x", number))
    info = ctypes.create_string_buffer(232)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, 232, ctypes.addressof(info)))
    os.close(descriptor)
    return info.raw[64:80].split(b"\0")[0].decode(), struct.unpack_from("=Q", info, 200)[0]
