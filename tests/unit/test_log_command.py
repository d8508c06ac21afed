# SPDX-License-Identifier: Apache-2.0
"""`nettop log` as a process: signals, closed streams, and the remains after SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders.in_thread import until
from tests.unit.children import DEADLINE_S, Child
from tests.unit.logging_run import rows_of

SCRIPT = """
import sys, threading
from nettop import cli
from nettop.process import interrupts
from tests.unit.scripted import steps
from tests.unit.woken import CONNECT, Woken
is_held = sys.argv.pop(1) == "held"
has_ended = threading.Event()
class Source(Woken):
    reads = 0
    def read(self, taken_ns):
        self.reads += 1
        if is_held and self.reads > 1:
            has_ended.wait()
        return super().read(taken_ns)
interrupts.AGAIN_S = 60.0  # on a busy machine one signal may be handled long after the other
source = Source(steps([{"id": 7}]))
def happen():
    for line in sys.stdin:
        source.happen(*[CONNECT] * int(line))
    has_ended.set()
threading.Thread(target=happen, daemon=True).start()
run = cli.run
cli.run = lambda words: run(words, lambda lens: source)
sys.exit(cli.main())
"""


def started(directory: Path, *words: str, is_held: bool = False, **how: Any) -> Child:
    """Start `nettop log` in a directory, over a source that opens this many connections per line of standard input.

    With `is_held` its last reading, and so its exit, waits for the end of that input.
    """
    options = ("log", "--format", "jsonl", "-t", "3600", "--metrics-interval", "3600", *words)
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | how
    here = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SCRIPT, "held" if is_held else "", *options]
    child = Child(command, cwd=directory, env=os.environ | {"PYTHONPATH": here}, **how)
    if "--log-dir" not in words:
        until(lambda: child.poll() is not None or lines(directory, "metrics") == 1)
    return child


def lines(directory: Path, name: str) -> int:
    """Count the current lines of a log file."""
    path = directory / "log" / f"{name}.jsonl"
    return path.read_text().count("\n") if path.exists() else -1


def happen(child: Child, count: int) -> None:
    """Have `count` connections open."""
    assert child.stdin is not None
    child.stdin.write(f"{count}\n")
    child.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end with code 0 and one line, and the file has every event."""
    with started(tmp_path, is_held=True) as child:
        happen(child, 3)
        until(lambda: lines(tmp_path, "events") == 3)
        for _ in range(2):  # as timeout(1) sends it
            child.send_signal(number)
        assert child.stdin is not None
        child.stdin.close()  # it goes on: the second signal must not come when it has ended
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr is not None
        (reported,) = child.stderr.read().splitlines()
    assert reported.startswith("nettop: logged 3 events, 1 metrics; lost 0 events")
    assert len(rows_of(tmp_path / "log" / "events.jsonl")) == 3


def test_hang_up_opens_the_files_again(tmp_path: Path) -> None:
    """Reopen the files on SIGHUP and end nothing, as logrotate expects, also under nohup."""
    with started(tmp_path, ignoring={signal.SIGHUP}) as child:
        for name in ("events", "metrics"):
            (tmp_path / "log" / f"{name}.jsonl").rename(tmp_path / name)
        child.send_signal(signal.SIGHUP)
        until(lambda: lines(tmp_path, "events") == lines(tmp_path, "metrics") == 0)
        happen(child, 1)
        until(lambda: lines(tmp_path, "events") == 1)
        child.terminate()
        assert child.wait(DEADLINE_S) == 0


def test_reader_gone(tmp_path: Path) -> None:
    """When the pipe's reader goes away, the log exits silently with 0 if it had no other output; else it reports that
    and continues.
    """
    with started(tmp_path, "--log-dir", "none", stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline()
        child.stdout.close()
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr.read() == ""
    with started(tmp_path, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.readline().endswith("(its reader has gone); logging continues in the files\n")
        happen(child, 2)
        until(lambda: lines(tmp_path, "events") == 2)
        child.terminate()
        assert child.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("words", [[], ["--log-dir", "none"]])
def test_console_on_a_full_disk(tmp_path: Path, words: list[str]) -> None:
    """A console that cannot be written is reported; the log ends only if there are no files."""
    with open("/dev/full", "w", encoding="utf-8") as full, started(tmp_path, *words, stdout=full) as child:
        assert child.stderr is not None
        reported = child.stderr.readline()
        if words:
            assert reported == "nettop: the output cannot be written: No space left on device\n"
            assert child.wait(DEADLINE_S) == 1
        else:
            assert reported.startswith("nettop: the console cannot be written (No space left on device)")
            happen(child, 2)
            until(lambda: lines(tmp_path, "events") == 2)
            child.terminate()
            assert child.wait(DEADLINE_S) == 0
