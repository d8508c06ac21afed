# SPDX-License-Identifier: Apache-2.0
"""What changed between two spans of recordings: what was injected is found, what always varies is not."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.cli import run
from nettop.errors import ExitCode, UsageError
from nettop.query.filter import parse_filter
from nettop.recording.diff import PARTS, Change, Span, _certainty, differences
from nettop.recording.moments import exact_text, parse_length
from nettop.recording.player import Player
from nettop.recording.recording import open_recording
from nettop.settings import Settings
from nettop.snapshots import find_table, lenses
from nettop.snapshots.schema import PRESENCE, ROWS, Certainty
from nettop.snapshots.services import BUCKETS, SERVICES
from nettop.snapshots.snapshot import Snapshot
from tests.builders.replaying import no_probes, said
from tests.kernel.terminal import Terminal
from tests.unit.build import Row, make_frame
from tests.unit.recordings import BEGIN_NS, SECOND_NS, at_second, record

DEMO = str(files("nettop") / "demo.nettop")
STEP_S = 5
QUARTER_S = 900
BURST_SHARE = 0.03
"""Share of readings in which the backup sends."""
Change_at = Callable[["Host", float], None]


@dataclass
class Host:
    """A host with noisy traffic, whose counters grow step by step."""

    seed: int
    response_ns: dict[str, float] = field(default_factory=lambda: {"webapp": 800e3, "authd": 3e6})
    rates: dict[str, float] = field(default_factory=lambda: {"webapp": 3e6, "authd": 40e3, "backupd": 20e6})
    drops: dict[str, float] = field(default_factory=lambda: {"NO_SOCKET": 2.0, "SOCKET_RCVBUFF": 0.0})
    cpu: dict[str, float] = field(default_factory=lambda: {"TCP": 80e6, "netfilter": 30e6})

    def __post_init__(self) -> None:
        """Begin with counters at 0."""
        self.chance = np.random.default_rng(self.seed)
        self.sent: dict[str, int] = dict.fromkeys(self.rates, 0)
        self.answered = {name: np.zeros(BUCKETS.count, np.int64) for name in self.response_ns}
        self.dropped = dict.fromkeys(self.drops, 0)
        self.spent = dict.fromkeys(self.cpu, 0)
        self.guest = 100

    def step(self) -> None:
        """Let `STEP_S` seconds pass."""
        chance = self.chance
        for name, rate in self.rates.items():
            is_on = name != "backupd" or chance.random() < BURST_SHARE
            self.sent[name] = self.sent.get(name, 0) + int(is_on * rate * STEP_S * chance.lognormal(0, 0.5))
        for name, typical in self.response_ns.items():
            responses = chance.poisson(20 * STEP_S * min(1.0, 1e6 / typical) + 3)
            np.add.at(
                self.answered[name], BUCKETS.places(chance.lognormal(np.log(typical), 0.6, responses)), 1
            )
        for name, rate in self.drops.items():
            self.dropped[name] += int(chance.poisson(rate * STEP_S))
        for name, rate in self.cpu.items():
            self.spent[name] += int(rate * STEP_S * chance.lognormal(0, 0.3))
        self.guest += int(chance.random() < 0.2)

    def snapshots(self) -> Iterator[Snapshot]:
        """Yield a reading of each lens."""
        sockets: list[Row] = [
            {"id": at, "process": name, "bytes_sent": sent, "bytes_received": 0,
             "direction": "outbound", "remote_address": f"10.0.5.{at}", "remote_port": 443}
            for at, (name, sent) in enumerate(self.sent.items(), 1)
        ]  # fmt: skip
        guests: list[Row] = [
            {"id": at, "process": "webapp", "bytes_sent": 5_000 * (self.guest - at), "bytes_received": 0,
             "direction": "inbound", "local_port": 8080, "remote_address": f"203.0.113.{at % 250}"}
            for at in range(self.guest - 6, self.guest + 1)
        ]  # fmt: skip
        yield make_frame([*sockets, *guests]).now
        services: list[Row] = [
            {"id": at, "process": name, "side": "served", "port": 8080 + at, "responses": int(counts.sum()),
             "response": counts}
            for at, (name, counts) in enumerate(self.answered.items())
        ]  # fmt: skip
        yield make_frame(services, table=SERVICES, lens="services").now
        drops: list[Row] = [
            {"id": at, "reason": name, "severity": "trouble", "process": "dnsd", "port": 53, "packets": count}
            for at, (name, count) in enumerate(self.dropped.items(), 1)
            if count
        ]  # fmt: skip
        yield make_frame(drops, table=find_table("drops")[1], lens="drops").now
        cpu: list[Row] = [
            {"id": at, "entry": "RX softirq", "category": name, "time_ns": spent}
            for at, (name, spent) in enumerate(self.spent.items(), 1)
        ]  # fmt: skip
        yield make_frame(cpu, table=find_table("cpu.categories")[1], lens="cpu").now


def slower(host: Host, second: float) -> None:
    """Make webapp slow in the second quarter of an hour."""
    host.response_ns["webapp"] = 1.5e9 if second >= QUARTER_S else 800e3


def talks(host: Host, second: float) -> None:
    """Let another process send in the second quarter of an hour."""
    if second >= QUARTER_S:
        host.rates["exfild"] = 12e6


def drops(host: Host, second: float) -> None:
    """Drop packets in the second quarter of an hour."""
    host.drops["SOCKET_RCVBUFF"] = 120.0 if second >= QUARTER_S else 0.0


def recorded(path: Path, *changes: Change_at, seed: int = 1, seconds: int = 2 * QUARTER_S) -> Path:
    """Record two quarters of an hour, and what is injected into them."""
    host = Host(seed)

    def readings() -> Iterator[Snapshot]:
        for second in range(0, seconds + 1, STEP_S):
            for change in changes:
                change(host, second)
            host.step()
            yield from (at_second(snapshot, second) for snapshot in host.snapshots())

    return record(path / f"{seed}.nettop", list(readings()))


def compared(
    path: Path, seconds: Sequence[float] = (0, QUARTER_S), length_s: float = QUARTER_S
) -> list[Change]:
    """Return what changed between spans that begin at these seconds."""
    with open_recording(path) as recording:
        begins = [BEGIN_NS + round(second * SECOND_NS) for second in seconds]
        spans = [Span(recording, begin, begin + round(length_s * SECOND_NS)) for begin in begins]
        return differences(*spans).changes


SAID = {slower: "webapp :8080 answers in ", talks: "exfild ", drops: "SOCKET_RCVBUFF drops "}


@pytest.mark.parametrize("change", SAID, ids=lambda change: change.__name__)
@pytest.mark.parametrize("seed", [1])
def test_an_injected_change_is_among_the_first_three(change: Change_at, seed: int, tmp_path: Path) -> None:
    """Find an injected change with certainty, with both numbers."""
    first = compared(recorded(tmp_path, change, seed=seed))[:3]
    (found, *_) = [difference for difference in first if difference.sentence.startswith(SAID[change])]
    assert found.certainty is Certainty.CERTAIN
    assert found.is_worse == (change is not talks)
    assert found.sentence.endswith("before")


def test_what_ended_is_found_too(tmp_path: Path) -> None:
    """Find a process that stopped sending, at the time when it still did."""
    changes = compared(recorded(tmp_path, talks), (QUARTER_S, 0))
    gone = next(change for change in changes if change.key[0] == "exfild")
    assert gone.is_gone
    assert gone.at_ns >= BEGIN_NS + QUARTER_S * SECOND_NS


@pytest.mark.parametrize("seed", range(3))
def test_two_equal_quarters_of_an_hour_have_no_certain_change(seed: int, tmp_path: Path) -> None:
    """Find nothing certain in bursts, clients that come and go, and rates that vary by half."""
    changes = compared(recorded(tmp_path, seed=seed))
    assert [change.sentence for change in changes if change.certainty is Certainty.CERTAIN] == []
    assert len(changes) <= 3


@pytest.mark.parametrize(
    "noise",
    [
        lambda chance, shape: chance.lognormal(0, 1, shape) * 1e5,
        lambda chance, shape: chance.poisson(3, shape) * 1e4,
        lambda chance, shape: (chance.random(shape) < 0.2) * chance.lognormal(0, 2, shape) * 1e6,
        lambda chance, shape: np.exp(chance.normal(0, 0.03, shape)) * 1e7,
    ],
    ids=["lognormal", "poisson", "bursts", "steady"],
)
def test_noise_is_no_change(noise: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]) -> None:
    """Of 20,000 pairs of spans judge none certain, hardly any likely and few possible."""
    numbers = noise(np.random.default_rng(7), (20_000, 2 * PARTS))
    judged = [_certainty(row[:PARTS], row[PARTS:], 1_000.0) for row in numbers]
    assert judged.count(Certainty.CERTAIN) == 0
    assert judged.count(Certainty.LIKELY) <= 40
    assert judged.count(Certainty.POSSIBLE) <= 500


def test_a_change_of_few_readings_is_not_certain() -> None:
    """Judge three parts likely and one not at all; skip unknown parts."""
    few = [np.array([*numbers, *[np.nan] * (PARTS - 3)]) for numbers in ([10.0, 11, 10], [900.0, 910, 905])]
    assert _certainty(few[0], few[1], 1.0) is Certainty.LIKELY
    one = np.array([10.0, *[np.nan] * (PARTS - 1)])
    assert _certainty(one, few[1], 1.0) is None


def test_what_is_not_compared(tmp_path: Path) -> None:
    """Report for each lens why it is not compared."""
    host = Host(1)
    full, bare = [], []
    for second in range(20):
        host.step()
        connections, services, drops, cpu = (at_second(snapshot, second) for snapshot in host.snapshots())
        full += [connections, replace(services, tables={}), drops, *([cpu] if second < 2 else [])]
        bare += [connections, services, cpu]
    with (
        open_recording(record(tmp_path / "full.nettop", full)) as before,
        open_recording(record(tmp_path / "bare.nettop", bare)) as now,
    ):
        spans = [Span(recording, BEGIN_NS, BEGIN_NS + 20 * SECOND_NS) for recording in (before, now)]
        found = differences(*spans)
    assert found.compared == ["Connections"]
    assert {title: found.not_compared[title] for title in ("Services", "Drops", "CPU")} == {
        "Services": "its numbers were not recorded",
        "Drops": "not recorded",
        "CPU": "too few readings",
    }


def test_every_measure_is_declared_of_a_table() -> None:
    """Measures name existing columns, parsable filters, and only their own values in sentences."""
    declared = [(table, measure) for lens in lenses() for table in lens.tables for measure in table.measures]
    assert len(declared) == 23
    for table, measure in declared:
        assert {*measure.by, measure.column} - {ROWS, PRESENCE} <= table.by_name.keys()
        assert parse_filter(table, measure.filter) is not None
        for sentence in filter(None, (measure.says, measure.began, measure.ended)):
            values = dict.fromkeys((*measure.by, "now", "before", "target"), "")
            plain = sentence.replace("[", "").replace("]", "")
            assert "{now}" in plain
            assert plain.format(**values)


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording with everything injected."""
    return recorded(tmp_path_factory.mktemp("diff"), slower, talks, drops)


