# SPDX-License-Identifier: Apache-2.0
"""The log: when it writes what, its reports of losses, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from nettop.engine import bus
from nettop.errors import SourceFailed, UsageError
from nettop.output import log, log_files, log_sinks
from nettop.output.log import make_log_plan
from nettop.output.table import whole_columns
from nettop.settings import MAX_INTERVAL_S, LineFormat
from nettop.snapshots.connections import EVENTS, GROUPS, RING_SIZE, SOCKETS
from nettop.snapshots.drops import PACKETS as DROPS
from tests.builders.in_thread import DEADLINE_S, until
from tests.options import source_options
from tests.unit.build import make_frame
from tests.unit.children import Child, started
from tests.unit.logging_run import Logging, rows_of, settings
from tests.unit.scripted import steps
from tests.unit.woken import CLOSE, CONNECT, FAIL, Woken

SOCKET = {"id": 7, "pid": 4615, "process": "curl", "bytes_sent": 1200, "rtt_us": 21_400, "rtt_var_us": 3100}


def nothing() -> Woken:
    """Return a source without connections."""
    return Woken(steps([]))


# --- lines ----------------------------------------------------------------------------------------------------


def test_events_come_at_once() -> None:
    """An event is on the console when it has happened, with its own time, its type and every field."""
    source = nothing()
    with Logging(settings(), source) as logging:
        until(lambda: source.options)
        source.happen(CONNECT, CLOSE)
        connect, close = logging.rows(2)
        source.happen(FAIL)
        (fail,) = logging.rows(1)
    columns = [name for name in whole_columns(EVENTS) if name != "time"]
    assert list(connect) == ["time", "type", "lens", *columns]
    assert {row["type"] for row in (connect, close, fail)} == {"event"}
    assert [row["time"] for row in (connect, fail)] == ["2026-11-18T11:06:40.123456Z"] * 2
    assert (fail["reason"], fail["handshake_us"], fail["remote"]) == ("refused", None, "127.0.0.1:1")
    assert [row["event_id"] for row in (connect, close, fail)] == [1, 2, 3]


def test_readable_events() -> None:
    """Align readable lines, with units and exact bytes; omit unknown values and our own network namespace, and escape
    names that would break a line."""
    source = Woken(steps([SOCKET]))
    with Logging(settings(format=LineFormat.TEXT), source) as logging:
        (live,) = logging.lines(1)
        close = CLOSE | {"netns": 4026532177, "namespace": "web", "bytes_received": 48_100_003}
        close |= {"rtt_us": 21_400, "rtt_var_us": 3100}
        own = os.stat("/proc/self/ns/net").st_ino
        source.happen(CONNECT | {"netns": own}, close, FAIL | {"pid": None, "process": None})
        source.happen(CONNECT | {"process": "a b%s"})
        *lines, hostile = logging.lines(4)
    assert "  a_b%s[4615]  " in hostile
    assert live == (
        "2026-11-18T11:06:40.123456Z  metrics  ESTABLISHED  curl[4615]              "
        "10.0.3.7:443 → 203.0.113.9:52114               sent 1,200 B  rtt 21.4 ±3.1 ms\n"
    )
    assert {line[:29] for line in lines} == {"2026-11-18T11:06:40.123456Z  "}
    ends = "127.0.0.1:42524 → 127.0.0.1:443            "
    sums = "sent 1,200 B  received 48,100,003 B  retransmits 1  rtt 21.4 ±3.1 ms"
    nobody = "(unattributed)          127.0.0.1:42524 → 127.0.0.1:1              "
    assert [line[29:] for line in lines] == [
        f"connect  –                curl[4615]              {ends}    handshake 62 µs\n",
        f"close    closed by us     curl[4615]              {ends}    netns web  after 21.4 ms  {sums}\n",
        f"fail     refused          {nobody}    after 62 µs  sent 0 B  received 0 B  retransmits 0\n",
    ]


def test_metrics_at_the_start_and_at_each_interval() -> None:
    """Tables are logged at once, then at the readings nearest to each interval's end, with every field."""
    hour = MAX_INTERVAL_S
    # Each reading has lost events, which a line reports at once: so the test knows that it was seen.
    frames = [
        make_frame([SOCKET | {"bytes_sent": at}], None, at * hour, lost={"events": at}).now for at in range(8)
    ]
    frames[3] = replace(frames[3], boot_ns=frames[3].boot_ns - 1_000_000_000)
    with Logging(settings(metrics_interval_s=3 * hour), Woken(frames)) as logging:
        rows = logging.rows(1)
        for at in range(1, 8):
            logging.refresh()
            rows += logging.rows(2 if at % 3 == 0 else 1)
    metrics = [row for row in rows if row["type"] == "metrics"]
    assert [row["bytes_sent"] for row in metrics] == [0, 3, 6]
    assert metrics[0]["time"] == "2026-11-18T11:06:40.123456Z"
    assert set(metrics[0]) == {"time", "type", "lens", *whole_columns(SOCKETS)}


