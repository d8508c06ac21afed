# SPDX-License-Identifier: Apache-2.0
"""bpf(2) through libbpf, which is loaded on first use (tools/lib/bpf/bpf.h; numbers: include/uapi/linux/bpf.h).

nettop cannot use libbpf's functions for programs (`bpf_program__attach_kprobe`, …): they need an object that libbpf
loaded, whereas bcc compiles nettop's programs and another process loads them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from functools import cache
from typing import Any

from nettop.errors import Unsupported, limit_reached

_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), -1)
_libc = ctypes.CDLL(None, use_errno=True)

_NOEXIST = 1
"""Update flag: fail if the element exists (BPF_NOEXIST)."""
_PROG_LOAD = 5
_OBJ_GET_INFO_BY_FD = 15
_PROG_TYPE_TRACING = 26
TRACE_RAW_TP = 23
TRACE_FENTRY = 24
TRACE_FEXIT = 25
TRACE_ITER = 28
XDP = 37
PERF_EVENT = 41
TCX_INGRESS = 46
XDP_GENERIC, XDP_NATIVE = 1 << 1, 1 << 2
"""Flags of an XDP link (XDP_FLAGS_* of include/uapi/linux/if_link.h)."""
TCX_FIRST = 1 << 3
"""Flag of a TCX link: run before all attached programs (BPF_F_BEFORE)."""
_LOG_BYTES = 1 << 18
_RECURSION_MISSES_AT = 208
"""Offset of recursion_misses in struct bpf_prog_info, the last member read."""
_RUN_TIME_AT = 192
"""Offset of run_time_ns in struct bpf_prog_info (since 5.1); run_cnt follows it."""
_STATS_RUN_TIME = 0
_TOO_LARGE = 1 << 20
"""Bytes of attributes; the kernel accepts at most a page."""
_INSTRUCTION_BYTES = 8


@cache
def libbpf() -> ctypes.CDLL:
    """Load libbpf. Raises Unsupported if it is not installed, and the error for a limit that keeps it from loading."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        refusal = Unsupported(f"cannot load libbpf: {error}", "run scripts/install-deps.sh again")
        raise limit_reached("cannot load libbpf", error) or refusal from error
    library.libbpf_set_print(None)
    return library


def call(function: str, *arguments: Any, allowed: tuple[int, ...] = ()) -> int:
    """Call a function of libbpf and return its result. Raises OSError for a negative errno that is not allowed."""
    result = int(getattr(libbpf(), function)(*arguments))
    if result < 0 and -result not in allowed:
        raise OSError(-result, f"{function}: {os.strerror(-result)}")
    return result


def link(program: int, attach_type: int, target: int = 0, flags: int = 0, table: int | None = None) -> int:
    """Link an iterator (TRACE_ITER; over the elements of the map `table`, if given), or a program to a perf event
    (PERF_EVENT) or to the network interface `target` in the calling thread's namespace (XDP, TCX_INGRESS).

    Closing the returned descriptor removes the link. Attachments by bpf_xdp_attach and bpf_tc_attach would outlive a
    killed nettop.
    """
    about = ctypes.c_uint32(table or 0)  # union bpf_iter_link_info
    of_table = (0, 0) if table is None else (ctypes.addressof(about), ctypes.sizeof(about))
    options = struct.pack("=QI4xQQ", 32, flags, *of_table)  # struct bpf_link_create_opts
    return call("bpf_link_create", program, target, attach_type, options)


def load_tracing(instructions: bytes, name: str, attach_type: int, btf_id: int) -> int:
    """Load a program for the hook that the type `btf_id` describes: a tracepoint (TRACE_RAW_TP), or the entry
    (TRACE_FENTRY) or exit (TRACE_FEXIT) of a function. Return its descriptor.

    The verifier then knows the arguments as pointers to kernel structs, which the program may dereference directly and
    pass to helpers. If it rejects the program, its log goes to standard error.
    """
    log = ctypes.create_string_buffer(_LOG_BYTES)
    # struct bpf_prog_load_opts. The log is expensive: at level 0, libbpf loads only a rejected program again with it.
    options = struct.pack("=QII16xI52xIIQ", 104, 0, attach_type, btf_id, 0, _LOG_BYTES, ctypes.addressof(log))
    try:
        count = ctypes.c_size_t(len(instructions) // _INSTRUCTION_BYTES)
        about = (_PROG_TYPE_TRACING, name.encode(), b"GPL", instructions, count, options)
        return call("bpf_prog_load", *about)
    finally:
        sys.stderr.buffer.write(log.value)
        sys.stderr.flush()


def attach_tracing(program: int) -> int:
    """Attach a program to the tracepoint or function it was loaded for; return the link's descriptor."""
    return call("bpf_raw_tracepoint_open", None, program)


def recursion_misses(program: int) -> int:
    """Return how often the kernel skipped the program because it was already running on that CPU (since 5.12)."""
    misses: int = struct.unpack_from("=Q", _program_info(program), _RECURSION_MISSES_AT)[0]
    return misses


def program_runs(program: int) -> tuple[int, int]:
    """Return the program's runs while statistics were enabled, and their run time in ns, summed over CPUs."""
    time_ns, count = struct.unpack_from("=QQ", _program_info(program), _RUN_TIME_AT)
    return count, time_ns


def open_statistics() -> int:
    """Have the kernel count the runs of all programs until the returned descriptor is closed. Needs CAP_SYS_ADMIN."""
    return call("bpf_enable_stats", _STATS_RUN_TIME)


def _program_info(program: int) -> bytes:
    """Return the first members of struct bpf_prog_info."""
    info = ctypes.create_string_buffer(_RECURSION_MISSES_AT + 8)
    call("bpf_obj_get_info_by_fd", program, info, ctypes.byref(ctypes.c_uint32(len(info))))
    return info.raw


def errno_before_kernel() -> int:
    """Return the errno if loading fails before the kernel checks the arguments, as under a seccomp filter; else 0.

    The calling thread must have the capabilities to load.
    """
    number = _errno_if_too_large(_PROG_LOAD)
    return 0 if number == errno.E2BIG else number


def is_refused() -> bool:
    """Return whether bpf(2) refuses the calling thread altogether."""
    return _errno_if_too_large(_OBJ_GET_INFO_BY_FD) == errno.EPERM


def _errno_if_too_large(command: int) -> int:
    """Call bpf(2) with oversized arguments; return the errno.

    The kernel checks their size first (bpf_check_uarg_tail_zero). libbpf cannot make this call, and may be missing.
    """
    _libc.syscall(_SYSCALL, command, ctypes.create_string_buffer(1), _TOO_LARGE)
    return ctypes.get_errno()


def set_element(map_fd: int, key: bytes, value: bytes) -> None:
    """Set an element of a map; key and value have the map's sizes."""
    call("bpf_map_update_elem", map_fd, key, value, ctypes.c_uint64(0))


def add_element(map_fd: int, key: bytes, value: bytes) -> None:
    """Add an element to a map unless the key exists."""
    call("bpf_map_update_elem", map_fd, key, value, ctypes.c_uint64(_NOEXIST), allowed=(errno.EEXIST,))
