# SPDX-License-Identifier: Apache-2.0
"""Programs as the main process holds them: descriptors that a child compiled, loaded and handed over."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nettop.errors import NettopError, PermissionMissing, SourceFailed, Unsupported
from nettop.kernel import bpf
from nettop.kernel.btf import Slice
from nettop.kernel.memory import locked_bytes

HEADERS = Path(__file__).parent / "headers"
_MAX_ANSWER_BYTES = 1 << 20
_MAX_DESCRIPTORS = 253
"""What one message carries (SCM_MAX_FD of include/net/scm.h)."""


class LoadFailed(Unsupported):
    """A program that does not compile, or that the kernel's verifier refuses; `log` has their own words."""

    def __init__(self, what: str, remedy: str = "", log: str = "") -> None:
        super().__init__(what, remedy)
        self.log = log


@dataclass(frozen=True, slots=True)
class ProgramText:
    """What the loader compiles: `header` (C text) and slices of kernel structs in front of the files `sources`.

    `functions` are the programs to load, by name, with their type's number (BPF_PROG_TYPE_*); those that are
    `optional` the kernel may refuse. A name begins with what it hooks: `bpf_iter__` an iterator, `tp_btf__` a
    tracepoint whose arguments have types, `fentry__` and `fexit__` the beginning and the end of a kernel function,
    `entry__` and `return__` a probe at either. One function may be loaded for several hooks, which then stand behind
    its name (`fexit__call@__sys_sendto`). `maps` are those to hand over; `defines` are numbers that reach the program
    by -D. Without the kernel functions that it `needs` nothing of it is loaded.
    """

    sources: tuple[str, ...]
    header: str
    slices: tuple[Slice, ...]
    functions: Mapping[str, int]
    maps: tuple[str, ...] = ()
    defines: Mapping[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Program:
    """Descriptors of loaded functions and their maps. Closing it is all it takes to unload them.

    `refused` names the optional functions that this kernel does not take, and says why.
    """

    def __init__(
        self, functions: dict[str, int], maps: dict[str, int], refused: Mapping[str, str] | None = None
    ) -> None:
        self.functions = functions
        self.maps = maps
        self.refused = dict(refused or {})

    def runs(self) -> dict[str, tuple[int, int]]:
        """How often each function ran while statistics were on, and for how many ns. Raises OSError."""
        return {name: bpf.program_runs(descriptor) for name, descriptor in self.functions.items()}

    def kernel_bytes(self) -> int:
        """What functions and maps take of the kernel's memory. Raises OSError where that may not be seen."""
        return sum(map(locked_bytes, (*self.functions.values(), *self.maps.values())))

    def unload_all_but(self, kept: Collection[str]) -> None:
        """Unload the functions that are not among these."""
        for name in self.functions.keys() - set(kept):
            os.close(self.functions.pop(name))

    def close(self) -> None:
        """Close every descriptor; a second call does nothing."""
        self.unload_all_but(())
        for name in list(self.maps):
            os.close(self.maps.pop(name))


class Loader:
    """The child that imports bcc, compiles texts and hands their descriptors over, until it is closed.

    It starts when made, so that it is ready by the time the text is. bcc's compiler costs 100 MB and more
    start-up time than everything else, which the main process so never pays.
    """

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._words = os.memfd_create("nettop-loader")
        self._asked: deque[ProgramText] = deque()
        with theirs:
            # A session of its own: Ctrl-C at the terminal is the main process's to answer.
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-m", "nettop.kernel.loader", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                start_new_session=True,
                env=os.environ | {"BCC_KERNEL_SOURCE": str(HEADERS)},
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def descriptor(self) -> int:
        """Readable once the answer to `ask` is there."""
        return self._channel.fileno()

    def load(self, text: ProgramText) -> Program:
        """Have the text compiled and loaded. The loader is used up by it. Raises what `answer` does."""
        try:
            self.ask(text)
            return self.answer()
        finally:
            self.close()

    def ask(self, text: ProgramText) -> None:
        """Have a text compiled and loaded, after those asked for before; a later one may use the tables of an
        earlier one."""
        self._asked.append(text)
        self._send(asdict(text))

    def answer(self) -> Program:
        """The program of the text that was asked for first; waits for it.

        Raises LoadFailed with the compiler's or the verifier's words, PermissionMissing, Unsupported when
        bcc is missing, SourceFailed when the child died.
        """
        text = self._asked.popleft()
        answer, descriptors = self._receive()
        refused: dict[str, str] = answer["refused"]
        functions = [name for name in text.functions if name not in refused]
        by_name = dict(zip([*functions, *text.maps], descriptors, strict=True))
        return Program({n: by_name[n] for n in functions}, {n: by_name[n] for n in text.maps}, refused)

    def open_probes(self, function: str, at_return: bool) -> dict[str, int]:
        """Probes at a kernel function's beginning or end, by each of its spellings; see kernel.kprobes.

        The child opens them, which is as privileged as nettop was when it started. Ask when no text is waited for.
        Raises what `answer` does.
        """
        self._send({"function": function, "at_return": at_return})
        answer, descriptors = self._receive()
        return dict(zip(answer["symbols"], descriptors, strict=True))

    def close(self) -> None:
        """End the child, if it has not ended, and forget it; a second call does nothing."""
        if self._words < 0:
            return
        self._child.kill()
        self._child.wait()
        self._channel.close()
        os.close(self._words)
        self._words = -1

    def _send(self, request: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._channel.sendall(json.dumps(request).encode())

    def _receive(self) -> tuple[dict[str, Any], Sequence[int]]:
        space = socket.CMSG_LEN(_MAX_DESCRIPTORS * array.array("i").itemsize)
        # The child ends without an answer when it is killed: the socket then reads as closed.
        try:
            message, ancillary, _, _ = self._channel.recvmsg(
                _MAX_ANSWER_BYTES, space, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            message, ancillary = b"", []
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data)
        if not message:
            raise SourceFailed(
                f"the loader ended without an answer (exit status {self._child.wait()}){_last_line(self._said())}",
                "start nettop again; if it happens again, please report it",
            )
        answer: dict[str, Any] = json.loads(message)
        if "error" in answer:
            raise _error(answer, self._said())
        return answer, descriptors

    def _said(self) -> str:
        """What the compiler and the verifier wrote."""
        size = os.fstat(self._words).st_size
        return os.pread(self._words, size, 0).decode("utf-8", "replace")


def _error(answer: dict[str, Any], said: str) -> NettopError:
    what, remedy = answer["error"], answer.get("remedy", "")
    if answer["kind"] == "permission":
        return PermissionMissing(what, remedy)
    if answer["kind"] == "unsupported":
        return Unsupported(what, remedy)
    return LoadFailed(what + _last_line(said), remedy, said)


def _last_line(said: str) -> str:
    """The last thing that was said and means something, to go behind a message."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("processed ")]
    return f": {lines[-1]}" if lines else ""
