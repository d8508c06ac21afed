# SPDX-License-Identifier: Apache-2.0
"""The program in a real pseudo-terminal: signals, a terminal that vanishes, one without a size."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.pseudo_terminal import DEADLINE_S, HOME, Terminal, assert_sane, is_readable
from tests.emulator import Emulator

HELP = b"Freeze the screen"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """UTF-8, no size but the terminal's own, and a directory for what keys may write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """Yield a terminal in which rows are to be seen."""
    made = Terminal()
    try:
        made.wait_for(b"total")
        yield made
    finally:
        made.clean_up()


@pytest.mark.parametrize("end", [b"q", b"\x03", signal.SIGTERM, signal.SIGHUP], ids=str)
def test_the_end_leaves_a_sane_terminal(terminal: Terminal, end: bytes | signal.Signals) -> None:
    """After q, Ctrl-C, SIGTERM and SIGHUP the program is over and the terminal as it was."""
    if isinstance(end, bytes):
        os.write(terminal.master, end)
    else:
        os.kill(terminal.pid, end)
    assert terminal.ended() == 0
    assert_sane(terminal)


def test_vanished_terminal_ends_the_program(terminal: Terminal) -> None:
    """The program ends when its terminal is gone."""
    terminal.close()
    assert terminal.ended() == 0


def test_sigcont_without_a_stop_changes_nothing(terminal: Terminal) -> None:
    """An unexpected SIGCONT leaves one reader of keys: q still ends the program."""
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
        if is_readable(terminal.master, 0.05):
            terminal.seen += os.read(terminal.master, 65536)
    terminal.wait_for(b"\x1b[?1049l")
    terminal.seen = b""
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.wait_for(b"total")
    terminal.wait_for(b"conns")
    os.write(terminal.master, b"q")
    assert terminal.ended() == 0


def test_changed_cells_leave_what_a_whole_screen_shows(terminal: Terminal) -> None:
    """After another theme, another order and a dialog, Ctrl-L writes the screen that is there already."""
    os.write(terminal.master, b"Tsj?")
    terminal.wait_for(HELP)
    os.write(terminal.master, b"\x0c")
    until = time.monotonic() + DEADLINE_S
    while terminal.seen.count(HELP) < 2:
        assert time.monotonic() < until, "the screen is not written again"
        terminal.read(0.1)
    while not terminal.seen.endswith(HOME.encode()):
        assert terminal.read(DEADLINE_S)
    updates = terminal.seen.decode().split(HOME)
    at = max(n for n, update in enumerate(updates) if HELP.decode() in update)
    screens = [Emulator(80, 24), Emulator(80, 24)]
    screens[0].feed(HOME.join(updates[:at]))
    screens[1].feed(updates[at])
    assert screens[0].text() == screens[1].text()
    assert screens[0].cells == screens[1].cells


@pytest.mark.parametrize("seed", range(2))
def test_random_bytes_are_no_error(terminal: Terminal, seed: int) -> None:
    """2,000 bytes, in pieces of any length and without what quits or suspends: the screens go on."""
    chance = random.Random(seed)
    sent = chance.randbytes(2000).translate(None, b"q\x03\x1a")
    while sent:
        cut = chance.randint(1, 100)
        os.write(terminal.master, sent[:cut])
        terminal.read()
        sent = sent[cut:]
    terminal.press_until_restored(b"\x03")
    assert terminal.ended() == 0
    assert b"Traceback" not in terminal.seen
    assert_sane(terminal)


def test_kittys_protocol_is_not_requested(terminal: Terminal) -> None:
    """The program does not request Kitty's keyboard protocol."""
    assert not re.search(rb"\x1b\[>\d*u", terminal.seen)


def test_changed_size_is_drawn(terminal: Terminal) -> None:
    """The screen takes its size from the kernel, not from the terminal's own reports."""
    assert b"ESTABLISHED" not in terminal.seen  # for want of room
    os.write(terminal.master, b"\x1b[?2048;1$y\x1b[48;3;10;30;100t")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 132, 0, 0))
    terminal.wait_for(b"ESTABLISHED")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_terminal_that_takes_nothing(terminal: Terminal, number: signal.Signals) -> None:
    """A frozen connection: a signal ends the program, and what restores the terminal is there once it goes on."""
    terminal.fill()
    os.write(terminal.master, b"T" * 100)  # each a new theme, drawn anew
    terminal.wait_until_idle()
    os.kill(terminal.pid, number)
    assert terminal.ended_unread() == 0
    assert terminal.ended() == 0
    assert_sane(terminal)


@pytest.mark.parametrize("seed", range(4))
def test_signals_while_it_starts(seed: int) -> None:
    """A signal at any moment of the start ends it without a traceback."""
    terminal = Terminal()
    try:
        terminal.wait_for(b"\x1b[?1049h")
        until = time.monotonic() + random.Random(seed).uniform(0, 0.3)
        while time.monotonic() < until:
            terminal.read()
        os.kill(terminal.pid, signal.SIGHUP)
        assert terminal.ended() == 0
        assert b"Traceback" not in terminal.seen
    finally:
        terminal.clean_up()


@pytest.mark.parametrize(
    ("term", "has_them"), [("xterm-ghostty", True), ("alacritty", True), ("xterm", False)]
)
def test_colours_without_colorterm(monkeypatch: pytest.MonkeyPatch, term: str, has_them: bool) -> None:
    """Without COLORTERM, TERM decides between 16 and 256 colours."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("COLORTERM", raising=False)
    terminal = Terminal()
    try:
        terminal.wait_for(b"total")
        assert (b"38;5;" in terminal.seen) == has_them
    finally:
        terminal.clean_up()
