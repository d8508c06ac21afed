# SPDX-License-Identifier: Apache-2.0
"""BPF programs in the main process: descriptors from a child process that compiled and loaded them."""

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
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
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host
from nettop.process.limits import ALL_MEMORY, of_memory, out_of_memory_kills
from nettop.writing import memory_file

PART_OF_NETTOP = "which is part of nettop"
"""Part of the error for a file that is missing from the installation."""
HEADERS = Path(__file__).parent / "headers"
_KINDS: dict[str, type[NettopError]] = {kind.__name__: kind for kind in (PermissionMissing, TooManyFiles)}
"""Errors by their names in the loader's answers; others mean Unsupported."""
_REFUSED_TABLE = re.compile(
    r"could not open bpf map: (\S+), error: (Operation not permitted|Permission denied)"
)
_ENDING = "nettop is exiting and loads no more programs"
_MAX_ANSWER_BYTES = 1 << 20
_MAX_DESCRIPTORS = 253
"""Maximum descriptors in one message (SCM_MAX_FD of include/net/scm.h)."""


_lock = threading.Lock()
_running: set[Loader] = set()
_is_refused = False
"""Whether new loaders are refused; see `no_loading`."""


@contextlib.contextmanager
def no_loading() -> Iterator[None]:
    """Kill all loaders and refuse new ones inside this context, so that no thread waits for a compiler while nettop
    exits. Callers waiting for programs get SourceFailed, which no mechanism mistakes for a refusal.
    """
    global _is_refused  # noqa: PLW0603 - per process, like its children
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
    """Error for a program that does not compile or that the verifier rejects; `log` is the compiler's or verifier's
    output."""

    def __init__(self, what: str, remedy: str = "", log: str = "") -> None:
        super().__init__(what, remedy)
        self.log = log


