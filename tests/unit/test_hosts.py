# SPDX-License-Identifier: Apache-2.0
"""Other hosts: the commands that record there, what they send, and why there is nothing from a host."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop import cli
from nettop.commands.view import checked_hosts, recorded_arguments
from nettop.errors import SourceFailed, UsageError
from nettop.hosts import stream as stream_module
from nettop.hosts.hosts import LATE_AFTER_S, Hosts
from nettop.hosts.overview import OverviewSource
from nettop.hosts.pairing import Pairing
from nettop.hosts.source import HostsSource
from nettop.hosts.stream import HostStream, ssh_words, why_ended
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.recording.chunks import Group
from nettop.recording.reader import Reading
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots import several_hosts
from nettop.snapshots.connections import LENS, SOCKETS
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.hosts import HOST, HOSTS, LOST_HOST, with_host
from nettop.snapshots.snapshot import Frame, Snapshot
from tests.builders.replaying import Clock
from tests.unit.build import make_frame
from tests.unit.logging_run import until
from tests.unit.recorded import small_groups
from tests.unit.recordings import at_second, record
from tests.words import settings_of

ATTACHING_S = 60.0
SENDS = 'trap "kill $!" TERM; cat "$0" & wait $!; cat "$1" >&2; exit "$2"'
"""Script that copies a pipe to its end, then says something and exits."""


class Remote:
    """A host on which a command sends what the test writes; it ends when the test says so."""

    def __init__(self, folder: Path, says: str = "", code: int = 0) -> None:
        folder.mkdir()
        self._words = folder / "words"
        self._words.write_text(says)
        self._code = code
        self._pipes: list[tuple[int, int]] = []
        self.starts: list[Sequence[str]] = []
        self._open()

    def command(self, lenses: Sequence[str] = ()) -> list[str]:
        """Return the command, and remember that it was started for these lenses."""
        self.starts.append(tuple(lenses))
        pipe = f"/proc/{os.getpid()}/fd/{self._pipes[-1][0]}"
        return ["sh", "-c", SENDS, pipe, str(self._words), str(self._code)]

    def _open(self) -> None:
        self._pipes.append(os.pipe())
        self._recording = RecordingWriter(Sink(self.send), Group((LENS.id,), 1.0, "0"))

    def send(self, content: bytes) -> None:
        """Have the command send these bytes."""
        assert os.write(self._pipes[-1][1], content) == len(content)

    def read(self, second: int, **row: object) -> None:
        """Have the command send a reading of one connection."""
        self._recording.write(at_second(make_frame([{"id": 1, **row}]).now, second))

    def write(self, snapshot: Snapshot) -> None:
        """Have the command send this reading."""
        self._recording.write(snapshot)

    def end(self) -> None:
        """End the command once it was started; the next one sends another recording."""
        until(lambda: self.starts)
        os.close(self._pipes[-1][1])
        self._open()

    def close(self) -> None:
        """Close the pipes."""
        for ends, _ in self._pipes:
            os.close(ends)
        os.close(self._pipes[-1][1])


MakeRemote = Callable[..., Remote]


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[MakeRemote]:
    """Return a function that makes a host."""
    with ExitStack() as ends:

        def made(name: str = "web1", **how: object) -> Remote:
            new = Remote(tmp_path / name, **how)  # type: ignore[arg-type]
            ends.callback(new.close)
            return new

        yield made


@contextmanager
def shown(**remotes: Remote) -> Iterator[tuple[Hosts, HostsSource, Clock]]:
    """Yield the hosts with a clock that stands still, and the source of their connections."""
    clock = Clock()
    with (
        several_hosts(),
        Hosts(list(remotes), lambda host, lenses: remotes[host].command(lenses), 1.0, clock) as hosts,
    ):
        source = HostsSource(hosts, with_host(LENS))
        source.start()
        try:
            yield hosts, source, clock
        finally:
            source.close()


@contextmanager
def streaming(words: Sequence[str]) -> Iterator[HostStream]:
    """Yield the stream of a command, ended at the end."""
    stream = HostStream(words, [LENS])
    try:
        yield stream
    finally:
        stream.end()


def second_of(stream: HostStream) -> float | None:
    """Return when the newest reading was taken."""
    reading = stream.newest(LENS.id)
    return None if reading is None else reading.now.boot_ns / 1e9 - 1


def sent_by(snapshot: Snapshot) -> dict[str, int]:
    """Return the bytes sent by the connection of each host."""
    rows = snapshot.tables.get(SOCKETS.name)
    if rows is None:
        return {}
    hosts = [rows.texts[HOST.name][code] for code in rows.array[HOST.name]]
    return dict(zip(hosts, rows.array["bytes_sent"].tolist(), strict=True))


def read_until(source: HostsSource, expected: dict[str, int]) -> Snapshot:
    """Read until the hosts have sent these bytes."""

    def read() -> Snapshot | None:
        snapshot = source.read(0)
        return snapshot if sent_by(snapshot) == expected else None

    return until(read)


def is_running(pid: int) -> bool:
    """Return whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- the stream of a command --------------------------------------------------------------------------------------


