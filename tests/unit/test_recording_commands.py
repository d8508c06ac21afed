# SPDX-License-Identifier: Apache-2.0
"""Commands that work on recordings: several hosts in a folder, restarts, moments, options that mean another thing."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import shlex
import sys
import tarfile
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from nettop.cli import run
from nettop.errors import ExitCode
from nettop.recording.player import Player, RecordedSource
from nettop.recording.recording import open_recording
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.cpu import LENS as CPU
from nettop.snapshots.cpu import STACKS
from nettop.snapshots.snapshot import RECORDER, Snapshot
from tests.builders.replaying import no_probes, said
from tests.unit.build import make_frame
from tests.unit.recordings import BEGIN_NS, SECOND_NS, at_second, record

DEMO = str(files("nettop") / "demo.nettop")


def readings(*seconds: int) -> list[Snapshot]:
    """Return readings of a connection at these seconds."""
    now = make_frame([{"id": 1, "process": "web", "bytes_sent": 5}]).now
    return [at_second(now, second) for second in seconds]


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [[(0, 1, 2), (1, 2, 3)], [(0, 5), (1, 2), (3, 4)]])
def test_hosts_recorded_at_the_same_time_are_not_one(
    times: Sequence[Sequence[int]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refuse a folder with recordings of several hosts, and name them."""
    for number, seconds in enumerate(times):
        record(tmp_path / f"{number}.nettop", readings(*seconds), host=("web-1", "db-1")[number % 2])
    for words in (("replay", "--table"), ("check", "--from"), ("export", "cpu.stacks", "x.svg", "--from")):
        code, out, err = said(capfd, *words, str(tmp_path))
        assert (code, out) == (ExitCode.USAGE, "")
        assert "has recordings of several hosts: db-1 and web-1\n  name a file" in err


def test_a_host_with_a_new_name_is_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Join recordings of a host that was renamed."""
    for number, seconds in enumerate(((0, 1), (2, 3))):
        record(tmp_path / f"{number}.nettop", readings(*seconds), host=("old", "new")[number])
    code, out, _ = said(capfd, "replay", str(tmp_path), "--format", "jsonl")
    assert code == ExitCode.DONE
    assert len(out.splitlines()) == 4


# --- export -------------------------------------------------------------------------------------------------------


def stacks(second: int, samples: int) -> Snapshot:
    """Return a reading of the CPU lens with one stack."""
    row = {"id": 1, "entry": "RX softirq", "stack": "ip_rcv", "samples": samples, "time_ns": samples * 10**6}
    snapshot = at_second(make_frame([row], lens="cpu", table=STACKS).now, second)
    return Snapshot("cpu", snapshot.wall_ns, snapshot.boot_ns, snapshot.tables, counts={"sampled_hz": 997})


def exported(path: Path, *duration: str) -> tuple[str, ...]:
    """Return the words that export the stacks of this duration to standard output."""
    return ("export", "cpu.stacks", "-", "--from", str(path), "--format", "folded", "--duration", *duration)


def test_an_export_does_not_span_a_restart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Refuse an export across a restart of the recorder, whose counts begin again."""
    path = record(tmp_path / "a.nettop", [stacks(second, 10 * second) for second in range(5)])
    record(path, [stacks(second, 10 * second - 90) for second in range(10, 15)])
    code, out, err = said(capfd, *exported(path, "12"))
    assert (code, out) == (ExitCode.USAGE, "")
    assert "nettop record was started anew at 2026-11-28 14:00:10" in err
    for moment, seconds, samples in (("begin", "4", 40), ("2026-11-28 14:00:10", "3", 30)):
        code, out, err = said(capfd, *exported(path, seconds, "--at", moment))
        assert (code, out) == (ExitCode.DONE, f"RX softirq;ip_rcv {samples}\n"), err


def test_an_export_up_to_the_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Report an export that ended early, and refuse one of a single reading, between which nothing is counted."""
    path = record(tmp_path / "a.nettop", [stacks(second, 10 * second) for second in range(5)])
    for duration, early in (("4", ""), ("9", ", ended early (9 s were requested)")):
        assert said(capfd, *exported(path, duration))[2] == f"nettop: 40 samples in 4.0 s{early}\n"
    for of_one in (("0.5",), ("10", "--at", "end")):
        code, out, err = said(capfd, *exported(path, *of_one))
        assert (code, out) == (ExitCode.USAGE, "")
        assert "CPU was read only once from 2026-11-28 14:00:0" in err


# --- times in which nobody recorded -------------------------------------------------------------------------------


@pytest.fixture
def with_pauses(tmp_path: Path) -> Path:
    """Return a recording made by three runs, of which only the first one has the CPU lens."""
    path = record(
        tmp_path / "a.nettop", [*readings(0, 1, 2), *(stacks(second, second) for second in range(3))]
    )
    for seconds in ((10, 11, 12), (20, 21, 22)):
        record(path, readings(*seconds))
    return path


def test_a_lens_that_was_left_out_long_before(with_pauses: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Report since when a lens is missing, however many runs there were since."""
    with open_recording(with_pauses) as recording:
        player = Player(recording)
        gap = {RECORDER: "from 2026-11-28 14:00:02 UTC on"}
        for second, gaps in ((2, {}), (10, gap), (22, gap)):
            player.jump(BEGIN_NS + second * SECOND_NS)
            assert RecordedSource(player, CPU).read(0).gaps == gaps
    words = ("replay", str(with_pauses), "--view", "cpu.stacks", "--at", "end", "--once", "-d")
    code, out, err = said(capfd, *words)
    assert (code, out) == (ExitCode.USAGE, "")
    assert "was not read from 2026-11-28 14:00:22 on\n  choose a moment up to 2026-11-28 14:00:02" in err


