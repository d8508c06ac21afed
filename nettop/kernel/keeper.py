# SPDX-License-Identifier: Apache-2.0
"""A tiny process that may still have BPF statistics counted when nettop itself may not any more.

They cost some 50 ns at each run of each program on the host, so they are to be on only while somebody looks, and
to switch them on takes CAP_SYS_ADMIN (bpf_enable_stats in kernel/bpf/syscall.c). The process keeps just that.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from nettop.kernel import bpf

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_NAME = b"nettop-keeper"
_ENDED, _SILENT = (f"{_NAME.decode()} {what}" for what in ("has ended", "does not answer"))
_PATIENCE_S = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


class Keeper:
    """The process; it ends when it is closed, and with nettop.

    Fork it while there is one thread, and before much memory is in use. `settle` has it become who it shall be,
    with CAP_SYS_ADMIN alone.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()  # or it would never read as closed
            _keep(theirs, settle)
        theirs.close()
        self._ended = False
        self._channel.settimeout(_PATIENCE_S)

    def open_statistics(self) -> int:
        """A descriptor with which statistics are on until it is closed. Raises OSError where they cannot be had: with
        the kernel's errno, or without one where it is the process that fails.
        """
        if self._ended:
            raise BrokenPipeError(_ENDED)
        try:
            self._channel.send(b"\1")
            said, descriptors, _, _ = socket.recv_fds(self._channel, 64, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as error:
            raise TimeoutError(_SILENT) from error
        except (BrokenPipeError, ConnectionResetError):
            said, descriptors = b"", []
        if descriptors:
            return descriptors[0]
        if not said:
            self.close()
            raise BrokenPipeError(_ENDED)
        raise OSError(int(said), os.strerror(int(said)))

    def close(self) -> None:
        """End the process, and forget it; a second call does nothing."""
        if self._ended:
            return
        self._ended = True
        self._channel.close()
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _keep(channel: socket.socket, settle: Callable[[], None]) -> NoReturn:
    """The process's life: one request, one answer, until the channel is closed."""
    try:
        _leave_terminal()
        settle()
        # Behind the change of user, which forgets it. The parent may be that user too, and so send the signal.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        while channel.recv(1):
            try:
                descriptor = bpf.open_statistics()
            except OSError as error:
                channel.send(str(error.errno).encode())
                continue
            socket.send_fds(channel, [b"\1"], [descriptor])
            os.close(descriptor)
    finally:
        os._exit(0)  # never back into what the parent was about to do


def _leave_terminal() -> None:
    """Take nothing from the terminal: neither its keys' signals nor its streams; be known by a name."""
    os.setsid()
    _libc.prctl(_PR_SET_NAME, _NAME, 0, 0, 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(nowhere)
