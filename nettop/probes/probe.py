# SPDX-License-Identifier: Apache-2.0
"""The base class and helpers of all probes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from typing import ClassVar, TypeVar

from nettop.errors import SourceFailed
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import kprobes
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism, Refused, attach_best
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.host.facts import Host
from nettop.kernel.net.entered_namespaces import Namespaces, shared_namespaces
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Frame, Rows
from nettop.snapshots.source import SourceOptions

T = TypeVar("T")
_TYPES = {"entry": 2, "return": 2, "tc": 3, "xdp": 6, "sample": 7, "skb": 8, "sock": 9}
"""BPF_PROG_TYPE_* by the prefix of a program's name."""
_TRACING = 26
"""BPF_PROG_TYPE_TRACING: the type of all others."""
_RETURN, _AT_PROBES = "return__", ("entry__", "return__")
"""Name prefixes of programs that run at kprobes."""


class Probe:
    """The part of a source that is the same for every lens; see nettop.snapshots.source.Source.

    `close` releases everything in `_opened`; `_programs` are the programs whose cost is measured.
    """

    lens: ClassVar[Lens]

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._options = SourceOptions()
        self._opened = ExitStack()
        self._programs: list[Program] = []
        self._entered: Namespaces | None = None

    @property
    def namespaces(self) -> Namespaces:
        """The namespaces being followed. Raise SourceFailed before the start."""
        return self._required(self._entered)

    def _share_namespaces(self) -> Namespaces:
        """Begin to follow the namespaces, until `close`."""
        self._entered = self._opened.enter_context(closing(shared_namespaces(self._host)))
        return self._entered

    def _required(self, part: T | None, hook: HookStatus | None = None) -> T:
        """Return a part of the probe that `start` creates. Raise SourceFailed before the start, or the error of the
        `hook` that could not be attached."""
        if part is None:
            raise hook.error() if hook else SourceFailed(f"the {self.lens.id} probe is not attached")
        return part

    def _attach_best(self, fallbacks: Fallbacks, attach: Callable[[Mechanism], None]) -> HookStatus:
        return attach_best(fallbacks, attach, self._options.mechanisms)

    def texts(self) -> Iterable[ProgramText]:
        """Return the texts of the programs that nettop usually loads, to be compiled before they are needed."""
        return ()

    def configure(self, options: SourceOptions) -> None:
        """Replace the options; most of them are read only at the start."""
        self._options = options

    def describe(self, key: int) -> dict[str, str]:  # noqa: ARG002 - for those that know more
        """Return no details."""
        return {}

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """Return the cost of each program; see nettop.snapshots.source.MeasuredSource."""
        return {name: runs for program in self._programs for name, runs in program.runs().items()}

    def kernel_bytes(self) -> int:
        """Return the kernel memory used by programs and maps."""
        return sum(program.kernel_bytes() for program in self._programs)

    def close(self) -> None:
        """Detach and leave every namespace; a second call is a no-op."""
        self._opened.close()
        self._programs.clear()


def sockets_of(frames: Mapping[str, Frame]) -> Rows | None:
    """Return the socket table of the connections lens, if it was read."""
    frame = frames.get(CONNECTIONS.id)
    return frame.now.tables.get(SOCKETS.name) if frame is not None else None


def with_types(names: Iterable[str]) -> dict[str, int]:
    """Map programs to their types, which follow from the kinds of hooks in their names."""
    return {name: _TYPES.get(name.partition("_")[0], _TRACING) for name in names}


def skipped_runs(program: Program) -> int:
    """Return the number of runs that the kernel skipped because a program was already running on that CPU."""
    return sum(map(bpf.recursion_misses, program.functions.values()))


def loaded_as(name: str) -> str:
    """Return the name under which a hook's program was loaded; kprobes share one program for all functions."""
    return name.partition("@")[0] if name.startswith(_AT_PROBES) else name


def attach_program(program: Program, loader: Loader, name: str, opened: ExitStack) -> None:
    """Attach the program of a hook until `opened` is closed: by a link, or by a probe at each symbol of the function.

    Raise Unsupported or OSError.
    """
    loaded = loaded_as(name)
    if loaded not in program.functions:
        raise Refused(program.refused[loaded]) if loaded in program.refused else kprobes.why_no_kprobes()
    if not name.startswith(_AT_PROBES):
        opened.callback(os.close, bpf.attach_tracing(program.functions[name]))
        return
    function = name.partition("@")[2] or name.partition("__")[2]
    probes = loader.open_probes(function, at_return=name.startswith(_RETURN)).values()
    for probe in probes:
        opened.callback(os.close, probe)
    for probe in probes:
        kprobes.attach_program(probe, program.functions[loaded])
