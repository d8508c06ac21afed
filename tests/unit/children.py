# SPDX-License-Identifier: Apache-2.0
"""Run nettop in a separate process, so that no test waits for one that hangs."""

from __future__ import annotations

import signal
import subprocess
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
