# SPDX-License-Identifier: Apache-2.0
"""The command line: the meaning of arguments, errors, and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from nettop import cli, version_of_build
from nettop.cli import app, parse, run
from nettop.commands.view import LiveSettings
from nettop.errors import ExitCode, NettopError, PermissionMissing, SourceFailed, Unsupported
from nettop.query.filter import parse_filter, quote
from nettop.settings import Format, LineFormat, Settings, TextSettings, ViewSettings
from nettop.settings.declared import declared_in
from nettop.settings.export import ExportSettings
from nettop.settings.log import LogSettings
from nettop.settings.run import RunSettings
from nettop.snapshots import find_table, lenses, views
from nettop.snapshots.connections import GROUPS, RING_SIZE, SOCKETS
from nettop.snapshots.cpu import FREQUENCY
from nettop.snapshots.own_cost import SELF
from tests.unit.build import make_frame
from tests.unit.children import DEADLINE_S, Child, ran, started
from tests.unit.scripted import Scripted, steps
from tests.words import settings_of

ROWS = [{"pid": 7, "process": "nginx", "bytes_sent": 5}, {"pid": 8, "process": "sh", "bytes_sent": 6}]
GROUP: Any = typer.main.get_command(app)


def source(lens: str) -> Scripted:
    """Return two connections."""
    return Scripted(steps(ROWS))


def nettop(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Return the program in a process of its own."""
    return ran("-m", "nettop", *words, **kwargs)


def test_options_become_settings() -> None:
    """Every option of plain output reaches the settings; each that only plain output has asks for it. A lens or table
    stands between the options, and screens, which can switch to any lens, take the options of all.
    """
    given = settings_of(
        "--view connections.events --filter nginx --sort -rtt_us --all --resolve -t 0.5 --table -d --format csv "
        "--limit 3 --deltas --count 2 --ring-size 64k --columns 'pid, local,'"
    )
    view = ViewSettings("connections.events", ("pid", "local"), "-rtt_us", ("nginx",), 3, True, True, True)
    text = TextSettings(Format.CSV, 2, data_only=True)
    assert given.settings() == Settings(0.5, view, text, options={RING_SIZE: 1 << 16})
    assert parse([]).settings() == LiveSettings().settings() == Settings()
    assert not parse([]).is_text
    for words in ("--table", "-d", "--format jsonl", "--deltas", "--once", "--count 2"):
        assert settings_of(words).is_text
    for view in ("drops", "connections.groups"):
        screen = settings_of(f"--frequency 99 {view} --ring-size 1M")
        assert (screen.view, screen.options) == (view, {FREQUENCY: 99, RING_SIZE: 1 << 20})


def test_options_of_log_become_settings() -> None:
    """Every option of `nettop log` reaches its settings; without options, they are the defaults."""
    given = settings_of(
        "log --lens connections.groups --lens drops --filter nginx --filter :443 --metrics-interval 10 -t 0.5 "
        "--format jsonl --log-dir /var/log/nettop --rotate-size 1MiB --keep 3 --no-console --ring-size 64k "
        "--columns 'pid, process'"
    )
    assert given == LogSettings(
        views=("connections.groups", "drops"), filters=("nginx", ":443"), columns=("pid", "process"),
        format=LineFormat.JSONL, interval_s=0.5,
        metrics_interval_s=10.0, console=False, directory="/var/log/nettop", rotate_bytes=1 << 20, keep=3,
        options={RING_SIZE: 1 << 16},
    )  # fmt: skip
    ring = {RING_SIZE: 8 << 20}
    assert parse(["log"]) == LogSettings(options=ring)
    assert parse(["log", "--events-only", "--log-dir", "none"]) == LogSettings(
        metrics=False, directory=None, options=ring
    )
    often = parse(["log", "--metrics-only", "--metrics-interval", "0.5"])
    assert often == LogSettings(events=False, metrics_interval_s=0.5, options=ring)
    assert often.read_every_s == 0.5
    assert parse(["log", "--lens", "cpu", "--frequency", "10000"]) == LogSettings(
        views=("cpu",), options={FREQUENCY: 10_000}
    )


def test_options_of_run_become_settings() -> None:
    """Every option of `nettop run` reaches its settings, and the command is unchanged."""
    given = settings_of("run --format jsonl --live --output f --ring-size 4K curl -s -- x")
    assert given == RunSettings(
        words=("curl", "-s", "--", "x"),
        format=LineFormat.JSONL,
        live=True,
        output="f",
        options={RING_SIZE: 4096},
    )
    assert parse(["run", "true"]) == RunSettings(words=("true",), options={RING_SIZE: 8 << 20})


