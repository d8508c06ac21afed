# SPDX-License-Identifier: Apache-2.0
"""`nettop check`: what it prints, its exit codes, and what it leaves out."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from nettop.cli import run
from nettop.errors import ExitCode, NettopError, PermissionMissing, SourceFailed, Unsupported
from nettop.output import check
from nettop.output.watching import WATCHED
from nettop.snapshots import all_rules
from nettop.snapshots.drops import COUNTERS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Snapshot
from tests.builders.example_findings import example_steps
from tests.builders.harness import Rules, Script, Step
from tests.unit.build import make_rows

QUICK = ("check", "--for", "0.2", "-t", "0.1")


def sources(connections: list[Step], **others: NettopError | Snapshot) -> Callable[[str], Script]:
    """Return sources by lens: these readings, and lenses without rows, with others, or that fail."""

    def source_of(lens: str) -> Script:
        if lens == "connections":
            return Script(connections)
        if lens == "findings":
            return Rules()
        return Script([others.get(lens, Snapshot(lens, 0, 0, {}))])

    return source_of


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make standard error a terminal; what it showed is in the list afterwards."""
    ours, theirs = os.openpty()
    shown: list[str] = []
    with open(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        yield shown
    text = b""
    with suppress(OSError):  # its end
        while piece := os.read(ours, 4096):
            text += piece
    shown.append(text.decode())
    os.close(ours)


def bad_day() -> list[Step]:
    """Return two readings of a host with findings of all severities."""
    return list(example_steps(30)[-3:])


def test_problems_are_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its age, its certainty, what follows from it, what to try and where to look; the exit code is 1."""
    assert run(QUICK, sources(bad_day())) == ExitCode.FAILURE
    out, err = capsys.readouterr()
    first, *rest = out.splitlines()
    assert first == "problem: payapi 10.0.3.7:7003 does not accept: 9 of 8 connections wait"
    assert rest[0].startswith("  since 2026-11-18T")
    assert rest[0].endswith("certain")
    assert (
        "  see: nettop --view connections --filter 'pid=1201 and local_port=7003 and state=LISTEN accept"
        in out
    )
    assert (
        "  explains: ordersvc cannot send to 10.0.3.7:7000: 244 kB wait, because reportd does not read" in out
    )
    assert "  try: see what payapi 1201 does instead" in out
    assert err == ""


def test_nothing_wrong_is_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, of which cron would send a mail."""
    assert run(QUICK, sources(list(example_steps(3, calm=True)))) == ExitCode.DONE
    assert capsys.readouterr() == ("", "")


def test_a_person_is_told_that_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is a terminal then."""
    with terminal(monkeypatch) as shown:
        assert run(QUICK, sources(list(example_steps(3, calm=True)))) == ExitCode.DONE
    assert shown[0].endswith("nettop: nothing found in 0.2 s\r\n")


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A record for each finding that no other explains, with every field."""
    assert run((*QUICK, "--format", "jsonl"), sources(bad_day())) == ExitCode.FAILURE
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rank"] for row in rows] == sorted(row["rank"] for row in rows)
    assert {row["cause"] for row in rows} == {None}
    assert {"accept queue full", "data unread"} <= {row["kind"] for row in rows}
    assert all(row["advice"] and row["filter"] for row in rows)


def test_ignored_kinds_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """They are not printed, and do not count; an unknown one is an error with the nearest name."""
    ignored = ["accept queue full", "data unread", "CLOSE_WAIT", "no local port"]
    words = [word for kind in ignored for word in ("--ignore", kind)]
    assert run((*QUICK, *words), sources(bad_day())) == ExitCode.DONE
    assert "payapi" not in capsys.readouterr().out
    assert run((*QUICK, "--ignore", "data unred"), sources(bad_day())) == ExitCode.USAGE
    assert "did you mean data unread" in capsys.readouterr().err


def test_a_lens_that_cannot_be_watched_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The others are watched, and what they find is printed."""
    failing = sources(bad_day(), drops=Unsupported("no such tracepoint"))
    assert run(QUICK, failing) == ExitCode.FAILURE
    out, err = capsys.readouterr()
    assert "payapi" in out
    assert err == "nettop: not watched: Drops: no such tracepoint\n"


def lacking(hook: str, code: ExitCode, *fields: str) -> tuple[HookStatus, ...]:
    """Return the status of a hook that was refused."""
    return (HookStatus(hook, None, (("fentry", "loading BPF programs needs CAP_BPF"),), fields, code=code),)


@pytest.mark.parametrize(
    ("lens", "unwatched", "what", "code"),
    [
        ("drops", Unsupported("no such tracepoint"), "Drops: no", ExitCode.UNSUPPORTED),
        ("drops", PermissionMissing("needs root"), "Drops: needs", ExitCode.PERMISSION),
        ("drops", SourceFailed("the ring broke"), "Drops: the ring", ExitCode.SOURCE),
        ("services", lacking("calls", ExitCode.PERMISSION), "services: loading", ExitCode.PERMISSION),
        ("services", lacking("calls", ExitCode.UNSUPPORTED), "services: loading", ExitCode.UNSUPPORTED),
        (
            "connections",
            lacking("udp", ExitCode.PERMISSION, "messages_sent", "messages_received"),
            "DNS unanswered in connections: loading",
            ExitCode.PERMISSION,
        ),
    ],
)
def test_nothing_wrong_is_not_said_of_what_is_not_watched(
    lens: str,
    unwatched: NettopError | tuple[HookStatus, ...],
    what: str,
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lens that fails, a table that lacks its hooks and a kind of finding that lacks columns are named, and the exit
    code is that of the reason; unless all their kinds are ignored."""
    calm = list(example_steps(3, calm=True))
    if isinstance(unwatched, NettopError):
        source_of = sources(calm, **{lens: unwatched})
    elif lens == "connections":
        source_of = sources([replace(step, hooks=unwatched) for step in calm])
    else:
        source_of = sources(calm, **{lens: Snapshot(lens, 0, 0, {}, hooks=unwatched)})
    with terminal(monkeypatch) as shown:
        assert run(QUICK, source_of) == code
    assert f"nettop: not watched: {what}" in shown[0]
    assert "nothing found" not in shown[0]
    kinds = [kind for kind, (of, table, _) in all_rules().items() if lens in (of.id, table.name)]
    assert run((*QUICK, *(word for kind in kinds for word in ("--ignore", kind))), source_of) == ExitCode.DONE


class Late(Script):
    """A source that is read, but has no second reading before `after` of them; see ReplayingSource."""

    def __init__(self, lens: str, after: int) -> None:
        super().__init__([Snapshot(lens, 0, 0, {})])
        self._left = after

    def read(self, taken_ns: int) -> Snapshot:
        """Return the first reading again, or another."""
        self._left -= 1
        return super().read(taken_ns) if self._left > 0 else replace(super().read(taken_ns))

    def leap(self) -> tuple[bool, None]:
        """Return that each reading follows the one before."""
        return False, None


@pytest.mark.parametrize("lens", [lens for lens in WATCHED if lens not in ("connections", "findings")])
def test_a_check_waits_for_two_readings_of_each_lens(lens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than asked for, as an interval without a rate shows nothing; what has none in the end is named, beside
    what was found."""
    calm = sources(list(example_steps(3, calm=True)))
    slow = Late(lens, after=8)
    with terminal(monkeypatch) as shown:
        assert run(QUICK, lambda asked: slow if asked == lens else calm(asked)) == ExitCode.DONE
    assert slow._left <= 0
    assert "nothing found in " in shown[0]

    monkeypatch.setattr(check, "LONGEST_WAIT_S", 0.2)
    for found, code in ((calm, ExitCode.SOURCE), (sources(bad_day()), ExitCode.FAILURE)):
        once = Late(lens, after=1_000_000)
        with terminal(monkeypatch) as shown:
            assert run(QUICK, lambda asked, of=found, late=once: late if asked == lens else of(asked)) == code
        assert re.search(r"not watched: \w+: too few readings in \d+ s", shown[0])
        assert "nothing found" not in shown[0]


def test_a_table_that_is_not_read_each_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many namespaces the counters are read less often: new rows of other tables say nothing about them."""
    monkeypatch.setattr(check, "LONGEST_WAIT_S", 0.2)
    counters = make_rows([], COUNTERS)
    steps = [Snapshot("drops", 0, at, {COUNTERS.name: counters}) for at in range(20)]
    calm = sources(list(example_steps(3, calm=True)))
    assert run(QUICK, lambda lens: Script(steps) if lens == "drops" else calm(lens)) == ExitCode.SOURCE


@pytest.mark.parametrize("words", [("--for", "0"), ("--for", "x"), ("--for", "1", "-t", "2")])
def test_wrong_times(words: tuple[str, ...]) -> None:
    """A time must be a number, and at least an interval."""
    assert run(("check", *words), sources([])) == ExitCode.USAGE


def test_a_terminal_sees_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a line of its own on standard error, which is gone at the end."""
    with terminal(monkeypatch) as shown:
        assert run(QUICK, sources(bad_day())) == ExitCode.FAILURE
    (text,) = shown
    assert re.search(r"watching for \d s more  \(Ctrl-C ends\)", text)
    assert text.endswith("\x1b[K")
    assert capsys.readouterr().out.startswith("problem: ")
