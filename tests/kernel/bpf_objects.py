# SPDX-License-Identifier: Apache-2.0
"""What BPF objects exist in the kernel, and which of them a living process holds."""

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
    """bpf(2): its result and the request as the kernel left it."""
    buffer = ctypes.create_string_buffer(request, max(len(request), 128))
    result = libc.syscall(SYS_BPF, command, buffer, len(request))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return int(result), buffer.raw


def existing() -> set[Object]:
    """Every program, map and link of the kernel, by kind and number."""
    objects: set[Object] = set()
    for kind, command in NEXT_ID.items():
        number = 0
        with contextlib.suppress(FileNotFoundError):
            while True:
                number = struct.unpack_from("I", bpf(command, struct.pack("=II8x", number, 0))[1], 4)[0]
                objects.add((kind, number))
    return objects


def held(pid: int) -> set[Object]:
    """The objects to which that process has descriptors."""
    objects: set[Object] = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                text = Path(entry.path).read_text()
                objects |= {(kind, int(number)) for kind, number in HELD.findall(text)}
    return objects


def held_by_anyone() -> set[Object]:
    """The objects that any living process holds, by itself or through one of its programs."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    objects = set().union(*(held(pid) for pid in pids))
    return objects | {
        ("map", of_it) for kind, number in objects if kind == "prog" for of_it in maps_of(number)
    }


def nothing_new_since(before: set[Object], deadline_s: float = 20) -> None:
    """Waits until no object is left that is newer than `before` and that no living process holds.

    The kernel frees late; other programs of this machine come and go with theirs meanwhile, so that what is held by
    nobody has to be there still after all have been checked.
    """
    until(
        lambda: not (existing() - before - held_by_anyone()) & existing(),
        "BPF objects of ended processes are gone",
        deadline_s,
    )


def run_count(program: int) -> tuple[str, int]:
    """A program's name and how often it ran while statistics were on."""
    return runs_and_time(program)[:2]


def runs_and_time(program: int) -> tuple[str, int, int]:
    """A program's name, how often it ran while statistics were on, and for how many ns."""
    info = program_info(program)
    time_ns, count = struct.unpack_from("=QQ", info, 192)
    return info[64:80].split(b"\0")[0].decode(), count, time_ns


def maps_of(program: int) -> tuple[int, ...]:
    """The numbers of a program's maps; none if it has gone."""
    numbers = (ctypes.c_uint32 * 64)()
    with contextlib.suppress(FileNotFoundError):
        info = program_info(program, struct.pack("=52xIQ", len(numbers), ctypes.addressof(numbers)))
        return tuple(numbers[: struct.unpack_from("=I", info, 52)[0]])
    return ()


def program_info(program: int, asked: bytes = b"") -> bytes:
    """What the kernel tells of a program: struct bpf_prog_info (include/uapi/linux/bpf.h).

    `asked` is how that structure begins where it says where an array is to be put.
    """
    descriptor = bpf(FD_BY_ID["prog"], struct.pack("=I12x", program))[0]
    try:
        info = ctypes.create_string_buffer(asked, 232)
        bpf(INFO_BY_FD, struct.pack("=IIQ", descriptor, 232, ctypes.addressof(info)))
    finally:
        os.close(descriptor)
    return info.raw
