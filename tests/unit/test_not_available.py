# SPDX-License-Identifier: Apache-2.0
"""Fields that this kernel or host lacks are `n/a`, null or empty in every frontend: never 0, never unknown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from textual.geometry import Size

from nettop import cli
from nettop.cli import parse
from nettop.errors import ExitCode, NettopError, Unsupported, UsageError
from nettop.formats.jsonl import JsonLines
from nettop.formats.separated import Separated
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism, check_chosen
from nettop.output.log_lines import TextLines
from nettop.output.run_report import CommandEnd, RunReport
from nettop.output.table import AlignedTable, header
from nettop.query.filter import parse_filter
from nettop.query.query import Query, Sort, parse_sort
from nettop.query.view import View
from nettop.screens.context import TableRef
from nettop.screens.lens import screen_class
from nettop.settings import Format, LineFormat, Settings, TextSettings, ViewSettings
from nettop.settings.run import RunSettings
from nettop.settings.shared import complete_mechanism
from nettop.settings.values import parse_mechanisms
from nettop.snapshots import lenses
from nettop.snapshots.connections import EVENTS, FAILURES, FOLLOWED_UDP, GROUPS, SOCKETS
from nettop.snapshots.drops import COUNTERS, PACKETS
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE, Field, Hook, Kind, Lens, Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.cells import RowFlags, column_cells, total_cells
from nettop.widgets.columns import declared, plan
from nettop.widgets.details import detail_lines, sections_of
from tests.unit.build import WALL_NS, Row, make_frame, make_rows
from tests.unit.logging_run import Logging, settings, until
from tests.unit.scripted import Scripted, printed, steps
from tests.unit.woken import CLOSE, CONNECT, FAIL, Woken

WHY = 'no "such" hook'
KEY = 700


class Case(NamedTuple):
    """A column that is not available because the field `lacking` is missing."""

    lens: Lens
    table: Table
    name: str
    lacking: str


def cases() -> list[Case]:
    """Return every column of every table, rates and composites included, with each field that it cannot be without."""
    cases = []
    for lens in lenses():
        for table in lens.tables:
            for field in table.fields:
                parts = field.parts[:1] if field.kind is Kind.GROUP else field.parts or (field.name,)
                cases += [Case(lens, table, field.name, part) for part in parts]
                if field.kind is Kind.COUNTER:
                    cases.append(Case(lens, table, field.name + RATE, field.name))
    return cases


CASES = cases()
STORED = [case for case in CASES if case.name == case.lacking]


def for_each(cases: list[Case]) -> Callable[[Callable[[Case], None]], Callable[[str], None]]:
    """Run a test for every case of a table; a failure names its case. One test for each would take minutes."""
    by_table: dict[str, list[Case]] = {}
    for case in cases:
        by_table.setdefault(f"{case.lens.id}.{case.table.name}", []).append(case)

    def decorate(test: Callable[[Case], None]) -> Callable[[str], None]:
        def test_table(table: str) -> None:
            for case in by_table[table]:
                try:
                    test(case)
                except BaseException as error:
                    error.add_note(f"{table}: {case.name} without {case.lacking}")
                    raise

        test_table.__doc__ = test.__doc__
        return pytest.mark.parametrize("table", by_table)(test_table)

    return decorate


def row_of(table: Table, growth: int = 0) -> Row:
    """Return a row that has a value in every field: what is not available must not show it."""
    return {field.name: _value(field, at, growth) for at, field in enumerate(table.stored)} | {table.key: KEY}


def _value(field: Field, at: int, growth: int) -> Any:
    values: dict[Kind, Any] = {
        Kind.LABEL: 100 + at,
        Kind.TEXT: f"text{at}",
        Kind.ADDRESS: "198.51.100.7",
        Kind.TIME: WALL_NS,
        Kind.GAUGE: (100 if field.dtype == "u1" else 7_000_000) + at,
        Kind.COUNTER: 7_000_000 + at + growth,
        Kind.HISTOGRAM: 7_000_000 + at + growth,
    }
    return values[field.kind] if field.kind in values else next(iter(field.labels.values()), KEY)


def frame_of(lens: Lens, table: Table, missing: dict[str, str], row: Row | None = None) -> Frame:
    """Return two snapshots of a table with one row that moves; events are a batch."""
    now = row_of(table, 1000) | (row or {})
    kwargs: dict[str, Any] = {"lens": lens.id, "missing": missing}
    if table.append:
        return Frame(make_frame([], **kwargs).now, batches={table.name: (make_rows([now], table),)})
    return make_frame([now], [row_of(table)], table=table, **kwargs)


def view_of(frame: Frame, table: Table, filter_text: str = "", sort: str = "", **query: Any) -> View:
    """Return the frame's table, all rows of it."""
    words = parse_sort(table, sort or table.key), parse_filter(table, filter_text)
    return View(frame, Query(table, *words, all_rows=True, **query))


