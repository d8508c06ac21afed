# SPDX-License-Identifier: Apache-2.0
"""A recording from a pipe: shown while it comes, with every moment that was shown, and read to its end if need be."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import pytest

from nettop.errors import ExitCode, SourceFailed
from nettop.recording import spool
from nettop.recording.bundle import RECORDING, write_bundle
from nettop.recording.chunks import Group
from nettop.recording.recording import Recording, open_stream
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots.connections import LENS
from tests.kernel.terminal import Terminal
from tests.unit.build import make_frame
from tests.unit.children import DEADLINE_S, Child, capabilities, started
from tests.unit.recordings import BEGIN_NS, SECOND_NS, at_second

READINGS = 10


def recorded(count: int = READINGS) -> bytes:
    """Return a recording of a process whose name is the second of each reading; a shorter one is its beginning."""
    content = bytearray()
    writer = RecordingWriter(Sink(content.extend), Group(("connections",), 1.0, "0", {"name": "web-1"}))
    for second in range(count):
        frame = make_frame([{"id": 1, "process": f"second{second}", "bytes_sent": second}])
        writer.write(at_second(frame.now, second))
    return bytes(content)


WHOLE, HALF = recorded(), len(recorded(READINGS // 2))


def moments(recording: Recording) -> list[int]:
    """Return the seconds of the readings that were found."""
    found = recording.moments_between(LENS, BEGIN_NS, recording.end_ns)
    return [(moment - BEGIN_NS) // SECOND_NS for moment in found]


@contextmanager
def piped(content: bytes) -> Iterator[tuple[Recording, IO[bytes], list[None]]]:
    """Yield the recording of a pipe with this content, the pipe's other end, and a list of reports that it waits."""
    waited: list[None] = []
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as pipe:
        pipe.write(content)
        with open_stream(reader, "the pipe", lambda: waited.append(None)) as recording:
            yield recording, pipe, waited


# --- the recording ----------------------------------------------------------------------------------------------