@dataclass(frozen=True, slots=True)
class ProgramText:
    """The input of the loader: `header` (C text), slices of kernel structs, then the files `sources`.

    `functions` maps the programs to load to their type (BPF_PROG_TYPE_*); the kernel may refuse the `optional` ones. A
    name starts with its kind of hook: `bpf_iter__` for an iterator, `tp_btf__` for a tracepoint with BTF types,
    `fentry__` and `fexit__` for entry and exit of a kernel function, `entry__` and `return__` for a kprobe and a
    kretprobe. A function loaded for several hooks is listed once per hook, appended to its name
    (`fexit__call@__sys_sendto`). `maps` are the maps to return; `defines` are passed to the compiler with -D. Nothing
    is loaded if the kernel lacks a function in `needs`.
    """

    sources: tuple[str, ...]
    header: str
    slices: tuple[Slice, ...]
    functions: Mapping[str, int]
    maps: tuple[str, ...] = ()
    defines: Mapping[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(eq=False, slots=True)
class Program:
    """Descriptors of loaded functions and their maps, unloaded on close().

    `refused` maps the optional functions that this kernel refused to the reason.
    """

    functions: dict[str, int]
    maps: dict[str, int]
    refused: Mapping[str, str] = field(default_factory=dict)

    def runs(self) -> dict[str, tuple[int, int]]:
        """Return each function's runs while statistics were enabled, and their run time in ns. Raises OSError."""
        return {name: bpf.program_runs(descriptor) for name, descriptor in self.functions.items()}

    def kernel_bytes(self) -> int:
        """Return the kernel memory of functions and maps in bytes. Raises OSError if it cannot be read."""
        return sum(map(_locked_bytes, (*self.functions.values(), *self.maps.values())))

    def keep_only(self, kept: Collection[str]) -> None:
        """Unload all other functions."""
        for name in self.functions.keys() - set(kept):
            os.close(self.functions.pop(name))

    def close(self) -> None:
        """Close every descriptor; a second call is a no-op."""
        self.keep_only(())
        for name in list(self.maps):
            os.close(self.maps.pop(name))


class Loader:
    """The child process that imports bcc, compiles programs and sends back their descriptors, until closed.

    It starts immediately, so that it is ready when the text is. The main process never loads bcc's compiler, which
    takes 100 MB, and longer to start than everything else.
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
            # Use a separate session so that Ctrl-C at the terminal reaches only the main process.
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-m", "nettop.kernel.bpf.loader", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=self._output,  # empty; /dev/null may be missing
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
    def descriptor(self) -> int:
        """A descriptor that becomes readable when the answer to `request` arrives."""
        return self._channel.fileno()

    def load(self, text: ProgramText) -> Program:
        """Compile and load one text, then close the loader. Raises what `answer` raises."""
        with contextlib.closing(self):
            self.request(text)
            return self.answer()

    def request(self, text: ProgramText) -> None:
        """Queue a text to be compiled and loaded after earlier ones, whose tables it may use."""
        self._requested.append(text)
        self._send(asdict(text))

    def answer(self) -> Program:
        """Wait for the program of the oldest pending request.

        Raises LoadFailed with the output of compiler or verifier, PermissionMissing, Unsupported if bcc or a source is
        missing, SourceFailed if the child process died, OSError if too many files are open.
        """
        text = self._requested.popleft()
        answer, descriptors = self._receive()
        refused: dict[str, str] = answer["refused"]
        functions = [name for name in text.functions if name not in refused]
        by_name = dict(zip([*functions, *text.maps], descriptors, strict=True))
        return Program({n: by_name[n] for n in functions}, {n: by_name[n] for n in text.maps}, refused)

    def open_probes(self, function: str, at_return: bool) -> dict[str, int]:
        """Open probes at a kernel function's entry or return, one per symbol; see nettop.kernel.bpf.kprobes.

        The child process opens them, since it keeps the privileges that nettop started with. Call this only when no
        answer is pending. Raises what `answer` raises.
        """
        self._send({"function": function, "at_return": at_return})
        answer, descriptors = self._receive()
        return dict(zip(answer["symbols"], descriptors, strict=True))

    def close(self) -> None:
        """Kill the child process if it still runs, and release it; a second call is a no-op."""
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
        """Kill the child process, from any thread; call `close` afterwards."""
        self._child.kill()

    def _send(self, request: dict[str, Any]) -> None:
        # `_receive` reports a child that was killed. The socket is reset if the child left a request unread.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(json.dumps(request).encode())

    def _receive(self) -> tuple[dict[str, Any], Sequence[int]]:
        # A killed child sends no answer: the socket then reads as closed.
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
            # The kernel installs as many descriptors as the process may open and drops the rest.
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        answer: dict[str, Any] = json.loads(message)
        if "error" in answer:
            what, remedy, written = answer["error"], answer["remedy"], self._written()
            if answer["kind"] == LoadFailed.__name__:
                words = f"{what}\n{written}"
                raise (
                    limit_reached("cannot load the programs", words)
                    or _refused_table(words)
                    or LoadFailed(what + _last_line(written), remedy, written)
                )
            raise _KINDS.get(answer["kind"], Unsupported)(what, remedy)
        return answer, descriptors

    def _why_ended(self, status: int) -> NettopError:
        """Return the error for a loader that exited without an answer."""
        what, written = "the loader exited without an answer", self._written()
        if status == -signal.SIGKILL and self._kills != out_of_memory_kills():
            return limit_error("the kernel killed the loader: out of memory", of_memory() or [ALL_MEMORY])
        if status == -signal.SIGSYS:
            return PermissionMissing(
                "a seccomp filter killed the loader (SIGSYS)", "allow bpf and perf_event_open in the filter"
            )
        by = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return limit_reached(what, written) or SourceFailed(
            f"{what} ({by}){_last_line(written)}",
            "start nettop again; if it happens again, please report it",
        )

    def _written(self) -> str:
        """Return the output of compiler and verifier."""
        size = os.fstat(self._output).st_size
        return os.pread(self._output, size, 0).decode("utf-8", "replace")


@contextlib.contextmanager
def open_net_loader(host: Host) -> Iterator[None]:
    """Start a thread that keeps CAP_NET_ADMIN, for loaders of programs for network interfaces inside this context.

    Other threads may drop it meanwhile. Attaching these programs needs no capability.
    """
    host.kept.net_loader = thread = ThreadPoolExecutor(1, "net-loader")
    thread.submit(privileges.keep_only, privileges.for_loading(privileges.LOADING_NET)).result()
    try:
        yield
    finally:
        host.kept.net_loader = None
        thread.shutdown()


def net_loader(host: Host) -> Loader:
    """Return a loader for these programs: a child of the thread of `open_net_loader`, or else of the calling thread.

    Raises PermissionMissing without the necessary capabilities.
    """

    def loader() -> Loader:
        host.require_capabilities(privileges.LOADING_NET, "programs for network interfaces")
        return Loader()

    return loader() if host.kept.net_loader is None else host.kept.net_loader.submit(loader).result()


def _refused_table(words: str) -> PermissionMissing | None:
    """Return the error for a table that the kernel refuses, which bcc reports as a compile error."""
    refused = _REFUSED_TABLE.search(words)
    return refused and PermissionMissing(
        f"the kernel refuses to create the table {refused[1]}: {refused[2].lower()}",
        "before Linux 5.11, raise the locked-memory limit: ulimit -l unlimited (in a systemd unit: "
        "LimitMEMLOCK=infinity); later, a security module refuses it: allow bpf in its policy",
    )


def _locked_bytes(descriptor: int) -> int:
    """Return the kernel memory of a program or map, in bytes."""
    found = re.search(
        r"^memlock:\s*(\d+)$", Path(f"/proc/self/fdinfo/{descriptor}").read_text(), re.MULTILINE
    )
    return int(found[1]) if found else 0


def _last_line(written: str) -> str:
    """Return the last meaningful line as a suffix for a message."""
    lines = [
        line.strip() for line in written.splitlines() if line.strip() and not line.startswith("processed ")
    ]
    return f": {lines[-1]}" if lines else ""
