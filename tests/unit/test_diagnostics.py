# SPDX-License-Identifier: Apache-2.0
"""Messages on standard error, with and without a reader."""

from __future__ import annotations

import io
import os
from contextlib import suppress

import pytest

from nettop import diagnostics
from nettop.diagnostics import Diagnostics


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
