# SPDX-License-Identifier: Apache-2.0
"""The console: its order, the lines that a slow reader misses, and the detection of a closed reader."""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest

from nettop.output import log_sinks
from nettop.output.log_sinks import Console
from tests.builders.in_thread import DEADLINE_S, until

BLOCK = b"0123456789abcde\n" * 1024


class Piped:
    """A console that writes into a pipe of 4 KiB."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        self.woken = 0
        self.console = Console(self.writer, self._wake, lambda *gap: f"lost {gap}\n".encode())

    def _wake(self) -> None:
        self.woken += 1

    def read(self, size: int) -> bytes:
        """Read `size` bytes of the output."""
        read = b""
        while len(read) < size:
            read += os.read(self.reader, size - len(read))
        return read


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Piped]:
    """Yield a console whose end waits for its thread, however busy the machine is."""
    monkeypatch.setattr(log_sinks, "_END_WAIT_S", DEADLINE_S)
    made = Piped()
    yield made
    os.close(made.reader)
    made.console.close()
    made.console._thread.join(DEADLINE_S)  # it would write to what has the descriptor next
    os.close(made.writer)


def test_blocks_come_in_their_order(piped: Piped) -> None:
    """Blocks are read in order and unchanged, even beyond the pipe's capacity."""
    blocks = [bytes([65 + at]) * 999 + b"\n" for at in range(20)]
    for block in blocks:
        piped.console.write(block)
    assert piped.read(20_000) == b"".join(blocks)
    piped.console.write(b"line\n")
    piped.console.close()
    assert piped.read(5) == b"line\n"
    assert piped.console.lost.total == 0


def test_a_slow_reader_misses_blocks_and_is_reported(piped: Piped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound nothing more waits; the lines dropped are counted, and reported when there is room again.
    A writer that waits for room continues when the reader has read, or when it is given up.
    """
    monkeypatch.setattr(log_sinks, "QUEUED_BYTES", len(BLOCK))
    piped.console.write(BLOCK)
    until(lambda: piped.console._rest)  # being written
    for _ in range(3):
        piped.console.write(BLOCK)  # the first of these waits
    assert piped.console.lost.total == 2048
    piped.console.wait(lambda: True)
    assert piped.read(2 * len(BLOCK)) == 2 * BLOCK
    piped.console.wait(lambda: False)
    piped.console.write(b"after\n")
    gap = b"lost ('console too slow', 2048, 2048)\n"
    assert piped.read(len(gap) + 6) == gap + b"after\n"


def test_the_end_does_not_wait_for_ever(piped: Piped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks unread at the end count as lost, a partial one as a whole."""
    monkeypatch.setattr(log_sinks, "_END_WAIT_S", 0.2)
    piped.console.write(BLOCK * 2)
    until(lambda: piped.console._rest)
    piped.console.close()
    assert piped.console.lost.total == 2048


def test_the_end_cuts_no_line(piped: Piped, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who has taken nothing when the end is given up has whole lines."""
    monkeypatch.setattr(log_sinks, "_END_WAIT_S", 0.0)
    piped.console.write(b"0123456789\n" * 1000)
    waiting = select.poll()
    waiting.register(piped.reader, select.POLLIN)
    until(lambda: bool(waiting.poll(0)))
    piped.console.close()
    assert os.read(piped.reader, 4096).endswith(b"9\n")


def test_a_reader_who_has_gone(piped: Piped) -> None:
    """A closed reader is detected, and wakes a sleeping writer."""
    os.close(piped.reader)
    piped.console.write(b"line\n")
    until(lambda: piped.woken)
    assert piped.console.gone
    piped.reader = os.dup(piped.writer)


def test_a_full_disk() -> None:
    """Other write failures are kept as the error."""
    woken: list[int] = []
    full = os.open("/dev/full", os.O_WRONLY)
    made = Console(full, lambda: woken.append(1), lambda *gap: b"")
    made.write(b"line\n")
    until(lambda: woken)
    assert made.error is not None
    assert made.error.strerror == "No space left on device"
    made.close()
    os.close(full)
    assert made.lost.total == 1


@pytest.mark.parametrize("opened", [os.pipe, os.openpty])
def test_a_reader_who_has_gone_is_no_error(opened: Callable[[], tuple[int, int]]) -> None:
    """A closed pipe, and a terminal that has hung up, are nobody who reads."""
    theirs, ours = opened()
    woken = threading.Event()
    gone = Console(ours, woken.set, lambda *gap: b"")
    os.close(theirs)
    gone.write(b"a line\n")
    assert woken.wait(DEADLINE_S)
    assert (gone.gone, gone.error) == (True, None)
    gone.close()
    os.close(ours)