def test_files_hold_what_the_console_shows(tmp_path: Path) -> None:
    """Events and metrics have a file each; together they hold the console's lines, byte for byte."""
    source = Woken(steps([SOCKET]))
    with Logging(settings(directory=str(tmp_path)), source) as logging:
        shown = logging.lines(1)
        source.happen(CONNECT, CLOSE)
        shown += logging.lines(2)
        reported = logging.end()
    assert (tmp_path / "metrics.jsonl").read_text() == shown[0]
    assert (tmp_path / "events.jsonl").read_text() == "".join(shown[1:])
    assert reported.endswith(f"; written to {tmp_path}/events.jsonl, {tmp_path}/metrics.jsonl\n")


def test_no_console(tmp_path: Path) -> None:
    """Without a console the files get everything, and the reader nothing."""
    source = nothing()
    with Logging(settings(directory=str(tmp_path), console=False), source) as logging:
        source.happen(CONNECT)
        until(lambda: rows_of(tmp_path / "events.jsonl") if (tmp_path / "events.jsonl").exists() else None)
        logging.end()
        logging._stdout.close()
        assert logging.lines(1) == [""]


# --- what is chosen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "kinds"),
    [({}, ["metrics", "event"]), ({"events": False}, ["metrics"]), ({"metrics": False}, ["event"])],
)
def test_only_events_or_only_metrics(chosen: dict[str, bool], kinds: list[str]) -> None:
    """--metrics-only writes no events, --events-only no metrics."""
    source = Woken(steps([SOCKET]))
    with Logging(settings(**chosen), source) as logging:
        until(lambda: source.options)
        # The first reading is logged before the event happens: an event does not wait for it.
        rows = logging.rows(kinds.count("metrics"))
        source.happen(CONNECT)
        rows += logging.rows(kinds.count("event"))
        assert [row["type"] for row in rows] == kinds
        reported = logging.end()
    written = {"event": "1 events", "metrics": "1 metrics"}
    assert f"logged {', '.join(written[kind] for kind in reversed(kinds))};" in reported


def test_a_filter_of_both() -> None:
    """A filter applies to events and metrics, and the summary has both counts."""
    source = Woken(steps([SOCKET, SOCKET | {"id": 8, "process": "sh"}]))
    with Logging(settings(filters=("process=curl",)), source) as logging:
        assert [row["id"] for row in logging.rows(1)] == [7]
        source.happen(CONNECT | {"process": "sh"}, CONNECT)
        assert [row["process"] for row in logging.rows(1)] == ["curl"]
        assert "logged 1 events, 1 metrics of 2 events;" in logging.end()


@pytest.mark.parametrize(
    ("chosen", "kept", "expected"),
    [
        ({"filters": ("reason=refused",)}, "events",
         ["no metrics are logged: filter term ‘reason=refused’: unknown field"]),
        ({"filters": ("send_queue>0",)}, "metrics",
         ["no events are logged: filter term ‘send_queue>0’: unknown field"]),
        ({"views": ("connections", "drops"), "filters": ("place~tcp",)}, "drops",
         ["no events are logged: ", "no metrics are logged: "]),
        ({"columns": ("reason",)}, "events", ["no metrics are logged: the table has none of the columns"]),
    ],
)  # fmt: skip
def test_tables_without_the_field_are_left_out(
    chosen: dict[str, Any], kept: str, expected: list[str]
) -> None:
    """Omit a table without the filter's field or any chosen column, with a note at the start."""
    streams, notes = make_log_plan(settings(**chosen))
    assert [stream.name for stream in streams] == [kept]
    assert [note.startswith(start) for note, start in zip(notes, expected, strict=True)] == [True] * len(
        notes
    )


