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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nettop.errors import NettopError, PermissionMissing, SourceFailed, Unsupported
from nettop.kernel.btf import Slice

HEADERS = Path(__file__).parent / "headers"
_MAX_ANSWER_BYTES = 1 << 20
_MAX_DESCRIPTORS = 64


class LoadFailed(Unsupported):
    """A program that does not compile, or that the kernel's verifier refuses; `log` has their own words."""

    def __init__(self, what: str, remedy: str = "", log: str = "") -> None:
        super().__init__(what, remedy)
        self.log = log


@dataclass(frozen=True, slots=True)
class ProgramText:
    """What the loader compiles: `header` (C text) and slices of kernel structs in front of the file `source`.

    `functions` are the programs to load, by name, with their type's number (BPF_PROG_TYPE_*); `maps` those
    to hand over; `defines` are numbers that reach the program by -D.
    """

    source: str
    header: str
    slices: tuple[Slice, ...]
    functions: Mapping[str, int]
    maps: tuple[str, ...] = ()
    defines: Mapping[str, int] = field(default_factory=dict)


class Program:
    """Descriptors of loaded functions and their maps. Closing it is all it takes to unload them."""

    def __init__(self, functions: dict[str, int], maps: dict[str, int]) -> None:
        self.functions = functions
        self.maps = maps

    def close(self) -> None:
        """Close every descriptor; a second call does nothing."""
        for descriptors in (self.functions, self.maps):
            for name in list(descriptors):
                os.close(descriptors.pop(name))


class Loader:
    """The child that imports bcc, compiles one text, hands its descriptors over and exits.

    It starts when made, so that it is ready by the time the text is. bcc's compiler costs 100 MB and more
    start-up time than everything else, which the main process so never pays.
    """

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._words = os.memfd_create("nettop-loader")
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

    def load(self, text: ProgramText) -> Program:
        """Have the text compiled and loaded. The loader is used up by it.

        Raises LoadFailed with the compiler's or the verifier's words, PermissionMissing, Unsupported when
        bcc is missing, SourceFailed when the child died.
        """
        try:
            with contextlib.suppress(BrokenPipeError):
                self._channel.sendall(json.dumps(asdict(text)).encode())
            answer, descriptors = self._receive()
            if "error" in answer:
                raise _error(answer, self._said())
            names = [*text.functions, *text.maps]
            by_name = dict(zip(names, descriptors, strict=True))
            return Program({n: by_name[n] for n in text.functions}, {n: by_name[n] for n in text.maps})
        finally:
            self.close()

    def close(self) -> None:
        """End the child, if it has not ended, and forget it; a second call does nothing."""
        if self._words < 0:
            return
        self._child.kill()
        self._child.wait()
        self._channel.close()
        os.close(self._words)
        self._words = -1

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
