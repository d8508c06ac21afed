# SPDX-License-Identifier: Apache-2.0
"""The refresh loop of plain output: when it prints, what it waits for, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace

import pytest

from nettop.engine import bus, consumer
from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError, SourceFailed
from nettop.output.banner import banner, change
from nettop.output.text import run_text
from nettop.query.times import rfc3339
from nettop.settings import MAX_INTERVAL_S, MIN_INTERVAL_S, Format, Settings, TextSettings, ViewSettings
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.hosts import LOST_HOST
from nettop.snapshots.snapshot import PARTLY_SEEN, Ended, Snapshot
from tests.builders.in_thread import until
from tests.unit.build import WALL_NS, make_frame, make_rows
from tests.unit.scripted import Running, Scripted, printed, steps
from tests.unit.test_consumer import Blocking
from tests.unit.woken import CONNECT, Woken

NARROW = ViewSettings(columns=("pid", "bytes_sent"))
ONCE = TextSettings(Format.JSONL, count=1)


def sent(*amounts: int) -> Scripted:
    """Return a source in which one connection has sent this much at each step."""
    return Scripted(steps(*([{"pid": 7, "bytes_sent": amount}] for amount in amounts)))


def table(**view: object) -> Settings:
    """Return a table without banner, of the columns `pid` and `bytes_sent`."""
    return Settings(
        view=ViewSettings(**{"columns": NARROW.columns, **view}), text=TextSettings(data_only=True)
    )  # type: ignore[arg-type]


def test_once_prints_the_first_snapshot() -> None:
    """--once prints one block, and the source is closed."""
    source = sent(5)
    output, reported = printed(Settings(view=NARROW, text=ONCE), source)
    assert json.loads(output) | {"time": ""} == {"time": "", "pid": 7, "bytes_sent": 5}
    assert reported == ""
    assert source.closed


class Awaited(Scripted):
    """A source whose first reading waits until the terminal shows something; `ours` is the terminal's other end."""

    def __init__(self, ours: int) -> None:
        super().__init__(steps([{"pid": 7}]))
        self.ours, self.shown = ours, ""

    def read(self, taken_ns: int) -> Snapshot:
        """Read what the terminal shows, then the step."""
        self.shown = self.shown or os.read(self.ours, 4096).decode()
        return super().read(taken_ns)


def test_a_terminal_sees_what_is_awaited() -> None:
    """Until the first rows, standard error says which lens has no reading yet, and for how long; then it is clean."""
    ours, theirs = os.openpty()
    with open(theirs, "w") as stderr, Session(MAX_INTERVAL_S, lambda _: source) as session:
        source = Awaited(ours)
        settings = Settings(view=NARROW, text=ONCE)
        assert run_text(settings, session, io.TextIOWrapper(io.BytesIO()), stderr=stderr) == ExitCode.DONE
        assert re.fullmatch(r"\r\x1b\[KConnections: waiting for a reading … \d s", source.shown)
        assert os.read(ours, 4096).decode() == "\r\x1b[K"
    os.close(ours)


def test_enter_refreshes_at_once() -> None:
    """Each newline on standard input brings a new block, after an empty line."""
    with Running(table(), sent(5, 6, 7)) as run:
        assert run.lines(2) == ["pid  bytes_sent\n", "7             5\n"]
        for amount in (6, 7):
            run.enter()
            assert run.lines(3) == ["\n", "pid  bytes_sent\n", f"7             {amount}\n"]


def test_lost_hosts_are_named() -> None:
    """On standard error, also without a banner: their rows are missing. Those that are back, too."""
    gaps = ({"db1": f"{LOST_HOST}reset", "web1 netns 4": "closed"}, {"web1 netns 4": "closed"}, {})
    snapshots = [replace(step, gaps=gap) for step, gap in zip(steps(*[[{"pid": 7}]] * 3), gaps, strict=True)]
    with Running(table(), Scripted(snapshots)) as run:
        assert run.lines(2)
        for _ in range(2):
            run.enter()
            assert run.lines(3)
    assert run.stderr.getvalue().splitlines() == ["nettop: db1 is lost: reset", "nettop: db1 is back"]