def lacking(case: Case) -> View:
    """Return the table without the field."""
    return view_of(frame_of(case.lens, case.table, {case.lacking: WHY}), case.table)


def lines_text(lines: Any) -> str:
    """Return lines of a pane as text."""
    return "\n".join("".join(span.text for span in line) for line in lines)


# --- columns ----------------------------------------------------------------------------------------------------


@for_each(CASES)
def test_screens(case: Case) -> None:
    """A cell and the details are n/a, and give the reason; so is the total."""
    view = lacking(case)
    screen = screen_class(TableRef(case.lens, case.table))
    (column,) = plan(case.table, (case.name,), 60, extra=False, bars=False)
    at = np.arange(1)
    flags_of = screen.row_style.flags
    flags = [RowFlags()] if flags_of is None else flags_of(view, at)
    assert [text.strip() for text, _ in column_cells(view, column, at, flags, screen.row_style)] == [
        NOT_AVAILABLE
    ]
    key, column = plan(case.table, (case.table.key, case.name), 60, extra=False, bars=False)
    total = total_cells(view, (key, column))[1][0].strip()
    is_summed = case.table.adds_up and column.field.kind in (
        Kind.COUNTER,
        Kind.RATIO,
        Kind.SUM,
        Kind.QUANTILE,
    )
    assert total == (NOT_AVAILABLE if is_summed else "")
    if case.name in {field.name for _, fields in sections_of(case.table) for field in fields}:
        shown = next(
            part
            for part in lines_text(detail_lines(view, KEY, {}, 400, explained=True)).splitlines()
            if f" {case.name}: " in part
        )
        assert shown.removeprefix(declared(case.table, case.name).title).split()[0] == NOT_AVAILABLE
        assert WHY in shown


@for_each(CASES)
def test_plain_output(case: Case) -> None:
    """The table has n/a, CSV nothing, JSON null, and --why the reason."""
    view, names = lacking(case), (case.name,)
    assert AlignedTable(case.table, names)(view).split() == [header(case.table, case.name), NOT_AVAILABLE]
    (row,) = csv.DictReader(io.StringIO(Separated(tuple({case.table.key: 0, case.name: 0}))(view)))
    assert row[case.name] == ""
    assert json.loads(JsonLines(names)(view))[case.name] is None
    line = json.loads(JsonLines(names, why=True)(view))
    assert (line[case.name], line["why"]) == (None, {case.name: WHY})


_BEGUN_BY = {"rtt_var_us": "±", "device": "%"}
"""Fields that are a part of another one's value, and the sign before them."""


@for_each(STORED)
def test_logged_lines(case: Case) -> None:
    """A logged line has n/a for the field; the others are unchanged."""
    lines = TextLines(case.lens.id, case.table, "metrics")
    at = np.arange(1)

    def line(missing: dict[str, str], row: Row) -> str:
        return lines.lines(view_of(frame_of(case.lens, case.table, missing, row), case.table), at)

    # A connect tells of its handshake, a close of the rest.
    rows: list[Row] = [{"event": "connect"}, {"event": "close"}] if case.table is EVENTS else [{}]
    for row in rows:
        unknown = (
            {case.name: None} if case.table.by_name[case.name].kind is not Kind.ADDRESS else {case.name: "::"}
        )
        is_shown = line({}, row) != line({}, row | unknown)
        lacks = line({case.name: WHY}, row)
        if case.name == "event":  # without it nobody knows what else a line is to tell
            assert f"  {NOT_AVAILABLE}  " in lacks
        elif case.name in _BEGUN_BY:  # the part goes, the value stays
            assert _BEGUN_BY[case.name] not in lacks
        elif is_shown:
            assert NOT_AVAILABLE in lacks
            assert len(lacks.splitlines()) == 1
        else:
            assert lacks == line({}, row)