@pytest.mark.parametrize("command", [[], *([name] for name in cli._SUBCOMMANDS)])
def test_h_is_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of every command."""
    assert run([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert run([*command, "-h"]) == 0
    assert capsys.readouterr().out == shown


def test_options_of_a_lens_reach_its_source(capfd: pytest.CaptureFixture[str]) -> None:
    """A lens's option is set on its source if given; otherwise the source reads its default."""
    command = ["-d", "--once", "--view", "connections.groups"]
    for words, expected in ((["--ring-size", "8K"], 8192), ([], None)):
        rows = Scripted([make_frame([], table=GROUPS).now])
        assert run([*command, *words], lambda _lens, rows=rows: rows) is ExitCode.DONE  # type: ignore[misc]
        assert rows.options is not None
        assert rows.options.values.get(RING_SIZE) == expected


def test_no_two_lenses_declare_the_same_option() -> None:
    """No two lenses declare the same option, nor one that a command has for every lens."""
    names = [option.name for lens in lenses() for option in lens.options]
    assert len(names) == len(set(names))
    for command in (LiveSettings, LogSettings, ExportSettings):
        flags = {flag for declared, _ in declared_in(command).values() for flag in declared.flags}
        assert not [option.flag for lens in lenses() for option in lens.options if option.flag in flags]


def test_shortcuts_are_filters() -> None:
    """--port, --pid, --process and --container become terms of the filter, whatever they hold. The name of a process is
    cut where the kernel cuts it.
    """
    hostile = 'a "b" \\c'
    filters = (
        parse(["--port", "443", "--pid", "7", "--process", hostile, "--container", "api"]).shown().filters
    )
    assert filters == (":443", "pid=7", f"process={quote(hostile)}", 'container~"api"')
    parse_filter(SOCKETS, " ".join(filters))
    for name, kept in (("systemd-resolved", "systemd-resolve"), ("ééééééééé", "ééééééé")):
        assert parse(["--process", name]).shown().filters == (f"process={quote(kept)}",)


def test_once_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    """--once reaches the output: one block, then exit."""
    assert (
        run(["--table", "-d", "--once", "--columns", "pid,process", "--sort", "pid"], source) is ExitCode.DONE
    )
    assert capfd.readouterr() == ("pid  process\n7    nginx\n8    sh\n", "")


