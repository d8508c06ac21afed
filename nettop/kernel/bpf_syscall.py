# SPDX-License-Identifier: Apache-2.0
"""bpf(2) through libbpf, which is loaded on first use (tools/lib/bpf/bpf.h; numbers: include/uapi/linux/bpf.h).

nettop cannot use libbpf's functions for programs (`bpf_program__attach_kprobe`, …): they need an object file that
libbpf loaded, whereas bcc compiles nettop's programs, in memory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

from nettop.errors import Unsupported, limit_reached

_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), -1)
_libc = ctypes.CDLL(None, use_errno=True)

_NOEXIST = 1
"""Update flag: fail if the element exists (BPF_NOEXIST)."""
_PROG_LOAD = 5
_OBJ_GET_INFO_BY_FD = 15
_SOCKET_STORAGE = 24
"""BPF_MAP_TYPE_SK_STORAGE"""
_KEY_TYPE, _VALUE_TYPE = 1, 3
"""The ids of the types in `_load_types`."""
_BTF_INT, _BTF_ARRAY, _BTF_SIGNED = 1, 3, 1
TRACE_RAW_TP = 23
TRACE_FENTRY = 24
TRACE_FEXIT = 25
TRACE_ITER = 28
XDP = 37
PERF_EVENT = 41
TCX_INGRESS = 46
CGROUP_HOOKS = {
    "skb__ingress": 0,
    "skb__egress": 1,
    "sock__post_bind4": 12,
    "sock__post_bind6": 13,
    "sock__release": 34,
}
"""Attach types (BPF_CGROUP_INET_*) of the programs at a control group's hooks, by their names."""
XDP_GENERIC, XDP_NATIVE = 1 << 1, 1 << 2
"""Flags of an XDP link (XDP_FLAGS_* of include/uapi/linux/if_link.h)."""
TCX_FIRST = 1 << 3
"""Flag of a TCX link: run before all attached programs (BPF_F_BEFORE)."""
_LOG_BYTES = 1 << 18
_RECURSION_MISSES_AT, _PROGRAM_INFO_BYTES = 208, 216
"""Offset of recursion_misses in struct bpf_prog_info, the last member read, and its end."""
_RUN_TIME_AT = 192
"""Offset of run_time_ns in struct bpf_prog_info (since 5.1); run_cnt follows it."""
_MAP_INFO = struct.Struct("=6I")
_STATS_RUN_TIME = 0
_TOO_LARGE = 1 << 20
"""Bytes of attributes; the kernel accepts at most a page."""
_INSTRUCTION_BYTES = 8


@cache
def libbpf() -> ctypes.CDLL:
    """Load libbpf. Raise Unsupported if it is not installed, and the error for a limit that keeps it from loading."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        refusal = Unsupported(f"cannot load libbpf: {error}", "run scripts/install-deps.sh again")
        raise limit_reached("cannot load libbpf", error) or refusal from error
    library.libbpf_set_print(None)
    return library


def call(function: str, *arguments: Any, allowed: tuple[int, ...] = ()) -> int:
    """Call a function of libbpf and return its result. Raise OSError for a negative errno that is not allowed."""
    result = int(getattr(libbpf(), function)(*arguments))
    if result < 0 and -result not in allowed:
        raise OSError(-result, f"{function}: {os.strerror(-result)}")
    return result


def link(program: int, attach_type: int, target: int = 0, flags: int = 0, table: int | None = None) -> int:
    """Link an iterator (TRACE_ITER; over the elements of the map `table`, if given), or a program to a perf event
    (PERF_EVENT), to the network interface `target` in the calling thread's namespace (XDP, TCX_INGRESS), or to the
    control group whose directory `target` is (CGROUP_HOOKS).

    Closing the returned descriptor removes the link. Attachments by bpf_xdp_attach and bpf_tc_attach would outlive a
    killed nettop.
    """
    about = ctypes.c_uint32(table or 0)  # union bpf_iter_link_info
    of_table = (0, 0) if table is None else (ctypes.addressof(about), ctypes.sizeof(about))
    options = struct.pack("=QI4xQQ", 32, flags, *of_table)  # struct bpf_link_create_opts
    return call("bpf_link_create", program, target, attach_type, options)


class Rejected(OSError):
    """Error for a program that the kernel does not load; `log` is the verifier's output."""

    log = ""