@pytest.mark.parametrize(
    ("requested", "reported"),
    [
        ({"filters": ("reson=refused",)}, "unknown field 'reson'"),
        ({"filters": ("reason=refused", "send_queue>0")}, "unknown field 'send_queue'"),
        ({"views": ("conections",)}, "unknown view 'conections'"),
        ({"views": ("connections.groups",), "metrics": False}, "--events-only leaves nothing of"),
        ({"columns": ("reson",)}, "unknown column 'reson'"),
        ({"columns": ("time",)}, "--columns is empty"),
    ],
)
def test_wrong_words_before_anything_attaches(requested: dict[str, object], reported: str) -> None:
    """Unknown arguments, or nothing to log, are a usage error."""
    with pytest.raises(UsageError, match=reported):
        make_log_plan(settings(**requested))


def test_another_table(tmp_path: Path) -> None:
    """--lens logs the rows of any table, in a file of its name, readable or as JSON."""
    process = {
        "id": 1,
        "pid": 7,
        "group": "nginx",
        "connections": 3,
        "closed": 12,
        "failed": 0,
        "bytes_sent": 5,
    }
    for form, ending in ((LineFormat.TEXT, "log"), (LineFormat.JSONL, "jsonl")):
        source = Woken([make_frame([process], table=GROUPS).now])
        requested = settings(views=("connections.groups",), directory=str(tmp_path), format=form)
        with Logging(requested, source) as logging:
            (line,) = logging.lines(1)
            logging.end()
            reported = logging.stderr.getvalue()
        assert reported.startswith("nettop: logged 1 connections.groups; lost nothing; written to ")
        assert (tmp_path / f"connections.groups.{ending}").read_text() == line
        assert source.options == source_options(["groups"], whole=True)
    assert json.loads(line) | {"time": ""} == json.loads(line) | {"time": "", "lens": "connections.groups"}
    readable = (tmp_path / "connections.groups.log").read_text()
    assert readable == (
        "2026-11-18T11:06:41.123456Z  connections.groups  group=nginx  pid=7  conns 3  closed 12  failed 0"
        "  sent 5 B\n"
    )


DROP = {"id": 1, "reason": "NO_SOCKET", "place": "tcp_v4_rcv", "packets": 3, "bytes": 180}


def dropping(*lost: int) -> Woken:
    """Return a source of one drop that has lost this many by each reading."""
    return Woken(
        [make_frame([DROP], table=DROPS, lens="drops", lost={"untracked": count}).now for count in lost]
    )


def test_several_lenses(tmp_path: Path) -> None:
    """Each lens has its own files and losses; new rows of each are written, and the summary has all."""
    source = Woken(steps([SOCKET], counts={"connected": 2}))
    requested = settings(views=("connections", "drops", "drops"), directory=str(tmp_path))
    with Logging(requested, source, drops=dropping(0, 7)) as logging:
        rows = logging.rows(2)
        source.happen(CONNECT)
        rows += logging.rows(1)
        reported = logging.end()
    kinds = sorted(f"{row['type']} {row['lens']}" for row in rows)
    assert kinds == ["event connections", "metrics connections", "metrics drops"]
    kept = {path.stem: [row["type"] for row in rows_of(path)] for path in tmp_path.iterdir()}
    assert kept == {"events": ["event"], "metrics": ["metrics"], "drops": ["metrics", "lost"]}
    assert reported == (
        "nettop: logged 1 events, 1 metrics, 1 drops; lost 0 events (ring full or hook busy), 0 events (queue full), "
        f"7 untracked; the kernel counted connected 2; written to {tmp_path}/events.jsonl, {tmp_path}/metrics.jsonl, "
        f"{tmp_path}/drops.jsonl\n"
    )


