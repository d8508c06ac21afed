# SPDX-License-Identifier: Apache-2.0
"""BPF programs that a bench attaches and detaches, and empty ones for comparison."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from bpf_stats import Runs

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.program import Program
from nettop.kernel.bpf.program_text import ProgramText

TRACING = 26
"""BPF_PROG_TYPE_TRACING."""


class Hooked:
    """Functions of a loaded program, attached in this order."""

    def __init__(self, program: Program, names: Sequence[str]) -> None:
        self.program = program
        self._names = names

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the functions inside the `with` block."""
        links = self._links()
        try:
            yield
        finally:
            for link in links:
                os.close(link)

    def runs(self) -> dict[str, Runs]:
        """Return the runs of each program so far."""
        return {name: Runs(*counted) for name, counted in self.program.runs().items()}

    def _links(self) -> list[int]:
        return [bpf.attach_tracing(self.program.functions[name]) for name in self._names]


def empty_text(names: Sequence[str]) -> ProgramText:
    """Return programs for these hooks that do nothing."""
    functions = dict.fromkeys(name.partition("@")[0] for name in names)
    header = "".join(f"int {function}(u64 *ctx) {{ return 0; }}\n" for function in functions)
    return ProgramText((), header, (), dict.fromkeys(names, TRACING))
