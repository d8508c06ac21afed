# SPDX-License-Identifier: Apache-2.0
"""`nettop collect` as its users run it: a process, what it says of itself, and what it answers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from nettop.collector.reader import STATE_PATH, RemoteCollector

PATIENCE_S = 120.0
READY = re.compile(r"receiving on UDP \S+:(\d+)")


def until(condition: Callable[[], object], what: str) -> None:
    """Waits until this is so."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not in time"
        select.select([], [], [], 0.01)


class Running:
    """A collector in a directory, started by the words `around`; what it writes to standard error is in a file."""

    def __init__(self, directory: Path, *options: str, around: Sequence[str] = ()) -> None:
        self.directory = directory
        self._errors = tempfile.NamedTemporaryFile("w+b", prefix="nettop-collect")  # noqa: SIM115 - closed at exit
        words = ("collect", "--data-dir", str(directory), "--listen", "127.0.0.1:0", "--query-listen", "none")
        self.process = subprocess.Popen(
            [*around, sys.executable, "-m", "nettop", *words, *options],
            stdin=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )
        self.collector = RemoteCollector(f"unix:{directory / 'flows.sock'}")

    def __enter__(self) -> Self:
        try:
            until(lambda: READY.search(self.errors()) or self.process.poll() is not None, "it starts")
            ready = READY.search(self.errors())
            assert ready is not None, self.errors()
            self.port = int(ready[1])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._errors.close()

    def errors(self) -> str:
        """What it has written so far."""
        return Path(self._errors.name).read_text()

    def send(self, *datagrams: bytes, port: int = 0) -> int:
        """Sends them from one port, which the kernel chooses in place of 0; returns it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", port))
            for datagram in datagrams:
                sender.sendto(datagram, ("127.0.0.1", self.port))
            bound: int = sender.getsockname()[1]
            return bound

    def state(self) -> dict[str, Any]:
        """What it says of itself; its counts add up."""
        document: dict[str, Any] = self.collector.document(STATE_PATH)
        for terms in (document["datagrams"], document["flows"], document["sets_without_template"]):
            first, *others = terms.values()
            assert first == sum(others), document
        return document

    def stored(self, count: int) -> None:
        """Wait until exactly this many flows are stored."""
        until(lambda: self.queried()["flows"]["stored"] == count, f"{count} flows are stored")

    def stored_at_least(self, count: int) -> None:
        """Wait until at least this many flows are stored."""
        until(lambda: self.queried()["flows"]["stored"] >= count, f"{count} flows are stored")

    def queried(self) -> dict[str, Any]:
        """Return the state after a query, which has waiting flows stored."""
        self.rows("SELECT 1")
        return self.state()

    def rows(self, sql: str) -> list[list[Any]]:
        """The answer to a query."""
        return [json.loads(line) for line in self.collector.query(sql, "JSONCompactEachRow").splitlines()]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)
