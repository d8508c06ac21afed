# SPDX-License-Identifier: Apache-2.0
"""`nettop run`: how the command runs, and the report of its connections."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nettop.output import run_report
from nettop.output.run_report import RunSummary
from nettop.snapshots.connections import EVENTS
from tests.unit.build import Row, Tables, make_rows
from tests.unit.children import DEADLINE_S, Child, ran, started
from tests.unit.woken import CLOSE, CONNECT, FAIL

SCRIPT = """
import sys
from nettop import cli
from nettop.errors import SourceFailed, Unsupported
from tests.unit.build import make_frame
from tests.unit.scripted import steps
from tests.unit.woken import CLOSE, CONNECT, FAIL, Woken

class Source(Woken):
    def start(self):
        if steps is STEPS["slow"]:
            print("attaching", file=sys.stderr, flush=True)
            sys.stdin.read()

    def configure(self, options):
        super().configure(options)
        if options.follow is not None:
            self.happen(CONNECT | {"id": 1}, CONNECT | {"id": 2}, CLOSE | {"id": 1}, FAIL | {"id": 3})

socket = {"id": 2, "remote_address": "127.0.0.1", "remote_port": 443, "direction": "outbound", "bytes_sent": 5}
COUNTS = {
    "followed_udp_bytes_sent": 1_000_000, "followed_udp_messages_sent": 1000, "followed_udp_bytes_received": 7,
    "followed_udp_messages_received": 1, "followed_processes": 2,
}
STEPS = {
    "works": [make_frame([socket], lost={"events": 2}, counts=COUNTS,
                         via={"events": "tp_btf", "routes": "n/a: no fexit"}).now],
    "slow": [make_frame([], via={"events": "tp_btf"}).now],
    "fails": [Unsupported("no BTF", "a newer kernel")],
    "n/a": [make_frame([], via={"events": "n/a: no such tracepoint"}).now],
    "breaks": [*steps([]), SourceFailed("the ring broke")],
}
from nettop.output import run as frontend
frontend.LINGER_S = 0.0
run = cli.run
steps = STEPS[sys.argv.pop(1)]
cli.run = lambda words: run(words, lambda lens: Source(steps))
sys.exit(cli.main())
"""


def nettop(
    *words: str, how: str = "works", before: str = "", **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """Run `nettop run` over a source with four events: two connect, one of them closes, a third fails.

    The lines `before` are executed first.
    """
    return ran("-c", before + SCRIPT, how, "run", *words, **kwargs)


# --- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL)],
)
def test_exit_code_is_the_commands(words: list[str], code: int) -> None:
    """The exit code is the command's, or 128 and the signal that ended it; the report says it too."""
    done = nettop("--", *words)
    assert done.returncode == code
    assert f" exited with {code} after " in done.stderr


def test_commands_that_cannot_run(tmp_path: Path) -> None:
    """A command that does not exist gives 127, one that may not run 126, as shells have it, in one line."""
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o644)
    missing, forbidden = nettop("--", "no-such-command-here"), nettop("--", str(tmp_path / "file"))
    assert (missing.returncode, forbidden.returncode) == (127, 126)
    assert missing.stderr == "nettop: no-such-command-here: No such file or directory\n"
    assert forbidden.stderr == f"nettop: {tmp_path}/file: Permission denied\n"


def test_its_streams_are_its_own() -> None:
    """The command has the options behind its name, reads and writes what nettop was given; of nettop, standard output
    holds nothing."""
    for words in (["--", "echo", "--live", "--", "-x"], ["echo", "--live", "--", "-x"]):
        assert nettop(*words).stdout == "--live -- -x\n"
    done = nettop("--", "sh", "-c", "cat; echo to stderr >&2", stdin=None, input="to stdin\n")
    assert done.stdout == "to stdin\n"
    assert done.stderr.startswith("to stderr\n")


