# SPDX-License-Identifier: Apache-2.0
"""A thread that an exception ends, ends nettop with an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nettop.errors import ExitCode

LIMIT_S = 60

PROGRAM = """
import sys, threading
from nettop import cli
from nettop.snapshots.snapshot import Snapshot
from tests.unit.scripted import Scripted

class Source(Scripted):
    def is_filling(self):
        if self.breaks:
            raise KeyError("namespace")
        return False
    def wakeups(self):
        return ()
    def drain(self, taken_ns):
        return ()

def source_of(lens):
    source = Source([Snapshot(lens, 1, 1, {})])
    source.breaks = "sampler" in BREAKS
    return source

BREAKS = sys.argv[1]
if BREAKS == "totals":
    from nettop.serve.metrics.totals import Totals
    def catch_up(self):
        raise KeyError("namespace")
    Totals.catch_up = catch_up
sys.argv[1:] = sys.argv[2:]
from nettop.process.interrupts import exit_on_signals, leave_output
with exit_on_signals():
    code = cli.run(sys.argv[1:], source_of)
leave_output()
sys.exit(code)
"""
"""nettop with a source whose sampler, or with totals whose thread, ends by a KeyError."""


def ended(thread: str, *words: str) -> tuple[int, str]:
    """Return the exit code and the standard error of a nettop whose thread is ended by an exception."""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, thread, *words],
        cwd=root,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return run.returncode, run.stderr


@pytest.mark.parametrize(
    ("thread", "words"),
    [
        ("totals", ("serve", "--lenses", "connections", "--listen", "127.0.0.1:0")),
        ("sampler", ("serve", "--lenses", "connections", "--listen", "127.0.0.1:0")),
        ("sampler", ("--table", "--view", "connections.events", "-t", "0.1")),
        ("sampler", ("log", "--lens", "connections")),
        ("sampler", ("record", "--lenses", "connections")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_thread_that_ends_ends_nettop(thread: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """The process says which thread ended and why, and exits with the code that has it restarted."""
    code, said = ended(thread, *words, *([str(tmp_path / "a.nettop")] if "record" in words else ()))
    assert code == ExitCode.SOURCE, said
    assert f"nettop: the thread {thread} ended: KeyError('namespace')\n" in said
