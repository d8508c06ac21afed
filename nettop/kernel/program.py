# SPDX-License-Identifier: Apache-2.0
"""BPF programs as the main process has them: descriptors that a child process compiled, loaded and passed over."""

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
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nettop.errors import (
    NettopError,
    PermissionMissing,
    SourceFailed,
    TooManyFiles,
    Unsupported,
    limit_reached,
    limited_by,
)
from nettop.kernel import bpf
from nettop.kernel.btf import Slice
from nettop.limits import ALL_MEMORY, of_memory, out_of_memory_kills
from nettop.writing import memory_file

PART_OF_NETTOP = "which is part of nettop"
"""In what is said of a file that is missing from the installation."""
HEADERS = Path(__file__).parent / "headers"
_KINDS: dict[str, type[NettopError]] = {kind.__name__: kind for kind in (PermissionMissing, TooManyFiles)}
"""Errors of the loader by the names that its answers have; others are refusals of this host."""
_REFUSED_TABLE = re.compile(
    r"could not open bpf map: (\S+), error: (Operation not permitted|Permission denied)"
)
_ENDING = "nettop ends, and loads no more programs"
_MAX_ANSWER_BYTES = 1 << 20
_MAX_DESCRIPTORS = 253
"""What one message carries (SCM_MAX_FD of include/net/scm.h)."""


_lock = threading.Lock()
_running: set[Loader] = set()
_is_refused = False
"""What `no_loading` needs to know of all loaders."""


@contextlib.contextmanager
def no_loading() -> Iterator[None]:
    """End all loaders and refuse new ones while the context is open, so that no thread waits for a compiler while
    nettop ends. Whoever waits for programs gets SourceFailed, which no mechanism takes for a refusal.
    """
    global _is_refused  # noqa: PLW0603 - of the whole process, like its children
    with _lock:
        _is_refused = True
        for loader in _running:
            loader.kill()
    try:
        yield
    finally:
        with _lock:
            _is_refused = False


class LoadFailed(Unsupported):
    """A program that does not compile, or that the verifier refuses; `log` is what compiler and verifier wrote."""

    def __init__(self, what: str, remedy: str = "", log: str = "") -> None:
        super().__init__(what, remedy)
        self.log = log


