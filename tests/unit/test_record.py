# SPDX-License-Identifier: Apache-2.0
"""`nettop record`: what it writes, where, when it ends, and what it says about losses and failures."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.cli import run
from nettop.errors import ExitCode, NettopError, SourceFailed, Unsupported
from nettop.output import record
from nettop.output.record import UNRECORDED_READINGS
from nettop.recording import readings as recorded_readings
from nettop.recording.chunks import Chunk, Group, What
from nettop.recording.files import HOUR_S, Full, HourlyFiles, OneFile, file_name
from nettop.recording.reader import Readings
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.cpu import FREQUENCY
from nettop.snapshots.findings import LATE
from nettop.snapshots.snapshot import Snapshot
from tests.builders.harness import Script
from tests.builders.in_thread import DEADLINE_S, until
from tests.builders.limits import files_of_at_most
from tests.builders.recording import Recording, ids, opened, readings, record_to, three_readings
from tests.unit.build import WALL_NS, example_rows
from tests.unit.scripted import steps
from tests.unit.woken import CLOSE, CONNECT, Woken
from tests.words import settings_of

SECOND_NS = 1_000_000_000
BEGIN_NS = 1_795_000_000 // HOUR_S * HOUR_S * SECOND_NS
"""The beginning of an hour."""
HOUR_NS = HOUR_S * SECOND_NS
SNAPSHOT_OF_DROPS = Snapshot("drops", WALL_NS, 1, {})


def test_what_was_published_is_written(tmp_path: Path) -> None:
    """Write every published reading unchanged, with the events that came before it ahead of it."""
    path = tmp_path / "a.nettop"
    source = three_readings()
    with Recording(str(path), source) as recording:
        until(lambda: recording.published)
        source.happen(CONNECT, CLOSE, quietly=True)
        recording.refresh()
        source.happen(CONNECT, quietly=True)
        text = recording.end()
    assert recording.exit is ExitCode.DONE
    written = readings(path)
    assert len(written) == len(recording.published) == 3
    for ours, theirs in zip(written, recording.published, strict=True):
        assert (ours.wall_ns, ours.boot_ns, ours.lost, ours.tables.keys()) == (
            theirs.wall_ns, theirs.boot_ns, theirs.lost, theirs.tables.keys()
        )  # fmt: skip
        for name in theirs.tables["sockets"].array.dtype.names or ():
            np.testing.assert_array_equal(
                ours.tables["sockets"].array[name], theirs.tables["sockets"].array[name]
            )
    with opened(path) as recorded:
        by_reading = Readings(recorded, CONNECTIONS)
        came = [by_reading.at(snapshot.wall_ns) for snapshot in written]
        assert [sum(map(len, reading.events)) for reading in came if reading] == [0, 2, 1]
        (placed,) = recorded.groups
    assert (placed.group.lenses, placed.group.failures) == (("connections", "findings"), {})
    assert placed.group.host["name"] == os.uname().nodename
    assert "3 readings of connections; 1 reading of findings; 3 connections.events; " in text
    assert text.endswith(f" to {path}; lost nothing\n")


def test_a_lens_that_was_never_read_is_a_loss(tmp_path: Path) -> None:
    """Report lenses that were never read, and readings missed since the first one, as lost."""
    found = [Snapshot("findings", WALL_NS, at, {}, lost={LATE: 2 + at}) for at in (1, 8)]
    drops = [Unsupported("no such tracepoint")]
    with Recording(str(tmp_path / "a"), three_readings(), drops=drops, findings=found) as recording:
        text = recording.end()
    assert text.endswith("; lost every reading (drops), 7 readings skipped (findings)\n")


def test_events_do_not_wait_for_a_late_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write events before a late reading, so that neither is lost if nettop is killed."""
    monkeypatch.setattr(record, "_EVENTS_WAIT_S", 0.0)
    path = tmp_path / "a.nettop"
    source = three_readings()
    with Recording(str(path), source) as recording:
        until(lambda: recording.published)
        source.happen(CONNECT)

        def chunks() -> list[Chunk]:
            if not path.stat().st_size:
                return []
            with opened(path) as recorded:
                return list(recorded.chunks(0))

        until(lambda: What.EVENTS in [chunk.what for chunk in chunks()])
        recording.end()
        assert [chunk.wall_ns for chunk in chunks() if chunk.lens == 0] == sorted(
            chunk.wall_ns for chunk in chunks() if chunk.lens == 0
        )