def test_it_grows_and_ends() -> None:
    """Find readings as they arrive in any pieces, and stop waiting once the pipe has ended."""
    with piped(WHOLE[: HALF + 5]) as (recording, pipe, _):
        assert moments(recording) == list(range(READINGS // 2))
        recording.follow()
        assert not recording.is_over
        pipe.write(WHOLE[HALF + 5 : -1])
        while recording.wait_for_more():
            recording.refresh()
            if recording.end_ns == BEGIN_NS + (READINGS - 2) * SECOND_NS and not pipe.closed:
                pipe.write(WHOLE[-1:])
                pipe.close()
        assert recording.is_over
        assert moments(recording) == list(range(READINGS))


def test_a_file_in_place_of_a_pipe(tmp_path: Path) -> None:
    """Read a file in place, without a copy."""
    (tmp_path / "file").write_bytes(WHOLE)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    with open_stream(descriptor, "the file", list) as recording:
        assert recording.is_over
        assert not recording.wait_for_more()
        assert moments(recording) == list(range(READINGS))


def test_a_bundle(tmp_path: Path) -> None:
    """Unpack the recording of a bundle once all of it has arrived."""
    with open(tmp_path / "bundle", "w+b") as file:
        write_bundle(file, {"README.txt": "about it", RECORDING: BytesIO(WHOLE)}, BEGIN_NS)
        file.seek(0)
        reader, writer = os.pipe()
        with open(writer, "wb") as pipe:
            pipe.write(file.read())
    with open_stream(reader, "the pipe", list) as recording:
        assert not recording.wait_for_more()
        assert moments(recording) == list(range(READINGS))


def test_a_bundle_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse a bundle beyond the limit, rather than showing a part as the whole."""
    monkeypatch.setattr(spool, "SPOOL_MAX", 100)
    monkeypatch.setattr(spool, "_PIECE", 90)
    reader, writer = os.pipe()
    with open(writer, "wb") as pipe:
        pipe.write(gzip.compress(os.urandom(1000)))
    with pytest.raises(SourceFailed, match="cut short: it has more"), open_stream(reader, "the pipe", list):
        pass


def test_one_that_becomes_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what fits, close the pipe, and keep the reason."""
    with piped(WHOLE[:-30]) as (recording, pipe, _):
        monkeypatch.setattr(spool, "SPOOL_MAX", len(WHOLE) - 1)
        recording.follow()
        pipe.write(WHOLE[-30:])
        assert not recording.wait_for_more()
        assert recording.cut_short == "it has more than 0 MiB"
        assert moments(recording) == list(range(READINGS - 1))
        with pytest.raises(BrokenPipeError):
            pipe.write(WHOLE)


@pytest.mark.parametrize(
    ("size", "why"), [(0, "it has no reading"), (4, "it has no reading"), (-4, "there is no chunk")]
)
def test_what_is_none(size: int, why: str) -> None:
    """Refuse other content at once, and the beginning of a recording once the pipe ends."""
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as pipe:
        pipe.write(WHOLE[:size] if size >= 0 else b"x" * 200)
        if size >= 0:
            pipe.close()
        with pytest.raises(SourceFailed, match=why), open_stream(reader, "the pipe", list):
            pass


# --- the commands -----------------------------------------------------------------------------------------------


def send(child: Child, content: bytes) -> None:
    """Write to a child's standard input."""
    assert child.stdin is not None
    child.stdin.flush()
    child.stdin.buffer.write(content)  # type: ignore[attr-defined]
    child.stdin.buffer.flush()  # type: ignore[attr-defined]


def test_text_follows_the_pipe() -> None:
    """Print each reading as it arrives, and exit at the end of the pipe."""
    with started("-m", "nettop", "replay", "-", "--format", "jsonl", "--columns", "process") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stderr.readline() == "nettop: waiting for a recording on standard input (Ctrl-C ends)\n"
        send(child, WHOLE[:HALF])
        assert json.loads(child.stdout.readline())["process"] == "second0"
        assert json.loads(child.stdout.readline())["process"] == "second1"
        assert capabilities(child.pid) == {"0" * 16}
        send(child, WHOLE[HALF:])
        child.stdin.close()
        assert [json.loads(line)["process"] for line in child.stdout] == [
            f"second{n}" for n in range(2, READINGS)
        ]
        assert child.wait(DEADLINE_S) == ExitCode.DONE


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("replay", "-", "--at", "-3s", "--once", "--columns", "process"), ExitCode.DONE, "second6"),
        (("check", "--from", "-"), ExitCode.UNSUPPORTED, "the recording has no findings"),
        (("export", "cpu.stacks", "--from", "-", "--format", "folded", "-"), ExitCode.UNSUPPORTED, "CPU"),
        (("diff", "-", "begin", "14:00:05", "--span", "4s"), ExitCode.DONE, "nothing"),
    ],
)  # fmt: skip
def test_what_needs_the_whole(words: tuple[str, ...], code: int, said: str) -> None:
    """Moments count from the end of the pipe, and commands about a span wait for it."""
    with started("-m", "nettop", *words) as child:
        send(child, WHOLE)
        out, err = child.communicate(timeout=DEADLINE_S)
        assert child.returncode == code, err
        assert said in out + err


def test_screens_read_keys_from_the_terminal(tmp_path: Path) -> None:
    """Read keys from the terminal while standard input is the pipe, and keep moments that were shown."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with (
        Terminal(
            "replay", "-", "--speed", "20", around=("sh", "-c", 'exec "$@" < "$0"', str(fifo))
        ) as terminal,
        open(fifo, "wb", buffering=0) as pipe,
    ):
        terminal.shows(b"waiting for a recording on standard input")
        pipe.write(WHOLE[:HALF])
        terminal.shows(b"second4")
        pipe.write(WHOLE[HALF:])
        terminal.shows(b"second9")
        terminal.type(b" ", "‖ ×20".encode())
        terminal.type(b":", b"UTC: ")
        terminal.type(b"14:00:02\r", "‖ ×20  2026-11-28 14:00:02 UTC".encode())
        terminal.shows(b"second2")
        terminal.type(b"q")
        assert terminal.wait() == 0
