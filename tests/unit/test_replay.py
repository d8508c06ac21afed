# SPDX-License-Identifier: Apache-2.0
"""A recording is shown as if it happened now: moments, play, pause, steps, jumps, and every text output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from nettop.cli import run
from nettop.engine.session import Session
from nettop.errors import ExitCode, UsageError
from nettop.output.table import make_plan
from nettop.recording import writer
from nettop.recording.marks import FAILURES
from nettop.recording.moments import parse_moment, time_text
from nettop.recording.player import Player, RecordedSource
from nettop.recording.recording import open_recording
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.connections import EVENTS, LENS
from nettop.snapshots.findings import FINDINGS, SEVERITY_CODES
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Severity
from nettop.snapshots.snapshot import RECORDER, RECORDING, Frame, Snapshot
from tests.builders.replaying import Clock, no_probes
from tests.unit.build import Row, make_frame, make_rows
from tests.unit.recordings import BEGIN_NS, SECOND_NS, at_second, record

READINGS = 40
"""Readings of a recording, a second apart."""


def rows_at(second: int) -> list[Row]:
    """Return two connections, of which one sends ever faster, and one more that lasts for three seconds."""
    steady: Row = {"id": 1, "process": "steady", "bytes_sent": 1_000 * second}
    faster: Row = {"id": 2, "process": "faster", "bytes_sent": 10 * second * second}
    brief: Row = {"id": 3, "process": f"brief{second}", "bytes_sent": 5}
    return [steady, faster, *([brief] if second % 10 < 3 else [])]


def snapshots() -> list[Snapshot]:
    """Return what is recorded."""
    return [at_second(make_frame(rows_at(second)).now, second) for second in range(READINGS)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a recording of several groups."""
    monkeypatch.setattr(writer, "READINGS_PER_GROUP", 8)
    events = {at: make_rows([{"id": at, "process": f"p{at}"}], EVENTS) for at in (3, 12, 13)}
    return record(tmp_path / "r.nettop", snapshots(), events)


@contextmanager
def played(path: Path) -> Iterator[tuple[Player, Clock, Session]]:
    """Yield the player of a recording, its clock, and a session that shows it."""
    clock = Clock()
    with open_recording(path) as recording:
        player = Player(recording, clock)
        with Session(3600.0, lambda _: RecordedSource(player, LENS)) as session:
            session.enable(LENS.id)
            session.sample_now().result(60)
            yield player, clock, session


def shown(session: Session) -> Frame:
    """Return the frame at the moment of the player."""
    session.sample_now().result(60)
    frame = session.bus.frame(LENS.id)
    assert frame is not None
    return frame


def second_of(snapshot: Snapshot | None) -> float | None:
    """Return how long after the beginning it was taken."""
    return None if snapshot is None else (snapshot.wall_ns - BEGIN_NS) / SECOND_NS


# --- moments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("begin", 0), ("end", 3600), ("14:32", 1920), ("14:32:05", 1925), ("14:32:05.5", 1925.5),
        ("2026-11-28 14:01", 60), ("2026-11-28T14:01:30Z", 90),
        ("-5m", 1500), ("+30s", 1830), ("-2h", 0), ("+1.5h", 3600),
        ("90 minutes ago", 1800), ("1.5 hrs ago", 1800), ("-5min", 1500), ("-30 sec.", 1770),
    ],
)  # fmt: skip
def test_moments(text: str, second: float) -> None:
    """Read times as UTC and distances from the current moment, both limited to the recording."""
    hour = {"begin_ns": BEGIN_NS, "end_ns": BEGIN_NS + 3600 * SECOND_NS}
    here = {"here_ns": BEGIN_NS + 1800 * SECOND_NS, "now_ns": BEGIN_NS + 7200 * SECOND_NS}
    assert parse_moment(text, **hour, **here) == BEGIN_NS + round(second * SECOND_NS)


def test_a_time_of_day_is_the_last_one() -> None:
    """Take the most recent such time of day in a recording over midnight."""
    bounds = {"begin_ns": BEGIN_NS, "end_ns": BEGIN_NS + 86_400 * SECOND_NS, "here_ns": 0, "now_ns": 0}
    assert time_text(parse_moment("23:30", **bounds)) == "2026-11-28 23:30:00"
    assert time_text(parse_moment("13:30", **bounds)) == "2026-11-29 13:30:00"


