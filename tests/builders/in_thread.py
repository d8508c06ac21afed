# SPDX-License-Identifier: Apache-2.0
"""A frontend in a thread, over a session that the test steps."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

from nettop.errors import ExitCode
from nettop.process.interrupts import Requests

DEADLINE_S = 60
"""Only a test that fails waits so long: a busy machine is slow."""
Value = TypeVar("Value")


def until(condition: Callable[[], Value | None]) -> Value:
    """Return the first true value of the condition, tried again every few milliseconds."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, "not in time"
        threading.Event().wait(0.005)
    return value


class InThread:
    """A frontend's requests, its standard error, and its exit code or error. Its `run` is called in the thread."""

    def __init__(self) -> None:
        self.requests = Requests()
        self.stderr = io.StringIO()
        self.exit: ExitCode | BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        try:
            self.exit = self.run()
        except BaseException as error:  # noqa: BLE001 - the test judges it
            self.exit = error

    def run(self) -> ExitCode:
        """Run the frontend."""
        raise NotImplementedError

    def leave(self) -> None:
        """End it if it has not ended."""
        self.requests.end()

    def wait(self) -> ExitCode | BaseException | None:
        """Wait for its end and return its exit code or error."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.exit

    def end(self) -> str:
        """Request the end; return the text of standard error."""
        self.requests.end()
        assert self.wait() is ExitCode.DONE
        return self.stderr.getvalue()
