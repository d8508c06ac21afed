# SPDX-License-Identifier: Apache-2.0
"""The commands of bpf(2) that nettop calls directly (numbers and layouts: include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from contextlib import suppress

_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), -1)
_libc = ctypes.CDLL(None, use_errno=True)

_MAP_UPDATE_ELEM = 2
_NOEXIST = 1
"""The flag of an update that sets no element which exists."""
_PROG_LOAD = 5
_OBJ_GET_INFO_BY_FD = 15
_RAW_TRACEPOINT_OPEN = 17
_LINK_CREATE = 28
_ENABLE_STATS = 32
_ITER_CREATE = 33
_PROG_TYPE_RAW_TRACEPOINT = 17
_PROG_TYPE_TRACING = 26
TRACE_RAW_TP = 23
TRACE_FENTRY = 24
TRACE_FEXIT = 25
TRACE_ITER = 28
XDP = 37
PERF_EVENT = 41
TCX_INGRESS = 46
XDP_GENERIC, XDP_NATIVE = 1 << 1, 1 << 2
"""Flags of a link to XDP (XDP_FLAGS_* of include/uapi/linux/if_link.h)."""
TCX_FIRST = 1 << 3
"""Flag of a link to TCX: before all programs that are there (BPF_F_BEFORE)."""
_ATTR_BYTES = 152
_LOG_BYTES = 1 << 18
_RECURSION_MISSES_AT = 208
"""The offset of recursion_misses in struct bpf_prog_info, the last member that is read."""
_RUN_TIME_AT = 192
"""The offset of run_time_ns in struct bpf_prog_info (since 5.1), which run_cnt follows."""
_STATS_RUN_TIME = 0
_TOO_LARGE = 1 << 20
"""Bytes of attributes, of which the kernel takes at most a page."""
_INSTRUCTION = struct.Struct("=BBhi")
_RETURN_0 = _INSTRUCTION.pack(0xB7, 0x0, 0, 0) + _INSTRUCTION.pack(0x95, 0, 0, 0)
"""`r0 = 0; exit`"""
_READ_NOTHING = b"".join(
    _INSTRUCTION.pack(*words)
    for words in (
        (0xBF, 0xA1, 0, 0),  # r1 = r10
        (0x07, 0x01, 0, -8),  # r1 += -8
        (0xB7, 0x02, 0, 8),  # r2 = 8
        (0xB7, 0x03, 0, 0),  # r3 = 0
        (0x85, 0x00, 0, 113),  # call bpf_probe_read_kernel
    )
)
"""Reads 8 bytes at address 0 to the stack, which fails when it runs."""


def command(number: int, attributes: bytes) -> int:
    """Call bpf(2); returns its result. Raises OSError with the kernel's errno."""
    result, error, _ = try_command(number, attributes)
    if result < 0:
        raise OSError(error, f"bpf(2) command {number}: {os.strerror(error)}")
    return result


def try_command(number: int, attributes: bytes) -> tuple[int, int, bytes]:
    """Call bpf(2); returns its result, errno, and the attributes as the kernel left them."""
    buffer = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    result = int(_libc.syscall(_SYSCALL, number, buffer, len(attributes)))
    return result, ctypes.get_errno() if result < 0 else 0, buffer.raw


def link(program: int, attach_type: int, target: int = 0, flags: int = 0) -> int:
    """Link an iterator (TRACE_ITER), or a program to a perf event (PERF_EVENT) or to the network interface `target` of
    the calling thread's namespace (XDP, TCX_INGRESS). Closing the descriptor removes it."""
    return command(_LINK_CREATE, struct.pack("=IIII48x", program, target, attach_type, flags))


def link_to_map(program: int, table: int) -> int:
    """Link an iterator over the elements of a map."""
    about = ctypes.create_string_buffer(struct.pack("=I", table))  # union bpf_iter_link_info
    attributes = (program, 0, TRACE_ITER, 0, ctypes.addressof(about), len(about) - 1)
    return command(_LINK_CREATE, struct.pack("=IIIIQI36x", *attributes))


def create_iterator(link: int) -> int:
    """A descriptor that runs the iterator once, from start to end, as it is read.

    Iterators over sockets use the network namespace of the calling thread.
    """
    return command(_ITER_CREATE, struct.pack("=II", link, 0))