def test_skipped_readings_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error: while readings take longer than the interval, output is less frequent than asked for."""
    monkeypatch.setattr(Session, "kept_interval_s", 3 * MAX_INTERVAL_S)
    with Running(table(), sent(5, 6)) as run:
        assert run.lines(2)
        run.enter()
        assert run.lines(3)
    assert (
        run.stderr.getvalue()
        == f"nettop: readings take longer than {MAX_INTERVAL_S:g} s: some are left out\n"
    )


def test_end_of_input_ends_only_that() -> None:
    """At the end of standard input, refreshes continue until the count is reached."""
    settings = Settings(MIN_INTERVAL_S, NARROW, TextSettings(Format.CSV, 3, data_only=True))
    output, _ = printed(settings, sent(5, 6, 7), MIN_INTERVAL_S)
    assert [line.rpartition(",")[2] for line in output.splitlines()] == ["bytes_sent", "5", "6", "7"]
    with Running(table(), sent(5, 6)) as run:
        run.end_input()
        assert run.lines(2)[1] == "7             5\n"
        run.leave()
        assert isinstance(run.wait(), BrokenPipeError)


@pytest.mark.parametrize(("form", "deltas"), [(Format.TABLE, True), (Format.JSONL, False)])
def test_the_end_prints_what_came_since_the_last_output(form: Format, deltas: bool) -> None:
    """As one more block in each format, so that the counts of all blocks add up to what was counted."""
    view = ViewSettings(columns=NARROW.columns, deltas=deltas)
    settings = Settings(view=view, text=TextSettings(form, data_only=True))
    with Running(settings, sent(1000, 1003, 1010)) as run:
        until(lambda: run.has_read)
        text = run.end()
    last = "3" if deltas else "1003"
    assert re.search(rf"\b{last}\b", text.splitlines()[-1])


def test_the_end_prints_the_events_so_far() -> None:
    """Also those that came since the last reading."""
    source = Woken(steps([], [], []))
    view = ViewSettings(view="connections.events", columns=("event", "remote_port"))
    with Running(Settings(view=view, text=TextSettings(data_only=True)), source) as run:
        until(lambda: run.has_read)
        source.happen(CONNECT, CONNECT, quietly=True)
        text = run.end()
    assert text.count("connect") == 2


def test_the_end_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last reading takes too long, the interval that it would have shown is named."""
    monkeypatch.setattr(consumer, "LAST_READING_WAIT_S", 0.01)
    source = Blocking()
    with Running(table(), source) as run:
        until(lambda: run.has_read)
        run.requests.end_by_signal()
        until(lambda: "are missing" in run.stderr.getvalue())
        source.go_on.set()
        assert run.wait() is ExitCode.DONE
    assert re.fullmatch(
        r"nettop: the last \d\S* s are missing: no reading within 0.01 s\n", run.stderr.getvalue()
    )


def test_a_reader_that_stopped_does_not_delay_the_end() -> None:
    """The output is incomplete then, which is an error."""
    rows = [{"pid": number, "bytes_sent": 1} for number in range(20_000)]
    with Running(table(), Scripted(steps(rows))) as run:
        until(lambda: run.is_blocked)
        run.requests.end_by_signal()
        error = run.wait()
    assert isinstance(error, NettopError)
    assert error.what == "the output cannot be written: its reader does not read"


def test_reader_going_away_ends_at_once() -> None:
    """When nobody reads the output any more, plain output ends without waiting for the next refresh."""
    source = sent(5)
    with Running(table(), source) as run:
        run.lines(2)
        run.leave()
        assert isinstance(run.wait(), BrokenPipeError)
    assert source.closed


def test_deltas_wait_and_add_up() -> None:
    """--deltas prints nothing of the first snapshot, then what came since the last output, so that it adds up."""
    with Running(table(deltas=True), sent(1000, 1003, 1010, 1021)) as run:
        wanted = [3, 7, 11]
        for place, amount in enumerate(wanted):
            run.enter()
            gap = ["\n"] if place else []
            assert run.lines(2 + len(gap)) == [*gap, "pid  bytes_sent\n", f"7    {amount:10d}\n"]