def test_a_step_back_from_where_nobody_recorded(with_pauses: Path) -> None:
    """Step back from a pause to the last reading before it."""
    with open_recording(with_pauses) as recording:
        player = Player(recording)
        player.jump(BEGIN_NS + 17 * SECOND_NS)
        for second in (12, 11):
            assert player.step(CONNECTIONS, -1)
            assert player.wall_ns == BEGIN_NS + second * SECOND_NS
        player.jump(BEGIN_NS + 22 * SECOND_NS)
        assert player.step(CPU, -1)
        assert player.wall_ns == BEGIN_NS + 2 * SECOND_NS


# --- check and diff -----------------------------------------------------------------------------------------------


def test_evidence_is_what_is_shown_then(capfd: pytest.CaptureFixture[str]) -> None:
    """Each finding's command shows rows, whenever within a second it was last seen."""
    code, out, err = said(capfd, "check", "--from", DEMO)
    assert (code, err) == (ExitCode.FAILURE, "")
    commands = [line.removeprefix("  see: ") for line in out.splitlines() if line.startswith("  see: ")]
    assert len(commands) >= 5
    for command in commands:
        code, rows, err = said(capfd, *shlex.split(command)[1:], "--once", "--format", "jsonl")
        assert (code, bool(rows)) == (ExitCode.DONE, True), command


def test_nothing_in_a_part_is_nothing_in_that_part(capfd: pytest.CaptureFixture[str]) -> None:
    """Name the part of the recording in which nothing was found."""
    code, out, err = said(capfd, "check", "--from", DEMO, "--for", "5")
    assert (code, out) == (ExitCode.DONE, "")
    assert f"nothing found in {DEMO} from 2026-11-28 21:44:17 to 2026-11-28 21:44:22\n" in err
    code, _, err = said(capfd, "check", "--from", DEMO, "--for", "0.5")
    assert code == ExitCode.SOURCE
    assert "not watched: Connections: too few readings" in err
    assert said(capfd, "check", "--from", DEMO, "--for", "2d")[0] == ExitCode.FAILURE


FOR_THIS_HOST = {
    "check OPTION --from": ["--follow-namespaces"],
    "export cpu.stacks x.svg OPTION --from": ["--mechanism calls=tracepoints", "--frequency 99"],
    "serve OPTION --from": ["--max-overhead 2%", "--top process=5"],
    "--once OPTION --demo": ["--interval 5", "--group remote"],
}


