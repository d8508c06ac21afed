# SPDX-License-Identifier: Apache-2.0
"""Log files: complete lines whatever happens, rotation, and lines that cannot be written."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.errors import NettopError
from nettop.output import log_files, log_sinks
from nettop.output.log_files import LogFile
from nettop.output.log_sinks import Console
from tests.builders.in_thread import DEADLINE_S, until
from tests.builders.limits import files_of_at_most

PAGE = 4096
LIMIT = 4 * PAGE


class Log:
    """A log file in a directory of the test, and its reports."""

    def __init__(self, directory: Path, rotate_bytes: int = LIMIT, keep: int = 2) -> None:
        self.reported: list[str] = []
        self.directory, self.path, self.keep = directory, directory / "events.log", keep
        self.file = LogFile(
            self.path, rotate_bytes, keep, self.reported.append, lambda *gap: f"lost {gap}\n".encode()
        )

    def write(self, *lines: str) -> None:
        """Write lines, in one block."""
        self.file.write("".join(f"{line}\n" for line in lines).encode())

    def names(self) -> list[str]:
        """Return the files there are."""
        return sorted(path.name for path in self.directory.iterdir())

    def lines(self) -> list[str]:
        """Return every line that is kept, the oldest first."""
        names = [*(f"events.{number}.log" for number in range(self.keep, 0, -1)), "events.log"]
        paths = [self.directory / name for name in names]
        return [line for path in paths if path.exists() for line in lines_of(path)]


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file, all of which are whole."""
    text = path.read_text()
    assert not text or text.endswith("\n")
    return text.splitlines()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """Yield an open log; a trouble is tried again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files, "TRY_AGAIN_S", 0.0)
        made = Log(tmp_path / "log")
        yield made
        made.file.close()


# --- whole lines ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(1, 400))
def test_lines_are_rotated_whole(lengths: list[int], limit: int) -> None:
    """No file contains a part of a line, or exceeds the limit by more than one line."""
    lines = ["x" * (length - 1) for length in lengths]
    with tempfile.TemporaryDirectory() as directory:
        log = Log(Path(directory), limit, keep=len(lines))
        log.write(*lines)
        assert log.lines() == lines
        log.file.close()
        for path in Path(directory).iterdir():
            assert path.stat().st_size <= limit or len(lines_of(path)) == 1


WRITER = """
import sys
from pathlib import Path
from nettop.output.log_files import LogFile
file = LogFile(Path(sys.argv[1]) / "events.log", 1 << 24, 1, print, lambda *gap: b"")
block = ('{"time":"2026-11-20T11:02:40.060110Z"' + "x" * int(sys.argv[2]) + "}\\n").encode() * 3000
print("begun", flush=True)
while True:
    file.write(block)
