# SPDX-License-Identifier: Apache-2.0
"""Crafted recordings: the work of every command is linear in the bytes of the file, and no number ends one with a
traceback."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nettop.cli import run
from nettop.errors import ExitCode, NettopError
from nettop.recording import chunks, reader
from nettop.recording.chunks import GROUP_MAX, MARKER, Chunk, Compressor, Group, What
from nettop.recording.files import OneFile
from nettop.recording.player import Player, RecordedSource
from nettop.recording.readings import ReadingWriter
from nettop.recording.recording import open_recording, open_stream
from nettop.snapshots import own_lenses
from nettop.snapshots.findings import FINDINGS, LIMITS
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.snapshot import Snapshot, rows_from
from tests.builders.replaying import no_probes
from tests.unit.recordings import BEGIN_NS, SECOND_NS

LENSES = tuple(lens.id for lens in own_lenses())
ORIGIN = Group(LENSES, 1.0, "0.2.0", {"name": "web-1"})
PER_BYTE = 40
"""Maximum bytes verified for each byte of a file: once for each lens, and a few times more."""
UNITS = 1200


def group(at_ns: int = BEGIN_NS, previous: int = 0) -> bytes:
    """Return the beginning of a group."""
    return replace(ORIGIN, previous=previous).to_chunk(at_ns).to_bytes()


def readings(moments: list[int], lens: str = FINDINGS_LENS.id, broken: int | None = None) -> list[bytes]:
    """Return readings without rows at these moments; one of them is no reading."""
    writer, compressor = ReadingWriter(), Compressor()
    made = []
    for number, moment in enumerate(moments):
        content = writer.write(Snapshot(lens, moment, 1 + number, {}))
        content = b"\0" * 8 if number == broken else content
        payload = compressor.compress(content)
        made.append(Chunk(What.READING, LENSES.index(lens), moment, payload, len(content)).to_bytes())
    return made


def false_head(what: What, claimed: int) -> bytes:
    """Return the beginning of a chunk with a wrong checksum."""
    return chunks._HEAD.pack(MARKER, what, 0, claimed, claimed, BEGIN_NS, 1)


def big(moment: int, lens: str = "drops") -> bytes:
    """Return a reading with a large payload, which no compressor wrote."""
    return Chunk(What.READING, LENSES.index(lens), moment, os.urandom(40 * UNITS), 8).to_bytes()


def seconds(count: int, step: int = 1) -> list[int]:
    """Return moments a second apart, or each before the last."""
    return [BEGIN_NS + at * SECOND_NS for at in range(count)][::step]


def many_groups() -> bytes:
    """Return groups with one reading each, which say that the one before begins where a large reading does."""
    content = group() + big(BEGIN_NS)
    at = len(group())
    for moment in seconds(UNITS // 4)[1:]:
        content += group(moment, len(content) - at) + readings([moment])[0]
    return content


def late_readings() -> bytes:
    """Return small groups whose second reading is later than a large last group."""
    content, end = b"", BEGIN_NS + 10 * UNITS * SECOND_NS
    for moment in seconds(UNITS // 4):
        content += group(moment, len(group()) if content else 0) + b"".join(readings([moment, end + moment]))
    return content + group(end) + big(end) + b"".join(readings([end]))


SHAPES: dict[str, Callable[[], bytes]] = {
    "false groups": lambda: group() + false_head(What.GROUP, GROUP_MAX - 1) * 4 * UNITS + bytes(GROUP_MAX),
    "false readings": lambda: (
        group() + false_head(What.READING, 60 << 20) + false_head(What.READING, 50 * UNITS) * 4 * UNITS
    ),
    "one group": lambda: group() + b"".join(readings(seconds(UNITS))),
    "back in time": lambda: group() + b"".join(readings(seconds(UNITS, -1))),
    "broken first": lambda: group() + b"".join(readings(seconds(UNITS), broken=0)),
    "far ahead": lambda: (
        group() + readings([BEGIN_NS])[0] + big(BEGIN_NS + 10**15) + b"".join(readings(seconds(UNITS)))
    ),
    "wrong links": many_groups,
    "late readings": late_readings,
    "unfinished": lambda: group() + b"".join(readings(seconds(UNITS))) + big(BEGIN_NS)[:-1],
}  # fmt: skip


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return how many bytes were verified, and read from files, so far."""
    done = {"verified": 0, "read": 0}
    pread = os.pread

    def crc32(content: bytes, value: int = 0) -> int:
        done["verified"] += len(content)
        return zlib.crc32(content, value)

    def counted(descriptor: int, size: int, at: int) -> bytes:
        content = pread(descriptor, size, at)
        done["read"] += len(content)
        return content

    monkeypatch.setattr(chunks, "zlib", SimpleNamespace(crc32=crc32))
    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(reader, "PAYLOAD_MAX", 1 << 16)  # of which a search may verify one in vain
    return done


