# SPDX-License-Identifier: Apache-2.0
"""BPF programs and their maps: loaded from the cache, or from what the compiler makes of their text."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nettop.errors import TOO_MANY_FILES, Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import compiled, kprobes, program_cache
from nettop.kernel.bpf.compiling import Compiler, require_loading
from nettop.kernel.bpf.perf_events import why_refused
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Program:
    """Descriptors of loaded functions and their maps, unloaded on close().

    `refused` maps the optional functions that this kernel refused to the reason.
    """

    functions: dict[str, int]
    maps: dict[str, int]
    refused: Mapping[str, str] = field(default_factory=dict)

    def runs(self) -> dict[str, tuple[int, int]]:
        """Return each function's runs while statistics were enabled, and their run time in ns. Raise OSError."""
        return {name: bpf.program_runs(descriptor) for name, descriptor in self.functions.items()}

    def kernel_bytes(self) -> int:
        """Return the kernel memory of functions and maps in bytes. Raise OSError if it cannot be read."""
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
    """A thread that loads programs until closed, with the privileges of the thread that made it.

    Programs that are not in the cache are compiled by a child process, one after the other.
    """

    def __init__(self) -> None:
        """Start the thread. Raise SourceFailed inside `no_loading`, and OSError."""
        require_loading()
        self._compiler: Compiler | None = None
        self._programs: list[Program] = []
        self._pending: deque[Future[Program]] = deque()
        self._thread = ThreadPoolExecutor(1, "loader")
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        """Readable while the next answer is ready."""
        try:
            self._thread.submit(privileges.keep_only, privileges.for_loading(privileges.LOADER)).result()
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError):  # no thread can be started
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
            raise

    def load(self, text: ProgramText) -> Program:
        """Load one text, then close the loader. Raise what `answer` raises."""
        with contextlib.closing(self):
            self.request(text)
            return self.answer()

    def request(self, text: ProgramText) -> None:
        """Queue a text to be loaded after earlier ones, whose tables it may share."""
        loading = self._thread.submit(self._load, text)
        loading.add_done_callback(lambda _: os.eventfd_write(self.descriptor, 1))
        self._pending.append(loading)

    def answer(self) -> Program:
        """Wait for the program of the oldest pending request.

        Raise LoadFailed with the error of compiler or verifier, PermissionMissing, Unsupported if bcc or a source is
        missing, SourceFailed if the compiler died, OSError if too many files are open.
        """
        try:
            return self._pending.popleft().result()
        finally:
            os.eventfd_read(self.descriptor)

    def open_probes(self, function: str, at_return: bool) -> dict[str, int]:
        """Open probes at a kernel function's entry or return, one per symbol, with the loader's privileges.

        Raise Unsupported, PermissionMissing or OSError for too many open files.
        """
        try:
            return self.call(kprobes.open_probes, function, at_return)
        except PermissionError as error:
            raise why_refused(error) from error
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                raise
            raise Unsupported(f"the kernel refuses a probe at {function}: {error.strerror}") from error

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a function returns when called with the loader's privileges. Raise what it raises."""
        return self._thread.submit(function, *arguments).result()

    def close(self) -> None:
        """Stop the compiler and unload programs that nobody waited for; a second call is a no-op."""
        if self.descriptor < 0:
            return
        if self._compiler is not None:
            self._compiler.kill()
        self._thread.shutdown(cancel_futures=True)
        for loading in self._pending:
            if not loading.cancelled() and loading.exception() is None:
                loading.result().close()
        if self._compiler is not None:
            self._compiler.close()
        os.close(self.descriptor)
        self.descriptor = -1

    # --- in the thread ----------------------------------------------------------------------------------------

    def _load(self, text: ProgramText) -> Program:
        require_loading()
        found = program_cache.find(text)
        if found is None:
            if self._compiler is None:
                self._compiler = Compiler()
            found = self._compiler.compile(text)
            if not os.geteuid():
                with contextlib.suppress(OSError, program_cache.Distrusted):
                    program_cache.store(text, found)
        earlier = {name: table for program in self._programs for name, table in program.maps.items()}
        program = Program(*compiled.load(found, text, earlier, require_loading))
        self._programs.append(program)
        return program


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


def net_loader(host: Host, *, needs_net: bool = True) -> Loader:
    """Return a loader for these programs, made by the thread of `open_net_loader`, or else by the calling thread.

    Raise PermissionMissing without the necessary capabilities, if it `needs_net`.
    """

    def loader() -> Loader:
        if needs_net:
            host.require_capabilities(privileges.LOADING_NET, "programs for network interfaces")
        return Loader()

    return loader() if host.kept.net_loader is None else host.kept.net_loader.submit(loader).result()


def _locked_bytes(descriptor: int) -> int:
    """Return the kernel memory of a program or map, in bytes."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb", buffering=0) as info:
        return next((int(line[8:]) for line in info.read().splitlines() if line.startswith(b"memlock:")), 0)