@dataclass(frozen=True, slots=True)
class ProgramText:
    """What the loader compiles: `header` (C text), slices of kernel structs, then the files `sources`.

    `functions` are the programs to load, by name, with the number of their type (BPF_PROG_TYPE_*); the kernel may
    refuse the `optional` ones. A name begins with its kind of hook: `bpf_iter__` an iterator, `tp_btf__` a tracepoint
    with BTF types, `fentry__` and `fexit__` the entry and exit of a kernel function, `entry__` and `return__` a
    kprobe and a kretprobe. A function that is loaded for several hooks has each behind its name
    (`fexit__call@__sys_sendto`). `maps` are those to pass over; `defines` are passed to the compiler by -D. Nothing is
    loaded on a kernel without the kernel functions that it `needs`.
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
    """Descriptors of loaded functions and their maps, which are unloaded when this is closed.

    `refused` gives the optional functions that this kernel refused, with the reason.
    """

    def __init__(
        self, functions: dict[str, int], maps: dict[str, int], refused: Mapping[str, str] | None = None
    ) -> None:
        self.functions = functions
        self.maps = maps
        self.refused = dict(refused or {})

    def runs(self) -> dict[str, tuple[int, int]]:
        """Runs of each function while statistics were enabled, and their time in ns. Raises OSError."""
        return {name: bpf.program_runs(descriptor) for name, descriptor in self.functions.items()}

    def kernel_bytes(self) -> int:
        """The kernel memory of functions and maps. Raises OSError where that may not be read."""
        return sum(map(_locked_bytes, (*self.functions.values(), *self.maps.values())))

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
    """The child process that imports bcc, compiles programs and passes their descriptors over, until it is closed.

    It starts at once, to be ready when the text is. bcc's compiler takes 100 MB, and longer to start than everything
    else; the main process never loads it.
    """

    def __init__(self) -> None:
        """Start the child process. Raises SourceFailed inside `no_loading`, and OSError."""
        self._requested: deque[ProgramText] = deque()
        with contextlib.ExitStack() as opened, _lock:
            if _is_refused:
                raise SourceFailed(_ENDING)
            self._channel, theirs = map(
                opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            )
            self._output = memory_file("nettop-loader")
            opened.callback(os.close, self._output)
            # In a session of its own, so that Ctrl-C at the terminal reaches the main process only.
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-m", "nettop.kernel.loader", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=self._output,  # which is empty; /dev/null may be missing
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
                env=os.environ | {"BCC_KERNEL_SOURCE": str(HEADERS)},
            )
            self._kills = out_of_memory_kills()
            _running.add(self)
            opened.pop_all()
            theirs.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def descriptor(self) -> int:
        """Readable once the answer to `request` is there."""
        return self._channel.fileno()

    def load(self, text: ProgramText) -> Program:
        """Have one text compiled and loaded, and close the loader. Raises what `answer` does."""
        try:
            self.request(text)
            return self.answer()
        finally:
            self.close()

    def request(self, text: ProgramText) -> None:
        """Have a text compiled and loaded, after those requested before; it may use the tables of earlier ones."""
        self._requested.append(text)
        self._send(asdict(text))

    def answer(self) -> Program:
        """Wait for the program of the text that was requested first.

        Raises LoadFailed with what the compiler or the verifier wrote, PermissionMissing, Unsupported when bcc or a
        source is missing, SourceFailed when the child process died, OSError where too many files are open.
        """
        text = self._requested.popleft()
        answer, descriptors = self._receive()
        refused: dict[str, str] = answer["refused"]
        functions = [name for name in text.functions if name not in refused]
        by_name = dict(zip([*functions, *text.maps], descriptors, strict=True))
        return Program({n: by_name[n] for n in functions}, {n: by_name[n] for n in text.maps}, refused)

    def open_probes(self, function: str, at_return: bool) -> dict[str, int]:
        """Probes at a kernel function's entry or return, by each of its symbols; see kernel.kprobes.

        The child process opens them, as it is as privileged as nettop was when it started. Call it only when no answer
        is pending. Raises what `answer` does.
        """
        self._send({"function": function, "at_return": at_return})
        answer, descriptors = self._receive()
        return dict(zip(answer["symbols"], descriptors, strict=True))

    def close(self) -> None:
        """End the child process, if it still runs; a second call does nothing."""
        if self._output < 0:
            return
        with _lock:
            _running.discard(self)
        self.kill()
        self._child.wait()
        self._channel.close()
        os.close(self._output)
        self._output = -1

    def kill(self) -> None:
        """End the child process from any thread; it remains to be closed."""
        self._child.kill()

    def _send(self, request: dict[str, Any]) -> None:
        # The answer says that a child was killed; it is reset if it had not read a request before.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(json.dumps(request).encode())

    def _receive(self) -> tuple[dict[str, Any], Sequence[int]]:
        # A child that is killed gives no answer: the socket then reads as closed.
        try:
            message, descriptors, flags, _ = socket.recv_fds(
                self._channel, _MAX_ANSWER_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            message, descriptors, flags = b"", [], 0
        if not message and _is_refused:
            raise SourceFailed(_ENDING)
        if not message:
            raise self._why_ended(self._child.wait())
        if flags & socket.MSG_CTRUNC:
            # The kernel installs as many descriptors as the process may open, and drops the others.
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        answer: dict[str, Any] = json.loads(message)
        if "error" in answer:
            what, remedy, written = answer["error"], answer["remedy"], self._written()
            if answer["kind"] == LoadFailed.__name__:
                words = f"{what}\n{written}"
                raise (
                    limit_reached("the programs cannot be loaded", words)
                    or _refused_table(words)
                    or LoadFailed(what + _last_line(written), remedy, written)
                )
            raise _KINDS.get(answer["kind"], Unsupported)(what, remedy)
        return answer, descriptors

    def _why_ended(self, status: int) -> NettopError:
        """Return the error for a loader that has ended without an answer."""
        what, written = "the loader ended without an answer", self._written()
        if status == -signal.SIGKILL and self._kills != out_of_memory_kills():
            return limited_by("the kernel killed the loader, as memory ran out", of_memory() or [ALL_MEMORY])
        if status == -signal.SIGSYS:
            return PermissionMissing(
                "a seccomp filter killed the loader (SIGSYS)", "allow bpf and perf_event_open in the filter"
            )
        by = f"{signal.Signals(-status).name} ended it" if status < 0 else f"exit status {status}"
        return limit_reached(what, written) or SourceFailed(
            f"{what} ({by}){_last_line(written)}",
            "start nettop again; if it happens again, please report it",
        )

    def _written(self) -> str:
        """What the compiler and the verifier wrote."""
        size = os.fstat(self._output).st_size
        return os.pread(self._output, size, 0).decode("utf-8", "replace")


def _refused_table(words: str) -> PermissionMissing | None:
    """Return the error for a table that the kernel refuses, which bcc reports as a program that does not compile."""
    refused = _REFUSED_TABLE.search(words)
    return refused and PermissionMissing(
        f"the kernel refuses to make the table {refused[1]}: {refused[2].lower()}",
        "before Linux 5.11 raise the limit of locked memory: ulimit -l unlimited (in a unit of systemd: "
        "LimitMEMLOCK=infinity); later ones refuse it by a security module: allow bpf in its policy",
    )


def _locked_bytes(descriptor: int) -> int:
    """The kernel memory of a program or map, in bytes."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        name, _, number = line.partition(":")
        if name == "memlock":
            return int(number)
    return 0


def _last_line(written: str) -> str:
    """The last line that means something, to be appended to a message."""
    lines = [
        line.strip() for line in written.splitlines() if line.strip() and not line.startswith("processed ")
    ]
    return f": {lines[-1]}" if lines else ""
