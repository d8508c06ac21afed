# SPDX-License-Identifier: Apache-2.0
"""Run nettop in a separate process, so that no test waits for one that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any

DEADLINE_S = 60
"""Only a test that fails waits so long: a busy machine is slow."""


def capabilities(pid: int) -> set[str]:
    """Return the effective capabilities of a process's threads, as /proc has them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    return {line.split()[1] for task in tasks for line in task.read_text().splitlines() if "CapEff" in line}


def environment() -> dict[str, str]:
    """Return our own environment without sudo's variables, in which the program finds the checkout from anywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUDO_")}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2])}


def ran(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, without input and with its output captured unless `how` says otherwise."""
    usual = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | {"stdin": subprocess.DEVNULL}
    how = usual | {"env": environment(), "timeout": DEADLINE_S} | how
    return subprocess.run([sys.executable, *words], text=True, check=False, **how)


class Child(subprocess.Popen[str]):
    """A process that ignores the signals `ignoring`, killed at the end of its `with` block."""

    def __init__(
        self,
        words: list[str],
        *,
        ignoring: Collection[int] = (),
        preexec_fn: Callable[[], object] | None = None,
        **how: Any,
    ) -> None:
        def prepare() -> None:
            for number in ignoring:
                signal.signal(number, signal.SIG_IGN)
            if preexec_fn is not None:
                preexec_fn()

        super().__init__(words, text=True, preexec_fn=prepare, **how)
        self._timer = threading.Timer(2 * DEADLINE_S, self.kill)  # ends a test that reads what never comes
        self._timer.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self.kill()
        super().__exit__(kind, error, at)


def started(*words: str, **how: Any) -> Child:
    """Start Python with pipes in place of its standard streams, unless `how` says otherwise."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return Child([sys.executable, *words], **streams | {"env": environment()} | how)
