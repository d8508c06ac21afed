# SPDX-License-Identifier: Apache-2.0
"""List the kernel's BPF objects, and those that a living process holds."""

import contextlib
import ctypes
import os
import re
import struct
from pathlib import Path

from .lab import libc, until

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
NEXT_ID = {"prog": 11, "map": 12, "link": 31}
FD_BY_ID = {"prog": 13, "map": 14, "link": 30}
INFO_BY_FD = 15
HELD = re.compile(r"^(prog|map|link)_id:\s*(\d+)$", re.MULTILINE)

Object = tuple[str, int]


def bpf(command: int, request: bytes) -> tuple[int, bytes]:
    """Call bpf(2); return its result and the request as the kernel left it."""
    buffer = ctypes.create_string_buffer(request, max(len(request), 128))
    result = libc.syscall(SYS_BPF, command, buffer, len(request))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return int(result), buffer.raw


def existing() -> set[Object]:
    """Return every program, map and link of the kernel, by kind and number."""
    objects: set[Object] = set()
    for kind, command in NEXT_ID.items():
        number = 0
        with contextlib.suppress(FileNotFoundError):
            while True:
                number = struct.unpack_from("I", bpf(command, struct.pack("=II8x", number, 0))[1], 4)[0]
                objects.add((kind, number))
    return objects


def held(pid: int) -> set[Object]:
    """Return the objects to which that process has descriptors."""
    objects: set[Object] = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                text = Path(entry.path).read_text()
                objects |= {(kind, int(number)) for kind, number in HELD.findall(text)}
    return objects


def held_by_anyone() -> set[Object]:
    """Return the objects that any living process holds, directly or through one of its programs."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    objects = set().union(*(held(pid) for pid in pids))
    return objects | {
        ("map", of_it) for kind, number in objects if kind == "prog" for of_it in maps_of(number)
    }


def nothing_new_since(before: set[Object], deadline_s: float = 20) -> None:
    """Wait until a living process holds every object newer than `before`.

    The kernel frees objects late, and other programs on this machine come and go. So an object counts as leaked only if
    it still exists after all processes have been checked.
    """
    until(
        lambda: not (existing() - before - held_by_anyone()) & existing(),
        "BPF objects of ended processes are gone",
        deadline_s,
    )


def runs_and_time(program: int) -> tuple[str, int, int]:
    """Return a program's name, how often it ran while statistics were on, and for how many ns."""
    info = program_info(program)
    time_ns, count = struct.unpack_from("=QQ", info, 192)
    return info[64:80].split(b"\0")[0].decode(), count, time_ns


def maps_of(program: int) -> tuple[int, ...]:
    """Return the numbers of a program's maps; none if it has gone."""
    numbers = (ctypes.c_uint32 * 64)()
    with contextlib.suppress(FileNotFoundError):
        info = program_info(program, struct.pack("=52xIQ", len(numbers), ctypes.addressof(numbers)))
        return tuple(numbers[: struct.unpack_from("=I", info, 52)[0]])
    return ()


def program_info(program: int, asked: bytes = b"") -> bytes:
    """Return the kernel's struct bpf_prog_info (include/uapi/linux/bpf.h) of a program.

    `asked` is the start of that structure; it says where the kernel puts an array.
    """
    descriptor = bpf(FD_BY_ID["prog"], struct.pack("=I12x", program))[0]
    try:
        info = ctypes.create_string_buffer(asked, 232)
        bpf(INFO_BY_FD, struct.pack("=IIQ", descriptor, 232, ctypes.addressof(info)))
    finally:
        os.close(descriptor)
    return info.raw
