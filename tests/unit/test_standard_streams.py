# SPDX-License-Identifier: Apache-2.0
"""Enter and vanishing readers, on real pipes, files and terminals."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nettop import diagnostics
from nettop.diagnostics import Diagnostics
from nettop.output.text import StandardStreams, may_read
from nettop.process.wake_event import WakeEvent
from tests.builders.in_thread import until

DEADLINE_S = 60


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe, closed at the end if they still are open."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            try:
                os.close(end)
            except OSError:
                continue


def wait(streams: StandardStreams, event: WakeEvent) -> bool:
    """Wait as a frontend does; whether somebody pressed Enter."""
    return streams.entered(event.wait(streams.descriptors(), DEADLINE_S))


def test_enter() -> None:
    """A newline is Enter; other letters are not, nor is the end of a pipe, which is left alone from then on."""
    with pipe() as (reader, writer), WakeEvent() as event:
        streams = StandardStreams(reader, None)
        os.write(writer, b"abc")
        os.write(writer, b"\n")
        assert wait(streams, event) is True
        os.write(writer, b"q")
        assert wait(streams, event) is False
        os.close(writer)
        assert wait(streams, event) is False
        assert streams.descriptors() == {}


@pytest.mark.parametrize("path", [os.devnull, __file__])
def test_files_are_not_read(path: str) -> None:
    """A file on standard input is meant for another program, such as the loop in which nettop runs."""
    file = os.open(path, os.O_RDONLY)
    streams = StandardStreams(file, None)
    assert streams.descriptors() == {}
    assert streams.entered({file: select.POLLIN}) is False
    assert os.lseek(file, 0, os.SEEK_CUR) == 0
    os.close(file)


def test_reader_of_the_output_gone() -> None:
    """When the other end of standard output closes, the sleep ends with BrokenPipeError."""
    with pipe() as (reader, writer), WakeEvent() as event:
        streams = StandardStreams(None, writer)
        event.set()
        assert wait(streams, event) is False
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            wait(streams, event)


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
        with WakeEvent() as event:
            event.set()
            assert wait(StandardStreams(theirs, None), event) is False
            assert StandardStreams(theirs, None).entered({theirs: select.POLLIN}) is False
        assert os.read(theirs, 10) == b"\n"
    finally:
        os.close(ours)
        os.close(theirs)


BACKGROUND = """
import os, pty, select, signal, sys
from nettop.process.wake_event import WakeEvent
from nettop.output.text import StandardStreams, may_read

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
signal.alarm(50)
streams = StandardStreams(0, None)
sys.exit(may_read(0) or bool(streams.descriptors()) or streams.entered({0: select.POLLIN}))
"""


def test_background_job_is_not_stopped() -> None:
    """A job in the background does not read the terminal, which would stop it, though somebody presses Enter."""
    done = subprocess.run([sys.executable, "-c", BACKGROUND], timeout=60, check=False)
    assert done.returncode == 0


# --- messages -------------------------------------------------------------------------------------------------


def test_a_reader_who_reads_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no room is counted, and the first message that finds room again says so."""
    monkeypatch.setattr(diagnostics, "_WAIT_MS", 0)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    with open(reading, "rb", buffering=0) as reader, open(writing, "w") as stderr:
        report = Diagnostics(stderr)
        report("one")
        report("two")
        assert reader.read(4096) == bytes(4096)
        report("three")
        stderr.close()
        text = b"".join(iter(lambda: reader.read(4096), b"")).strip(b"\0").decode()
    assert text == "nettop: 2 messages dropped because nobody read them\nnettop: three\n"


def test_lines_stay_lines_and_are_safe() -> None:
    """A bug keeps its traceback's lines; what else comes in a message cannot begin one."""
    stderr = io.StringIO()
    report = Diagnostics(stderr)
    report("one\ntwo")
    report.report_lines("three\nfour\x1b[31m")
    assert stderr.getvalue() == "nettop: one␊two\nnettop: three\nfour␛[31m\n"


# --- the event that consumers wait for ------------------------------------------------------------------------

POLLING = {"7", "73", "271"}
"""The numbers of poll(2) and ppoll(2) on x86-64 and arm64."""


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Yield the signals that a handler was called for."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_does_not_interrupt_poll_ends_the_wait(handled: list[int]) -> None:
    """As one does that arrives right before poll(2), or in another thread."""
    waiting = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")

    def receive() -> None:
        until(lambda: waiting.read_text().split()[0] in POLLING)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    receiver = threading.Thread(target=receive)
    with WakeEvent() as event:
        receiver.start()
        event.wait()
        assert handled == [signal.SIGUSR1]
    receiver.join()


def test_signals_are_left_as_they_were(handled: list[int]) -> None:
    """Outside its `with` block it receives no signals; outside the main thread it never does."""
    entered: list[WakeEvent] = []

    def enter() -> None:
        with WakeEvent() as event:
            entered.append(event)

    thread = threading.Thread(target=enter)
    with WakeEvent():
        thread.start()
        thread.join()
    assert len(entered) == 1
    assert signal.set_wakeup_fd(-1) == -1
    signal.raise_signal(signal.SIGUSR1)
    assert handled == [signal.SIGUSR1]


def test_setting_it_often_is_setting_it_once() -> None:
    """More often than a pipe holds, it neither waits nor fails, and the next wait ends at once."""
    with WakeEvent() as event:
        for _ in range(70_000):
            event.set()
        assert event.wait() == {}
