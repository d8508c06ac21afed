# SPDX-License-Identifier: Apache-2.0
"""What plain output sleeps for, on real pipes, files and terminals."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nettop.output.refresh_input import RefreshInput, may_read


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, closed at the end if they still are open."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            try:
                os.close(end)
            except OSError:
                continue


def test_wake_ends_the_sleep() -> None:
    """A publication ends the sleep, even one that came before it, and is not Enter."""
    with RefreshInput(None, None) as wakes:
        wakes.wake()
        wakes.wake()
        assert wakes.wait() is False


def test_wake_after_the_end_writes_nowhere() -> None:
    """A late wake-up from the sampler's thread does not reach a descriptor that is another file's by now."""
    with RefreshInput(None, None) as wakes:
        pass
    wakes.wake()


def test_enter() -> None:
    """A newline is Enter; other letters are not."""
    with pipe() as (reader, writer), RefreshInput(reader, None) as wakes:
        os.write(writer, b"abc")
        os.write(writer, b"\n")
        assert wakes.wait() is True
        os.write(writer, b"q")
        wakes.wake()
        assert wakes.wait() is False


@pytest.mark.parametrize("held", ["pipe", "/dev/null", "file"])
def test_end_of_input_is_no_enter(held: str, tmp_path: object) -> None:
    """Input at its end, whatever it is, is left alone from then on."""
    with pipe() as (reader, writer):
        os.close(writer)
        other = os.open(os.devnull if held == "/dev/null" else __file__, os.O_RDONLY)
        os.lseek(other, 0, os.SEEK_END)
        with RefreshInput(reader if held == "pipe" else other, None) as wakes:
            wakes.wake()
            assert wakes.wait() is False
            wakes.wake()
            assert wakes.wait() is False
        os.close(other)


def test_reader_of_the_output_gone() -> None:
    """When the other end of standard output closes, the sleep ends with BrokenPipeError."""
    with pipe() as (reader, writer), RefreshInput(None, writer) as wakes:
        wakes.wake()
        assert wakes.wait() is False
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            wakes.wait()


def test_raw_terminal_is_a_pagers() -> None:
    """Keys of a terminal in raw mode are left to the program that put it there, such as a pager behind a pipe."""
    ours, theirs = pty.openpty()
    try:
        assert may_read(theirs)
        modes = termios.tcgetattr(theirs)
        modes[3] &= ~termios.ICANON
        termios.tcsetattr(theirs, termios.TCSANOW, modes)
        assert not may_read(theirs)
        os.write(ours, b"\n")
        with RefreshInput(theirs, None) as wakes:
            wakes.wake()
            assert wakes.wait() is False
        assert os.read(theirs, 10) == b"\n"
    finally:
        os.close(ours)
        os.close(theirs)


BACKGROUND = """
import os, pty, signal, sys
from nettop.output.refresh_input import RefreshInput, may_read
pid, terminal = pty.fork()
if pid:
    os.write(terminal, b"\\n")
    seen = os.waitpid(pid, os.WUNTRACED)[1]
    if os.WIFSTOPPED(seen):
        os.kill(pid, signal.SIGKILL)
    sys.exit(0 if os.WIFEXITED(seen) and os.WEXITSTATUS(seen) == 0 else 1)
job = os.fork()
if job:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(job, os.WUNTRACED)[1]) != 0)
os.setpgid(0, 0)
signal.alarm(20)
with RefreshInput(0, None) as wakes:
    wakes.wake()
    sys.exit(may_read(0) or wakes.wait())
"""


def test_background_job_is_not_stopped() -> None:
    """A job in the background does not read the terminal, which would stop it, though somebody presses Enter."""
    done = subprocess.run([sys.executable, "-c", BACKGROUND], timeout=60, check=False)
    assert done.returncode == 0
