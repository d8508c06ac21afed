# SPDX-License-Identifier: Apache-2.0
"""A source that plays prepared snapshots, and plain output over it through real pipes."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from typing import Any

from nettop.engine.bus import Bus
from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError
from nettop.output.text import run_text
from nettop.settings import MAX_INTERVAL_S, Settings
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions
from nettop.writing import has_room
from tests.builders.in_thread import DEADLINE_S, InThread  # noqa: F401 - others take them from here
from tests.unit.build import Row, make_frame


class Scripted:
    """A source that returns snapshots in order, then repeats the last one; it raises an error in their place."""

    def __init__(self, steps: Sequence[Snapshot | NettopError]) -> None:
        self._steps = list(steps)
        self.options: SourceOptions | None = None
        self.closed = False

    def start(self) -> None:
        """Do nothing: there is nothing to attach."""

    def read(self, taken_ns: int) -> Snapshot:
        """Return the next step."""
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, NettopError):
            raise step
        return step

    def configure(self, options: SourceOptions) -> None:
        """Store the options."""
        self.options = options

    def describe(self, key: int) -> dict[str, str]:
        """Return nothing: there are no details."""
        return {}

    def close(self) -> None:
        """Record that it was called."""
        self.closed = True


def steps(*tables: Sequence[Row], **kwargs: Any) -> list[Snapshot]:
    """Return a snapshot of each of these tables, one second apart."""
    return [make_frame(rows, None, float(at), **kwargs).now for at, rows in enumerate(tables)]


class Running(InThread):
    """Plain output in a thread, with pipes at both ends. It refreshes only on Enter: the interval is an hour."""

    def __init__(self, settings: Settings, source: Scripted) -> None:
        super().__init__()
        self._bus = Bus()
        self._settings = settings
        self._source = source
        in_reader, self._keys = os.pipe()
        self._out, out_writer = os.pipe()
        self._stdin = os.fdopen(in_reader)
        self._stdout = os.fdopen(out_writer, "w", encoding="utf-8")
        self._reader = os.fdopen(self._out, encoding="utf-8")

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.end_input()
        for stream in (self._stdin, self._stdout):
            stream.close()

    def run(self) -> ExitCode:
        """Print until the end."""
        with Session(MAX_INTERVAL_S, lambda lens: self._source) as session:
            session.bus, streams = self._bus, (self._stdout, self._stdin, self.stderr)
            return run_text(self._settings, session, *streams, requests=self.requests)

    def lines(self, count: int) -> list[str]:
        """Return the next `count` lines of the output."""
        return [self._reader.readline() for _ in range(count)]

    def enter(self) -> None:
        """Press Enter."""
        os.write(self._keys, b"\n")

    @property
    def has_read(self) -> bool:
        """True once the source was read."""
        return self._bus.frame("connections") is not None

    @property
    def is_blocked(self) -> bool:
        """True while the output has more to write than was read."""
        return not has_room(self._stdout.fileno(), 0)

    def end(self) -> str:
        """End it as by Ctrl-C; return what it printed until then and was not read."""
        self.requests.end_by_signal()
        assert self.wait() is ExitCode.DONE
        self._stdout.close()
        return self._reader.read()

    def end_input(self) -> None:
        """Close standard input."""
        if self._keys >= 0:
            os.close(self._keys)
            self._keys = -1

    def leave(self) -> None:
        """Close the reading end."""
        self._reader.close()


class Unhurried(Bus):
    """A bus that replaces no untaken frame: a reader sees every snapshot, however busy the machine is."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._is_taken = True
        self._is_over = False

    def publish(self, snapshot: Snapshot, oldest_gap_ns: int = 0) -> None:
        """Wait until the frame before was taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_taken or self._is_over)
            self._is_taken = False
            super().publish(snapshot, oldest_gap_ns)

    def frame(self, lens: str) -> Frame | None:
        """Return the frame, which counts as taken."""
        with self._changed:
            frame = super().frame(lens)
            if frame is not None:
                self._is_taken = True
                self._changed.notify_all()
            return frame

    def forget(self, lens: str) -> None:
        """Forget a lens; nobody can take its frame any more."""
        with self._changed:
            super().forget(lens)
            self._is_taken = True
            self._changed.notify_all()

    def end(self) -> None:
        """Accept no more frames."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


def printed(settings: Settings, source: Scripted, interval_s: float = MAX_INTERVAL_S) -> tuple[str, str]:
    """Run plain output until it ends by itself, over every step; return its standard output and error."""
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with Session(interval_s, lambda lens: source) as session:
        session.bus = bus = Unhurried()
        try:
            assert run_text(settings, session, stdout, None, stderr) is ExitCode.DONE
        finally:
            bus.end()
    stdout.seek(0)
    return stdout.read(), stderr.getvalue()