NO_MOMENTS = {
    "is no moment": ["", "noon", "14:32:75", "5m", "-500ms", "2 months ago"],
    "is not in it|is before its|is after its": [
        "13:00", "15:30", "2026-11-27 14:30", "3h ago", "9999-12-31 23:59:59",
    ],
    "is no time": ["25:00", "14:61"],
    "is too long": ["-" + 400 * "9" + "m"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"), [(text, why) for why, texts in NO_MOMENTS.items() for text in texts]
)
def test_moments_that_are_none(text: str, why: str) -> None:
    """Refuse unreadable moments, and those outside of the recording."""
    end_ns = BEGIN_NS + 3600 * SECOND_NS
    with pytest.raises(UsageError, match=why) as failure:
        parse_moment(text, begin_ns=BEGIN_NS, end_ns=end_ns, here_ns=BEGIN_NS, now_ns=end_ns)
    assert failure.value.remedy


# --- the player -------------------------------------------------------------------------------------------------


def test_the_recording_plays(path: Path) -> None:
    """Play at the chosen speed, stop while paused, and stop at the end."""
    with played(path) as (player, clock, session):
        assert second_of(shown(session).now) == 0
        clock.now += 2.5
        assert second_of(shown(session).now) == 2
        player.speed = 4.0
        clock.now += 1.0
        assert second_of(shown(session).now) == 6
        player.is_paused = True
        clock.now += 10.0
        assert second_of(shown(session).now) == 6
        player.is_paused = False
        clock.now += 1000.0
        assert second_of(shown(session).now) == READINGS - 1
        assert player.is_at_end


def test_a_demo_repeats(path: Path) -> None:
    """Start again after the end."""
    clock = Clock()
    with open_recording(path) as recording:
        player = Player(recording, clock, repeats=True)
        clock.now += READINGS + 3
        assert (player.wall_ns - BEGIN_NS) / SECOND_NS == 4
        assert not player.is_at_end


def test_a_recording_that_goes_on(path: Path) -> None:
    """Show readings that are appended while the player is at the end, also of new groups."""
    later = [at_second(make_frame(rows_at(second)).now, second) for second in range(READINGS, READINGS + 20)]
    with played(path) as (player, clock, session):
        player.jump(player.recording.end_ns)
        assert second_of(shown(session).now) == READINGS - 1
        record(path, later)
        clock.now += 12
        shown(session)  # finds what was added
        assert second_of(shown(session).now) == READINGS + 11
        clock.now += 100
        assert second_of(shown(session).now) == READINGS + 19


@pytest.mark.parametrize("second", [0, 7, 8, 39])
def test_a_jump(path: Path, second: int) -> None:
    """Show the recorded rows after a jump, with rates of the recorded interval, also across groups."""
    with played(path) as (player, clock, session):
        clock.now += 20
        shown(session)
        player.jump(BEGIN_NS + second * SECOND_NS + SECOND_NS // 2)
        frame = shown(session)
        assert second_of(frame.now) == second
        assert second_of(frame.before) == (second - 1 if second else None)
        expected = snapshots()[second].tables["sockets"]
        rows = frame.now.tables["sockets"]
        for field in rows.table.stored:
            assert np.array_equal(rows.array[field.name], expected.array[field.name], equal_nan=True)
        assert shown(session) is frame


def test_steps(path: Path) -> None:
    """Step over all readings in both directions, across groups; the first and last have no neighbour."""
    with played(path) as (player, _, session):
        assert not player.step(LENS, -1)
        for second in range(1, READINGS):
            assert player.step(LENS, 1)
            assert second_of(shown(session).now) == second
        assert not player.step(LENS, 1)
        for second in reversed(range(READINGS - 1)):
            assert player.step(LENS, -1)
            frame = shown(session)
            assert second_of(frame.now) == second
            assert second_of(frame.before) == (second - 1 if second else None)
        assert player.is_paused


def damaged(path: Path, group: int, *, at: float = 0.5) -> Path:
    """Change a byte of a group of a recording."""
    content = bytearray(path.read_bytes())
    with open_recording(path) as recording:
        begin, end = (recording.groups[number].at for number in (group, group + 1))
    content[begin + round(at * (end - begin))] ^= 0xFF
    path.write_bytes(content)
    return path


def test_steps_over_damage(path: Path) -> None:
    """Step over groups of which nothing can be read, in both directions."""
    whole = [*range(8), *range(24, READINGS)]
    for group in (2, 1):
        damaged(path, group, at=0.01)
    with played(path) as (player, _, session):
        seen = [0.0]
        while player.step(LENS, 1):
            seen.append(second_of(shown(session).now) or 0)
        assert seen == whole
        while player.step(LENS, -1):
            seen.pop()
            assert second_of(shown(session).now) == seen[-1]
        assert seen == [0]


def test_steps_over_groups_without_the_lens(tmp_path: Path) -> None:
    """Step over groups in which another lens was recorded, but not this one."""
    findings = Snapshot(FINDINGS_LENS.id, 0, 0, {})
    taken = snapshots()
    others = [at_second(findings, second) for second in range(8, 32)]
    for group in (taken[:8], *(others[at : at + 8] for at in (0, 8, 16)), taken[32:]):
        record(tmp_path / "r.nettop", group)
    with played(tmp_path / "r.nettop") as (player, _, session):
        assert all(player.step(LENS, 1) for _ in range(8))
        assert second_of(shown(session).now) == 32
        assert player.step(LENS, -1)
        assert second_of(shown(session).now) == 7


def test_what_is_damaged_is_not_shown_as_the_last_reading(path: Path) -> None:
    """Show no reading, but the reason, between the last reading before damage and the next group."""
    damaged(path, 1)
    with played(path) as (player, _, session):
        seen: dict[int, float | str | None] = {}
        for second in range(8, 18):
            player.jump(BEGIN_NS + second * SECOND_NS)
            now = shown(session).now
            seen[second] = second_of(now) if now.tables else now.gaps[RECORDING]
    last = max(second for second in range(8, 16) if seen[second] == second)
    damage = ["a checksum is wrong"] * (13 - last)
    assert list(seen.values()) == [*range(8, last + 1), last, last, *damage, 16, 17]


def test_where_nobody_recorded_nothing_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The last reading of a recorder is not what happens until the next one starts, nor after that if the next one does
    not record its lens. Nobody says that nothing is wrong then, and text begins with the next reading."""
    path, connections = tmp_path / "r.nettop", make_frame([{"id": 1}]).now
    record(path, [findings_at(second) for second in range(5)])
    record(path, [at_second(connections, 65), *(findings_at(second) for second in range(70, 75))])
    record(path, [at_second(connections, second) for second in range(80, 90)])
    between, then, at_last = (
        f"from 2026-11-28 {text}"
        for text in ("14:00:04 to 2026-11-28 14:01:05 UTC", "14:00:04 UTC on", "14:01:14 UTC on")
    )
    with open_recording(path) as recording:
        source = RecordedSource(player := Player(recording), FINDINGS_LENS)
        player.is_paused = True
        seen = {}
        for second in (4, 6, 7, 64, 66, 70, 76, 81, 89):
            player.jump(BEGIN_NS + second * SECOND_NS)
            now = source.read(0)
            seen[second] = second_of(now) if now.tables else now.gaps[RECORDER]
    assert list(seen.values()) == [4, 4, between, between, then, 70, 74, at_last, at_last]
    at = ["--at", "14:00:30"]
    assert run(["check", "--from", str(path), *at, "--for", "20"], no_probes) == ExitCode.USAGE
    assert "nobody looked for findings from 2026-11-28 14:00:30" in capfd.readouterr().err
    assert run(["check", "--from", str(path), *at, "--for", "60"], no_probes) == ExitCode.SOURCE
    assert capfd.readouterr().err.splitlines() == [
        "nettop: not watched: Findings: no readings from 2026-11-28 14:00:30 to 2026-11-28 14:01:10 UTC",
        "nettop: not watched: Findings: no readings from 2026-11-28 14:01:14 to 2026-11-28 14:01:29 UTC",
        "nettop: not watched: Drops: not in this recording",
        "nettop: not watched: Services: not in this recording",
    ]
    words = ["replay", str(path), "--view", "connections", "--format", "jsonl", "-d", "--once", "--all"]
    assert run([*words, *at], no_probes) == ExitCode.DONE
    assert json.loads(capfd.readouterr().out)["time"].startswith("2026-11-28T14:01:05")
    words = ["replay", str(path), "--view", "findings", "--table", "--once", "--at", "14:01:25"]
    assert run(words, no_probes) == ExitCode.USAGE


@pytest.mark.parametrize(
    "words",
    ["replay {} --table", "check --from {}", "diff {} 14:00:00 14:00:25 --span 15s", "bundle {} -o b.tar.gz"],
)
def test_every_command_says_what_is_damaged(
    tmp_path: Path, words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report damage after showing what can be read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "READINGS_PER_GROUP", 8)
    taken = snapshots()
    record(
        Path("r.nettop"), [snapshot for at in range(READINGS) for snapshot in (taken[at], findings_at(at))]
    )
    damaged(Path("r.nettop"), 1)
    assert run(words.format("r.nettop").split(), no_probes) == ExitCode.SOURCE
    said = capfd.readouterr().err
    assert "r.nettop is damaged at byte " in said
    assert "Traceback" not in said


def test_a_damaged_file_of_a_folder_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name the damaged file of a folder, so that only it needs to be copied again."""
    monkeypatch.chdir(tmp_path)
    Path("kept").mkdir()
    record(Path("kept/a.nettop"), snapshots())
    Path("kept/b.nettop").write_bytes(b"no recording " * 50)
    assert run(["replay", "kept", "--once"], no_probes) == ExitCode.SOURCE
    assert "nettop: kept/b.nettop is damaged at byte 0: " in capfd.readouterr().err


def test_what_a_newer_version_wrote_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """List lenses, tables and columns of a newer version that are not shown."""
    recording = Path(__file__).parent / "recordings" / "format-1.nettop"
    assert run(["replay", str(recording), "--once"], no_probes) == ExitCode.DONE
    assert "what this version does not know, and so does not show: connections.dreams, connections." in (
        capfd.readouterr().err
    )


def test_events(path: Path) -> None:
    """Show events with their readings, and drop later ones after a jump back."""

    def names(frame: Frame) -> list[str]:
        batches = frame.batches.get(EVENTS.name, ())
        return [batch.texts["process"][code] for batch in batches for code in batch.array["process"]]

    with played(path) as (player, _, session):
        player.jump(BEGIN_NS + 13 * SECOND_NS)
        assert names(shown(session))[-2:] == ["p12", "p13"]
        player.jump(BEGIN_NS + 4 * SECOND_NS)
        assert names(shown(session)) == ["p3"]


def test_a_search(path: Path) -> None:
    """Find the next reading with matching rows, or report that there is none."""

    def has(name: str) -> float | None:
        def has_it(frame: Frame) -> bool:
            rows = frame.now.tables["sockets"]
            return name in [rows.texts["process"][code] for code in rows.array["process"]]

        found = player.next_match(LENS, has_it)
        return None if found is None else (found - BEGIN_NS) / SECOND_NS

    with played(path) as (player, _, _session):
        player.is_paused = True
        assert has("brief21") == 21
        player.jump(BEGIN_NS + 25 * SECOND_NS)
        assert has("brief21") is None


def test_what_was_not_recorded(path: Path) -> None:
    """Report a lens that was not recorded, with those that were; give no details of rows."""
    with open_recording(path) as recording:
        player = Player(recording)
        with Session(3600.0, lambda _: RecordedSource(player, FINDINGS_LENS)) as session:
            session.enable(FINDINGS_LENS.id)
            session.sample_now().result(60)
            failure = session.bus.failure(FINDINGS_LENS.id)
    assert failure is not None
    assert (failure.exit_code, failure.remedy) == (ExitCode.UNSUPPORTED, "it has connections")
    assert RecordedSource(player, LENS).describe(1) == {}


# --- text -------------------------------------------------------------------------------------------------------


def test_text_has_every_reading(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Print each reading once from the moment on, with its rates, in order of time."""
    words = ["--format", "jsonl", "--filter", "faster", "--columns", "bytes_sent,bytes_sent_per_s"]
    assert run(["replay", str(path), "--at", "14:00:10", *words], no_probes) == ExitCode.DONE
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["bytes_sent"] for line in lines] == [10 * n * n for n in range(10, READINGS)]
    assert [line["bytes_sent_per_s"] for line in lines] == [10 * (2 * n - 1) for n in range(10, READINGS)]


def test_text_has_the_findings_of_every_reading(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Print findings from the first reading on; on a kernel, the first one has none."""
    assert make_plan(Settings(view=ViewSettings(view="findings"))).needs_two_snapshots
    record(tmp_path / "r.nettop", [findings_at(second, 1) for second in range(3)])
    words = ["replay", str(tmp_path / "r.nettop"), "--view", "findings", "--format", "jsonl"]
    assert run(words, no_probes) == ExitCode.DONE
    assert len(capfd.readouterr().out.splitlines()) == 3


def test_privileges_are_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop privileges before reading a recording, also under sudo."""
    given_up: list[object] = []
    monkeypatch.setattr("nettop.commands.recordings.give_up_privileges", given_up.append)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert run(["replay", str(path), "--once"]) == ExitCode.DONE
    assert run(["check", "--from", str(path)]) == ExitCode.UNSUPPORTED
    assert run(["bundle", str(path), "-o", str(path.with_name("b.tar.gz"))]) == ExitCode.DONE
    assert len(given_up) == 3


# --- marks --------------------------------------------------------------------------------------------------------


def findings_at(second: float, *severities: int) -> Snapshot:
    """Return findings of these severities."""
    rows = make_rows([{"id": number, "severity": code} for number, code in enumerate(severities)], FINDINGS)
    return at_second(Snapshot(FINDINGS_LENS.id, 0, 0, {FINDINGS.name: rows}), second)


@pytest.mark.parametrize("in_one_file", [True, False])
def test_marks_before_a_restart(tmp_path: Path, *, in_one_file: bool) -> None:
    """Mark findings from before a recorder was killed, though no later group of its own lists them."""
    for name, seconds in (("a", range(5)), ("a" if in_one_file else "b", range(10, 15))):
        record(
            tmp_path / f"{name}.nettop",
            [findings_at(second, *[1] * (second % 10 == 3)) for second in seconds],
        )
    with open_recording(tmp_path) as recording:
        assert [(mark.begin_ns - BEGIN_NS) / SECOND_NS for mark in recording.marks] == [3, 13]


def test_failing_connections_are_marked(tmp_path: Path) -> None:
    """Mark failing connections without a finding, also at the beginning of a group, once their number is known."""
    numbers = [None, 5, 5, 7, 7, 8, 8, 8, 9, 9]
    taken = [
        findings_at(at, *[severity for place, severity in ((5, 1), (8, 3)) if place == at])
        for at in range(len(numbers))
    ]
    with_failed = [
        snapshot if failed is None else replace(snapshot, counts={"failed": failed})
        for snapshot, failed in zip(taken, numbers, strict=True)
    ]
    with patch.object(writer, "READINGS_PER_GROUP", 3):
        record(tmp_path / "r.nettop", with_failed)
    with open_recording(tmp_path / "r.nettop") as recording:
        marks = [((mark.begin_ns - BEGIN_NS) / SECOND_NS, mark.severity) for mark in recording.marks]
        assert marks == [(3, FAILURES), (5, 1), (8, FAILURES)]
        assert Player(recording).next_finding() == BEGIN_NS + 5 * SECOND_NS


def test_the_next_finding_may_begin_while_others_last(tmp_path: Path) -> None:
    """Findings that follow without a pause are one mark, yet each is gone to. One that others explain is not, nor one
    that merely ends, though what is left is less severe; nor a hint, which has no mark on the line of time."""
    ids = [(), (1,), (1,), (1, 2), (2,), (2, 3), (), (2,), (2, 4), (4,), (5,), (), (5,)]
    severities = {4: SEVERITY_CODES[Severity.PROBLEM], 5: SEVERITY_CODES[Severity.HINT]}
    taken = []
    for at, found in enumerate(ids):
        usual = SEVERITY_CODES[Severity.WARNING]
        rows = [
            {"id": id_, "severity": severities.get(id_, usual), "cause": 2 if id_ == 3 else None}
            for id_ in found
        ]
        tables = {FINDINGS.name: make_rows(rows, FINDINGS)}
        taken.append(at_second(Snapshot(FINDINGS_LENS.id, 0, 0, tables), at))
    record(tmp_path / "r.nettop", taken)
    with open_recording(tmp_path / "r.nettop") as recording:
        player = Player(recording, Clock())
        went = []
        while (moment := player.next_finding()) is not None:
            player.jump(moment)
            went.append((moment - BEGIN_NS) / SECOND_NS)
    assert went == [1, 3, 7, 8]


def test_a_finding_of_another_recorder_is_new(tmp_path: Path) -> None:
    """Treat a finding as new if nobody recorded in between."""
    for name, seconds in (("a", range(3)), ("b", range(60, 63))):
        record(tmp_path / f"{name}.nettop", [findings_at(second, 1) for second in seconds])
    with open_recording(tmp_path) as recording:
        player = Player(recording, Clock())
        assert player.next_finding() == BEGIN_NS + 60 * SECOND_NS
