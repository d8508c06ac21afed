# SPDX-License-Identifier: Apache-2.0
"""nettop in a process of its own: no test waits for one that does not end."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any

DEADLINE_S = 60
"""Only a test that fails waits so long: a busy machine is slow."""


class Child(subprocess.Popen[str]):
    """A process that is killed at the end of its with-block, and that ignores the signals `ignoring`."""

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
