# SPDX-License-Identifier: Apache-2.0
"""Read run counts and run times of BPF programs from the kernel's own statistics."""

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.kernel.bpf_objects import bpf, held, runs_and_time

ENABLE_STATS = 32


@contextlib.contextmanager
def statistics_on() -> Iterator[None]:
    """Enable the kernel's BPF statistics inside the `with` block."""
    descriptor, _ = bpf(ENABLE_STATS, struct.pack("=I60x", 0))
    try:
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Runs:
    """Run count of a program, and total nanoseconds including the kernel's two clock readings."""

    count: int = 0
    ns: int = 0

    @property
    def ns_each(self) -> float:
        """Nanoseconds per run."""
        return self.ns / max(self.count, 1)

    def since(self, before: "Runs") -> "Runs":
        """Return the runs since an earlier count."""
        return Runs(self.count - before.count, self.ns - before.ns)


def program_runs(pid: int) -> dict[str, Runs]:
    """Return the runs of each BPF program that the process holds, by program name.

    The kernel truncates names to 15 characters; programs whose names become equal are summed.
    """
    by_name: dict[str, Runs] = {}
    for kind, number in held(pid):
        with contextlib.suppress(FileNotFoundError):  # the program was unloaded meanwhile
            if kind == "prog":
                name, count, ns = runs_and_time(number)
                before = by_name.get(name, Runs())
                by_name[name] = Runs(before.count + count, before.ns + ns)
    return by_name


def runs_since(before: dict[str, Runs], after: dict[str, Runs]) -> dict[str, Runs]:
    """Return the runs of each program since an earlier reading."""
    return {name: runs.since(before.get(name, Runs())) for name, runs in after.items()}
