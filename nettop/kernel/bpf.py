# SPDX-License-Identifier: Apache-2.0
"""The commands of bpf(2) that nettop uses itself (numbers and layouts: include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), -1)
_libc = ctypes.CDLL(None, use_errno=True)

_MAP_UPDATE_ELEM = 2
_MAP_DELETE_ELEM = 3
_LINK_CREATE = 28
_ITER_CREATE = 33
_TRACE_ITER = 28
_ATTR_BYTES = 128


def _bpf(command: int, attributes: bytes) -> int:
    """Carry out a command; returns what the kernel does. Raises OSError with the kernel's errno."""
    buffer = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    result = int(_libc.syscall(_SYSCALL, command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf(2) command {command}: {os.strerror(number)}")
    return result


def link_iterator(program: int) -> int:
    """Link an iterator's program; returns the link's descriptor, with which the link lives."""
    return _bpf(_LINK_CREATE, struct.pack("=IIII48x", program, 0, _TRACE_ITER, 0))


def create_iterator(link: int) -> int:
    """A descriptor that runs the iterator once, from start to end, as it is read.

    Iterators over a network namespace's sockets take the one that the calling thread is in.
    """
    return _bpf(_ITER_CREATE, struct.pack("=II", link, 0))


def set_element(map_fd: int, key: bytes, value: bytes) -> None:
    """Set an element of a map; key and value are as long as the map's."""
    key_at, value_at = ctypes.c_char_p(key), ctypes.c_char_p(value)
    addresses = (ctypes.cast(at, ctypes.c_void_p).value for at in (key_at, value_at))
    _bpf(_MAP_UPDATE_ELEM, struct.pack("=I4xQQQ", map_fd, *addresses, 0))


def delete_element(map_fd: int, key: bytes) -> None:
    """Delete an element of a map. Raises FileNotFoundError when it has none."""
    key_at = ctypes.c_char_p(key)
    _bpf(_MAP_DELETE_ELEM, struct.pack("=I4xQQQ", map_fd, ctypes.cast(key_at, ctypes.c_void_p).value, 0, 0))
