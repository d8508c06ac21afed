# SPDX-License-Identifier: Apache-2.0
"""`nettop log` in a thread over a scripted source, with its console in a pipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nettop.engine.session import Session
from nettop.errors import ExitCode
from nettop.output.log import run_log
from nettop.settings import MAX_INTERVAL_S, LineFormat
from nettop.settings.log import LogSettings
from nettop.snapshots.snapshot import Frame
from tests.builders.in_thread import DEADLINE_S, InThread, until  # noqa: F401 - others take them from here
from tests.unit.woken import Woken


def settings(**kwargs: Any) -> LogSettings:
    """Return the console only, JSON Lines, and tables at the start and then never again."""
    usual: dict[str, Any] = {"directory": None, "format": LineFormat.JSONL, "metrics_interval_s": 86_400.0}
    return LogSettings(**(usual | kwargs))


class Logging(InThread):
    """The log, whose interval of an hour means that it reads its source only at the start and on request.

    `others` are sources of lenses by name.
    """

    def __init__(
        self, settings: LogSettings, source: Woken, interval_s: float = MAX_INTERVAL_S, **others: Woken
    ) -> None:
        super().__init__()
        self._session: Session | None = None
        self._settings = settings
        self._source = source
        self._others = others
        self._interval_s = interval_s
        reader, writer = os.pipe()
        self._stdout = os.fdopen(writer, "w", encoding="utf-8")
        self._console = os.fdopen(reader, encoding="utf-8")

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._stdout.close()

    def run(self) -> ExitCode:
        """Log until the end."""
        with Session(self._interval_s, lambda lens: self._others.get(lens, self._source)) as self._session:
            return run_log(self._settings, self._session, self.requests, self._stdout, self.stderr)

    def frame(self) -> Frame:
        """Return the newest frame, once there is one."""
        return until(
            lambda: self._session and self._session.bus.frame(self._settings.views[0].partition(".")[0])
        )

    def refresh(self) -> None:
        """Have the source read once more."""
        before = self.frame()
        assert self._session is not None
        self._session.sample_now()
        until(lambda: self.frame() is not before)

    def fail(self) -> None:
        """Have the source read once more, which it fails to do."""
        self.frame()
        assert self._session is not None
        self._session.sample_now()

    def lines(self, count: int) -> list[str]:
        """Return the next `count` lines on the console."""
        return [self._console.readline() for _ in range(count)]

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Return the next `count` lines on the console, which are JSON."""
        return [json.loads(line) for line in self.lines(count)]

    def leave(self) -> None:
        """Close the reading end."""
        self._console.close()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file, which are JSON."""
    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]
