# SPDX-License-Identifier: Apache-2.0
"""nettop's screens on a pseudo-terminal."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Sequence
from typing import Any, Self

from tests.emulator import Emulator

from .command import NETTOP
from .lab import PATIENCE, NotInTimeError


class Terminal:
    """A run of nettop in its own session; the test holds the other end of its controlling terminal.

    `around` are the words that start it, such as those of setpriv.
    """

    def __init__(
        self, *options: str, columns: int = 120, lines: int = 40, around: Sequence[str] = ()
    ) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.output = bytearray()
        self._screen, self._unseen = Emulator(columns, lines), bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.login_tty(self._slave)
                # What a shell's background jobs ignore, and what nohup has them ignore.
                for number in (signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                os.environ["TERM"] = "xterm-256color"
                words = [*around, NETTOP, *options]
                os.execvp(words[0], words)
            finally:
                os._exit(127)  # a forked child must not return into pytest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            for kill in (os.killpg, os.kill):  # it may have no group of its own yet
                with contextlib.suppress(ProcessLookupError):
                    kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for descriptor in (self._master, self._slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def resize(self, columns: int, lines: int) -> None:
        """Resize the terminal; the kernel signals the program."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.size = columns, lines

    def settings(self) -> list[Any]:
        """Return the terminal's modes, as `stty -a` shows them."""
        return termios.tcgetattr(self._slave)

    def take_in(self, wait_s: float = 0) -> bool:
        """Read the pending output; return whether there was any."""
        waiting = select.poll()  # select() takes no descriptor above 1,023
        waiting.register(self._master, select.POLLIN)
        if not waiting.poll(wait_s * 1000):
            return False
        output = os.read(self._master, 1 << 16)
        self.output += output
        self._unseen += output
        return True

    def shows(self, text: bytes, deadline_s: float = 60) -> None:
        """Wait until the program writes that text, or has it on the screen: it writes only what changes."""
        end = time.monotonic() + deadline_s * PATIENCE
        while not self.has_shown(text):
            self.take_in(0.1)
            if time.monotonic() > end:
                shown = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b" ", self.output[-20_000:])
                raise NotInTimeError(f"{text!r} not shown; the last output: {shown.decode(errors='replace')}")

    def has_shown(self, text: bytes) -> bool:
        """Return whether the program has written that text, or has it on the screen."""
        return text.decode() in self.screen() or text in self.output

    def screen(self) -> str:
        """Return the text on the screen, line by line."""
        self._screen.feed(self._decoder.decode(bytes(self._unseen)))
        self._unseen.clear()
        return self._screen.text()

    def draws(self, deadline_s: float = 60) -> None:
        """Wait until the program has set up the terminal and paused, or has exited."""
        end = time.monotonic() + deadline_s * PATIENCE
        while not self.output or self.take_in(0.5):
            self.take_in(0.1)
            if time.monotonic() > end:
                return

    def type(self, keys: bytes, until_shown: bytes | None = None) -> None:
        """Press keys, and wait for their output."""
        os.write(self._master, keys)
        if until_shown:
            self.shows(until_shown)

    def hang_up(self) -> None:
        """Hang up the terminal."""
        os.close(self._slave)
        os.close(self._master)

    def wait(self, deadline_s: float = 60) -> int:
        """Wait for the program to exit; return the exit status, negative for death by signal."""
        end = time.monotonic() + deadline_s * PATIENCE
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                with contextlib.suppress(OSError):
                    while self.take_in():
                        pass
                return os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError, ValueError):
                self.take_in(0.05)
        raise NotInTimeError(f"nettop did not end within {deadline_s} s")