def test_a_dumb_terminal_has_no_screens(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a dumb terminal, which cannot move its cursor, nettop refuses screens and suggests plain output."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("nettop.commands.show._is_on_terminal", lambda: True)
    assert run([], source) == ExitCode.USAGE
    assert "TERM=dumb" in (error := capfd.readouterr().err)
    assert "--table" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tabel"], "unknown option '--tabel'|did you mean --table"),
        (["--view", "conections"], "unknown view 'conections'|did you mean connections or"),
        (["--table", "--columns", "pids"], "unknown column 'pids'|did you mean pid"),
        (["--table", "--sort", "-bytes_snt"], "unknown sort field 'bytes_snt'|did you mean bytes_sent"),
        (["--filter", "stat=LISTEN"], "unknown field 'stat'|did you mean state"),
        (["--format", "jsn"], "unknown format 'jsn'|did you mean jsonl?"),
        (["--interval", "0"], "--interval 0 is out of range|between 0.1 and 3600"),
        (["-t", "soon"], "'soon' is not a number of seconds|--interval 0.5"),
        (["--table", "--once", "--count", "5"], "--once conflicts with --count 5|one of them"),
        (["--table", "--count", "0"], "--count '0' is not a positive whole number|--count 10"),
        (["--frequency", "0"], "--frequency 0 is too low|--frequency 1 or more"),
        (["--frequency", "49", "-t", "0.1"], "too low for 0.1 s|--frequency 100 or more"),
        (["--table", "--frequency", "99"], "--frequency is an option of the lens cpu|leave it out, or"),
        (
            ["--table", "--ring-size", "1M"],
            "--ring-size is an option of connections.events, connections.f|another",
        ),
        (["log", "--lens", "cpu", "--frequency", "fast"], "--frequency 'fast' is not a whole number|997"),
        (["export"], "missing argument 'LENS[.TABLE]'|nettop export --help"),
        (["export", "cpu.cpus", "a.svg"], "cpu.cpus cannot be exported|export cpu.stacks"),
        (["export", "cpu", "a.svg", "--duraton", "3"], "unknown option '--duraton'|did you mean --duration"),
        (["--frequency", "99", "export", "cpu", "a.svg"], "--frequency before export|after export"),
        (["--columns", "foo"], "unknown column 'foo'|choose from: accept_queue"),
        (["--limit"], "'--limit' requires an argument|--help"),
        (["conections"], "unknown command, lens or table 'conections'|did you mean connections"),
        (["services", "drops"], "one lens or table is shown at a time|only one"),
        (["--filter", "nginx", "log"], "--filter before log has no effect on it|after log"),
        (["--all", "run", "--", "true"], "--all before run has no effect on it|leave it out"),
        (["log", "--zzzzzz"], "unknown option '--zzzzzz'|nettop log --help"),
        (["log", "more"], "got unexpected extra argument(s) (more)|nettop log --help"),
        (
            ["log", "--events-only", "--metrics-only"],
            "--events-only conflicts with --metrics-only|leave out both",
        ),
        (["log", "--no-console", "--log-dir", "none"], "would write nothing|--log-dir"),
        (["log", "--log-dir", ""], "--log-dir is empty|or none"),
        (
            ["log", "--metrics-interval", "1", "-t", "5"],
            "--metrics-interval 1 is out of range|between 5 and 86400",
        ),
        (["log", "--rotate-size", "big"], "--rotate-size 'big' is not a size|64M"),
        (["log", "--rotate-size", "1K"], "--rotate-size 1K is too small|use 16K or more"),
        (["log", "--ring-size", "3M"], "--ring-size 3145728 is not a power of two|such as 8M"),
        (["log", "--ring-size", "2K"], "--ring-size 2K is too low|--ring-size 4K or more"),
        (["run"], "no command to run|nettop run -- curl"),
        ([], "standard input or output is not a terminal|add --table"),
    ],
)
def test_wrong_words(words: Sequence[str], expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Unknown or contradictory arguments exit with 2 and two lines: the error and the remedy."""
    assert run(words, source) == ExitCode.USAGE
    out, err = capfd.readouterr()
    what, *pointed, remedy = err.splitlines()
    assert out == ""
    assert what.startswith("nettop: ")
    assert bool(pointed) == ("filter term" in what)
    assert remedy.startswith("  ")
    for text, line in zip(expected.split("|"), (what, remedy), strict=True):
        assert text in line


def test_a_wrong_filter_is_pointed_at(capfd: pytest.CaptureFixture[str]) -> None:
    """The error shows the wrong filter of several, with a mark below its wrong value."""
    assert run(["--table", "--filter", "nginx", "--filter", "sshd or pid=x"], source) == ExitCode.USAGE
    assert capfd.readouterr().err.splitlines() == [
        "nettop: filter term ‘pid=x’: pid is a whole number, not 'x'",
        "  sshd or pid=x",
        "              ^",
        "  write pid=80",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NettopError("broke"), 1),
        (Unsupported("no BTF", "a newer kernel"), 3),
        (PermissionMissing("not root"), 4),
        (SourceFailed("gone"), 5),
    ],
)
def test_exit_codes(error: Exception, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    """A source's error is reported without a traceback, and gives the documented exit code."""
    assert run(["--table", "--once"], lambda lens: Scripted([error])) == code  # type: ignore[list-item]
    assert capfd.readouterr().err.startswith(f"nettop: {error}\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nettop --columns pid,bytes_re", ["pid,bytes_received", "pid,bytes_received_per_s"]),
        ("nettop --sort rtt_m", ["rtt_min_us"]),
        ("nettop --view nothing --columns p", []),
        ("nettop --format ", ["table", "csv", "jsonl"]),
        ("nettop doctor --only h", ["host"]),
        ("nettop export connections", []),
        ("nettop log --lens drops --lens connections --columns last_s", ["last_seen", "last_sent_ms"]),
        ("nettop record --lenses drops,cp", ["drops,cpu"]),
        ("nettop log --events", ["--events-only"]),
        ("nettop export c", ["cpu.stacks"]),
        ("nettop export cpu.stacks --format s", ["speedscope", "svg"]),
        ("nettop collect --retention ra", ["raw="]),
    ],
)
def test_shell_completion(line: str, expected: list[str]) -> None:
    """The shell's own way in gives the words, without numpy and without attaching to anything."""
    words = {"_NETTOP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    code = (
        "import sys\nsys.argv = ['nettop']\nfrom nettop.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'numpy', 'textual'} & set(sys.modules)\n"
    )
    done = ran("-c", code, env=os.environ | words)
    assert done.stdout.split() == expected
    assert (done.returncode, done.stderr) == (0, "")


