# SPDX-License-Identifier: Apache-2.0
"""The program in a real pseudo-terminal: signals, a terminal that vanishes, one without a size."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

DEADLINE_S = 60.0
"""Only a test that fails waits so long: a busy machine is slow."""
ROOT = Path(__file__).parents[2]


class Terminal:
    """A pseudo-terminal with the program in it."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        reader, writer = os.pipe()
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.close(writer)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)  # under nohup, and in the background, tests ignore some
            os.read(reader, 1)  # until the terminal has been looked at: then the program changes it
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, "-m", "tests.screens.on_screen"])
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.master)
        os.write(writer, b"x")
        os.close(reader)
        os.close(writer)
        self.seen = b""
        self.code: int | None = None

    def wait_for(self, text: bytes) -> None:
        """Read until the program has written this."""
        until = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            assert time.monotonic() < until, f"{text!r} was never written"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)

    def ended(self) -> int:
        """How the program ended; what it still writes is read meanwhile."""
        until = time.monotonic() + DEADLINE_S
        while self.code is None:
            assert time.monotonic() < until, "the program goes on"
            with suppress(OSError, ValueError):
                if self.master >= 0 and select.select([self.master], [], [], 0.05)[0]:
                    self.seen += os.read(self.master, 65536)
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        with suppress(OSError):  # at the end of what it wrote
            while self.master >= 0 and select.select([self.master], [], [], 0)[0]:
                self.seen += os.read(self.master, 65536)
        return self.code

    def close(self) -> None:
        """The terminal vanishes."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def clean_up(self) -> None:
        """Whatever happened, nothing stays."""
        self.close()
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal in which rows are to be seen."""
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    made = Terminal()
    try:
        made.wait_for(b"total")
        yield made
    finally:
        made.clean_up()


def assert_sane(terminal: Terminal) -> None:
    """The terminal is as it was: main screen, cursor, modes."""
    assert terminal.seen.rindex(b"\x1b[?1049l") > terminal.seen.rindex(b"\x1b[?1049h")
    assert terminal.seen.rindex(b"\x1b[?25h") > terminal.seen.rindex(b"\x1b[?25l")
    assert termios.tcgetattr(terminal.master)[:4] == terminal.before[:4]


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_keys_leave_a_sane_terminal(terminal: Terminal, key: bytes) -> None:
    """After q and Ctrl-C the program is over and the terminal as it was."""
    os.write(terminal.master, key)
    assert terminal.ended() == 0
    assert_sane(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_a_sane_terminal(terminal: Terminal, number: signal.Signals) -> None:
    """After SIGTERM and SIGHUP the program is over and the terminal as it was."""
    os.kill(terminal.pid, number)
    assert terminal.ended() == 0
    assert_sane(terminal)


def test_vanished_terminal_ends_the_program(terminal: Terminal) -> None:
    """When the terminal is gone the program ends, and does not wait or spin."""
    terminal.close()
    assert terminal.ended() == 0


def test_sigcont_without_a_stop_changes_nothing(terminal: Terminal) -> None:
    """A SIGCONT that nobody waited for leaves one reader of keys: q still ends the program."""
    os.kill(terminal.pid, signal.SIGCONT)
    os.write(terminal.master, b"q")
    assert terminal.ended() == 0
    assert_sane(terminal)


def test_terminal_without_a_size() -> None:
    """A serial console says 0×0: the screen is drawn at 80×24, once."""
    terminal = Terminal(0, 0)
    try:
        terminal.wait_for(b"total")
        os.write(terminal.master, b"q")
        assert terminal.ended() == 0
    finally:
        terminal.clean_up()


def test_suspend_and_return(terminal: Terminal) -> None:
    """Ctrl-Z stops the program on the main screen; continued, it draws everything again."""
    os.write(terminal.master, b"\x1a")
    until = time.monotonic() + DEADLINE_S
    while not os.WIFSTOPPED(os.waitpid(terminal.pid, os.WNOHANG | os.WUNTRACED)[1]):
        assert time.monotonic() < until, "it was never stopped"
        if select.select([terminal.master], [], [], 0.05)[0]:
            terminal.seen += os.read(terminal.master, 65536)
    terminal.wait_for(b"\x1b[?1049l")
    terminal.seen = b""
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.wait_for(b"total")
    terminal.wait_for(b"conns")
    os.write(terminal.master, b"q")
    assert terminal.ended() == 0
