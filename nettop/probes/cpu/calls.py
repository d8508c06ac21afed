# SPDX-License-Identifier: Apache-2.0
"""System calls that send or receive on sockets, by number."""

from __future__ import annotations

import platform

from nettop.probes.cpu.stacks import CALL_BY_STACK
from nettop.snapshots.cpu import RX_SYSCALLS, TX_SYSCALLS

_KINDS = {
    "sendto sendmsg sendmmsg write writev pwritev2 sendfile": (0, TX_SYSCALLS, 0),
    "recvfrom recvmsg recvmmsg read readv preadv2": (0, RX_SYSCALLS, 0),
    "splice": (0, RX_SYSCALLS, TX_SYSCALLS),
    "io_uring_enter io_submit": (CALL_BY_STACK, 0, 0),
}
"""Entry points of system calls, 0 for none: always, or if the first or the third argument is a network socket."""

_NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "readv": 19, "writev": 20, "sendfile": 40, "sendto": 44, "recvfrom": 45, "sendmsg": 46,
        "recvmsg": 47, "io_submit": 209, "splice": 275, "recvmmsg": 299, "sendmmsg": 307, "preadv2": 327,
        "pwritev2": 328, "io_uring_enter": 426,
    },
    "aarch64": {
        "io_submit": 2, "read": 63, "write": 64, "readv": 65, "writev": 66, "sendfile": 71, "splice": 76,
        "sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "recvmmsg": 243, "sendmmsg": 269,
        "preadv2": 286, "pwritev2": 287, "io_uring_enter": 426,
    },
}  # fmt: skip
"""From arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h."""


def calls_header() -> str:
    """Return C text that defines SOCKET_CALLS, the cases that set `call`; none on a machine with unknown numbers."""
    numbers = _NUMBERS.get(platform.machine(), {})
    cases = [
        " ".join(f"case {numbers[name]}:" for name in names.split() if name in numbers)
        + f" call = (struct call){{{', '.join(map(str, entries))}}}; break;"
        for names, entries in _KINDS.items()
    ]
    return f"#define SOCKET_CALLS {' '.join(cases) if numbers else ''}\n"