def load_tracing(instructions: bytes, name: str, attach_type: int, btf_id: int) -> int:
    """Load a program for the hook that the type `btf_id` describes: a tracepoint (TRACE_RAW_TP), or the entry
    (TRACE_FENTRY) or exit (TRACE_FEXIT) of a function. Returns its descriptor.

    The verifier then knows the arguments as pointers to kernel structs, which the program may read directly and pass
    to helpers. The verifier's log of a refused program goes to standard error.
    """
    text = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16sIIIIQIIQII",
        _PROG_TYPE_TRACING, len(instructions) // 8, ctypes.addressof(text), ctypes.addressof(licence),
        0, 0, 0, 0, 0, name.encode()[:15], 0, attach_type, 0, 0, 0, 0, 0, 0, 0, btf_id,
    )  # fmt: skip
    try:
        return command(_PROG_LOAD, attributes)
    except OSError:
        # The verifier's log is expensive, so only a refused program is loaded a second time for it.
        log = ctypes.create_string_buffer(_LOG_BYTES)
        with_log = struct.pack("=IIQ", 1, _LOG_BYTES, ctypes.addressof(log))
        try:
            return command(_PROG_LOAD, attributes[:24] + with_log + attributes[40:])
        finally:
            sys.stderr.buffer.write(log.value)
            sys.stderr.flush()


def attach_tracing(program: int) -> int:
    """Attach a program to the tracepoint or function that it was loaded for; returns the link's descriptor."""
    return command(_RAW_TRACEPOINT_OPEN, struct.pack("=QI4x", 0, program))


def recursion_misses(program: int) -> int:
    """How often the kernel skipped the program because it was running already on that CPU (since 5.12)."""
    misses: int = struct.unpack_from("=Q", _program_info(program), _RECURSION_MISSES_AT)[0]
    return misses


def program_runs(program: int) -> tuple[int, int]:
    """Runs of the program while statistics were enabled, and their time in ns, on all CPUs."""
    time_ns, count = struct.unpack_from("=QQ", _program_info(program), _RUN_TIME_AT)
    return count, time_ns


def open_statistics() -> int:
    """Have the kernel count the runs of all programs, until the descriptor is closed. Needs CAP_SYS_ADMIN."""
    return command(_ENABLE_STATS, struct.pack("=I", _STATS_RUN_TIME))


def _program_info(program: int) -> bytes:
    """The first members of struct bpf_prog_info."""
    info = ctypes.create_string_buffer(_RECURSION_MISSES_AT + 8)
    command(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
    return info.raw


def errno_before_kernel() -> int:
    """The errno with which loading fails before the kernel looks at its arguments, as in a seccomp filter; 0 if it does
    not. The kernel itself refuses these arguments first of all for their size (bpf_check_uarg_tail_zero).

    For a thread that has the capabilities to load.
    """
    _libc.syscall(_SYSCALL, _PROG_LOAD, ctypes.create_string_buffer(_ATTR_BYTES), _TOO_LARGE)
    number = ctypes.get_errno()
    return 0 if number == errno.E2BIG else number


def may_read_kernel() -> bool | None:
    """Whether programs may read the kernel's memory, which lockdown=confidentiality forbids: then the verifier knows no
    helper for it. None where that is unknown, as no program at all can be loaded.
    """
    if _errno_of_load(_RETURN_0):
        return None
    return {0: True, errno.EINVAL: False}.get(_errno_of_load(_READ_NOTHING + _RETURN_0))


def _errno_of_load(instructions: bytes) -> int:
    """The errno with which the kernel refuses a program of a raw tracepoint; 0 where it loads, and is unloaded."""
    text = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(text), ctypes.addressof(licence)
    attributes = struct.pack("=IIQQ", _PROG_TYPE_RAW_TRACEPOINT, len(instructions) // 8, *addresses)
    program, number, _ = try_command(_PROG_LOAD, attributes.ljust(_ATTR_BYTES, b"\0"))
    if program >= 0:
        os.close(program)
    return number


def is_refused() -> bool:
    """Whether bpf(2) refuses the calling thread altogether: checked by a command that cannot succeed anyway."""
    return try_command(_OBJ_GET_INFO_BY_FD, struct.pack("=iIQ", -1, 0, 0))[1] == errno.EPERM


def set_element(map_fd: int, key: bytes, value: bytes) -> None:
    """Set an element of a map; key and value are as long as the map's."""
    _update(map_fd, key, value, 0)


def add_element(map_fd: int, key: bytes, value: bytes) -> None:
    """Set an element of a map, unless there is one with this key."""
    with suppress(FileExistsError):
        _update(map_fd, key, value, _NOEXIST)


def _update(map_fd: int, key: bytes, value: bytes, flags: int) -> None:
    both = ctypes.create_string_buffer(key + value)
    at = ctypes.addressof(both)
    command(_MAP_UPDATE_ELEM, struct.pack("=I4xQQQ", map_fd, at, at + len(key), flags))