def test_text(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Print a sentence and the command that shows the row at that time, and exit with 1."""
    assert run(["diff", str(path), "14:00", "14:15", "--span", "15m"], no_probes) == ExitCode.FAILURE
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("1. certain: ")
    assert "not compared: Bandwidth: not recorded" in err
    for line in lines[1:7:2]:
        program, *words = shlex.split(line.removeprefix("   see: "))
        assert program == "nettop"
        assert run([*words, "--once", "--format", "jsonl"], no_probes) == ExitCode.DONE
        assert capfd.readouterr().out.count("\n") == 1


def test_the_findings_that_changed_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """Include findings that others explain, which the screen omits."""
    _, out, _ = said(capfd, "diff", DEMO, "begin", "end", "--span", "35s", "--limit", "99")
    commands = [line.removeprefix("   see: ") for line in out.splitlines() if "see: " in line]
    found = [command for command in commands if "--view findings" in command]
    assert found
    for command in found:
        assert run([*shlex.split(command)[1:], "--once", "--format", "jsonl"], no_probes) == ExitCode.DONE
        assert capfd.readouterr().out, command


def test_a_change_is_opened(
    path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open the screens, paused, at what a change's command shows; refuse a number without a change."""
    shown: list[tuple[str, ...]] = []

    def show_screens(settings: Settings, session: Any, refused: str, player: Player, **_: Any) -> ExitCode:
        assert player.is_paused
        shown.append((exact_text(player.wall_ns), settings.view.view, *settings.view.filters))
        return ExitCode.DONE

    monkeypatch.setattr("nettop.commands.replay.show_screens", show_screens)
    monkeypatch.setattr("nettop.commands.show._is_on_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    words = ["diff", str(path), "14:00", "14:15", "--span", "15m"]
    run([*words, "--format", "text"], no_probes)
    lines = capfd.readouterr().out.splitlines()[1:7:2]
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert run([*words, "--open", str(number)], no_probes) == ExitCode.DONE
        options = shlex.split(line)[4:]
        assert options[::2] == ["--at", "--view", "--filter"]
        assert shown.pop() == tuple(options[1::2])
    assert run([*words, "--open", "99"], no_probes) == ExitCode.USAGE
    assert "--open 99: there are " in capfd.readouterr().err


def test_the_list_on_a_terminal(path: Path) -> None:
    """Show the rows of the selected change on →, and the list again, at its place, on `q`."""
    with Terminal("diff", str(path), "14:00", "14:15", "--span", "15m") as terminal:
        terminal.shows("▸ 1 certain: ".encode())
        terminal.shows(b"not compared: Bandwidth: not recorded")
        terminal.type(b"\x1b[B", "▸ 2 certain: ".encode())
        terminal.type(b"\x1b[C", "‖ ×1".encode())
        assert "1 of " in terminal.screen()
        terminal.type(b"q", "▸ 2 certain: ".encode())
        terminal.type(b"q")
        assert terminal.wait() == ExitCode.FAILURE


def test_the_list_in_a_small_terminal(path: Path) -> None:
    """Select the last change with its notes; lengthen lines when the terminal grows."""
    sentence = compared(path)[0].sentence.encode()
    with Terminal("diff", str(path), "14:00", "14:15", "--span", "15m", columns=36, lines=8) as terminal:
        terminal.shows("▸ 1 certain: ".encode())
        assert not terminal.has_shown(sentence)
        assert not terminal.has_shown(b"Bandwidth: not")
        terminal.type(b"\x1b[F", b"Bandwidth: not")
        terminal.resize(120, 40)
        terminal.shows(sentence)
        terminal.type(b"q")
        assert terminal.wait() == ExitCode.FAILURE


@pytest.mark.parametrize(("keys", "end"), [(b"", signal.SIGTERM), (b"\x1b[C", None)], ids=["list", "rows"])
def test_an_interrupt_ends_the_list(path: Path, keys: bytes, end: int | None) -> None:
    """Exit on a signal or Ctrl-C, also while the rows of a change are shown."""
    with Terminal("diff", str(path), "14:00", "14:15", "--span", "15m") as terminal:
        before = terminal.settings()
        terminal.shows(b"select")
        if keys:
            terminal.type(keys, "‖ ×1".encode())
        if end is None:
            terminal.type(b"\x03")
        else:
            os.kill(terminal.pid, end)
        assert terminal.wait() == ExitCode.FAILURE
        assert terminal.settings() == before


def test_jsonl(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Print each change as an object with both numbers in base units."""
    assert run(["diff", str(path), "14:02", "14:20", "--format", "jsonl"], no_probes) == ExitCode.FAILURE
    changes = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    (slow,) = [
        change for change in changes if change["topic"] == "services" and change["process"] == "webapp"
    ]
    assert (slow["certainty"], slow["port"], slow["unit"]) == ("certain", 8080, "ns")
    assert slow["before"] * 100 < slow["now"]
    assert slow["at"].startswith("2026-11-28T14:2")


def test_two_recordings(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Compare two whole recordings, or a moment of each."""
    other = recorded(tmp_path, seed=4, seconds=300)
    assert run(["diff", str(other), str(path), "14:01", "14:20"], no_probes) == ExitCode.FAILURE
    assert str(path) in capfd.readouterr().out
    run(["diff", str(other), str(other.parent / "missing.nettop")], no_probes)
    assert "missing.nettop" in capfd.readouterr().err
    assert run(["diff", str(other), str(path)], no_probes) in (ExitCode.DONE, ExitCode.FAILURE)
    assert capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["begin"], ExitCode.USAGE, "two moments or two recordings are compared"),
        (["14:02"], ExitCode.USAGE, "there is no recording 14:02"),
        (["13:00", "14:10"], ExitCode.USAGE, "'13:00' is before its beginning"),
        (["14:02", "2026-11-28 15:10"], ExitCode.USAGE, "15:10' is after its end"),
        (["14:02", "14:02:30"], ExitCode.USAGE, "the two spans overlap\n  use --span 30s, or choose moments"),
        (["-20s", "-8.5s"], ExitCode.USAGE, "the two spans overlap\n  use --span 10s, or choose moments"),
        (["begin", "end", "--span", "2h"], ExitCode.USAGE, "the two spans overlap\n  use --span 900s, or"),
        (["end", "end"], ExitCode.USAGE, "the two spans overlap\n  choose moments that are farther apart"),
        (["14:02", "14:10", "--span", "5s"], ExitCode.UNSUPPORTED, "  compare longer spans (--span)"),
        (["--span", "5m", DEMO], ExitCode.USAGE, "--span 5m begins at moments, and none is given"),
        (["14:00", "14:15", "--span", "15m", "--open", "1"], ExitCode.USAGE, "terminal\n  leave out --open"),
        (["--open", "1", "--format", "jsonl", DEMO], ExitCode.USAGE, "--format jsonl is for text, --open 1 for"),
        (["14:02", "14:10", "--limit", "0"], ExitCode.USAGE, "--limit"),
        (["14:02", "14:08", "--span", "5m"], ExitCode.DONE, "nothing changed by more than it always varies"),
        (["-", "-"], ExitCode.USAGE, "standard input has only one recording\n  name the other one"),
        ([DEMO, DEMO], ExitCode.USAGE, "compared with itself\n  give two moments of it: nettop diff FILE"),
        (["--", "-60s", "-9s", "--span", "9s"], ExitCode.USAGE, "as if it were a moment\n  write it before --"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(
    words: list[str], code: int, said: str, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each has a cause and its exit code."""
    arguments = words if words == ["begin"] or words[0] in ("-", DEMO) else [str(path), *words]
    assert run(["diff", *arguments], no_probes) == code
    assert said in capfd.readouterr().err


def test_lengths() -> None:
    """Read seconds without a unit; refuse a sign."""
    lengths = {"0.5": 0.5, "90": 90, "60s": 60, "1.5m": 90, "15m": 900, "2h": 7200, "2 hours": 7200}
    assert {text: parse_length(text) / SECOND_NS for text in lengths} == lengths
    for text in ("", "-5m", "5m ago", "soon", "0s"):
        with pytest.raises(UsageError):
            parse_length(text)