@pytest.mark.parametrize(
    "view",
    [
        ViewSettings(columns=("bytes_sent_per_s",)),
        ViewSettings(columns=("pid", "bytes_sent"), sort="-bytes_sent_per_s"),
        ViewSettings(columns=("pid", "bytes_sent"), filters=("bytes_sent_per_s>1",)),
        ViewSettings(columns=("pid", "bytes_sent"), deltas=True),
    ],
)
def test_once_with_rates_waits_for_a_second_snapshot(view: ViewSettings) -> None:
    """If a rate is shown, sorted by or compared, a single output comes one interval later."""
    output, _ = printed(Settings(MIN_INTERVAL_S, view, ONCE), sent(1000, 1100), MIN_INTERVAL_S)
    values = json.loads(output)
    assert 100 in values.values() or values["bytes_sent"] == 1100


def test_failure_after_some_refreshes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that breaks later is reported when it fails and when it is read again; then output goes on."""
    monkeypatch.setattr("nettop.engine.session.RETRY_S", (0.0,))
    broken = SourceFailed("the ring broke")
    before, after = steps([{"pid": 1, "bytes_sent": 2}], [{"pid": 1, "bytes_sent": 3}])
    with Running(table(), Scripted([before, broken, broken, broken, after])) as run:
        run.lines(2)
        while "read again" not in run.stderr.getvalue():
            run.enter()
        run.lines(2)
    said = [line for line in run.stderr.getvalue().splitlines() if line.startswith("nettop: ")]
    assert said == [
        f"nettop: connections: the ring broke; not read since {rfc3339(WALL_NS)[:19]}Z",
        "nettop: connections is read again",
    ]


def test_banner_goes_to_standard_error_for_the_table_only() -> None:
    """The table's banner is on standard error, once; --data-only and the formats for programs have none."""
    item = TextSettings(count=1)
    source = [
        make_frame([{"pid": 1}], counts={"time_wait": 12}, lost={"rows": 0}, via={"sockets": "iterator"}).now
    ]
    reported = {
        (form, quiet): printed(
            Settings(2.5, NARROW, TextSettings(form, item.count, quiet)), Scripted(source)
        )[1]
        for form in Format
        for quiet in (False, True)
    }
    shown = reported.pop((Format.TABLE, False))
    assert shown.endswith("  every 2.5 s  time_wait 12  via sockets iterator  lost 0\n")
    assert set(reported.values()) == {""}


def test_banner_tells_changes() -> None:
    """A field that becomes unavailable later is reported on its own line; counts alone are not."""
    before = make_frame([], counts={"time_wait": 1}).now
    later = make_frame([], counts={"time_wait": 2}).now
    lacking = make_frame([], lost={"events": 37}, missing={"rtt_us": "no tcp_sock"}).now
    assert change(before, later) == ""
    assert change(later, lacking) == "nettop  via rtt_us n/a: no tcp_sock  n/a rtt_us (no tcp_sock)"
    assert banner(lacking, "web-1", 1.0).endswith(
        "  via rtt_us n/a: no tcp_sock  lost events 37  n/a rtt_us (no tcp_sock)"
    )


def test_a_namespace_that_comes_repeats_nothing() -> None:
    """The line has the gap that is new, without the mechanisms and without the meaning that was said before."""
    via = {f"hook{at}": f"tp_btf/tracepoint_{at}" for at in range(20)}
    first, second, third = (
        replace(make_frame([], via=via).now, gaps=gaps)
        for gaps in ({}, {"namespace a": PARTLY_SEEN}, {"namespaces a, b": PARTLY_SEEN})
    )
    assert change(first, second) == f"nettop  via namespace a {PARTLY_SEEN}"
    assert (
        change(second, third)
        == "nettop  via namespaces a, b created after nettop started, so only partly visible"
    )
    assert change(third, second).startswith("nettop  via namespace a created after")
    assert change(second, first) == ""


def losing(*lost: dict[str, int], **snapshot: object) -> Scripted:
    """Return a source without rows that has lost this much by each step."""
    return Scripted([make_frame([], lost=names, **snapshot).now for names in lost])