def test_a_stream_is_followed(remote: MakeRemote) -> None:
    """Return each reading as it arrives, in parts too, with the one before."""
    web = remote()
    with streaming(web.command()) as stream:
        assert stream.newest(LENS.id) is None
        for second in range(5):
            web.read(second)
            until(lambda second=second: second_of(stream) == second)
        reading = stream.newest(LENS.id)
        assert reading is not None
        assert reading.before is not None
        assert (reading.now.boot_ns - reading.before.boot_ns) / 1e9 == 1
        assert stream.exit_code is None


def test_memory_is_freed(remote: MakeRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep only the last groups of a stream, with its newest reading readable; only what is held is limited."""
    monkeypatch.setattr(stream_module, "_HELD_MAX", 200_000)
    web = remote()
    web.command = lambda: ["cat", f"/proc/{os.getpid()}/fd/{web._pipes[-1][0]}"]  # type: ignore[method-assign]
    chance = np.random.default_rng(1)
    with small_groups(), streaming(web.command()) as stream:
        taken = []
        for second in range(120):
            sent = chance.integers(0, 2**62, 200).tolist()
            frame = make_frame([{"id": at, "bytes_sent": count} for at, count in enumerate(sent)])
            web.write(at_second(frame.now, second))
            until(lambda second=second: second_of(stream) == second)
            status = os.fstat(stream._output)
            taken.append(status.st_blocks * 512)
        assert status.st_size > 200_000
        assert max(taken[20:]) <= 2 * max(taken[:20]) < status.st_size / 2
        assert stream.exit_code is None


def test_end(remote: MakeRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to the command, and SIGKILL to one that ignores it."""
    web = remote()
    stream = HostStream(web.command(), [LENS])
    stream.end()
    assert stream.exit_code is not None
    with streaming(["sh", "-c", "trap '' TERM; echo started >&2; exec sleep 1000"]) as stubborn:
        until(lambda: stubborn.last_words == "started")
        monkeypatch.setattr(stream_module, "_ENDING_S", 0.05)
        stubborn.end()
        assert stubborn.exit_code == -signal.SIGKILL


STARTS_A_STREAM = """
import sys, time
from nettop.hosts.stream import HostStream
stream = HostStream(["sleep", "1000"], [])
print(stream._process.pid, flush=True)
time.sleep(1000)
"""


def test_a_killed_nettop_leaves_no_command_behind() -> None:
    """Have the kernel end the command when nettop is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_A_STREAM], stdout=subprocess.PIPE, text=True
    ) as nettop:
        assert nettop.stdout is not None
        pid = int(nettop.stdout.readline())
        try:
            assert is_running(pid)
            nettop.kill()
            until(lambda: not is_running(pid))
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# --- why a command has ended --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "code", "cause", "remedy"),
    [
        ("ssh: connect to web1: Connection refused\n", 255, "ssh: connect to web1: Connection refused",
         "make sure that 'ssh web1' works without asking anything"),
        ("sh: 1: exec: nettop: not found\n", 127, "sh: 1: exec: nettop: not found", "install nettop on web1"),
        ("sudo: nettop: command not found\n", 1, "sudo: nettop: command not found", "install nettop on web1"),
        ("sudo: a password is required\n", 1, "sudo: a password is required", "let sudo run 'nettop record -'"),
        ("x" * 100_000 + "\nthe reason\n", 1, "the reason", "try: ssh web1"),
        ("", 3, "nettop ended there (exit code 3)", "try: ssh web1"),
        ("Goodbye!\n", 0, "nettop ended there (exit code 0)", "try: ssh web1"),
        ("first\n\x1b[2J\x1b]0;owned\x07\u202elast\n\n", 1, "␛[2J␛]0;owned␇\ufffdlast", "try: ssh web1"),
    ],
)  # fmt: skip
def test_why_a_command_has_ended(remote: MakeRemote, says: str, code: int, cause: str, remedy: str) -> None:
    """Show the last line that a command wrote, escaped, with a remedy."""
    web = remote(says=says, code=code)
    with streaming(web.command()) as stream:
        web.end()
        until(lambda: stream.exit_code is not None)
        found = why_ended(stream, "web1")
    assert found[0] == cause
    assert found[1].startswith(remedy)


NO_RECORDING = r"what it sends is no recording|it sent 4 MiB more than was read"


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("yes error | head -c 2000000 >&2; exec sleep 1000", r"it wrote [\d,]+ bytes of errors: er"),
        ("exec yes", NO_RECORDING),
        ('cat "$0"; exec cat /dev/zero', NO_RECORDING),
    ],
    ids=["errors", "no recording", "a recording"],
)
def test_a_flood_is_bounded(script: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """End a command that sends too much, keep little of it, and show the reason."""
    monkeypatch.setattr(stream_module, "_HELD_MAX", 4 << 20)
    begin = record(tmp_path / "r.nettop", [make_frame([{"id": 1}]).now])
    streams, held = set[HostStream](), 0

    def lost(hosts: Hosts) -> str:
        nonlocal held
        for link in hosts._links.values():
            if link.stream is not None:
                streams.add(link.stream)
        for stream in streams:
            held = max(
                held,
                *(os.fstat(descriptor).st_blocks * 512 for descriptor in (stream._output, stream._errors)),
            )
        hosts.newest(LENS.id)
        return next((link.cause for link in hosts.lost(LENS.id).values()), "")

    with Hosts(["web"], lambda *_: ["sh", "-c", script, str(begin)], 1.0) as hosts:
        hosts.use(LENS.id)
        said = until(lambda: lost(hosts))
        hosts.release(LENS.id)
    assert re.match(cause, said)
    assert held <= 5 << 20
    assert all(stream.exit_code is not None for stream in streams)


# --- several hosts ------------------------------------------------------------------------------------------------


def test_readings_of_several_hosts(remote: MakeRemote) -> None:
    """Each host's newest reading, once it has one; the same snapshot until there is another. A host that takes longer
    than the others is not waited for, and keeps its rate."""
    web, db = remote("web"), remote("db")
    with shown(web=web, db=db) as (hosts, source, clock):
        web.read(0, bytes_sent=1)
        read_until(source, {"web": 1})
        db.read(0, bytes_sent=5)
        first = read_until(source, {"web": 1, "db": 5})
        assert source.read(0) is first
        web.read(1, bytes_sent=2)
        until(lambda: hosts.newest(LENS.id)["web"].now.tables["sockets"].array["bytes_sent"] == 2)
        assert source.read(0) is first
        clock.now += 1.8
        second = read_until(source, {"web": 2, "db": 5})
        assert second.hosts["web"] > first.hosts["web"]
        assert hosts.lost(LENS.id) == {}
    assert (web.starts, db.starts) == ([(LENS.id, FINDINGS_LENS.id)],) * 2


@given(arrivals=st.lists(st.sampled_from(["web", "db", "both", "none"]), min_size=1, max_size=12))
def test_what_was_counted_is_shown_once(arrivals: list[str]) -> None:
    """Count each byte in one interval, whatever the order of readings, unless a host falls behind."""
    seconds = {"web": 0, "db": 0}
    now_s = 0.0
    pairing = Pairing(1.0, lambda: now_s)
    counted = dict.fromkeys(seconds, 0)

    def readings() -> dict[str, Reading]:
        return {host: reading_at(second) for host, second in seconds.items()}

    @cache
    def reading_at(second: int) -> Reading:
        return Reading(frame_at(second), frame_at(second - 1) if second else None, (), True)

    @cache
    def frame_at(second: int) -> Snapshot:
        return at_second(make_frame([{"id": 1, "bytes_sent": 10 * second}]).now, second)

    for came in [*arrivals, "both"]:
        for host in seconds:
            seconds[host] += came in (host, "both")
        now_s += 0.1
        if pairing.renew(readings()):
            for host, pair in pairing.pairs.items():
                before = 0 if pair.before is None else sent(pair.before)
                counted[host] += sent(pair.now) - before
    assert counted == {host: 10 * second for host, second in seconds.items()}


def sent(snapshot: Snapshot) -> int:
    """Return the bytes sent by the only connection."""
    return int(snapshot.tables["sockets"].array["bytes_sent"][0])


def test_the_line_of_a_host_keeps_its_rate(remote: MakeRemote) -> None:
    """Keep a host's rate while its next reading is on its way."""
    web, db = remote("web"), remote("db")
    with shown(web=web, db=db) as (hosts, _, clock):
        overview = OverviewSource(hosts)
        overview.start()
        for second in (0, 1):
            for host in (web, db):
                host.write(counted_at(second, 100 * second))
            until(lambda second=second: newest_s(hosts) == {"web": second, "db": second})
            now = overview.read(0)
        for wait_s in (0.5, 1.5):
            web.write(counted_at(2 + wait_s, 400))
            until(lambda wait_s=wait_s: newest_s(hosts) == {"web": 2 + wait_s, "db": 1})
            clock.now += wait_s
            now = overview.read(0)
        view = View(Frame(now, overview.leap()[1]), screen_query(HOSTS))
        columns = (view.values(name, view.order) for name in ("host", "bytes_sent_per_s"))
        rates = dict(zip(*columns, strict=True))
        overview.close()
    assert rates["db"] == 100
    assert rates["web"] == pytest.approx(300 / 2.5)


def newest_s(hosts: Hosts) -> dict[str, float]:
    """Return when each host's newest reading was taken, in seconds as `counted_at` takes them."""
    return {host: reading.now.boot_ns / 10**9 - 1 for host, reading in hosts.newest(LENS.id).items()}


def counted_at(second: float, bytes_sent: int) -> Snapshot:
    """Return a reading of connections with this total."""
    return replace(at_second(make_frame([{"id": 1}]).now, second), counts={"bytes_sent": bytes_sent})


def test_a_host_that_ends_is_named_and_comes_back(remote: MakeRemote) -> None:
    """Report a lost host as a gap and a finding while others continue, and retry it with growing delays."""
    web, db = remote("web"), remote("db", says="kex_exchange_identification: reset\n", code=255)
    with shown(web=web, db=db) as (hosts, source, clock):
        web.read(0, bytes_sent=1)
        db.read(0, bytes_sent=5)
        read_until(source, {"web": 1, "db": 5})
        db.end()
        web.read(1, bytes_sent=2)
        snapshot = read_until(source, {"web": 2})
        assert snapshot.gaps == {"db": "lost: kex_exchange_identification: reset"}
        assert "without asking" in hosts.lost(LENS.id)["db"].remedy
        findings = HostsSource(hosts, with_host(FINDINGS_LENS)).read(0).tables[FINDINGS.name]
        assert [findings.texts[HOST.name][code] for code in findings.array[HOST.name]] == ["db"]
        assert list(findings.texts["kind"]) == ["host lost"]
        assert list(findings.texts["finding"]) == ["db: no readings: kex_exchange_identification: reset"]
        assert len(db.starts) == 1
        clock.now += 1
        until(lambda: len(db.starts) == 2)
        assert "db" in hosts.lost(LENS.id)
        db.read(7, bytes_sent=6)
        assert read_until(source, {"web": 2, "db": 6}).gaps == {}


def test_all_hosts_fail(remote: MakeRemote) -> None:
    """Report the cause of each host and the first remedy; retry once the lens is wanted again."""
    web, db = (remote(name, says=f"no {name}\n", code=255) for name in ("web", "db"))
    with shown(web=web, db=db) as (hosts, source, _):
        web.end()
        db.end()
        failure = until(lambda: hosts.failure(LENS.id))
        with pytest.raises(SourceFailed) as raised:
            source.read(0)
        assert raised.value.what == failure.what == "web: no web; db: no db"
        assert "ssh web" in failure.remedy
        source.close()
        source.start()
        assert hosts.failure(LENS.id) is None
        until(lambda: len(web.starts) == len(db.starts) == 2)
        web.read(0, bytes_sent=1)
        read_until(source, {"web": 1})


def test_ssh_is_not_installed() -> None:
    """Report that ssh cannot be started."""
    with Hosts(["web"], lambda host, lenses: ["/nowhere/ssh"], 1.0, Clock()) as hosts:
        hosts.use(LENS.id)
        failure = until(lambda: hosts.failure(LENS.id))
    assert failure.what == "web: ssh cannot be started: No such file or directory"
    assert failure.remedy == "install an ssh client"


def test_a_silent_host_is_late(remote: MakeRemote) -> None:
    """Report a host without readings as lost though its command runs, until its next reading."""
    web = remote("web")
    with shown(web=web) as (hosts, source, clock):
        web.read(0, bytes_sent=1)
        read_until(source, {"web": 1})
        clock.now += LATE_AFTER_S - 0.1
        assert sent_by(source.read(0)) == {"web": 1}
        clock.now += 0.2
        assert source.read(0).gaps == {"web": "lost: it sends no readings"}
        assert hosts.lost(LENS.id)["web"].remedy == "see whether it still answers"
        web.read(60, bytes_sent=2)
        assert read_until(source, {"web": 2}).gaps == {}
    assert len(web.starts) == 1


def test_garbage(remote: MakeRemote) -> None:
    """Skip a login's greeting before a recording; report garbage once the time to attach is over."""
    web = remote("web")
    with shown(web=web) as (hosts, source, clock):
        web.send(b"Welcome to web!\n" * 100)
        stream = until(lambda: hosts._links["web", web.starts[0]].stream if web.starts else None)
        until(lambda: os.fstat(stream._output).st_size == 1600)
        source.read(0)
        clock.now += ATTACHING_S - 1
        assert source.read(0).gaps == {}
        clock.now += 2
        failure = "lost: what it sends is no recording: "
        assert source.read(0).gaps["web"].startswith(failure)
        web.read(0, bytes_sent=1)
        assert read_until(source, {"web": 1}).gaps == {}


def test_release_ends_the_command(remote: MakeRemote) -> None:
    """End the command once nobody uses the lens, and all when the hosts are closed."""
    web = remote("web")
    clock = Clock()
    with Hosts(["web"], lambda host, lenses: web.command(lenses), 1.0, clock) as hosts:
        hosts.use(LENS.id)
        hosts.use(FINDINGS_LENS.id)
        until(lambda: web.starts)
        link = hosts._links["web", web.starts[0]]
        pid = until(lambda: link.stream)._process.pid
        hosts.release(FINDINGS_LENS.id)
        assert is_running(pid)
        hosts.release(LENS.id)
        until(lambda: not is_running(pid))
        hosts.use(LENS.id)
        again = until(lambda: link.stream)._process.pid
    assert not is_running(again)
    assert len(web.starts) == 2


def test_events_come_once(remote: MakeRemote) -> None:
    """Return each event once, also if another reading arrives before the source takes them."""
    web = remote("web")
    events = LENS.tables[1]
    with shown(web=web) as (hosts, source, _):
        for second in range(3):
            batch = make_frame([{"event_id": second, "id": 1}], table=events).now.tables[events.name]
            snapshot = at_second(make_frame([{"id": 1, "bytes_sent": second}]).now, second)
            web._recording.write_events(LENS.id, batch, snapshot.wall_ns)
            web.write(snapshot)
        until(lambda: sent_by_newest(hosts) == 2)
        source.read(0)
        drained = source.drain(0)
        assert sum(map(len, drained)) == 3
        (sockets,) = {tuple(batch.array["id"].tolist()) for batch in drained}
        assert set(sockets) == set(source.read(0).tables[SOCKETS.name].array["id"].tolist())
        assert source.drain(0) == ()


def sent_by_newest(hosts: Hosts) -> int | None:
    """Return the bytes of the only host's only connection."""
    reading = hosts.newest(LENS.id).get("web")
    return None if reading is None else int(reading.now.tables[SOCKETS.name].array["bytes_sent"][0])


def overview(source: OverviewSource) -> list[dict[str, object]]:
    """Return the rows of the hosts, the worst first, as text output has them."""
    view = View(Frame(source.read(0)), replace(screen_query(HOSTS), deltas=False))
    names = ("host", "state", "findings", "connections", "bytes_sent", "worst")
    return [
        dict(zip(names, row, strict=True))
        for row in zip(*(view.values(n, view.order) for n in names), strict=True)
    ]


def test_a_line_for_each_host(remote: MakeRemote) -> None:
    """Show each host's connections and totals, or why it is lost, and leave events to the source of connections."""
    web, db = remote("web"), remote("db", says="no db\n", code=255)
    with shown(web=web, db=db) as (hosts, source, _):
        overviews = OverviewSource(hosts)
        overviews.start()
        made = at_second(make_frame([{"id": 1, "state": "ESTABLISHED"}, {"id": 2, "state": "LISTEN"}]).now, 0)
        web.write(replace(made, counts={"bytes_sent": 7}))
        db.end()
        until(lambda: hosts.lost(LENS.id) and "web" in hosts.newest(LENS.id))
        lost, live = overview(overviews)
        assert overviews.read(0).gaps == {"db": f"{LOST_HOST}no db"}  # standard error names it
        assert lost == {**dict.fromkeys(lost), "host": "db", "state": "lost", "findings": 1, "worst": "no db"}
        none_yet = {"findings": None, "worst": None}  # the command has not sent any
        assert live == {"host": "web", "state": "live", "connections": 1, "bytes_sent": 7} | none_yet
        overviews.close()
        assert sent_by(source.read(0)).keys() == {"web"}


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "-oProxyCommand=x", "-", "web 1", "web\n1", "web\t1", "\x1b[2J", "a\u202eb"]
)
def test_names_of_hosts(name: str) -> None:
    """Refuse names that ssh would take as options or as several words, and drop hosts that are named twice."""
    with pytest.raises(UsageError) as failure:
        checked_hosts(["web1", name])
    assert repr(name) in failure.value.what
    assert failure.value.remedy
    assert checked_hosts(["web1", "admin@web1", "web1", "größer"]) == ("web1", "admin@web1", "größer")


