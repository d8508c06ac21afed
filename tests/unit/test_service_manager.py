# SPDX-License-Identifier: Apache-2.0
"""Notifications to the service manager: ready, reloading and stopping."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from nettop.engine.session import Session
from nettop.errors import NettopError, SourceFailed, Unsupported
from nettop.process import service_manager
from nettop.process.interrupts import Requests
from nettop.reading import has_data
from nettop.serve.command import open_server
from nettop.settings import MAX_INTERVAL_S
from nettop.settings.serve import ServeSettings
from nettop.snapshots.snapshot import Snapshot
from tests.collecting import Running
from tests.unit.build import make_frame
from tests.unit.children import DEADLINE_S
from tests.unit.logging_run import Logging, settings
from tests.unit.scripted import steps
from tests.unit.woken import Woken


class Manager:
    """A service manager on an abstract socket, open to every user; `READY=1` and the like are its messages."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("")
        self.address = self._socket.getsockname().decode().replace("\0", "@")
        self._socket.settimeout(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def message(self) -> dict[str, str]:
        """Return the next one."""
        lines = self._socket.recv(1000).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def messages(self, count: int) -> list[str]:
        """Return the first words of the next messages."""
        return [next(iter(self.message())) for _ in range(count)]

    def has_no_message(self) -> bool:
        """Return whether no message waits."""
        return not has_data([self._socket.fileno()], 0)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Return the service manager of this process and its children."""
    with Manager() as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        yield manager


class FirstReading(Woken):
    """A source that records the manager's messages from before its first reading."""

    def __init__(self, manager: Manager, *results: Snapshot | NettopError) -> None:
        super().__init__(results)
        self._manager = manager
        self.was_early = False

    def read(self, taken_ns: int) -> Snapshot:
        """Read as scripted."""
        self.was_early |= not self._manager.has_no_message()
        return super().read(taken_ns)


def test_log(manager: Manager, tmp_path: Path) -> None:
    """A log is ready once its first rows are written; it reports after reopening files, and before it stops."""
    folder = tmp_path / "log"
    source = FirstReading(manager, *steps([{"id": 7}]))
    with Logging(settings(directory=str(folder)), source) as logging:
        ready = manager.message()
        assert ready == {"READY": "1", "STATUS": "logging events, metrics"}
        assert not source.was_early
        assert (folder / "metrics.jsonl").read_text().count("\n") == 1
        (folder / "metrics.jsonl").rename(tmp_path / "moved")
        logging.requests.reopen()
        assert "MONOTONIC_USEC" in manager.message()
        assert manager.message() == ready
        assert (folder / "metrics.jsonl").exists()
        logging.end()
        assert manager.messages(1) == ["STOPPING"]


def test_the_watchdog_is_told_of_readings(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log reports after each reading, and after each failure to read a lens that is tried again; not by itself. A
    long interval extends the watchdog's time."""
    monkeypatch.setenv("WATCHDOG_USEC", "4")  # a report for each µs
    source = FirstReading(manager, *steps([{"id": 7}]), SourceFailed("broken"))
    alive = {"WATCHDOG": "1", "WATCHDOG_USEC": str(round(5e6 * MAX_INTERVAL_S))}
    with Logging(settings(directory=str(tmp_path / "log")), source) as logging:
        first = [manager.message(), manager.message()]
        assert alive in first
        assert any("READY" in message for message in first)
        assert manager.has_no_message()
        logging.fail()
        assert manager.message() == alive
        logging.end()


def test_a_watchdog_is_told_once_in_a_quarter(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often readings advance, the manager is woken rarely."""
    monkeypatch.setenv("WATCHDOG_USEC", str(10**15))
    for _ in range(3):
        service_manager.alive(1.0)
    assert manager.message() == {"WATCHDOG": "1", "WATCHDOG_USEC": str(10**15)}
    assert manager.has_no_message()


def test_a_log_that_never_works(manager: Manager) -> None:
    """A log that fails is never reported as ready, even if asked to reopen its files."""
    with Logging(settings(), FirstReading(manager, Unsupported("no sockets"))) as logging:
        logging.requests.reopen()
        assert isinstance(logging.wait(), Unsupported)
        assert manager.messages(1) == ["STOPPING"]


def test_serve(manager: Manager, tmp_path: Path) -> None:
    """A server is ready once every lens was read or has failed."""
    sources = {
        "connections": FirstReading(manager, make_frame([]).now),
        "cpu": FirstReading(manager, SourceFailed("no")),
    }
    listen = f"unix:{tmp_path / 'http.sock'}"
    requests = Requests()
    served = ServeSettings(listen=(listen,), lenses=tuple(sources))
    with (
        open_server(served, requests, io.StringIO()) as run,
        Session(MAX_INTERVAL_S, lambda lens: sources[lens]) as session,
    ):
        running = threading.Thread(target=run, args=(session,))
        running.start()
        ready = manager.message()
        assert ready == {"READY": "1", "STATUS": f"serving at {listen}"}
        assert not any(source.was_early for source in sources.values())
        requests.reopen()
        assert manager.messages(2) == ["RELOADING", "READY"]
        requests.end()
        assert manager.messages(1) == ["STOPPING"]
        running.join(DEADLINE_S)


def test_collect(manager: Manager, flows_dir: Path) -> None:
    """A collector is ready once every worker has begun."""
    pytest.importorskip("chdb")
    with Running(flows_dir, "--workers", "3") as running:
        ready = manager.message()
        assert ready["READY"] == "1"
        assert ready["STATUS"].startswith(f"receiving on UDP 127.0.0.1:{running.port}; queries at ")
        assert len(running.state()["sockets"]) == 3
        running.process.send_signal(signal.SIGHUP)
        assert manager.messages(2) == ["RELOADING", "READY"]
        assert running.end() == 0
        assert manager.messages(1) == ["STOPPING"]


def test_messages(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is whole lines; without a listener nothing happens."""
    service_manager.ready("two\nlines")
    assert manager.message() == {"READY": "1", "STATUS": "two lines"}
    service_manager.reloading()
    reloading = manager.message()
    assert reloading.pop("RELOADING") == "1"
    assert reloading.pop("MONOTONIC_USEC").isdigit()
    assert not reloading
    for nobody in (f"@nettop-notify-{os.getpid()}", "/nowhere", "vsock:2:1", ""):
        monkeypatch.setenv("NOTIFY_SOCKET", nobody)
        service_manager.stopping()
    monkeypatch.delenv("NOTIFY_SOCKET")
    service_manager.stopping()
    assert manager.has_no_message()
