# SPDX-License-Identifier: Apache-2.0
"""Run a command in which a system call fails, as in a container: `python seccomp.py CALL ERRNO COMMAND…`."""

import ctypes
import errno
import os
import platform
import struct
import sys

CALLS = {
    "x86_64": {"bpf": 321, "perf_event_open": 298, "memfd_create": 319},
    "aarch64": {"bpf": 280, "perf_event_open": 241, "memfd_create": 279},
}
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_INSTRUCTION = struct.Struct("=HBBI")


def deny(call: str, number: int) -> None:
    """Make the call fail with this errno in this process and its children."""
    filter_ = b"".join(
        _INSTRUCTION.pack(*words)
        for words in (
            (_LOAD, 0, 0, 0),  # the call's number
            (_JUMP_IF_EQUAL, 0, 1, CALLS[platform.machine()][call]),
            (_RETURN, 0, 0, _ERRNO | number),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    text = ctypes.create_string_buffer(filter_, len(filter_))
    program = struct.pack("=H6xQ", len(filter_) // _INSTRUCTION.size, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(program), 0, 0):
        raise OSError(ctypes.get_errno(), "no filter can be set")


if __name__ == "__main__":
    deny(sys.argv[1], getattr(errno, sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