@for_each(CASES)
def test_available_mechanisms_stay(case: Case) -> None:
    """With every hook working none of these columns is n/a or null."""
    view = view_of(frame_of(case.lens, case.table, {}), case.table)
    if case.table.append and case.name.endswith(RATE):
        return
    line = json.loads(JsonLines((case.name,), why=True)(view))
    assert line[case.name] is not None
    assert line["why"] == {}
    assert not view.missing


COMPARED: dict[Kind, tuple[str, ...]] = {
    Kind.KEY: ("=700", "!=5", "<9999"),
    Kind.LABEL: (">=0", "!=5", "<9999"),
    Kind.TEXT: ("~text", "!=x", "!~zz"),
    Kind.ENUM: ("!~zz", "~"),
    Kind.ADDRESS: ("=198.51.100.7", "!=10.0.0.1", "!~10.0.0.1", "~198"),
    Kind.ENDPOINT: ("~198", "!~10.0.0.1", "!=10.0.0.1", "!=10.0.0.1:80", "!=:65000", "=198.51.100.7"),
    Kind.TIME: (">2020-01-01", "!=2020-01-01"),
    Kind.GAUGE: (">=0", "!=1"),
    Kind.COUNTER: (">=0", "!=1"),
    Kind.RATIO: (">=0", "!=50"),
    Kind.SUM: (">=0", "!=1"),
    Kind.QUANTILE: (">=0", "!=1"),
    Kind.HISTOGRAM: (),
}


@for_each(CASES)
def test_filters_never_pass(case: Case) -> None:
    """No comparison with an unavailable column is true, and the view names it with the reason."""
    field = declared(case.table, case.name)
    first = case.table.by_name[field.parts[0]] if field.kind is Kind.GROUP else field
    frames = {
        why: frame_of(case.lens, case.table, {case.lacking: WHY} if why else {}) for why in (True, False)
    }
    for comparison in COMPARED[first.kind]:
        text = case.name + ('~""' if comparison == "~" else comparison)
        assert len(view_of(frames[False], case.table, text).order) == 1, text
        view = view_of(frames[True], case.table, text)
        assert len(view.order) == 0, text
        assert view.filter_remarks == [f"{case.name} is {NOT_AVAILABLE} here: {WHY}"]


@for_each(CASES)
def test_sums_and_order(case: Case) -> None:
    """An unavailable column has no sum and no counts, and sorting by it is harmless."""
    view = lacking(case)
    at = np.arange(1)
    assert view.values(case.name, at) == [None]
    assert view.total(case.name, at) is None
    frame = frame_of(case.lens, case.table, {case.lacking: WHY})
    for descending in (False, True):
        query = Query(case.table, Sort(case.name, descending), parse_filter(case.table, ""), all_rows=True)
        assert View(frame, query).order.tolist() == [0]
    field = case.table.by_name.get(case.name)
    if field is not None and field.kind is Kind.ENUM:
        assert view.count_by(case.name, at) == {}


def test_the_default_filter_hides_nothing_that_it_cannot_ask() -> None:
    """Rows are shown if the table's default filter uses an unavailable column."""
    rows = [{"state": "LISTEN"}, {"state": "ESTABLISHED"}]
    for missing, shown in (({}, 1), ({"state": WHY}, 2)):
        frame = make_frame(rows, missing=missing)
        view = View(frame, Query(SOCKETS, Sort("id"), parse_filter(SOCKETS, "")))
        assert len(view.order) == shown


def test_a_group_stands_with_its_first_part() -> None:
    """The owner is shown even if only the container is not available."""
    frame = make_frame([{"process": "nginx", "pid": 7, "container": "docker:x"}], missing={"container": WHY})
    view = view_of(frame, SOCKETS)
    assert AlignedTable(SOCKETS, ("owner", "container"))(view).split()[-2:] == ["nginx_7", NOT_AVAILABLE]


