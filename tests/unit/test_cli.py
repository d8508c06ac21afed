# SPDX-License-Identifier: Apache-2.0
"""The command line: what the words mean, what is told of wrong ones, and how the program ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from nettop import __version__
from nettop.cli import (
    Asked,
    complete_columns,
    complete_format,
    complete_sort,
    complete_view,
    run,
    settings_of,
)
from nettop.errors import ExitCode, PermissionMissing, SourceFailed, Unsupported
from nettop.query.filter import parse_filter, quote
from nettop.settings import Format, Settings, TextSettings, ViewSettings
from nettop.snapshots.connections import SOCKETS
from tests.unit.scripted import Scripted, steps

ROWS = [{"pid": 7, "process": "nginx", "bytes_sent": 5}, {"pid": 8, "process": "sh", "bytes_sent": 6}]


def source(lens: str) -> Scripted:
    """Two connections."""
    return Scripted(steps(ROWS))


def nettop(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "nettop", *words]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL, **kwargs
    )


def test_options_become_settings() -> None:
    """Every option of plain output ends in the settings."""
    asked = Asked(
        view="connections", filter=["nginx"], sort="-rtt_us", all=True, resolve=True, interval="0.5",
        table=True, data_only=True, format="csv", columns="pid, local,", limit="3", deltas=True, count="2",
    )  # fmt: skip
    view = ViewSettings("connections", ("pid", "local"), "-rtt_us", ("nginx",), 3, True, True, True)
    assert settings_of(asked) == Settings(0.5, view, TextSettings(Format.CSV, 2, data_only=True))


def test_nothing_asked() -> None:
    """Without options the settings are the defaults, and the screens open."""
    assert settings_of(Asked()) == Settings()
    assert not Asked().is_text


@pytest.mark.parametrize("asked", [Asked(table=True), Asked(data_only=True), Asked(format="jsonl")])
def test_what_implies_table(asked: Asked) -> None:
    """--table, --data-only and --format each ask for plain output."""
    assert asked.is_text


def test_shortcuts_are_filters() -> None:
    """--port, --pid, --process and --container become terms of the filter, whatever they hold."""
    hostile = 'a "b" \\c'
    filters = settings_of(Asked(port="443", pid="7", process=hostile, container="api")).view.filters
    assert filters == (":443", "pid=7", f"process={quote(hostile)}", 'container~"api"')
    parse_filter(SOCKETS, " ".join(filters))


def test_once_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    """The words run through to the output: one block, then done."""
    assert (
        run(["--table", "-d", "--once", "--columns", "pid,process", "--sort", "pid"], source) is ExitCode.DONE
    )
    assert capfd.readouterr() == ("pid  process\n7    nginx\n8    sh\n", "")


def test_shortcut_chooses_rows(capfd: pytest.CaptureFixture[str]) -> None:
    """A shortcut shows its rows only."""
    assert run(["--format", "jsonl", "--once", "--process", "sh"], source) is ExitCode.DONE
    assert [json.loads(line)["pid"] for line in capfd.readouterr().out.splitlines()] == [8]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tabel"], "unknown option '--tabel'|did you mean --table"),
        (["--zzzzzz"], "unknown option '--zzzzzz'|nettop --help"),
        (["--view", "conections"], "unknown view 'conections'|did you mean connections?"),
        (["--table", "--columns", "pids"], "unknown column 'pids'|did you mean pid"),
        (["--table", "--sort", "-bytes_snt"], "unknown sort field 'bytes_snt'|did you mean bytes_sent"),
        (["--table", "--filter", "stat=LISTEN"], "unknown field 'stat'|did you mean state"),
        (["--filter", "stat=LISTEN"], "unknown field 'stat'|did you mean state"),
        (["--format", "jsn"], "unknown format 'jsn'|did you mean jsonl?"),
        (["--interval", "0"], "interval of 0 s|between 0.1 and 3600"),
        (["-t", "-1"], "interval of -1 s|between 0.1 and 3600"),
        (["-t", "soon"], "'soon' is not a number of seconds|--interval 0.5"),
        (["-t", "nan"], "interval of nan s|between"),
        (["--table", "--once", "--count", "5"], "--once and --count 5|one of them"),
        (["--table", "--count", "0"], "--count '0' is not a whole number|--count 10"),
        (["--table", "--limit", "-3"], "--limit '-3' is not a whole number|--limit 10"),
        (["--table", "--pid", "nginx"], "--pid 'nginx' is not a whole number|--pid 10"),
        (["--once"], "--once is of plain output|--table"),
        (["--deltas"], "--deltas is of plain output|--table"),
        (["--columns", "pids"], "unknown column 'pids'|did you mean pid"),
        (["--limit"], "'--limit' requires an argument|--help"),
        (["conections"], "no such command 'conections'|--help"),
        ([], "the screens need a terminal|--table"),
    ],
)
def test_wrong_words(words: Sequence[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What does not exist or contradicts itself ends with code 2 and two lines: what, and how to mend it."""
    assert run(words, source) == ExitCode.USAGE
    out, err = capfd.readouterr()
    what, remedy = err.splitlines()
    assert out == ""
    assert what.startswith("nettop: ")
    assert remedy.startswith("  ")
    for said, line in zip(told.split("|"), (what, remedy), strict=True):
        assert said in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unsupported("no BTF", "a newer kernel"), 3),
        (PermissionMissing("not root"), 4),
        (SourceFailed("gone"), 5),
    ],
)
def test_exit_codes(error: Exception, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    """What a source fails with is told without a traceback, and gives the documented exit code."""
    assert run(["--table", "--once"], lambda lens: Scripted([error])) == code  # type: ignore[list-item]
    assert capfd.readouterr().err.startswith(f"nettop: {error}\n")


def test_hostile_words_are_told_safely(capfd: pytest.CaptureFixture[str]) -> None:
    """A word with escape sequences is told back with visible marks."""
    run(["--view", "\x1b[31mx"], source)
    assert "\x1b" not in capfd.readouterr().err


def test_completion() -> None:
    """Views, formats, orders and lists of columns are completed; of a list only the last name."""

    class Context:
        params = {"view": "connections"}  # noqa: RUF012 - stands for typer's

    class Unknown:
        params = {"view": "nothing"}  # noqa: RUF012 - stands for typer's

    assert complete_view("conn") == ["connections"]
    assert complete_format("j") == ["jsonl"]
    assert complete_sort(Context(), "-rtt_m") == ["-rtt_min_us"]  # type: ignore[arg-type]
    assert complete_columns(Context(), "pid,bytes_se") == ["pid,bytes_sent", "pid,bytes_sent_per_s"]  # type: ignore[arg-type]
    assert complete_columns(Unknown(), "p") == []  # type: ignore[arg-type]


def test_shell_completion_of_values() -> None:
    """The shell's own way in gives the words, without numpy and without attaching to anything."""
    words = {
        "_NETTOP_COMPLETE": "complete_bash",
        "COMP_WORDS": "nettop --columns bytes_re",
        "COMP_CWORD": "2",
    }
    code = (
        "import sys\nsys.argv = ['nettop']\nfrom nettop.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'numpy', 'textual'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["bytes_received", "bytes_received_per_s"]
    assert (done.returncode, done.stderr) == (0, "")


def test_version_and_help() -> None:
    """--version is one line; --help names every option and shows examples."""
    assert nettop("--version").stdout == f"nettop {__version__}\n"
    shown = nettop("--help", env=os.environ | {"COLUMNS": "120"})
    assert shown.returncode == 0
    assert all(
        word in shown.stdout for word in ("--view", "--deltas", "--container", "Examples", "Exit codes")
    )


def test_help_into_a_closed_pipe() -> None:
    """Who has read enough of --help gets no complaint."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "nettop", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


SCRIPT = """
import os, sys
from nettop import cli
from tests.unit.test_cli import source
sys.argv[1:] = ['--table', '-d', '-t', '3600', '--columns', 'pid']
run = cli.run
cli.run = lambda words: run(words, source)
sys.exit(cli.main())
"""


def started() -> subprocess.Popen[str]:
    """Plain output over prepared rows, in a process of its own that has printed its first line."""
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "pid\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_cleanly(number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the program with code 0 and no word."""
    with started() as child:
        child.send_signal(number)
        assert child.wait(20) == 0
        assert child.stderr is not None
        assert child.stderr.read() == ""


def test_reader_gone() -> None:
    """When the reader of the pipe goes, the program ends at once with code 0 and no word."""
    with started() as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.wait(20) == 0
        assert child.stderr.read() == ""


def test_nohup_stays() -> None:
    """Where SIGHUP is ignored, as nohup has it, it stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with started() as child:
            with open(f"/proc/{child.pid}/status", encoding="ascii") as status:
                ignored = next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn"))
            child.terminate()
        assert ignored >> (signal.SIGHUP - 1) & 1
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_full_disk(words: Sequence[str]) -> None:
    """Output that cannot be written is one line on standard error and code 1."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nettop", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == ExitCode.FAILURE
    assert done.stderr == "nettop: the output cannot be written: No space left on device\n"