@pytest.mark.parametrize("form", LineFormat)
def test_chosen_columns(form: LineFormat) -> None:
    """--columns gives exactly these after the time and type, as far as each table has them."""
    source = Woken(steps([SOCKET]))
    requested = settings(format=form, columns=("reason", "time", "pid", "bytes_sent", "remote"))
    with Logging(requested, source) as logging:
        (metrics,) = logging.lines(1)
        source.happen(CLOSE | {"reason": "closed by us"})
        (close,) = logging.lines(1)
        reported = logging.end()
    assert reported.startswith("nettop: metrics: no column reason\n")
    time = "2026-11-18T11:06:40.123456Z"
    if form is LineFormat.TEXT:
        amounts = "pid=4615  bytes_sent=1200  remote="
        assert metrics == f"{time}  metrics  {amounts}203.0.113.9:52114\n"
        assert close == f"{time}  event    reason=closed_by_us  {amounts}127.0.0.1:443\n"
    else:
        assert list(json.loads(metrics)) == ["time", "type", "lens", "pid", "bytes_sent", "remote"]
        marks = {"time": time, "type": "event", "lens": "connections"}
        chosen = {"reason": "closed by us", "pid": 4615, "bytes_sent": 1200, "remote": "127.0.0.1:443"}
        assert json.loads(close) == marks | chosen


def test_requests_to_the_source() -> None:
    """The ring's size and the mechanisms reach the source before its start, and unlogged tables are not read."""
    source = nothing()
    with Logging(settings(mechanisms={"accepts": "none"}, options={RING_SIZE: 4096}), source) as logging:
        until(lambda: source.options and len(source.options.tables) == 2)
        logging.end()
    assert source.options == source_options(
        ["events", "sockets"], {"accepts": "none"}, whole=True, ring_size=4096
    )


# --- losses ---------------------------------------------------------------------------------------------------


def test_lost_in_the_ring(tmp_path: Path) -> None:
    """A line, on console and in the file, reports new losses of the kernel; the summary has their sum."""
    frames = [make_frame([], lost={"events": count}).now for count in (0, 37, 37, 40)]
    with Logging(settings(directory=str(tmp_path)), Woken(frames)) as logging:
        logging.refresh()
        (first,) = logging.rows(1)
        logging.refresh()
        logging.refresh()
        (second,) = logging.rows(1)
        reported = logging.end()
    wanted = {"type": "lost", "what": "events", "cause": "ring full or hook busy"}
    assert first | {"time": 0} == wanted | {"time": 0, "count": 37, "total": 37}
    assert second | {"time": 0} == wanted | {"time": 0, "count": 3, "total": 40}
    assert rows_of(tmp_path / "events.jsonl") == [first, second]
    assert "lost 40 events (ring full or hook busy), 0 events (queue full)" in reported


def test_lost_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the console is the only output, the log waits for its reader; events beyond the queue are reported as lost.

    Every event is either shown or counted.
    """
    monkeypatch.setattr(log_sinks, "QUEUED_BYTES", 1)
    monkeypatch.setattr(bus, "QUEUED_ROWS", 150)
    source = nothing()
    with Logging(settings(), source) as logging:
        until(lambda: source.options)
        for _ in range(20):
            source.happen(*[CONNECT] * 100)
            until(lambda: not source._waiting)
        accounted = lost = 0
        while accounted < 2000:
            (row,) = logging.rows(1)
            lost += row["count"] if row["type"] == "lost" else 0
            accounted += row["count"] if row["type"] == "lost" else 1
        assert accounted == 2000
        assert f"lost 0 events (ring full or hook busy), {lost} events (queue full)" in logging.end()
        assert lost > 0


@contextmanager
def happening(source: Woken) -> Iterator[None]:
    """Cause events repeatedly inside the `with` block."""
    stop = threading.Event()
    thread = threading.Thread(
        target=lambda: [source.happen(CONNECT) for _ in iter(lambda: stop.wait(0.01), True)]
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_console_that_nobody_reads_keeps_no_file_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has every event while the console's reader sleeps; lines that it missed are counted and reported."""
    monkeypatch.setattr(log_sinks, "QUEUED_BYTES", 1 << 16)
    monkeypatch.setattr(log_sinks, "_END_WAIT_S", DEADLINE_S)  # the reader reads by then
    source = nothing()
    lines: list[str] = []
    with Logging(settings(directory=str(tmp_path)), source) as logging:
        for _ in range(10):
            source.happen(*[CONNECT] * 100)
            until(lambda: not source._waiting)
        path = tmp_path / "events.jsonl"
        until(lambda: path.exists() and path.read_text().count("\n") == 1000)
        reader = threading.Thread(target=lambda: lines.extend(logging._console), daemon=True)
        reader.start()
        with happening(source):  # a gap is reported with the next line for which there is room
            until(lambda: any('"lost"' in line for line in lines))
        reported = logging.end()
        logging._stdout.close()
        reader.join(DEADLINE_S)
    shown = [json.loads(line) for line in lines]
    # There may be several gaps: what is lost depends on who is how fast.
    gaps = [row for row in shown if row["type"] == "lost"]
    assert {(row["what"], row["cause"]) for row in gaps} == {("lines", "console too slow")}
    assert list(accumulate(row["count"] for row in gaps)) == [row["total"] for row in gaps]
    assert f"{gaps[-1]['total']} lines of console" in reported
    kept = [row["event_id"] for row in rows_of(path)]
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) == len(shown) - len(gaps) + gaps[-1]["total"]