def test_a_recording_is_continued(tmp_path: Path) -> None:
    """Append a new group to an existing file, and truncate an incomplete last chunk."""
    path = tmp_path / "a.nettop"
    record_to(str(path))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(Group(("connections",), 1.0, "1").to_chunk(1).to_bytes()[:-1])
    record_to(str(path))
    with opened(path) as recorded:
        assert [placed.at for placed in recorded.groups] == [0, size]
        assert recorded.groups[1].group.previous == size
    assert len(readings(path)) == 4


def test_one_that_has_only_begun(tmp_path: Path) -> None:
    """Overwrite a file that ends within its first chunk."""
    path = tmp_path / "a.nettop"
    path.write_bytes(Group(("connections",), 1.0, "1").to_chunk(1).to_bytes()[:20])
    record_to(str(path))
    assert len(readings(path)) == 2


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    """Refuse other files and recordings of a newer format, and leave them unchanged."""
    newer = Group((), 1.0, "9.0", format=99).to_chunk(1).to_bytes()
    for content in (b"x", b"keep this\n" * 9, newer):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(NettopError, match="it is no recording"):
            OneFile(path)
        assert path.read_bytes() == content
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NettopError, match="not a regular file"):
        OneFile(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(NettopError, match="symbolic link"):
        OneFile(tmp_path / "link")


def test_two_do_not_record_to_one_place(tmp_path: Path) -> None:
    """Refuse a second recorder of the same file or directory."""
    first = OneFile(tmp_path / "a.nettop")
    with pytest.raises(NettopError, match="another nettop is recording to it"):
        OneFile(tmp_path / "a.nettop")
    first.close()
    assert not (tmp_path / "a.nettop").exists()  # nothing was recorded
    hourly = HourlyFiles(tmp_path, "web1", 1 << 30, 86_400)
    with pytest.raises(NettopError, match="another nettop is recording to it"):
        HourlyFiles(tmp_path, "web1", 1 << 30, 86_400)
    hourly.close()


def test_a_full_disk_ends_it(tmp_path: Path) -> None:
    """Exit with cause and remedy after the summary; the file stays readable to its end."""
    path = tmp_path / "a.nettop"
    with Recording(str(path), Woken(steps(*[example_rows(40 * at) for at in range(1, 9)]))) as recording:
        until(lambda: path.exists() and path.stat().st_size)
        recording.refresh()
        until(lambda: len(readings(path)) == 2)
        size = path.stat().st_size
        with files_of_at_most(size + 100):
            recording.refresh()
            recording.wait()
            text = recording.stderr.getvalue()
    assert isinstance(recording.exit, NettopError)
    assert recording.exit.what == f"{path} cannot be written: File too large"
    assert "nettop replay" in recording.exit.remedy
    assert recording.exit.exit_code == ExitCode.FAILURE
    assert "recorded " in text
    assert len(readings(path)) == 2
    with opened(path) as recorded:
        assert recorded.end_of(len(recorded.groups) - 1) == recorded.size


def test_a_maximum_size_ends_it(tmp_path: Path) -> None:
    """Exit without an error before exceeding the maximum size; refuse to continue a larger file."""
    path = tmp_path / "a.nettop"
    file = OneFile(path, 1000)
    sink = file.sink_at(0)
    chunk = Group((), 1.0, "1").to_chunk(1)
    while sink.size + len(chunk.to_bytes()) <= 1000:
        sink.put(chunk)
    with pytest.raises(Full):
        sink.put(chunk)
    assert path.stat().st_size == sink.size
    file.close()
    with pytest.raises(NettopError, match="already has"):
        OneFile(path, 200)
    path.unlink()
    with Recording(
        str(path), Woken(steps(example_rows(2), example_rows(500))), max_bytes=10_000
    ) as recording:
        text = recording.end()
    assert recording.exit is ExitCode.DONE
    assert "(--max-size 10.0 kB reached)" in text
    assert len(readings(path)) == 1


# --- directories ------------------------------------------------------------------------------------------------


def write_group(files: HourlyFiles, wall_ns: int, count: int = 1) -> None:
    """Write this many groups at a made-up time."""
    for _ in range(count):
        files.sink_at(wall_ns).put(Group((), 1.0, "1").to_chunk(wall_ns))


def names(directory: Path) -> list[str]:
    """Return the times in the names of the recordings."""
    return sorted(
        path.name.removeprefix("nettop-web1-").removesuffix(".nettop") for path in directory.iterdir()
    )


@contextmanager
def hourly(directory: Path, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> Iterator[HourlyFiles]:
    """Open a directory at a made-up time."""
    monkeypatch.setattr("time.time_ns", lambda: BEGIN_NS)
    files = HourlyFiles(directory, "web1", **{"max_bytes": 1 << 30, "max_age_s": 86_400.0} | limits)
    yield files
    files.close()


def test_a_file_for_each_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named by host and the UTC time of their beginning; their groups link only to those of the same file."""
    directory = tmp_path / "made" / "too"
    with hourly(directory, monkeypatch) as files:
        for minutes in (0, 1, 59, 60, 90, 125):
            write_group(files, BEGIN_NS + minutes * 60 * SECOND_NS)
        sizes = [path.stat().st_size for path in sorted(directory.iterdir())]
        assert sum(sizes) == files.written
    assert (directory / file_name("web1", BEGIN_NS)).exists()
    assert file_name("web 1/é", BEGIN_NS).startswith("nettop-web_1__-2026")
    assert [name[-5:] for name in names(directory)] == ["0000Z", "0000Z", "0500Z"]
    assert [round(size / sizes[-1]) for size in sizes] == [3, 2, 1]
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} <= {0o640, 0o600}


def test_old_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove files that ended longer ago than the maximum age, and no file that nettop did not name."""
    for name in ("notes.txt", "nettop-web1-x.nettop", "mine.nettop"):
        (tmp_path / name).touch()
    with hourly(tmp_path, monkeypatch, max_age_s=3 * HOUR_S) as files:
        for hours in range(8):
            write_group(files, BEGIN_NS + hours * HOUR_NS)
    kept = {file_name("web1", BEGIN_NS + hours * HOUR_NS) for hours in (3, 4, 5, 6, 7)}
    assert {path.name for path in tmp_path.iterdir()} == kept | {
        "notes.txt",
        "nettop-web1-x.nettop",
        "mine.nettop",
    }


def test_the_oldest_files_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep all recordings below the maximum size, and each file below a quarter of it plus a chunk."""
    most = 20_000
    with hourly(tmp_path, monkeypatch, max_bytes=most) as files:
        for seconds in range(300):
            write_group(files, BEGIN_NS + seconds * SECOND_NS, 3)
            sizes = [path.stat().st_size for path in tmp_path.iterdir()]
            assert sum(sizes) <= most
            assert max(sizes) <= most // 4 + 1000
    assert files.written > 3 * most
    assert len(names(tmp_path)) >= 3
    assert not (tmp_path / file_name("web1", BEGIN_NS)).exists()


# --- standard output --------------------------------------------------------------------------------------------


def test_a_slow_reader_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count readings that do not fit into the queue, report them, and record their number."""
    monkeypatch.setattr(record, "QUEUED_ROWS", 150)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    received: list[bytes] = []

    def receive() -> None:
        with os.fdopen(reader, "rb") as pipe:
            received.append(pipe.read())

    draining = threading.Thread(target=receive)
    source = Woken(steps(*[example_rows(100 + at, seed=at) for at in range(9)]))
    with os.fdopen(writer, "w") as stdout, Recording("-", source, stdout) as recording:
        for _ in range(8):
            recording.refresh()
        draining.start()
        text = recording.end()
    draining.join(DEADLINE_S)
    (tmp_path / "a.nettop").write_bytes(received[0])
    written = readings(tmp_path / "a.nettop")
    lost = [snapshot.lost.get(UNRECORDED_READINGS, 0) for snapshot in written]
    assert lost == sorted(lost)
    assert lost[-1] > 0
    assert len(written) + lost[-1] == len(recording.published)
    assert "unrecorded readings: the recording is written too slowly" in text
    assert " to standard output; " in text
    assert f"lost {lost[-1]} unrecorded readings (connections)" in text


def test_a_stalled_reader_does_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop waiting for a reader that does not read once the exit was requested."""
    monkeypatch.setattr("nettop.writing._END_OF_LINE_S", 0.0)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with (
        os.fdopen(reader),
        os.fdopen(writer, "w") as stdout,
        Recording("-", three_readings(), stdout) as recording,
    ):
        until(lambda: recording.published)
        recording.refresh()
        recording.end()
    assert "its reader does not read" in str(recording.exit)


def test_a_reader_that_has_gone_ends_it() -> None:
    """Exit when the reader closes the pipe, as head(1) does."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, Recording("-", three_readings(), stdout) as recording:
        recording.wait()
        assert isinstance(recording.exit, BrokenPipeError)


# --- failures ---------------------------------------------------------------------------------------------------


def sources(**failing: NettopError) -> Callable[[str], Script]:
    """Return sources without rows, some of which fail."""
    return lambda lens: Script([failing.get(lens) or Snapshot(lens, 1, 1, {})])


def test_a_reading_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count and report a reading that is too large, once per lens, and record the others."""
    row_bytes = CONNECTIONS.main.dtype.itemsize
    monkeypatch.setattr(recorded_readings, "ROWS_MAX", 4 * row_bytes)
    path = tmp_path / "a.nettop"
    source = Woken(steps(*(example_rows(count) for count in (3, 5, 6, 2))))
    with Recording(str(path), source) as recording:
        for _ in range(2):
            recording.refresh()
        text = recording.end()
    assert recording.exit is ExitCode.DONE
    assert [len(id_) for id_ in ids(readings(path))] == [3, 2]
    assert readings(path)[-1].lost["unrecorded readings"] == 2
    assert text.count("not recorded: Connections: a reading has more than 0 MiB of rows") == 1
    assert "too slowly" not in text
    assert "lost 2 unrecorded readings (connections)" in text


def test_a_lens_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Record the other lenses, and the reason why one failed; exit with it if no other one was chosen."""
    path = tmp_path / "a.nettop"
    failing = sources(drops=Unsupported("no such tracepoint", "use another kernel"))
    words = ["record", "--lenses", "cpu,drops", "--for", "0.2", "-t", "0.1", str(path)]
    assert run(words, failing) == ExitCode.DONE
    assert "nettop: not recorded: Drops: no such tracepoint\n" in capsys.readouterr().err
    with opened(path) as recorded:
        group = recorded.groups[-1].group
    assert group.failures == {"drops": ["no such tracepoint", "use another kernel"]}
    assert {"cpu", "findings"} <= set(group.lenses)
    assert run(["record", "--lenses", "drops", "--for", "9", str(path)], failing) == ExitCode.UNSUPPORTED


def test_a_lens_that_fails_later(tmp_path: Path) -> None:
    """Record the readings before a failure, and exit with it if no other lens was chosen."""
    path = tmp_path / "a.nettop"
    (first,) = steps(example_rows(3))
    with Recording(str(path), Woken([first, SourceFailed("it is gone")])) as recording:
        recording.refresh()
        text = recording.end()
    assert isinstance(recording.exit, SourceFailed)
    assert text.count("not recorded: Connections: it is gone; not read since 20") == 1
    assert "1 reading of connections" in text
    assert ids(readings(path)) == ids([first])


def test_a_lens_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a lens while it is missing, and record its readings before and after."""
    monkeypatch.setattr("nettop.engine.session.RETRY_S", (0.0,))
    path = tmp_path / "a.nettop"
    (first, *_, last) = steps(*[[]] * 4, example_rows(2))
    broken = SourceFailed("it is gone")
    others = [replace(SNAPSHOT_OF_DROPS, wall_ns=first.wall_ns + at * 10**9) for at in range(9)]
    with Recording(str(path), Woken([first, broken, broken, last]), drops=others) as recording:
        until(lambda: path.exists() and path.stat().st_size)
        recording.refresh()
        until(lambda: "not recorded: Connections" in recording.stderr.getvalue())
        size = path.stat().st_size
        recording.refresh()
        until(lambda: path.stat().st_size > size)
        recording.refresh()
        until(lambda: "recorded again: Connections\n" in recording.stderr.getvalue())
        text = recording.end()
    assert recording.exit is ExitCode.DONE
    assert text.count("not recorded: Connections") == 1
    assert ids(readings(path)) == ids([first, last, last][: len(readings(path))])
    with opened(path) as recorded:
        failures = [placed.group.failures for placed in recorded.groups]
    assert [list(failure) for failure in failures] == [[], ["connections"], []]
    cause, _ = failures[1]["connections"]
    assert cause.startswith("it is gone; not read since 20")


# --- the command line -------------------------------------------------------------------------------------------


def test_options_become_settings(tmp_path: Path) -> None:
    """Always record findings, flows only if named; choose limits by whether a file or a directory is named."""
    usual = settings_of("record")
    assert (usual.path, usual.is_hourly, usual.max_bytes, usual.duration_s) == ("", False, None, None)
    assert {"findings", "connections", "cpu"} <= set(usual.lenses)
    assert "collector" not in usual.lenses
    chosen = settings_of("record", "f", lenses="drops", for_="1.5h", interval="5", max_size="2M")
    assert (chosen.lenses, chosen.duration_s, chosen.interval_s) == (("drops", "findings"), 5400, 5)
    assert (chosen.max_bytes, chosen.is_hourly) == (2 << 20, False)
    kept = settings_of("record", "new/", max_age="12h", frequency="99")
    assert (kept.is_hourly, kept.max_age_s) == (True, 12 * 3600)
    assert kept.options[FREQUENCY] == 99
    assert settings_of("record", str(tmp_path)).is_hourly


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lenses", "conections"], "unknown lens 'conections'|did you mean connections"),
        (["--for", "soon"], "--for 'soon' is not a duration|30s, 10m, 6h or 2d"),
        (["--for", "1", "-t", "5"], "--for 1 is shorter than an interval|use 5s or more"),
        (["--max-age", "1d", "f"], "--max-age is for a directory|with --for, or name a DIR/"),
    ],
)
def test_wrong_words(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Name cause and remedy of a wrong option, and create nothing."""
    assert run(["record", *words], sources()) == ExitCode.USAGE
    shown = capsys.readouterr().err
    assert all(part in shown for part in expected.split("|")), shown


def test_a_terminal_takes_no_recording(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refuse to write a recording to a terminal."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert run(["record", "-"], sources()) == ExitCode.USAGE
    os.close(ours)
    assert "standard output is a terminal" in capsys.readouterr().err


def read_text(terminal: int) -> str:
    """Return what has been written to a terminal and not been read; nothing once all has been."""
    try:
        return os.read(terminal, 1 << 16).decode()
    except BlockingIOError:
        return ""


def test_progress_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show elapsed time and size in one line, which the summary replaces."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        words = ["record", "--lenses", "cpu", "--for", "0.2", "-t", "0.1", str(tmp_path / "a.nettop")]
        assert run(words, sources()) == ExitCode.DONE
        os.set_blocking(ours, False)
        shown = "".join(iter(partial(read_text, ours), ""))
    os.close(ours)
    assert "recording  0 s of 0.2 s" in shown
    assert "(Ctrl-C ends)\r\x1b[Knettop: recorded 0." in shown