# --- commands -----------------------------------------------------------------------------------------------------


def _play(path: str) -> None:
    """Show every reading of a recording, as the screens and the server do."""
    with open_recording(Path(path)) as recording:
        player = Player(recording)
        source = RecordedSource(player, FINDINGS_LENS)
        while player.step(FINDINGS_LENS, 1):
            source.read(0)


def _append(path: str) -> None:
    OneFile(Path(path)).close()


def _from_pipe(path: str) -> None:
    descriptor, other = os.pipe()
    pid = os.fork()
    if not pid:  # pragma: no cover
        with suppress(OSError):
            os.close(descriptor)
            os.write(other, Path(path).read_bytes())
        os._exit(0)
    os.close(other)
    with open_stream(descriptor, "-", lambda: None) as recording:
        recording.read_all()
    os.waitpid(pid, 0)


def _command(*words: str) -> Callable[[str], object]:
    return lambda path: run([word.replace("FILE", path) for word in words], no_probes)


COMMANDS: dict[str, Callable[[str], object]] = {
    "check": _command("check", "--from", "FILE"),
    "replay": _command("replay", "FILE", "--view", "findings", "--table", "--format", "jsonl"),
    "diff": _command("diff", "FILE", "begin", "end", "--span", "2h", "--format", "jsonl"),
    "bundle": _command("bundle", "FILE", "--last", "9h", "--no-doctor", "-o", "b.tar.gz"),
    "export": _command("export", "cpu.stacks", "x.folded", "--from", "FILE"),
    "append": _append,
    "pipe": _from_pipe,
    "play": _play,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_work_is_linear(
    shape: str, command: str, work: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify and read each byte a bounded number of times, whatever the file and the command."""
    monkeypatch.chdir(tmp_path)
    content = SHAPES[shape]()
    Path("r.nettop").write_bytes(content)
    with suppress(NettopError, ValueError if command == "play" else NettopError):
        COMMANDS[command]("r.nettop")
    assert work["verified"] <= PER_BYTE * len(content), work
    assert work["read"] <= PER_BYTE * len(content), work


@pytest.mark.parametrize("shape", ["false groups", "false readings"])
def test_a_search_that_ended_says_so(shape: str, work: dict[str, int], tmp_path: Path) -> None:
    """Report as damage what a bounded search may have missed, and keep the first group."""
    assert not work["read"]
    path = tmp_path / "r.nettop"
    path.write_bytes(SHAPES[shape]())
    with open_recording(path) as recording:
        assert [placed.at for placed in recording.groups] == [0]
        assert not list(recording.chunks(0))
        assert any("too many chunks begin here that are none" in problem for problem in recording.damage)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_infinite_values(tmp_path: Path) -> None:
    """Report an infinite value in a row as damage."""
    rows = rows_from(LIMITS, [{"id": 1, "resource": "x", "used": 1, "limit": 2, "growth": np.inf}], 1)
    assert_no_traceback(_recorded({LIMITS.name: rows}, tmp_path), ExitCode.SOURCE, "findings.limits")


@pytest.mark.parametrize("lacking", ["severity", "since", "view"])
def test_findings_that_lack_something(lacking: str, tmp_path: Path) -> None:
    """Do not show rows that are no whole findings, nor report a single reading as all clear."""
    row = {
        "id": 1, "rank": 1, "severity": "problem", "certainty": "certain", "kind": "x", "finding": "x", "advice": "x",
        "since": BEGIN_NS, "lasted": 1, "unseen": 0, "view": "connections", "filter": "",
    }  # fmt: skip
    rows = rows_from(FINDINGS, [row | {lacking: None}], 1)
    assert_no_traceback(_recorded({FINDINGS.name: rows}, tmp_path), ExitCode.SOURCE)


def _recorded(tables: dict[str, Any], folder: Path) -> Path:
    snapshot = Snapshot(FINDINGS_LENS.id, BEGIN_NS, 1, tables)
    content = ReadingWriter().write(snapshot)
    at = LENSES.index(FINDINGS_LENS.id)
    path = folder / "r.nettop"
    chunk = Chunk(What.READING, at, BEGIN_NS, Compressor().compress(content), len(content))
    path.write_bytes(group() + chunk.to_bytes())
    return path


def assert_no_traceback(path: Path, code: ExitCode, view: str = "findings") -> None:
    """Assert that every command ends with an exit code, and check with this one, if nothing is damaged."""
    words = {
        "replay": ["replay", str(path), "--view", view, "--table"],
        "check": ["check", "--from", str(path)],
        "bundle": ["bundle", str(path), "--no-doctor", "-o", str(path.with_suffix(".tar.gz"))],
        "diff": ["diff", str(path), "begin", "end", "--format", "jsonl"],
    }
    codes = {name: run(word, no_probes) for name, word in words.items()}
    assert codes["check"] == code
    assert min(codes.values()) >= ExitCode.DONE