@pytest.mark.parametrize(
    "words",
    [words.replace("OPTION", option) for words, options in FOR_THIS_HOST.items() for option in options],
)
def test_options_for_this_host_do_not_apply(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Refuse options of the sources for a recording, and for the demo, which is one."""
    code, out, err = said(capfd, *words.split(), *([] if "--demo" in words else [DEMO]))
    option = next(word for word in words.split() if word.startswith("--") and word != "--once")
    assert (code, out) == (ExitCode.USAGE, "")
    assert f"{option} does not apply to a recording\n  leave it out" in err


@pytest.mark.parametrize(("speed", "interval_s"), [("0.5", 1.0), ("100", 0.1)])
def test_a_speed_from_the_beginning(speed: str, interval_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read at the interval that a speed chosen by key would have."""
    shown: list[float] = []

    def show_screens(_settings: Any, opened: Any, _refused: str, player: Player, **_: Any) -> ExitCode:
        with opened as session:
            shown.append(session.interval_s)
        assert player.speed == float(speed)
        return ExitCode.DONE

    monkeypatch.setattr("nettop.commands.replay.show_screens", show_screens)
    assert run(["replay", DEMO, "--speed", speed], no_probes) == ExitCode.DONE
    assert shown == [interval_s]


def test_the_second_recording_may_be_standard_input(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accept standard input as the second recording."""
    taken = os.dup(0)
    try:
        with open(DEMO, "rb") as demo:
            os.dup2(demo.fileno(), 0)
        with open(0, closefd=False) as standard_input:
            monkeypatch.setattr(sys, "stdin", standard_input)
            code, _, err = said(capfd, "diff", DEMO, "-", "begin", "end", "--span", "10s")
        assert code in (ExitCode.DONE, ExitCode.FAILURE), err
    finally:
        os.dup2(taken, 0)
        os.close(taken)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        *((f"{words} missing.nettop", ExitCode.USAGE, "there is no recording missing.nettop")
          for words in ("replay --once", "bundle", "serve --listen 127.0.0.1:0 --from")),
        *((f"{words} r.nettop --at 13:00", ExitCode.USAGE, "'13:00' is before its beginning")
          for words in ("replay --once", "bundle", "serve --listen 127.0.0.1:0 --from")),
        ("replay --once r.nettop --speed 0", ExitCode.USAGE, "--speed 0"),
        ("replay --once r.nettop --speed 10", ExitCode.USAGE, "--speed applies to the screens"),
        ("diff --spam 20s r.nettop -60s -20s", ExitCode.USAGE, "unknown option '--spam'\n  did you mean --span?"),
        ("replay --once r.nettop --view drops", ExitCode.UNSUPPORTED, "Drops: not in this recording"),
        ("replay --once text", ExitCode.SOURCE, "text is no recording"),
        ("replay --once .", ExitCode.DONE, ""),
        ("bundle r.nettop --last 0", ExitCode.USAGE, "'0' is no length of time"),
        ("bundle r.nettop -o nowhere/b", ExitCode.FAILURE, "nowhere/b cannot be written"),
        ("bundle other.tar.gz", ExitCode.SOURCE, "other.tar.gz is no recording"),
        ("serve --listen 127.0.0.1:0 --from r.nettop --lenses drops", ExitCode.UNSUPPORTED,
         "Drops: not in this recording"),
        ("serve --listen 127.0.0.1:0 --at 14:00", ExitCode.USAGE, "name the recording with --from"),
    ],
)  # fmt: skip
def test_what_is_refused(
    words: str, code: int, expected: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each error has a cause, a remedy and its exit code, and leaves no file; a folder is the recordings in it."""
    record(folder / "r.nettop", readings(*range(10)))
    Path("text").write_text("no recording\n" * 100)
    with tarfile.open("other.tar.gz", "w:gz") as archive:
        archive.add("r.nettop")
    before = set(Path().iterdir())
    found, _, err = said(capfd, *words.split())
    assert (found, expected in err) == (code, True), err
    assert set(Path().iterdir()) == before


# --- moments ------------------------------------------------------------------------------------------------------


def test_forward_is_from_the_beginning(capfd: pytest.CaptureFixture[str]) -> None:
    """Count a forward distance from the beginning."""
    _, out, _ = said(capfd, "replay", DEMO, "--at", "+30s", "--once", "--format", "jsonl")
    assert json.loads(out.splitlines()[0])["time"].startswith("2026-11-28T21:44:4")


# --- rows with their own time -------------------------------------------------------------------------------------


def test_the_time_of_an_event_is_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    """Print an event's own time, whatever columns are chosen."""
    words = ("replay", DEMO, "--view", "connections.events", "--once", "--limit", "1", "--format")
    times = []
    for columns in ((), ("--columns", "process,event_id,event")):
        _, out, _ = said(capfd, *words, "csv", *columns)
        times.append(next(csv.DictReader(io.StringIO(out)))["time"])
        _, out, _ = said(capfd, *words, "jsonl", *columns)
        times.append(json.loads(out)["time"])
    assert len(set(times)) == 1


# --- compressed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("compress", "command"), [(gzip.compress, "zcat"), (lzma.compress, "xzcat")])
def test_a_compressed_recording(
    compress: Callable[[bytes], bytes], command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refuse a compressed recording with the command that reads it."""
    packed = tmp_path / "a {1} recording"
    packed.write_bytes(compress(Path(DEMO).read_bytes()))
    code, out, err = said(capfd, "replay", str(packed), "--once")
    assert (code, out) == (ExitCode.SOURCE, "")
    assert f"{packed} is no recording, nor a bundle, but compressed" in err
    assert f"{command} '{packed}' | nettop replay -" in err


# --- permissions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("replay", "--once"), ("bundle", "-o", "-")])
def test_only_opening_a_recording_tells_whether_it_can_be_read(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Open a recording as the user who called sudo, without asking access(2) first."""
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    code, _, err = said(capfd, *words, DEMO)
    assert code == ExitCode.DONE, err


# --- bundles ------------------------------------------------------------------------------------------------------


def test_a_bundle_that_was_cut_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Show what can be read of a truncated bundle, then report the damage."""
    bundle = tmp_path / "a.tar.gz"
    assert run(["bundle", DEMO, "-o", str(bundle)], no_probes) == ExitCode.DONE
    capfd.readouterr()
    bundle.write_bytes(bundle.read_bytes()[: bundle.stat().st_size // 2])
    code, out, err = said(capfd, "replay", str(bundle), "--format", "jsonl")
    assert code == ExitCode.SOURCE
    assert len(out.splitlines()) > 100
    assert f"{bundle} is damaged at byte " in err