def test_signals_and_limits_are_as_they_were() -> None:
    """The command ignores no signal that nettop does, and keeps ignoring what it was given so."""
    # Read by the shell itself: gawk ignores SIGPIPE.
    mask = 'while read name value; do [ "$name" != SigIgn: ] || echo $value; done </proc/self/status'
    plain = int(nettop("--", "sh", "-c", mask).stdout, 16)
    ignoring = nettop("--", "sh", "-c", mask, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert plain >> (signal.SIGPIPE - 1) & 1 == 0
    assert plain >> (signal.SIGXFSZ - 1) & 1 == 0
    assert int(ignoring.stdout, 16) == plain | 1 << (signal.SIGHUP - 1)


@pytest.mark.parametrize(
    ("how", "reported"),
    [("fails", "nettop: no BTF\n"), ("n/a", "nettop: connections.events is not available")],
)
def test_without_hooks_it_does_not_run(how: str, reported: str) -> None:
    """If nettop cannot attach, the command never runs, and the error says why."""
    done = nettop("--", "echo", "I ran", how=how)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(reported)


def test_a_source_that_breaks_later() -> None:
    """The command goes on to its end, and the report says that it is not whole."""
    done = nettop("--", "sh", "-c", "echo I ran; exit 7", how="breaks")
    assert (done.returncode, done.stdout) == (7, "I ran\n")
    assert done.stderr.splitlines()[-1].startswith("  trouble  the ring broke; not read since ")


def running(script: str, *options: str) -> Child:
    """Start `nettop run` of a shell script that has printed `begun`, in a separate process group."""
    words = "works", "run", *options, "--", "sh", "-c", script
    child = started("-c", SCRIPT, *words, start_new_session=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_ended_is_sent_on(number: signal.Signals) -> None:
    """SIGTERM and SIGHUP reach the command, which decides; nettop reports."""
    with running(f"trap 'exit 9' {number.name.removeprefix('SIG')}; echo begun; read _") as child:
        child.send_signal(number)
        assert child.wait(DEADLINE_S) == 9
        assert child.stderr is not None
        assert " exited with 9 after " in child.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_being_ended_before_the_command_begins(number: signal.Signals) -> None:
    """The exit code is 128 and the signal's number, as of a command that it ended; the command never begins."""
    with started("-c", SCRIPT, "slow", "run", "--", "echo", "I ran") as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "attaching\n"
        child.send_signal(number)
        output, errors = child.communicate(timeout=DEADLINE_S)  # closes its input: the source has attached
    assert (child.returncode, output, errors) == (128 + number, "", "")


def test_keys_of_the_terminal_are_the_commands() -> None:
    """Ctrl-C reaches both, as one group; nettop waits for what the command makes of it."""
    with running("trap 'exit 5' INT; echo begun; read _") as child:
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(DEADLINE_S) == 5
        assert child.stderr is not None
        assert " exited with 5 after " in child.stderr.read()


# --- the report -----------------------------------------------------------------------------------------------


def test_report_for_people() -> None:
    """The report has each ended connection, then sums, reasons, the slowest handshakes, remotes, and losses."""
    reported = nettop("--", "true").stderr.splitlines()
    assert [line.split()[1] for line in reported[:2]] == ["close", "fail"]
    first, *rest = reported[2:]
    assert first.startswith("nettop: true exited with 0 after ")
    assert rest == [
        "  opened   2, 1 still open",
        "  failed   1: refused 1",
        "  tcp      sent 1.2 kB, received 48.1 kB, retransmits 1",
        "  udp      sent 1.0 MB, received 7 B, messages 1000 and 1",
        "  running  2 processes outlived the command; further traffic is not counted",
        "  slowest     62 µs  127.0.0.1:443  curl[4615]",
        "              62 µs  127.0.0.1:443  curl[4615]",
        "  remotes  127.0.0.1:443  opened 2  failed 0  sent 1.2 kB, received 48.1 kB, retransmits 1",
        "           127.0.0.1:1    opened 0  failed 1  sent 0 B, received 0 B, retransmits 0",
        "  lost     2 events: their connections are missing from the sums; try a larger --ring-size",
        "  n/a      routes: no fexit",
    ]


def test_report_for_programs(tmp_path: Path) -> None:
    """The same as JSON Lines in a file; the standard error of the command is left alone."""
    path = tmp_path / "report"
    done = nettop("--format", "jsonl", "--output", str(path), "--", "sh", "-c", "exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    close, fail, summary = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["type"], row["event"]) for row in (close, fail)] == [("event", "close"), ("event", "fail")]
    service = {"name": "127.0.0.1:443", "opened": 2, "failed": 0}
    refused = {"name": "127.0.0.1:1", "opened": 0, "failed": 1}
    moved = {"bytes_sent": 1205, "bytes_received": 48_100, "retransmits": 1}
    slow = {"handshake_us": 62, "remote": "127.0.0.1:443", "process": "curl", "pid": 4615}
    assert summary | {"time": 0, "lasted_us": 0} == {
        "time": 0, "type": "summary", "command": ["sh", "-c", "exit 3"], "exit_code": 3, "lasted_us": 0,
        "opened": 2, "accepted": 0, "still_open": 1, "failed": {"refused": 1}, "broken": {}, **moved,
        "slowest": [slow, slow], "remotes": [service | moved, refused | dict.fromkeys(moved, 0)],
        "udp_bytes_sent": 1_000_000, "udp_bytes_received": 7, "udp_messages_sent": 1000, "udp_messages_received": 1,
        "still_running": 2, "lost_events": 2, "lost_udp_messages": 0, "lost_followed_processes": 0, "trouble": None,
        "missing": {"routes": "no fexit"},
    }  # fmt: skip


def test_live_report() -> None:
    """--live tells of a connection while the command still runs."""
    with running("echo begun; read _", "--live") as child:
        assert child.stderr is not None
        assert child.stderr.readline().split()[1] == "close"
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(DEADLINE_S) == 1
        assert "  close  " not in child.stderr.read()


def test_a_report_that_nobody_reads() -> None:
    """A closed standard error changes nothing for the command."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = nettop("--", "sh", "-c", "exit 4", capture_output=False, stderr=closed)
    assert done.returncode == 4


# --- sums -----------------------------------------------------------------------------------------------------


def added(*batches: list[Row]) -> RunSummary:
    """Return the sums over these events."""
    sums, texts = RunSummary(), Tables()
    for batch in batches:
        sums.add(make_rows(batch, EVENTS, texts=texts))
    return sums


def test_accepted_and_earlier_connections() -> None:
    """A connection is open from its connect to its close; one that was accepted, or whose opening was lost, counts at
    its end."""
    assert added([CONNECT | {"id": 1}, CLOSE | {"id": 1}]).still_open == 0
    sums = added([CONNECT | {"id": 2}, CONNECT | {"id": 1}], [CLOSE | {"id": 2}])
    assert (sums.opened, sums.accepted, sums.still_open) == (2, 0, 1)
    inbound = CLOSE | {"direction": "inbound", "local_port": 80, "remote_port": 50_000}
    sums = added([inbound | {"id": 1}, inbound | {"id": 2, "remote_port": 50_001}, CLOSE | {"id": 3}])
    assert (sums.opened, sums.accepted, sums.still_open) == (1, 2, 0)
    assert [(item["name"], item["opened"]) for item in sums.by_bytes()] == [
        ("127.0.0.1 → :80", 2),
        ("127.0.0.1:443", 1),
    ]


def test_reasons() -> None:
    """Failures and broken connections are counted by reason; an end that both agreed on is neither."""
    reasons = ("refused", "refused", "timed out")
    ends = ("reset by peer", "closed by peer", "closed by us", "timed out")
    sums = added([FAIL | {"reason": item} for item in reasons] + [CLOSE | {"reason": item} for item in ends])
    assert sums.failed == {"refused": 2, "timed out": 1}
    assert sums.broken == {"reset by peer": 1, "timed out": 1}


def test_the_slowest_handshakes() -> None:
    """The slowest few of all batches, the slowest first; those never measured are none."""
    times: list[int | None] = [5, 900, None, 30, 7, 80, 200, 6]
    rows = [CONNECT | {"id": at, "handshake_us": took} for at, took in enumerate(times)]
    sums = added(rows[:4], rows[4:])
    assert [item["handshake_us"] for item in sums.slowest] == [900, 200, 80, 30, 7]
    assert sums.slowest[0] == {"handshake_us": 900, "remote": "127.0.0.1:443", "process": "curl", "pid": 4615}


def test_remotes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound, the rest are one, so that sums stay whole."""
    monkeypatch.setattr(run_report, "REMOTES_MAX", 2)
    sums = added([CLOSE | {"id": at, "remote_port": at} for at in range(1, 6)])
    assert sum(item["opened"] for item in sums.remotes.values()) == 5
    moved = {"bytes_sent": 3600, "bytes_received": 144_300, "retransmits": 3}
    assert {"name": "(others)", "opened": 3, "failed": 0, **moved} in sums.by_bytes()