"""


def test_sigkill_leaves_whole_lines(tmp_path: Path) -> None:
    """Killed at any moment, only the last line may be unfinished, and the next start removes it."""
    length, chance = 100, random.Random(1)
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(length)], stdout=subprocess.PIPE, text=True
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begun\n"
            for _ in range(chance.randrange(200_000)):
                pass
            writer.kill()
        Log(tmp_path).file.close()
        for path in tmp_path.iterdir():
            assert set(map(len, lines_of(path))) <= {length + 38}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ["new"]),
        ("whole\n", ["whole", "new"]),
        ("whole\nhalf a li", ["whole", "new"]),
        ("not a log", ["not a log", "new"]),
    ],
)
def test_an_unfinished_line_is_removed(tmp_path: Path, before: str, after: list[str]) -> None:
    """An unfinished line is removed, unless it fills the searched part of the file, which no log writes."""
    (tmp_path / "events.log").write_text(before)
    log = Log(tmp_path)
    log.write("new")
    log.file.close()
    assert (tmp_path / "events.log").read_text().splitlines() == after


# --- rotation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [7, 3000])
def test_rotation_keeps_so_many_and_loses_no_line_between(log: Log, at_once: int) -> None:
    """Number old files, keep each below the limit, and keep the newest lines in order, also if one block fills many."""
    lines = [f"{number:06d}" + "z" * (number % 90) for number in range(3000)]
    for start in range(0, len(lines), at_once):
        log.write(*lines[start : start + at_once])
    assert log.names() == ["events.1.log", "events.2.log", "events.log"]
    assert all(path.stat().st_mode & 0o027 == 0 for path in (log.path, log.directory))
    assert max(path.stat().st_size for path in log.directory.iterdir()) <= LIMIT
    kept = log.lines()
    assert kept == lines[-len(kept) :]
    assert (log.file.lost.total, log.reported) == (0, [])


def test_files_of_an_earlier_run_count_toward_the_bound(tmp_path: Path) -> None:
    """Files that a larger --keep has left are removed by the next rotation."""
    for number in range(1, 6):
        (tmp_path / f"events.{number}.log").write_text(f"old {number}\n")
    log = Log(tmp_path)
    log.write(*["x" * 200] * 100)
    log.file.close()
    assert log.names() == ["events.1.log", "events.2.log", "events.log"]


def test_reopening_after_logrotate(log: Log) -> None:
    """Follow a file renamed by others until it is reopened; create a removed one, and restart a truncated one."""
    log.write("before")
    log.path.rename(log.directory / "moved")
    log.write("still there")
    log.file.reopen()
    log.write("after")
    assert lines_of(log.directory / "moved") == ["before", "still there"]
    assert lines_of(log.path) == ["after"]
    os.truncate(log.path, 0)
    log.write("truncated")
    assert log.path.read_text() == "truncated\n"
    log.path.unlink()
    log.write("removed")
    assert lines_of(log.path) == ["removed"]
    assert (log.file.lost.total, log.reported) == (0, [])


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.symlink_to("precious"), "it is a symbolic link"),
        (os.mkfifo, "it is not a regular file"),
        (os.mkdir, "Is a directory"),
        (lambda path: Log(path.parent), "another nettop log is writing it"),
    ],
    ids=["link", "fifo", "directory", "another nettop"],
)
def test_what_is_refused(make: Callable[[Path], object], why: str, tmp_path: Path) -> None:
    """Refuse a link, whose target is left alone, other kinds of files, and a file that another log writes."""
    (tmp_path / "precious").write_text("precious")
    kept = make(tmp_path / "events.log")
    with pytest.raises(NettopError, match=why) as refused:
        Log(tmp_path)
    assert refused.value.remedy == "set --log-dir to another directory, or to none for the console only"
    assert (tmp_path / "precious").read_text() == "precious"
    if isinstance(kept, Log):
        kept.file.close()
        Log(tmp_path).file.close()


# --- trouble --------------------------------------------------------------------------------------------------


def test_full_disk_and_room_again(log: Log) -> None:
    """Lines that do not fit are counted and reported once, none is written in part, and the file has a
    line on the gap.
    """
    log.write("a" * 100)
    trouble = f"{log.path} cannot be written (File too large); lines are dropped and counted until it can"
    with files_of_at_most(912):
        log.write(*["b" * 100] * 20)
        log.write("c")
        assert log.reported == [trouble]
        assert log.file.lost.total == 13
        assert lines_of(log.path) == ["a" * 100, *["b" * 100] * 8]
    log.write("d")
    assert lines_of(log.path)[9:] == ["lost ('File too large', 13, 13)", "d"]
    assert log.reported[1:] == [f"{log.path} can be written again; 13 lines are missing from it"]


def test_trouble_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """A file that cannot be written is not tried again with each block."""
    log = Log(tmp_path)
    log.path.unlink()
    log.path.mkdir()
    log.write("first")
    log.path.rmdir()
    log.write("second")
    assert log.names() == []
    assert log.file.lost.total == 2
    log.file.close()


def test_directory_gone(log: Log) -> None:
    """Lines are counted once the directory is removed, also if there is another one in its place."""
    log.write("before")
    log.path.unlink()
    log.directory.rmdir()
    log.write("lost", "lost too")
    assert "No such file or directory" in log.reported[0]
    log.directory.mkdir()
    log.write("after")
    assert list(log.directory.iterdir()) == []
    assert log.file.lost.total == 3


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_directory_that_becomes_a_link(log: Log, tmp_path: Path, is_removed: bool) -> None:
    """The owner of the parent directory may replace the directory by a link: nothing is written to its target, on
    reopening or rotation.
    """
    elsewhere, moved = tmp_path / "elsewhere", tmp_path / "moved"
    elsewhere.mkdir()
    log.write("before")
    if is_removed:
        log.path.unlink()
        log.directory.rmdir()
    else:
        log.directory.rename(moved)
    log.directory.symlink_to(elsewhere)
    log.file.reopen()
    log.write(*["x" * 1000] * 20)
    assert list(elsewhere.iterdir()) == []
    if is_removed:
        assert log.file.lost.total == 20
    else:
        assert sorted(path.name for path in moved.iterdir()) == ["events.1.log", "events.log"]


def test_rotation_that_cannot_be(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """If files cannot be renamed, that is reported, and rotation is tried again."""

    def refuse(*_paths: object, **_directories: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        log.write(*["x" * 1000] * 20)
    assert "Read-only file system" in log.reported[0]
    lost = log.file.lost.total
    assert 0 < lost < 20
    log.write("after")
    assert lines_of(log.path)[-2:] == [f"lost ('Read-only file system', {lost}, {lost})", "after"]


# --- the console ----------------------------------------------------------------------------------------------

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
