# SPDX-License-Identifier: Apache-2.0
"""Signals end nettop whenever they arrive."""

import fcntl
import gc
import os
import select
import signal
import subprocess
import sys
import termios
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from nettop.process import interrupts
from nettop.process.interrupts import exit_on_signals

LIMIT_S = 60


class Signals:
    """An object that raises a signal when destroyed, where Python drops exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def in_a_destructor() -> None:
    """Send the signal while an object is destroyed."""
    Signals()


def in_a_callback() -> None:
    """Send the signal in the callback of a weak reference."""

    class Referent:
        """The object of a weak reference."""

    referent = Referent()
    reference = weakref.ref(referent, lambda _: signal.raise_signal(signal.SIGTERM))
    del referent
    assert reference() is None


def in_a_collection() -> None:
    """Send the signal in a callback of the garbage collector."""
    started = [signal.SIGTERM]

    def collects(*_: object) -> None:
        if started:
            signal.raise_signal(started.pop())

    gc.callbacks.append(collects)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(collects)


@pytest.mark.parametrize("signalled", [in_a_destructor, in_a_callback, in_a_collection])
def test_no_signal_is_dropped(capfd: pytest.CaptureFixture[str], signalled: Callable[[], None]) -> None:
    """If Python drops a signal's exception, it is raised a moment later, and nothing is printed."""

    def go_on() -> None:
        signalled()
        signal.sigtimedwait([], LIMIT_S)

    with pytest.raises(KeyboardInterrupt) as ended, exit_on_signals():
        go_on()
    assert ended.value.args == (signal.SIGTERM,)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_raised_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal dropped at the very end is not raised once nothing handles it."""
    monkeypatch.setattr(interrupts, "_RESEND_S", 3600.0)  # not before the end, however slowly that comes
    with exit_on_signals():
        in_a_destructor()
    assert signal.setitimer(signal.ITIMER_REAL, 0) == (0, 0)


def test_other_errors_are_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """Other errors in a destructor are printed on standard error, as by Python."""

    class Broken:
        def __del__(self) -> None:
            raise ZeroDivisionError("by nought")

    with exit_on_signals():
        Broken()
    assert "by nought" in capfd.readouterr().err


# --- a terminal that closes -------------------------------------------------------------------------------------

WAITING = """
import sys
from nettop.process.interrupts import requested_by_signals
from nettop.process.wake_event import WakeEvent

with (
    requested_by_signals(reopens=sys.argv[1] == "reopens") as requests,
    WakeEvent() as event,
    open(sys.argv[2], "w") as told,
):
    requests.wake = event.set
    print("waits", file=told, flush=True)
    while not requests.ending:
        event.wait()
        if requests.take_reopening():
            print("reopens", file=told, flush=True)
    print("ends", file=told, flush=True)
"""
SHELL = "import subprocess, sys; subprocess.Popen(sys.argv[1:]); sys.stdin.read()"
"""Starts a command as a shell does for a foreground job, and ends when its standard input does."""


class Waiting:
    """A process on its own terminal that waits for signals, and reports their requests by a FIFO."""

    def __init__(self, folder: Path, how: str, *before: str, **streams: Any) -> None:
        fifo = folder / "told"
        os.mkfifo(fifo)
        self.terminal, theirs = os.openpty()
        words = [*before, sys.executable, "-c", WAITING, how, str(fifo)]
        controlled = {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0)}
        self.child = subprocess.Popen(
            words, **({"stdin": theirs, "stdout": theirs} | streams), stderr=theirs, **controlled
        )
        os.close(theirs)
        self._told = fifo.open()
        assert self.tells() == "waits"

    def tells(self) -> str:
        """Return the next request that it reports."""
        waiting = select.poll()  # not select(), which takes no descriptor above 1023
        waiting.register(self._told, select.POLLIN)
        return self._told.readline().strip() if waiting.poll(LIMIT_S * 1000) else "nothing"

    def hang_up(self) -> None:
        """Close its terminal."""
        os.close(self.terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        self._told.close()


@pytest.mark.parametrize("how", ["reopens", "exports"])
def test_a_terminal_that_closes_ends(how: str, tmp_path: Path) -> None:
    """SIGHUP from a closed terminal ends the program and reopens no files."""
    with Waiting(tmp_path, how) as waiting:
        waiting.hang_up()
        assert waiting.tells() == "ends"


def test_a_shell_that_is_killed_ends(tmp_path: Path) -> None:
    """A killed shell leaves a terminal without an owner, and ends the program."""
    with Waiting(tmp_path, "reopens", sys.executable, "-c", SHELL) as waiting:
        waiting.child.kill()
        assert waiting.tells() == "ends"
        waiting.hang_up()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_files_are_reopened_in_a_terminal(number: int, tmp_path: Path) -> None:
    """SIGHUP from a process, such as logrotate, reopens files while the terminal exists."""
    with Waiting(tmp_path, "reopens") as waiting:
        waiting.child.send_signal(signal.SIGHUP)
        assert waiting.tells() == "reopens"
        waiting.child.send_signal(number)
        assert waiting.tells() == "ends"
        waiting.hang_up()


def test_without_files_a_hang_up_ends(tmp_path: Path) -> None:
    """Any SIGHUP ends a program without files to reopen."""
    with Waiting(tmp_path, "exports") as waiting:
        waiting.child.send_signal(signal.SIGHUP)
        assert waiting.tells() == "ends"
        waiting.hang_up()


def test_nohup_goes_on(tmp_path: Path) -> None:
    """A program that started with SIGHUP ignored continues without its terminal, and reopens files."""
    with Waiting(
        tmp_path, "reopens", "nohup", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as waiting:
        waiting.hang_up()
        assert waiting.tells() == "reopens"
        waiting.child.terminate()
        assert waiting.tells() == "ends"