# --- the end --------------------------------------------------------------------------------------------------


def test_the_end_writes_what_has_happened(tmp_path: Path) -> None:
    """Read, write and count once more what happened before the end was requested."""
    counts = {"connected": 2, "accepted": 0, "closed": 1, "failed": 1, "time_wait": 9}
    source = Woken(steps([], counts=counts))
    with Logging(settings(directory=str(tmp_path)), source) as logging:
        logging.frame()
        source.happen(CONNECT, CONNECT, CLOSE, FAIL, quietly=True)
        reported = logging.end()
    happened = [row["event"] for row in rows_of(tmp_path / "events.jsonl")]
    assert happened == ["connect", "connect", "close", "fail"]
    assert reported == (
        "nettop: logged 4 events, 0 metrics; lost 0 events (ring full or hook busy), 0 events (queue full); the kernel "
        f"counted connected 2, accepted 0, closed 1, failed 1; written to {tmp_path}/events.jsonl, "
        f"{tmp_path}/metrics.jsonl\n"
    )
    assert source.closed


def test_a_source_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure of a lens that worked is a line of each of its files, and reported; its log goes on afterwards."""
    monkeypatch.setattr("nettop.engine.session.RETRY_S", (0.0,))
    broken = SourceFailed("the ring broke")
    source = Woken([*steps([SOCKET]), broken, broken, *steps([SOCKET])])
    with Logging(settings(directory=str(tmp_path)), source) as logging:
        logging.lines(1)
        source.happen(CONNECT)
        logging.lines(1)
        logging.fail()
        assert [row["type"] for row in logging.rows(2)] == ["missing", "missing"]
        while "read again" not in logging.stderr.getvalue():
            logging.fail()
        source.happen(CLOSE)
        logging.lines(1)
        said = logging.end()
    assert said.count("nettop: connections: the ring broke; not read since 20") == 1
    assert said.count("nettop: connections is read again\n") == 1
    connect, missing, close = rows_of(tmp_path / "events.jsonl")
    assert (missing["type"], missing["what"]) == ("missing", "events")
    assert missing["why"].startswith("the ring broke; not read since 20")
    assert (connect["event"], close["event"]) == ("connect", "close")


def test_a_source_that_never_works() -> None:
    """The failure of a lens that was never read ends the log."""
    with Logging(settings(), Woken([SourceFailed("the ring broke")])) as logging:
        assert isinstance(logging.wait(), SourceFailed)


def test_trouble_with_a_file_does_not_stop_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that vanished with its directory is reported, and counted in the end; the console goes on."""
    monkeypatch.setattr(log_files, "TRY_AGAIN_S", 0.0)
    source = nothing()
    directory = tmp_path / "log"
    with Logging(settings(directory=str(directory)), source) as logging:
        until(lambda: source.options)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        source.happen(CONNECT)
        logging.lines(1)
        reported = logging.end()
    assert "events.jsonl cannot be written (No such file or directory)" in reported
    assert f"1 lines of {directory}/events.jsonl" in reported


def test_pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows become lines in pieces, complete and in order."""
    monkeypatch.setattr(log, "BLOCK_ROWS", 3)
    source = Woken(steps([SOCKET | {"id": at, "bytes_sent": 100 - at} for at in range(1, 11)]))
    with Logging(settings(), source) as logging:
        assert [row["id"] for row in logging.rows(10)] == list(range(1, 11))
        source.happen(*[CONNECT] * 10)
        assert [row["event_id"] for row in logging.rows(10)] == list(range(1, 11))


# --- as a process ---------------------------------------------------------------------------------------------

SCRIPT = """
import sys, threading
from nettop import cli
from nettop.process import interrupts
from tests.unit.scripted import steps
from tests.unit.woken import CONNECT, Woken
is_held = sys.argv.pop(1) == "held"
has_ended = threading.Event()
class Source(Woken):
    reads = 0
    def read(self, taken_ns):
        self.reads += 1
        if is_held and self.reads > 1:
            has_ended.wait()
        return super().read(taken_ns)
