# SPDX-License-Identifier: Apache-2.0
"""The program in a pseudo-terminal: what it writes, and how it ends."""

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
from contextlib import suppress
from pathlib import Path

DEADLINE_S = 60.0
"""Only a test that fails waits so long: a busy machine is slow."""

HOME = "\x1b[1;1H"
"""Written at the end of each update."""


def is_readable(descriptor: int, wait_s: float) -> bool:
    """Return whether there is something to read, or its end, within this time."""
    waiting = select.poll()  # select() takes no descriptor above 1,023
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(1000 * wait_s))


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
            os.execv(sys.executable, [sys.executable, "-m", "tests.builders.on_screen"])
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
            if is_readable(self.master, 0.1):
                self.seen += os.read(self.master, 65536)

    def read(self, wait_s: float = 0) -> bool:
        """Read what it has written; False where that is nothing."""
        if not is_readable(self.master, wait_s):
            return False
        self.seen += os.read(self.master, 65536)
        return True

    def press_until_restored(self, key: bytes) -> None:
        """Press a key until the terminal is left: what was sent before may have begun a sequence."""
        until, pressed = time.monotonic() + DEADLINE_S, 0.0
        while b"\x1b[?1049l" not in self.seen:
            assert time.monotonic() < until, "the program goes on"
            if time.monotonic() > pressed + 2:
                pressed = time.monotonic()
                os.write(self.master, key)
            self.read(0.05)

    def fill(self) -> None:
        """Have the terminal take nothing until it is read."""
        slave = os.open(f"/proc/{self.pid}/fd/1", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(slave, b"\r" * 100)
        os.close(slave)

    def wait_until_idle(self) -> None:
        """Wait until the program uses no CPU any more: it waits for the terminal."""
        until, before = time.monotonic() + DEADLINE_S, -1
        while (now := cpu_ticks(self.pid)) != before:
            assert time.monotonic() < until, "it is never idle"
            before = now
            select.select([], [], [], 0.3)

    def ended_unread(self) -> int | None:
        """Return the exit status of a program whose output nobody reads; None if it runs for 2 s more."""
        until = time.monotonic() + 2
        while self.code is None and time.monotonic() < until:
            self._look_for_end()
            select.select([], [], [], 0.02)
        return self.code

    def _look_for_end(self) -> None:
        done, status = os.waitpid(self.pid, os.WNOHANG)
        self.code = os.waitstatus_to_exitcode(status) if done else None

    def ended(self) -> int:
        """Read the rest of the output and return the exit status."""
        until = time.monotonic() + DEADLINE_S
        while self.code is None:
            assert time.monotonic() < until, "the program goes on"
            with suppress(OSError, ValueError):
                if self.master >= 0 and is_readable(self.master, 0.05):
                    self.seen += os.read(self.master, 65536)
            self._look_for_end()
        with suppress(OSError):  # at the end of what it wrote
            while self.master >= 0 and is_readable(self.master, 0):
                self.seen += os.read(self.master, 65536)
        return self.code

    def close(self) -> None:
        """The terminal vanishes."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def clean_up(self) -> None:
        """Clean up, whatever happened."""
        self.close()
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def cpu_ticks(pid: int) -> int:
    """Return the CPU time that a process has used, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def assert_sane(terminal: Terminal) -> None:
    """The terminal is as it was: main screen, cursor, modes."""
    assert terminal.seen.rindex(b"\x1b[?1049l") > terminal.seen.rindex(b"\x1b[?1049h")
    assert terminal.seen.rindex(b"\x1b[?25h") > terminal.seen.rindex(b"\x1b[?25l")
    assert termios.tcgetattr(terminal.master)[:4] == terminal.before[:4]
