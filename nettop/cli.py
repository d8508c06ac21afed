# SPDX-License-Identifier: Apache-2.0
"""The command line: reads the words, builds the settings, hands over to a door, and tells what went wrong.

Nothing that loads Textual or numpy is imported here before a door opens: --help and completion stay quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nettop import __version__
from nettop.errors import ExitCode, NettopError, UsageError, unknown_word
from nettop.interrupts import ended_by_signals, leave_output, undisturbed
from nettop.settings import Format, Settings, TextSettings, ViewSettings, checked_interval
from nettop.snapshots import find_table, views

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.engine.source import Source

_ParseError: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for words that it cannot place, whichever package it has that from."""

EXAMPLES = """[bold]Examples[/bold]

nettop  [dim]everything, live[/dim]

nettop --filter 'nginx rtt_us>10ms'  [dim]slow connections of nginx[/dim]

nettop --table -d --once --limit 10  [dim]the ten that sent the most[/dim]

nettop --table --port 443 --deltas -t 5  [dim]what port 443 moved, every 5 s[/dim]

nettop --format jsonl --once --all | jq .process  [dim]every socket, for a program[/dim]

nettop --table --columns process,remote,bytes_sent_per_s --sort -bytes_sent_per_s

Exit codes: 0 done or interrupted, 1 failure, 2 usage, 3 not possible here, 4 permission missing, 5 a source failed."""


# --- completion -----------------------------------------------------------------------------------------------