interrupts.AGAIN_S = 60.0  # on a busy machine one signal may be handled long after the other
source = Source(steps([{"id": 7}]))
def happen():
    for line in sys.stdin:
        source.happen(*[CONNECT] * int(line))
    has_ended.set()
threading.Thread(target=happen, daemon=True).start()
run = cli.run
cli.run = lambda words: run(words, lambda lens: source)
sys.exit(cli.main())
"""


def nettop_log(directory: Path, *words: str, is_held: bool = False, **how: Any) -> Child:
    """Start `nettop log` in a directory, over a source that opens this many connections per line of standard input.

    With `is_held` its last reading, and so its exit, waits for the end of that input.
    """
    options = ("log", "--format", "jsonl", "-t", "3600", "--metrics-interval", "3600", *words)
    how = {"cwd": directory, "stdout": subprocess.DEVNULL} | how
    child = started("-c", SCRIPT, "held" if is_held else "", *options, **how)
    if "--log-dir" not in words:
        until(lambda: child.poll() is not None or lines(directory, "metrics") == 1)
    return child


def lines(directory: Path, name: str) -> int:
    """Count the current lines of a log file."""
    path = directory / "log" / f"{name}.jsonl"
    return path.read_text().count("\n") if path.exists() else -1


def happen(child: Child, count: int) -> None:
    """Have `count` connections open."""
    assert child.stdin is not None
    child.stdin.write(f"{count}\n")
    child.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end with code 0 and one line, and the file has every event."""
    with nettop_log(tmp_path, is_held=True) as child:
        happen(child, 3)
        until(lambda: lines(tmp_path, "events") == 3)
        for _ in range(2):  # as timeout(1) sends it
            child.send_signal(number)
        assert child.stdin is not None
        child.stdin.close()  # it goes on: the second signal must not come when it has ended
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr is not None
        (reported,) = child.stderr.read().splitlines()
    assert reported.startswith("nettop: logged 3 events, 1 metrics; lost 0 events")
    assert len(rows_of(tmp_path / "log" / "events.jsonl")) == 3


def test_hang_up_opens_the_files_again(tmp_path: Path) -> None:
    """Reopen the files on SIGHUP and end nothing, as logrotate expects, also under nohup."""
    with nettop_log(tmp_path, ignoring={signal.SIGHUP}) as child:
        for name in ("events", "metrics"):
            (tmp_path / "log" / f"{name}.jsonl").rename(tmp_path / name)
        child.send_signal(signal.SIGHUP)
        until(lambda: lines(tmp_path, "events") == lines(tmp_path, "metrics") == 0)
        happen(child, 1)
        until(lambda: lines(tmp_path, "events") == 1)
        child.terminate()
        assert child.wait(DEADLINE_S) == 0


def test_reader_gone(tmp_path: Path) -> None:
    """When the pipe's reader goes away, the log exits silently with 0 if it had no other output; else it reports that
    and continues.
    """
    with nettop_log(tmp_path, "--log-dir", "none", stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline()
        child.stdout.close()
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr.read() == ""
    with nettop_log(tmp_path, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.readline().endswith("(its reader has gone); logging continues in the files\n")
        happen(child, 2)
        until(lambda: lines(tmp_path, "events") == 2)
        child.terminate()
        assert child.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("words", [[], ["--log-dir", "none"]])
def test_console_on_a_full_disk(tmp_path: Path, words: list[str]) -> None:
    """A console that cannot be written is reported; the log ends only if there are no files."""
    with open("/dev/full", "w", encoding="utf-8") as full, nettop_log(tmp_path, *words, stdout=full) as child:
        assert child.stderr is not None
        reported = child.stderr.readline()
        if words:
            assert reported == "nettop: the output cannot be written: No space left on device\n"
            assert child.wait(DEADLINE_S) == 1
        else:
            assert reported.startswith("nettop: the console cannot be written (No space left on device)")
            happen(child, 2)
            until(lambda: lines(tmp_path, "events") == 2)
            child.terminate()
            assert child.wait(DEADLINE_S) == 0
