# SPDX-License-Identifier: Apache-2.0
"""The compiler as a child process, seen from the main one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nettop.errors import (
    NettopError,
    PermissionMissing,
    SourceFailed,
    TooManyFiles,
    Unsupported,
    limit_error,
    limit_reached,
)
from nettop.kernel.bpf.compiled import Compiled, LoadFailed, reason_in, refused_table
from nettop.kernel.bpf.program_text import HEADERS, ProgramText
from nettop.process.limits import ALL_MEMORY, memory_limits, out_of_memory_kills
from nettop.writing import memory_file

_KINDS: dict[str, type[NettopError]] = {kind.__name__: kind for kind in (PermissionMissing, TooManyFiles)}
"""Errors by their names in the compiler's answers; others mean Unsupported."""
_REFUSED_TABLE = re.compile(
    r"could not open bpf map: (\S+), error: (Operation not permitted|Permission denied)"
)
_ENDING = "nettop is exiting and loads no more programs"
_MAX_ANSWER_BYTES = 1 << 20

_lock = threading.Lock()
_running: set[Compiler] = set()
_is_refused = False
"""Whether nothing is loaded any more; see `no_loading`."""


@contextlib.contextmanager
def no_loading() -> Iterator[None]:
    """Kill all compilers and refuse new ones inside this context, so that no thread waits for one while nettop exits.

    Callers waiting for programs get SourceFailed, which no mechanism mistakes for a refusal.
    """
    global _is_refused  # noqa: PLW0603 - per process, like its children
    with _lock:
        _is_refused = True
        for compiler in _running:
            compiler.kill()
    try:
        yield
    finally:
        with _lock:
            _is_refused = False


def require_loading() -> None:
    """Raise SourceFailed inside `no_loading`."""
    if _is_refused:
        raise SourceFailed(_ENDING)


class Compiler:
    """The child process that imports bcc and compiles texts, until closed.

    It starts immediately, so that it is ready when the text is. The main process never loads bcc's compiler, which
    takes 100 MB, and longer to start than everything else.
    """

    def __init__(self) -> None:
        """Start the child process. Raise SourceFailed inside `no_loading`, and OSError."""
        with contextlib.ExitStack() as opened, _lock:
            require_loading()
            self._channel, theirs = map(
                opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            )
            self._output = memory_file("nettop-compiler")
            opened.callback(os.close, self._output)
            # Use a separate process group so that Ctrl-C at the terminal reaches only the main process. It stays in the
            # session, whose priority is raised, as nettop waits for it.
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-m", "nettop.kernel.bpf.compiler", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=self._output,  # empty; /dev/null may be missing
                stdout=self._output,
                stderr=self._output,
                process_group=0,
                env=os.environ | {"BCC_KERNEL_SOURCE": str(HEADERS)},
            )
            self._kills = out_of_memory_kills()
            _running.add(self)
            opened.pop_all()
            theirs.close()

    def compile(self, text: ProgramText) -> Compiled:
        """Compile one text.

        Raise LoadFailed with the compiler's error, PermissionMissing, Unsupported if bcc or a source is missing,
        SourceFailed if the child process died, OSError if too many files are open.
        """
        # `_receive` reports a child that was killed. The socket is reset if the child left a request unread.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(json.dumps(asdict(text)).encode())
        with open(self._receive(), "rb") as compiled:
            compiled.seek(0)
            return Compiled.decode(compiled.read())

    def close(self) -> None:
        """Kill the child process if it still runs, and release it."""
        with _lock:
            _running.discard(self)
        self.kill()
        self._child.wait()
        self._channel.close()
        os.close(self._output)

    def kill(self) -> None:
        """Kill the child process, from any thread; call `close` afterwards."""
        self._child.kill()

    def _receive(self) -> int:
        """Return the descriptor of the answer. Raise what `compile` raises."""
        # A killed child sends no answer: the socket then reads as closed.
        try:
            message, descriptors, flags, _ = socket.recv_fds(
                self._channel, _MAX_ANSWER_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            message, descriptors, flags = b"", [], 0
        if not message:
            require_loading()
            raise self._why_ended(self._child.wait())
        if flags & socket.MSG_CTRUNC:  # the process may open no more files
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        answer: dict[str, Any] = json.loads(message)
        if "error" in answer:
            raise self._error(**answer)
        return descriptors[0]

    def _error(self, error: str, kind: str, remedy: str) -> NettopError:
        """Return the error in the child's answer."""
        if kind != LoadFailed.__name__:
            return _KINDS.get(kind, Unsupported)(error, remedy)
        written = self._written()
        words = f"{error}\n{written}"
        if limit := limit_reached("cannot compile the programs", words):
            return limit
        if refused := _REFUSED_TABLE.search(words):
            return refused_table(refused[1], refused[2])
        return LoadFailed(error + reason_in(written), remedy)

    def _why_ended(self, status: int) -> NettopError:
        """Return the error for a child that exited without an answer."""
        what, written = "the compiler exited without an answer", self._written()
        if status == -signal.SIGKILL and self._kills != out_of_memory_kills():
            return limit_error(
                "the kernel killed the compiler: out of memory", memory_limits() or [ALL_MEMORY]
            )
        if status == -signal.SIGSYS:
            return PermissionMissing(
                "a seccomp filter killed the compiler (SIGSYS)", "allow bpf and perf_event_open in the filter"
            )
        by = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return limit_reached(what, written) or SourceFailed(
            f"{what} ({by}){reason_in(written)}",
            "start nettop again; if it happens again, please report it",
        )

    def _written(self) -> str:
        """Return the output of compiler and verifier."""
        size = os.fstat(self._output).st_size
        return os.pread(self._output, size, 0).decode("utf-8", "replace")