def test_closed_rows_that_are_not_listed_are_a_loss() -> None:
    """The number of ended connections that are only in the row for the rest is reported."""
    total = make_rows([{"bytes_sent": 7, "process": "(closed, not listed)"}], SOCKETS)
    source = [
        replace(make_frame([], None, float(at)).now, ended={SOCKETS.name: Ended((), total, count)})
        for at, count in enumerate((0, 5, 7))
    ]
    view = ViewSettings(columns=("process", "bytes_sent"), deltas=True)
    settings = Settings(MIN_INTERVAL_S, view, TextSettings(Format.CSV, 2, data_only=True))
    reported = printed(settings, Scripted(source), MIN_INTERVAL_S)[1]
    why = "rows of closed sockets (closed too long before this output, or too many)"
    assert [line for line in reported.splitlines() if "lost" in line] == [
        f"nettop: lost 5 {why}, 5 in all",
        f"nettop: lost 2 {why}, 7 in all",
    ]


@pytest.mark.parametrize(("form", "quiet"), [(Format.TABLE, False), (Format.JSONL, True)])
def test_each_loss_is_reported_in_every_format(form: Format, quiet: bool) -> None:
    """Losses between two outputs are one line on standard error, and also a record in JSON Lines."""
    source = losing(
        *({"events": events, "rows": rows} for events, rows in ((0, 0), (37, 1), (37, 1), (40, 1)))
    )
    settings = Settings(MIN_INTERVAL_S, NARROW, TextSettings(form, 4, data_only=quiet))
    output, reported = printed(settings, source, MIN_INTERVAL_S)
    assert [line for line in reported.splitlines() if "every" not in line] == [
        "nettop: lost 37 events (ring full or hook busy), 37 in all; 1 rows, 1 in all",
        "nettop: lost 3 events (ring full or hook busy), 40 in all",
    ]
    if form is Format.JSONL:
        ring = {"type": "lost", "what": "events", "cause": "ring full or hook busy"}
        assert [json.loads(line) | {"time": ""} for line in output.splitlines()] == [
            ring | {"count": 37, "total": 37, "time": ""},
            {"type": "lost", "what": "rows", "cause": "", "count": 1, "total": 1, "time": ""},
            ring | {"count": 3, "total": 40, "time": ""},
        ]
    else:
        assert "lost" not in output


def test_rows_that_came_too_fast_are_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that the queue had no room for between two outputs are reported as what the kernel lost is."""
    monkeypatch.setattr(bus, "QUEUED_ROWS", 3)
    source = Woken(steps([], []))
    view = ViewSettings("connections.events", ("event_id",))
    with Running(Settings(view=view, text=TextSettings(Format.JSONL)), source) as run:
        until(lambda: source.options)
        for _ in range(2):
            source.happen(CONNECT, CONNECT)
            until(lambda: not source._waiting)
        run.enter()
        *events, lost = map(json.loads, run.lines(3))
        until(run.stderr.getvalue)
    assert [event["event_id"] for event in events] == [3, 4]
    assert (lost["what"], lost["cause"], lost["count"], lost["total"]) == ("events", "queue full", 2, 2)
    assert run.stderr.getvalue() == "nettop: lost 2 events (queue full), 2 in all\n"


@pytest.mark.parametrize(("came", "line"), [(10_000, ""), (20, "nettop: lost 7 ticks, 7 in all\n")])
def test_few_missed_ticks_are_no_loss(came: int, line: str) -> None:
    """Every virtual machine misses some ticks; only many of them are worth a line."""
    settings = Settings(MIN_INTERVAL_S, NARROW, TextSettings(count=2, data_only=True))
    source = losing({"ticks": 0}, {"ticks": 7}, counts={"ticks": came})
    assert printed(settings, source, MIN_INTERVAL_S)[1] == line


def test_every_asks_the_source_for_all_rows() -> None:
    """--all lists what the source otherwise only counts, and drops the table's default filter."""
    rows = [{"pid": 1, "state": "LISTEN"}, {"pid": 2, "state": "ESTABLISHED"}]
    shown = {}
    for all_rows in (False, True):
        source = Scripted(steps(rows))
        output, _ = printed(
            Settings(view=ViewSettings(columns=("pid",), all_rows=all_rows), text=ONCE), source
        )
        shown[all_rows] = len(output.splitlines())
        assert source.options is not None
        assert source.options.all_rows is all_rows
    assert shown == {False: 1, True: 2}