def load_program(kind: int, name: str, instructions: bytes, attach_type: int = 0, btf_id: int = 0) -> int:
    """Load a program of type `kind` (BPF_PROG_TYPE_*) and return its descriptor. Raise Rejected.

    The type `btf_id` describes the hook of a typed program: a tracepoint (TRACE_RAW_TP), the entry (TRACE_FENTRY) or
    exit (TRACE_FEXIT) of a function, or an iterator (TRACE_ITER). The verifier then knows the arguments as pointers to
    kernel structs, which the program may dereference directly and pass to helpers.
    """
    log = ctypes.create_string_buffer(_LOG_BYTES)
    # struct bpf_prog_load_opts. The log is expensive: at level 0, libbpf loads only a rejected program again with it.
    options = struct.pack("=QII16xI52xIIQ", 104, 0, attach_type, btf_id, 0, _LOG_BYTES, ctypes.addressof(log))
    count = ctypes.c_size_t(len(instructions) // _INSTRUCTION_BYTES)
    try:
        return call("bpf_prog_load", kind, name.encode(), b"GPL", instructions, count, options)
    except OSError as error:
        rejected = Rejected(error.errno, os.strerror(error.errno or 0))
        rejected.log = log.value.decode("utf-8", "replace")
        raise rejected from error


class MapAttributes(NamedTuple):
    """A map's type (BPF_MAP_TYPE_*), the sizes of its key and value in bytes, its entries, and flags (BPF_F_*)."""

    type: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int


def create_map(name: str, attributes: MapAttributes) -> int:
    """Create a map and return its descriptor. Raise OSError."""
    kind, key_bytes, value_bytes, entries, flags = attributes
    with ExitStack() as opened:
        types = key_type = value_type = 0
        if kind == _SOCKET_STORAGE:
            types, key_type, value_type = _load_types(value_bytes), _KEY_TYPE, _VALUE_TYPE
            opened.callback(os.close, types)
        # struct bpf_map_create_opts
        options = struct.pack("=QIIIIIIQII", 48, types, key_type, value_type, 0, 0, flags, 0, 0, 0)
        return call("bpf_map_create", kind, name.encode(), key_bytes, value_bytes, entries, options)


def map_attributes(map_fd: int) -> MapAttributes:
    """Return the attributes of a map."""
    kind, _, *others = _MAP_INFO.unpack(_info(map_fd, _MAP_INFO.size))
    return MapAttributes(kind, *others)


def _load_types(value_bytes: int) -> int:
    """Load the types of a storage's key and value, without which the kernel creates none; return their descriptor.

    The key is an int and the value a char array of this size (Documentation/bpf/btf.rst).
    """
    names = b"\0int\0char\0"
    types = struct.pack("=4I", 1, _BTF_INT << 24, 4, _BTF_SIGNED << 24 | 32)
    types += struct.pack("=4I", 5, _BTF_INT << 24, 1, 8)
    types += struct.pack("=6I", 0, _BTF_ARRAY << 24, 0, 2, 1, value_bytes)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    described = header + types + names
    return call("bpf_btf_load", described, ctypes.c_size_t(len(described)), None)


def attach_tracing(program: int) -> int:
    """Attach a program to the tracepoint or function it was loaded for; return the link's descriptor."""
    return call("bpf_raw_tracepoint_open", None, program)


def recursion_misses(program: int) -> int:
    """Return how often the kernel skipped the program because it was already running on that CPU (since 5.12)."""
    misses: int = struct.unpack_from("=Q", _info(program, _PROGRAM_INFO_BYTES), _RECURSION_MISSES_AT)[0]
    return misses


def program_runs(program: int) -> tuple[int, int]:
    """Return the program's runs while statistics were enabled, and their run time in ns, summed over CPUs."""
    time_ns, count = struct.unpack_from("=QQ", _info(program, _PROGRAM_INFO_BYTES), _RUN_TIME_AT)
    return count, time_ns


def open_statistics() -> int:
    """Have the kernel count the runs of all programs until the returned descriptor is closed. Needs CAP_SYS_ADMIN."""
    return call("bpf_enable_stats", _STATS_RUN_TIME)


def _info(descriptor: int, size: int) -> bytes:
    """Return the first members of struct bpf_map_info or bpf_prog_info."""
    info = ctypes.create_string_buffer(size)
    call("bpf_obj_get_info_by_fd", descriptor, info, ctypes.byref(ctypes.c_uint32(len(info))))
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