def _starting(words: Sequence[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def complete_view(incomplete: str) -> list[str]:
    """The views that begin like `incomplete`."""
    return _starting(views(), incomplete)


def complete_format(incomplete: str) -> list[str]:
    """The formats that begin like `incomplete`."""
    return _starting(list(Format), incomplete)


def complete_columns(ctx: typer.Context, incomplete: str) -> list[str]:
    """The lists of columns that `incomplete` may become: its last name is completed, the others stay."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in _starting(_names(ctx), last) if name not in before.split(",")]


def complete_sort(ctx: typer.Context, incomplete: str) -> list[str]:
    """The orders that begin like `incomplete`: each column, ascending and descending."""
    names = _names(ctx)
    return _starting([*names, *("-" + name for name in names)], incomplete)


def _names(ctx: typer.Context) -> tuple[str, ...]:
    """The columns of the view that the line names so far; none when there is no such view."""
    try:
        return find_table(ctx.params.get("view") or ViewSettings().view)[1].names
    except UsageError:
        return ()


# --- options --------------------------------------------------------------------------------------------------


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nettop {__version__}")
        raise typer.Exit


def _option(*names: str, panel: str | None = None, **kwargs: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=False, **kwargs)


_SHOW, _SHORT, _TEXT = "What to show", "Shortcuts of --filter", "Plain output"


# fmt: off
@dataclass(frozen=True, slots=True)
class Asked:
    """The options as they were given: each field is one, in the order of --help. See `settings_of`."""

    view: Annotated[str, _option("--view", metavar="LENS[.TABLE]", panel=_SHOW, autocompletion=complete_view,
                                 help=f"What to look at: {', '.join(views())} (the first unasked)")] = "connections"
    filter: Annotated[list[str] | None, _option("--filter", metavar="TEXT", panel=_SHOW,
                                                help="Rows to keep: words found anywhere, :443, pid=1812, "
                                                "rtt_us>10ms; given more than once, all hold")] = None
    columns: Annotated[str | None, _option("--columns", metavar="A,B,C", panel=_SHOW, autocompletion=complete_columns,
                                           help="Columns to show; NAME_per_s is the rate of a counter")] = None
    limit: Annotated[str | None, _option("--limit", metavar="N", panel=_SHOW, help="Rows at most")] = None
    sort: Annotated[str | None, _option("--sort", metavar="[-]COLUMN", panel=_SHOW, autocompletion=complete_sort,
                                        help="Order of the rows; - for descending")] = None
    all: Annotated[bool, _option("--all", panel=_SHOW, help="Listeners, TIME_WAIT and unconnected UDP as well")] = False
    resolve: Annotated[bool, _option("--resolve/--numeric", panel=_SHOW,
                                     help="Show names for addresses, or the addresses (default)")] = False
    interval: Annotated[str, _option("--interval", "-t", metavar="SECONDS", panel=_SHOW,
                                     help="Time between two refreshes (1)")] = "1"
    port: Annotated[str | None, _option("--port", metavar="PORT", panel=_SHORT, help="Local or remote port")] = None
    pid: Annotated[str | None, _option("--pid", metavar="PID", panel=_SHORT, help="Process by number")] = None
    process: Annotated[str | None, _option("--process", metavar="NAME", panel=_SHORT,
                                           help="Process by its whole name")] = None
    container: Annotated[str | None, _option("--container", metavar="TEXT", panel=_SHORT,
                                             help="Container or unit by a part of its name")] = None
    table: Annotated[bool, _option("--table", panel=_TEXT, help="Refreshing text in place of the screens")] = False
    data_only: Annotated[bool, _option("--data-only", "-d", panel=_TEXT,
                                       help="No banner on standard error; implies --table")] = False
    format: Annotated[str | None, _option("--format", metavar="table|csv|jsonl", panel=_TEXT,
                                          autocompletion=complete_format, help="Implies --table")] = None
    deltas: Annotated[bool, _option("--deltas", panel=_TEXT, help="Counters as what each interval added")] = False
    once: Annotated[bool, _option("--once", panel=_TEXT, help="One refresh, then end")] = False
    count: Annotated[str | None, _option("--count", metavar="N", panel=_TEXT, help="So many, then end")] = None
    version: Annotated[bool, _option("--version", is_eager=True, callback=_version, help="Show the version")] = False
    # fmt: on

    @property
    def is_text(self) -> bool:
        """Whether plain output is asked for."""
        return self.table or self.data_only or self.format is not None


app = typer.Typer(
    name="nettop",
    help="Who is using the network, how well, and at what cost: live, in one terminal.",
    epilog=EXAMPLES,
    subcommand_metavar="",  # there are none yet
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.callback(invoke_without_command=True)(Asked)


# --- from options to settings ---------------------------------------------------------------------------------


def settings_of(asked: Asked) -> Settings:
    """The settings that the options mean. Raises UsageError for values and combinations that mean nothing."""
    _check_together(asked)
    view = ViewSettings(
        view=asked.view,
        columns=None if asked.columns is None else tuple(filter(None, map(str.strip, asked.columns.split(",")))),
        sort=asked.sort,
        filters=_filters(asked),
        limit=_whole("--limit", asked.limit),
        every=asked.all,
        deltas=asked.deltas,
        resolve=asked.resolve,
    )
    form = asked.format or Format.TABLE
    if form not in list(Format):
        raise unknown_word("format", form, Format)
    text = TextSettings(Format(form), 1 if asked.once else _whole("--count", asked.count), asked.data_only)
    return Settings(checked_interval(_seconds(asked.interval)), view, text)


def _check_together(asked: Asked) -> None:
    if asked.once and asked.count not in (None, "1"):
        raise UsageError(f"--once and --count {asked.count} contradict each other", "give one of them")
    only_text = ("once", "count", "deltas")
    given = [name for name in only_text if getattr(asked, name) not in (None, False)]
    if given and not asked.is_text:
        raise UsageError(f"--{given[0]} is of plain output", "add --table, or --format csv or jsonl")


def _filters(asked: Asked) -> tuple[str, ...]:
    """The filter texts, the shortcuts' behind the ones given as such."""
    shortcuts = (
        None if asked.port is None else f":{_whole('--port', asked.port)}",
        None if asked.pid is None else f"pid={_whole('--pid', asked.pid)}",
        None if asked.process is None else f"process={_quoted(asked.process)}",
        None if asked.container is None else f"container~{_quoted(asked.container)}",
    )
    return (*(asked.filter or ()), *filter(None, shortcuts))


def _quoted(value: str) -> str:
    """The value as the filter language takes it, whatever it holds (nettop.query.filter.quote loads numpy)."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _whole(option: str, value: str | None) -> int | None:
    if value is None or (value.isdecimal() and int(value) > 0):
        return value if value is None else int(value)
    raise UsageError(f"{option} {value!r} is not a whole number above 0", f"write it like {option} 10")


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--interval {value!r} is not a number of seconds", "write it like --interval 0.5") from None


# --- doors ----------------------------------------------------------------------------------------------------


def _open(asked: Asked, source_of: Callable[[str], Source] | None) -> ExitCode:
    settings = settings_of(asked)
    find_table(settings.view.view)  # a wrong word is told before anything heavy loads
    with undisturbed():
        from nettop.engine.session import Session
        from nettop.engine.source import probe_of
        from nettop.kernel.memory import share_one_arena
        from nettop.kernel.privileges import keep_only

    if source_of is None:
        share_one_arena()
        keep_only()  # before there is a second thread: each has capabilities of its own
    session = Session(settings.interval_s, source_of or probe_of)
    return _open_text(settings, session) if asked.is_text else _open_screens(settings, session)


def _open_text(settings: Settings, session: Session) -> ExitCode:
    with undisturbed():
        from nettop.output.text import run_text

    if sys.stdout is None:
        raise NettopError("standard output is closed", "nettop --table needs somewhere to write to")
    with session:
        return run_text(settings, session, sys.stdout, sys.stdin, sys.stderr)


def _open_screens(settings: Settings, session: Session) -> ExitCode:
    from nettop.query.asked import asked_columns, asked_query
    from nettop.query.query import screen_query

    table = find_table(settings.view.view)[1]
    # Wrong words are told while the terminal is still as it was.
    asked_query(screen_query(table), settings.view)
    asked_columns(table, settings.view)
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise UsageError("the screens need a terminal to read from and to write to", "nettop --table does without")
    from nettop.screens.app import run_app

    with session:
        return run_app(settings, session)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


# --- the way in and out ---------------------------------------------------------------------------------------


def main() -> int:
    """The program: reads its own command line, and returns what the shell gets."""
    try:
        with ended_by_signals():
            return run(sys.argv[1:])
    except KeyboardInterrupt:
        return ExitCode.DONE
    finally:
        leave_output()


def run(words: Sequence[str], source_of: Callable[[str], Source] | None = None) -> int:
    """Do what the words say, and tell on standard error what went wrong. Returns the exit code.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    try:
        asked = _parse(words)
        return _open(asked, source_of) if isinstance(asked, Asked) else int(asked or 0)
    except BrokenPipeError:  # the reader has what it wanted
        return ExitCode.DONE
    except NettopError as error:
        _tell(error)
        return error.exit_code


def _parse(words: Sequence[str]) -> Any:
    """What the command gives back: the options, or an exit code where --help or --version have done it all."""
    command = typer.main.get_command(app)
    try:
        return command.main(list(words), "nettop", standalone_mode=False)
    except BrokenPipeError:
        raise
    except SystemExit as ended:  # so rich answers a reader who has gone
        raise BrokenPipeError from ended
    except OSError as error:  # of --help and --version
        raise NettopError(f"the output cannot be written: {error.strerror}") from error
    except _ParseError as error:
        raise _usage(error, [name for param in command.params for name in param.opts]) from None


def _usage(error: Any, known: Sequence[str]) -> UsageError:
    """typer's complaint in our words, with the nearest option where one is unknown."""
    name = getattr(error, "option_name", None)
    if name is not None and name not in known:
        better = unknown_word("option", name, known)
        near = better.remedy.startswith("did you mean")
        return UsageError(better.what, better.remedy if near else "nettop --help lists the options")
    message: str = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], "nettop --help shows what there is")


def _tell(error: NettopError) -> None:
    if sys.stderr is None:
        return
    from nettop.snapshots.safe_text import safe_text

    lines = (f"nettop: {error.what}", *(f"  {line}" for line in error.remedy.splitlines()))
    with suppress(OSError):
        sys.stderr.write("".join(safe_text(line) + "\n" for line in lines))