def test_options_pass_to_the_hosts() -> None:
    """Pass the options of the sources, each with the lens that it concerns."""
    settings = settings_of(
        "-t 2 --max-overhead 3% --mechanism sockets=diag --follow-namespaces --group remote --udp-port 5060 "
        "--udp-port 5061 --host web1"
    )
    always = ["--max-overhead", "3%", "--follow-namespaces", "--mechanism", "sockets=diag"]
    services = ["--interval", "2", "--lenses", "services", *always, "--udp-port=5060,5061"]
    assert recorded_arguments(settings, ("services",)) == services
    assert recorded_arguments(settings, (LENS.id, FINDINGS_LENS.id))[-1] == "--group=remote"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "web1", "--demo"], "--demo"),
        (["--host-command", "sudo -n nettop"], "--host-command"),
        (["--host", "web1", "--view", "collector.ledger"], "not about a host\n  leave out --host"),
        (["--host", "web1", "--view", "flows"], "not about a host\n  leave out --host"),
        (["--view", "hosts"], "--view hosts shows other hosts\n  name them with --host"),
    ],
)
def test_options_without_effect(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Name options without an effect, and what an existing view needs, with the remedy."""
    assert cli.run([*words, "--once"]) == 2
    assert said in capsys.readouterr().err


def test_what_one_command_records() -> None:
    """Record connections and findings by one command, also for the hosts and nettop's own cost."""
    basic = (LENS.id, FINDINGS_LENS.id)
    hosts = Hosts(["web"], lambda host, lenses: [], 1.0)
    assert [hosts.recorded_with(lens) for lens in (*basic, "hosts", "self")] == [basic] * 4
    assert hosts.recorded_with("cpu") == ("cpu",)


@pytest.mark.parametrize(
    ("view", "recorded"),
    [
        ("findings", "connections,drops,services,findings"),
        ("findings.limits", "connections,findings"),
        ("drops", "drops"),
    ],
)
def test_text_of_findings_watches_all_lenses_together(
    view: str, recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record all lenses with rules by one command, so that findings can explain each other."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cli.run(["--host", "web1", "--view", view, "--once"]) == SourceFailed("").exit_code
    assert set(re.findall("--lenses ([a-z,]+)", (tmp_path / "words").read_text())) == {recorded}


SSH = 'for word; do last="$word"; printf "%s\\0" "$word"; done >"$PRINTED"; exec sh -c "$last"\n'
"""An ssh that prints its words, and runs the command as sshd does, by the shell of the user."""
SUDO = 'printf "sudo\\0" >"$RAN.sudo"; while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"\n'
PRINTS = 'printf "%s\\0" "$@" >"$RAN"\n'
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with programs that take the places of ssh, sudo and nettop."""
    folder = tmp_path_factory.mktemp("bin")
    for name, script in (("ssh", SSH), ("sudo", SUDO), ("nettop", PRINTS), ("my nettop", PRINTS)):
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    return folder


def run(stubs: Path, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Run the words with the stubs; return the words of ssh, and the arguments of nettop."""
    printed, ran = stubs / "printed", stubs / "ran"
    environment = {"PATH": f"{stubs}:/usr/bin:/bin", "PRINTED": str(printed), "RAN": str(ran)}
    subprocess.run(words, env=environment, check=True, timeout=60, stdin=subprocess.DEVNULL)
    return tuple(path.read_bytes().decode().split("\0")[:-1] for path in (printed, ran))  # type: ignore[return-value]


@given(arguments=st.lists(texts, max_size=3))
def test_arguments_pass_all_shells(stubs: Path, arguments: list[str]) -> None:
    """Pass arguments unchanged through ssh, the user's shell and sh, with the host as one word after the options."""
    words = ssh_words("admin@web1", "", arguments)
    ssh, nettop = run(stubs, words)
    assert nettop == ["record", "-", *arguments]
    assert ssh[ssh.index("--") + 1 :] == ["admin@web1", words[-1]]
    assert "BatchMode=yes" in ssh


@pytest.mark.parametrize(
    ("uid", "command", "is_by_sudo"),
    [
        ("0", "", False),
        ("1000", "", True),
        ("1000", "nettop", False),
        ("1000", "env A=1 nettop", False),
        ("1000", shlex.quote("my nettop"), False),
    ],
)
def test_who_runs_nettop(stubs: Path, uid: str, command: str, is_by_sudo: bool) -> None:
    """Run a given command by a shell, or nettop by sudo unless the user there is root."""
    (stubs / "ran.sudo").unlink(missing_ok=True)
    (stubs / "id").write_text(f"#!/bin/sh\necho {uid}\n")
    (stubs / "id").chmod(0o755)
    _, nettop = run(stubs, ssh_words("web1", command, ("--lenses", "connections,findings")))
    assert nettop == ["record", "-", "--lenses", "connections,findings"]
    assert (stubs / "ran.sudo").exists() == is_by_sudo