def test_version_and_help() -> None:
    """--version is one line; --help-all names every option and shows examples."""
    assert nettop("--version").stdout == f"nettop {version_of_build()}\n"
    shown = nettop("--help-all", env=os.environ | {"COLUMNS": "120"})
    assert shown.returncode == 0
    options = (name for param in GROUP.params for name in param.opts)
    assert all(word in shown.stdout for word in (*options, "Examples", "Exit codes"))


def test_help_fits_one_screen() -> None:
    """--help says what each lens answers, names every command, and has at most 40 lines of 100 columns."""
    shown = nettop("--help", env=os.environ | {"COLUMNS": "100"}).stdout
    lines = shown.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    for term, meaning in [(lens.id, lens.question) for lens in (*lenses(), SELF)] + [
        (name, command.help) for name, command in GROUP.commands.items()
    ]:
        assert any(line.split(maxsplit=1) == [term, meaning] for line in lines)
    assert nettop("help", env=os.environ | {"COLUMNS": "100"}).stdout.strip() == shown.strip()


@pytest.mark.parametrize("view", views())
def test_help_of_views(
    view: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nettop help VIEW` says what the lens answers, and has every column and option of the table."""
    monkeypatch.setenv("COLUMNS", "100")
    lens, table = find_table(view)
    assert run(["help", view]) == 0
    shown = capsys.readouterr().out
    assert f"{view}: {lens.question}." in shown
    names = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert names >= {field.name for field in table.fields}
    assert all(
        f"{option.flag} {option.metavar}" in shown for option in lens.options if option.concerns(table)
    )


def test_help_of_a_command_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """`nettop help COMMAND` equals `nettop COMMAND --help`; for an unknown name the error has the nearest ones."""
    assert run(["help", "serve"]) == 0
    by_topic = capsys.readouterr().out
    assert run(["serve", "--help"]) == 0
    assert capsys.readouterr().out == by_topic
    assert run(["help", "servces"]) == 2
    assert "did you mean services" in capsys.readouterr().err


def test_help_into_a_closed_pipe() -> None:
    """A reader that closes the pipe of --help causes no error."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = nettop("--help", stdout=closed)
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


def printing(**how: Any) -> Child:
    """Start plain output over prepared rows in a separate process; yield it after its first line."""
    child = started("-c", SCRIPT, stdin=subprocess.DEVNULL, **how)
    assert child.stdout is not None
    assert child.stdout.readline() == "pid\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_cleanly(number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the program silently with code 0."""
    with printing() as child:
        child.send_signal(number)
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr is not None
        assert child.stderr.read() == ""


LOOP = 'while read line; do "$PYTHON" -c "$SCRIPT" $OPTIONS; echo "$line"; done'


@pytest.mark.parametrize("loop", [f"{LOOP} < names", f"cat names | {LOOP}"])
def test_text_that_ends_by_itself_reads_no_input(loop: str, tmp_path: Path) -> None:
    """A shell loop that reads lines, from a file or a pipe, goes round for each of them."""
    (tmp_path / "names").write_text("web1\nweb2\nweb3\n")
    script = SCRIPT.replace("'-t', '3600', ", "*sys.argv[1:], ")
    given = {"PYTHON": sys.executable, "SCRIPT": script, "OPTIONS": "--once"}
    done = subprocess.run(
        ["sh", "-c", loop],
        env=os.environ | given | {"PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    assert [line for line in done.stdout.splitlines() if "web" in line] == ["web1", "web2", "web3"]


def test_reader_gone() -> None:
    """When the pipe's reader goes away, the program exits at once, silently, with code 0."""
    with printing() as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr.read() == ""


def test_nohup_stays() -> None:
    """If SIGHUP is ignored, as by nohup, it stays ignored."""
    with printing(ignoring={signal.SIGHUP}) as child:
        with open(f"/proc/{child.pid}/status", encoding="ascii") as status:
            ignored = next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn"))
        child.terminate()
    assert ignored >> (signal.SIGHUP - 1) & 1


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["doctor", "--only", "host"]])
def test_full_disk(words: Sequence[str]) -> None:
    """Output that cannot be written gives one line on standard error and exit code 1."""
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


def test_a_signal_while_the_arguments_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal during argument parsing is an interrupt; typer exits with 130."""

    def interrupted() -> str:
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr("nettop.commands.view.version_of_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(["--version"])