# --- headlines --------------------------------------------------------------------------------------------------


def headline(lens_id: str, table: Table, frame: Frame) -> str:
    """Return a wide screen's second line for the table."""
    lens = next(lens for lens in lenses() if lens.id == lens_id)
    screen: Any = SimpleNamespace(
        size=Size(200, 40),
        state=SimpleNamespace(totals=True),
        closed=None,
    )
    parts = screen_class(TableRef(lens, table)).headline(screen, view_of(frame, table))
    return "   ".join("".join(span.text for span in part.spans) for part in parts)


@pytest.mark.parametrize(
    ("table", "missing", "words"),
    [
        (SOCKETS, "bytes_sent", "↑ n/a"),
        (SOCKETS, "bytes_received", "↓ n/a"),
        (SOCKETS, "state", "n/a conns"),
        (SOCKETS, "retransmits", "retrans n/a"),
        (GROUPS, "closed", "closed n/a"),
        (GROUPS, "failed", "failed n/a"),
        (GROUPS, "connections", "conns n/a"),
        (FAILURES, "failures", "failures n/a"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_headlines(table: Table, missing: str, words: str) -> None:
    """A sum or a count of an unavailable column is n/a."""
    lens = next(lens for lens in lenses() if table in lens.tables)
    assert words not in headline(lens.id, table, frame_of(lens, table, {}))
    assert words in headline(lens.id, table, frame_of(lens, table, {missing: WHY}))


EMPTY_COUNTS = {"drops": 0, "listen_overflows": 0, "unattributed": 0}


@pytest.mark.parametrize(
    ("table", "hook", "words"),
    [
        (SOCKETS, "events", "opened n/a   closed n/a"),
        (SOCKETS, "unattributed", "no process n/a"),
        (EVENTS, "events", "opened n/a   closed n/a   failed n/a"),
        (FAILURES, "events", "failures n/a"),
        (PACKETS, "packets", "drops n/a"),
        (PACKETS, "counters", "counters n/a"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_headlines_without_a_hook(table: Table, hook: str, words: str) -> None:
    """Counts of a hook without a mechanism are n/a, even if a source counts 0."""
    lens = next(lens for lens in lenses() if table in lens.tables)
    frames = {
        mechanism: make_frame([], [], table=table, lens=lens.id, counts=EMPTY_COUNTS, via={hook: mechanism})
        for mechanism in ("tp_btf", f"n/a: {WHY}")
    }
    assert words not in headline(lens.id, table, frames["tp_btf"])
    assert words in headline(lens.id, table, frames[f"n/a: {WHY}"])


@pytest.mark.parametrize(
    ("table", "hook"),
    [
        (EVENTS, "events"),
        (FAILURES, "events"),
        (PACKETS, "packets"),
        (COUNTERS, "counters"),
        (SOCKETS, "sockets"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_an_empty_table_says_why(table: Table, hook: str) -> None:
    """An empty table gives its reason at the end of plain output, in every format."""
    lens = next(lens for lens in lenses() if table in lens.tables)
    word = lens.id if table is lens.main else f"{lens.id}.{table.name}"
    shown = SOCKETS if table.append else table
    frames = [
        make_frame([], None, float(at), table=shown, lens=lens.id, via={hook: f"n/a: {WHY}"})
        for at in range(3)
    ]
    assert WHY in screen_class(TableRef(lens, table)).row_style.empty_text(view_of(frames[0], table))
    for form in Format:
        settings = Settings(view=ViewSettings(view=word), text=TextSettings(form, 1, data_only=True))
        with pytest.raises(Unsupported) as refused:
            printed(settings, Scripted([frame.now for frame in frames]), 0.1)
        assert refused.value.what == f"{lens.id}.{table.name} is not available: {WHY}"


def test_filters_on_it_give_a_warning_in_plain_output() -> None:
    """A filter by an unavailable column warns once that no row can pass."""
    frames = [make_frame([{"pid": 1}], None, float(at), missing={"rtt_us": WHY}).now for at in range(3)]
    settings = Settings(
        view=ViewSettings(columns=("pid",), filters=("rtt_us>1ms", "pid=1")),
        text=TextSettings(Format.CSV, 3),
    )
    stdout, stderr = printed(settings, Scripted(frames), 0.1)
    assert (stdout, stderr) == ("time,pid\n", f"nettop: rtt_us is n/a here: {WHY}\n")


# --- the log ----------------------------------------------------------------------------------------------------


def without_events() -> list[Snapshot]:
    """Return snapshots of a host that tells of no events."""
    return steps([{"pid": 1}], via={"sockets": "iter/task_file", "events": f"n/a: {WHY}"})


def test_the_log_says_what_it_cannot_have() -> None:
    """A line gives the reason instead of events; the summary has neither events nor their losses."""
    with Logging(settings(why=True), Woken(without_events())) as logging:
        missing, metrics = logging.rows(2)
        output = logging.end()
    assert (missing["type"], missing["what"], missing["why"]) == ("missing", "events", WHY)
    assert (metrics["type"], metrics["why"]) == ("metrics", {})
    assert f"nettop: via sockets iter/task_file · events n/a: {WHY}\n" in output
    assert "logged n/a events, 1 metrics; lost nothing" in output


def test_the_log_for_people_says_what_it_cannot_have() -> None:
    """The readable log has the same line."""
    with Logging(settings(format=LineFormat.TEXT), Woken(without_events())) as logging:
        first = logging.lines(1)[0]
    assert first.split("  ", 1)[1] == f"n/a      events: {WHY}\n"


def test_a_log_of_nothing_ends() -> None:
    """Where none of what is to be logged can be had, that is an error of this host, not an empty log."""
    with Logging(settings(metrics=False), Woken(without_events())) as logging:
        error = logging.wait()
    assert isinstance(error, Unsupported)
    assert WHY in error.what


def test_the_log_gives_reasons() -> None:
    """Metrics have null, and why, where a field is not available; a filter by it gives a warning."""
    frames = [make_frame([{"pid": 1, "drops": 5}], missing={"drops": WHY}).now]
    with Logging(settings(why=True), Woken(frames)) as logging:
        (row,) = logging.rows(1)
    assert (row["drops"], row["why"]) == (None, {"drops": WHY})
    with Logging(settings(filters=("drops>0",)), Woken(frames)) as logging:
        until(lambda: f"nettop: drops is n/a here: {WHY}\n" in logging.stderr.getvalue())
        logging.end()


# --- the report of a command ------------------------------------------------------------------------------------

PARTS = {
    "event": {"opened", "accepted", "still_open", "failed", "broken"},
    "reason": {"failed", "broken"},
    "direction": {"accepted"},
    "bytes_sent": {"bytes_sent"},
    "bytes_received": {"bytes_received"},
    "retransmits": {"retransmits"},
    "handshake_us": {"slowest"},
    "remote_address": {"remotes"},
}


def report(missing: dict[str, str], form: LineFormat) -> str:
    """Return the report of a command that opened two connections, of which one closed and one failed."""
    stream = io.StringIO()
    made = RunReport(RunSettings(words=("true",), format=form, why=True), stream, is_live=False)
    counted = dict.fromkeys(("bytes_sent", "bytes_received", "messages_sent", "messages_received"), 1)
    counts = {f"{FOLLOWED_UDP}{name}": count for name, count in counted.items()}
    frame = Frame(make_frame([], missing=missing, counts=counts).now)
    made.add(frame, [make_rows([CONNECT | {"id": 1}, CLOSE | {"id": 1}, FAIL | {"id": 2}], EVENTS)])
    made.finish(frame, CommandEnd(0, 1.0))
    return stream.getvalue()


@pytest.mark.parametrize("lacks", PARTS)
def test_reports(lacks: str) -> None:
    """What a report cannot add up is n/a or null, with the reason."""
    summary = json.loads(report({lacks: WHY}, LineFormat.JSONL).splitlines()[-1])
    assert {name for name in set().union(*PARTS.values()) if summary[name] is None} == PARTS[lacks]
    assert summary["why"] == dict.fromkeys(PARTS[lacks], WHY)
    assert summary["missing"] == {lacks: WHY}
    whole, partial = (report(missing, LineFormat.TEXT).split("nettop: ")[1] for missing in ({}, {lacks: WHY}))
    assert NOT_AVAILABLE not in whole
    assert partial.count(NOT_AVAILABLE) > 1
    assert f"  n/a      {lacks}: {WHY}" in partial.splitlines()
    if lacks in ("bytes_sent", "bytes_received", "retransmits"):
        assert summary["remotes"][0][lacks] is None


# --- --mechanism and --why ------------------------------------------------------------------------------------------


def test_mechanisms_are_parsed() -> None:
    """--mechanism is HOOK=NAME, once for each hook; the hooks of all lenses are known."""
    assert parse_mechanisms("--mechanism", ["events=none", "packets=tp_btf/kfree_skb"]) == {
        "events": "none",
        "packets": "tp_btf/kfree_skb",
    }
    assert parse_mechanisms("--mechanism", ["events=none", "events=none"]) == {"events": "none"}


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        (["evnts=none"], "unknown hook 'evnts'", "did you mean events"),
        (["events"], "--mechanism 'events' is not HOOK=NAME", "--mechanism events=none"),
        (["events="], "is not HOOK=NAME", "--mechanism events=none"),
        (["=none"], "is not HOOK=NAME", "--mechanism events=none"),
        (["events=none", "events=tp_btf"], "conflicts", "one of them"),
    ],
)
def test_wrong_mechanisms(words: list[str], what: str, remedy: str) -> None:
    """What does not exist is refused with the nearest name."""
    with pytest.raises(UsageError, match=what) as caught:
        parse_mechanisms("--mechanism", words)
    assert remedy in caught.value.remedy


def test_completion_of_mechanisms() -> None:
    """Hooks are completed, and `none`, which every hook accepts."""
    assert "events=" in complete_mechanism("e")
    assert complete_mechanism("events=") == ["events=none"]
    assert complete_mechanism("zz") == []


def test_mechanisms_reach_the_settings_of_every_command() -> None:
    """Each command takes --mechanism, and --why with JSON Lines."""
    for command in (["--table"], ["log"], ["run"]):
        settings = parse(
            [*command, "--mechanism", "events=none", "--format", "jsonl", "--why", *_ran(command)]
        )
        assert settings.mechanisms == {"events": "none"}
        assert settings.why


def _ran(command: list[str]) -> list[str]:
    """Return what `nettop run` needs besides options."""
    return ["true"] if command == ["run"] else []


@pytest.mark.parametrize("words", ["--format csv", "", "log", "run"])
def test_why_is_of_json_lines(words: str) -> None:
    """No other format has room for reasons."""
    command = words.split()
    with pytest.raises(UsageError, match="--why requires JSON Lines"):
        parse([*command, "--why", *_ran(command)])


class Picky(Scripted):
    """A source with one mechanism for one hook."""

    def start(self) -> None:
        """Raise UsageError for any other mechanism."""
        assert self.options is not None
        mechanisms = self.options.mechanisms
        check_chosen([Fallbacks(Hook("events", "what happens"), (Mechanism("tp_btf/state"),))], mechanisms)


@pytest.mark.parametrize(
    "words",
    [["--table", "--once"], ["--format", "csv", "--once"], ["log", "--log-dir", "none"]],
    ids=["table", "csv", "log"],
)
def test_an_unknown_mechanism_is_a_usage_error(
    words: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source knows its mechanisms; its refusal of a wrong one is reported as a usage error."""
    monkeypatch.chdir(tmp_path)

    def source_of(lens: str) -> Picky:
        return Picky(steps([{"pid": 1}]))

    assert cli.run([*words, "--mechanism", "events=tp_bff"], source_of) == ExitCode.USAGE
    error = capfd.readouterr().err
    assert "nettop: unknown mechanism for events 'tp_bff'" in error
    assert "did you mean tp_btf/state" in error


@pytest.mark.parametrize("error", [NettopError("x")])
def test_errors_stay(error: NettopError) -> None:
    """A failing source is reported as before."""
    assert cli.run(["--table", "--once"], lambda lens: Scripted([error])) == ExitCode.FAILURE
