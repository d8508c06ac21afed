# SPDX-License-Identifier: Apache-2.0
"""The command line: reads the words, builds the settings, hands over to a door, and tells what went wrong.

Nothing that loads Textual or numpy is imported here before a door opens: --help and completion stay quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nettop import __version__
from nettop.commands.doctor import DOCTOR, DOCTOR_EXAMPLES, DOCTOR_HELP, DoctorOptions, open_doctor
from nettop.commands.export import EXPORT_EXAMPLES, EXPORT_HELP, ExportOptions, open_export
from nettop.commands.invoker import invoking_user
from nettop.commands.log import LOG_EXAMPLES, LOG_HELP, LogOptions, open_log
from nettop.commands.options import (
    checked_why,
    checked_word,
    complete_columns,
    complete_sort,
    complete_view,
    follow_namespaces_option,
    max_overhead_option,
    mechanism_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    quoted,
    seconds,
    starting,
    whole,
    why_option,
    with_lens_options,
)
from nettop.commands.privilege import Rights, opened_session
from nettop.commands.run import RUN_EXAMPLES, RUN_HELP, RunOptions, open_run
from nettop.errors import ExitCode, NettopError, UsageError, unknown_word
from nettop.interrupts import ended_by_signals, exit_code_of, leave_output, undisturbed
from nettop.settings import Format, Settings, TextSettings, ViewSettings, checked_interval
from nettop.snapshots import all_views, find_table, views
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.snapshots.source import Source

_ParseError: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for words that it cannot place, whichever package it has that from."""

EXAMPLES = """[bold]Examples[/bold]

nettop  [dim]everything, live[/dim]

nettop --filter 'nginx rtt_us>10ms'  [dim]slow connections of nginx[/dim]

nettop --table -d --once --limit 10  [dim]the ten that sent the most[/dim]

nettop --table --port 443 --deltas -t 5  [dim]what port 443 moved, every 5 s[/dim]

nettop --format jsonl --once --all | jq .process  [dim]every socket, as JSON[/dim]

nettop --table --columns process,remote,bytes_sent_per_s --sort -bytes_sent_per_s

nettop export cpu.stacks cpu.svg  [dim]the CPU time of the network stack, as a flame graph[/dim]

A lens is one question with its screen and tables. A hook is what a lens wants of the kernel; nettop doctor lists the
hooks, and the mechanisms that provide them on this kernel.

Exit codes: 0 done or interrupted, 1 failure, 2 usage, 3 not possible on this kernel or host,
4 permission missing, 5 a data source failed."""


# --- options --------------------------------------------------------------------------------------------------


def complete_format(incomplete: str) -> list[str]:
    """The formats that begin like `incomplete`."""
    return starting(Format, incomplete)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nettop {__version__}")
        raise typer.Exit


_SHOW, _SHORT, _TEXT = "What to show", "Shortcuts of --filter", "Plain output"


# fmt: off
@with_lens_options(all_views())
@dataclass(frozen=True, slots=True)
class ViewOptions:
    """The options as they were given: each field is one, in the order of --help. See `settings_of`."""

    view: Annotated[str, option("--view", metavar="LENS[.TABLE]", panel=_SHOW, autocompletion=complete_view,
                                help=f"Lens, or one of its tables: {', '.join(views())}. self is "
                                "nettop's own cost (default: the first)")] = "connections"
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_SHOW,
                                               help="Show only rows that match: words in any column, :443, "
                                               "pid=1812, rtt_us>10ms; several filters must all match")] = None
    columns: Annotated[str | None, option("--columns", metavar="A,B,C", panel=_SHOW, autocompletion=complete_columns,
                                          help="Columns to show; NAME_per_s is a counter's rate")] = None
    limit: Annotated[str | None, option("--limit", metavar="N", panel=_SHOW, help="Show at most N rows")] = None
    sort: Annotated[str | None, option("--sort", metavar="[-]COLUMN", panel=_SHOW, autocompletion=complete_sort,
                                       help="Sort rows by this column; - for descending order")] = None
    all: Annotated[bool, option("--all", panel=_SHOW, help="Also show listeners, TIME_WAIT, unconnected UDP")] = False
    resolve: Annotated[bool, option("--resolve/--numeric", panel=_SHOW,
                                    help="Show host names, or addresses (default)")] = False
    interval: Annotated[str, option("--interval", "-t", metavar="SECONDS", panel=_SHOW,
                                    help="Time between two refreshes (1)")] = "1"
    max_overhead: Annotated[str | None, max_overhead_option(_SHOW)] = None
    mechanism: Annotated[list[str] | None, mechanism_option(_SHOW)] = None
    follow_namespaces: Annotated[bool, follow_namespaces_option(_SHOW)] = False
    port: Annotated[str | None, option("--port", metavar="PORT", panel=_SHORT, help="Local or remote port")] = None
    pid: Annotated[str | None, option("--pid", metavar="PID", panel=_SHORT, help="Process ID")] = None
    process: Annotated[str | None, option("--process", metavar="NAME", panel=_SHORT,
                                          help="Exact process name")] = None
    container: Annotated[str | None, option("--container", metavar="TEXT", panel=_SHORT,
                                            help="Part of the name of a container or systemd unit")] = None
    table: Annotated[bool, option("--table", panel=_TEXT, help="Print refreshing text instead of the screens")] = False
    data_only: Annotated[bool, option("--data-only", "-d", panel=_TEXT,
                                      help="No banner on standard error; implies --table")] = False
    format: Annotated[str | None, option("--format", metavar="table|csv|jsonl", panel=_TEXT,
                                         autocompletion=complete_format, help="Output format; implies --table")] = None
    why: Annotated[bool, why_option(_TEXT)] = False
    deltas: Annotated[bool, option("--deltas", panel=_TEXT, help="Show what each interval added to counters")] = False
    once: Annotated[bool, option("--once", panel=_TEXT, help="Stop after one refresh")] = False
    count: Annotated[str | None, option("--count", metavar="N", panel=_TEXT, help="Stop after N refreshes")] = None
    version: Annotated[bool, option("--version", is_eager=True, callback=_version, help="Show the version")] = False
    # fmt: on

    @property
    def is_text(self) -> bool:
        """Whether plain output is asked for."""
        return self.table or self.data_only or self.format is not None


class _Group(typer.core.TyperGroup):
    """Takes no options in front of a command, which would never get them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command and its words. Raises UsageError for options in front of it."""
        resolved = super().resolve_command(ctx, args)
        for name, field in ViewOptions.__dataclass_fields__.items():
            if ctx.params.get(name) not in (field.default, None, [], ()):
                given = "--" + name.replace("_", "-")
                raise UsageError(f"{given} before {args[0]} does not apply to it", f"write it after {args[0]}")
        return resolved


app = typer.Typer(
    name="nettop",
    help="Show who is using the network, how well each connection is doing, and what it costs, live in a terminal.",
    epilog=EXAMPLES,
    cls=_Group,
    subcommand_metavar="[COMMAND]",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.callback(invoke_without_command=True)(ViewOptions)
app.command(DOCTOR, help=DOCTOR_HELP, epilog=DOCTOR_EXAMPLES)(DoctorOptions)
app.command("log", help=LOG_HELP, epilog=LOG_EXAMPLES)(LogOptions)
app.command("export", help=EXPORT_HELP, epilog=EXPORT_EXAMPLES)(ExportOptions)
app.command(
    "run",
    help=RUN_HELP,
    epilog=RUN_EXAMPLES,
    # What stands behind the command's name is the command's.
    context_settings={"allow_interspersed_args": False},
)(RunOptions)


# --- from options to settings ---------------------------------------------------------------------------------


def settings_of(asked: ViewOptions) -> Settings:
    """The settings that the options mean. Raises UsageError for values and combinations that mean nothing."""
    _check_together(asked)
    view = ViewSettings(
        view=asked.view,
        columns=None if asked.columns is None else tuple(filter(None, map(str.strip, asked.columns.split(",")))),
        sort=asked.sort,
        filters=_filters(asked),
        limit=_count("--limit", asked.limit),
        all_rows=asked.all,
        deltas=asked.deltas,
        resolve=asked.resolve,
    )
    form = Format(checked_word("format", asked.format or Format.TABLE, list(Format)))
    count = 1 if asked.once else _count("--count", asked.count)
    text = TextSettings(form, count, asked.data_only, checked_why(asked.why, form))
    interval_s = checked_interval(seconds("--interval", asked.interval))
    return Settings(
        interval_s,
        view,
        text,
        parse_mechanisms(asked.mechanism),
        parse_overhead(asked.max_overhead),
        parse_lens_options(asked, interval_s, [find_table(asked.view)] if asked.is_text else all_views()),
    )


def _count(name: str, value: str | None) -> int | None:
    return None if value is None else whole(name, value)


def _check_together(asked: ViewOptions) -> None:
    if asked.once and asked.count not in (None, "1"):
        raise UsageError(f"--once and --count {asked.count} contradict each other", "give one of them")
    only_text = ("once", "count", "deltas")
    given = [name for name in only_text if getattr(asked, name) not in (None, False)]
    if given and not asked.is_text:
        raise UsageError(f"--{given[0]} applies to plain output only", "add --table, or --format csv or jsonl")


def _filters(asked: ViewOptions) -> tuple[str, ...]:
    """The filter texts, the shortcuts' behind the ones given as such."""
    shortcuts = (
        None if asked.port is None else f":{whole('--port', asked.port)}",
        None if asked.pid is None else f"pid={whole('--pid', asked.pid)}",
        None if asked.process is None else f"process={quoted(asked.process)}",
        None if asked.container is None else f"container~{quoted(asked.container)}",
    )
    return (*(asked.filter or ()), *filter(None, shortcuts))


# --- doors ----------------------------------------------------------------------------------------------------


def _open(asked: ViewOptions, source_of: Callable[[str], Source] | None) -> ExitCode:
    settings = settings_of(asked)
    lens, _ = find_table(settings.view.view)  # a wrong word is told before anything heavy loads
    user = invoking_user() if source_of is None else None
    rights = Rights(
        user,
        later_lenses=not asked.is_text,
        follow_namespaces=asked.follow_namespaces,
        program_statistics=lens.id == SELF.id or settings.max_overhead is not None,
    )
    session = opened_session(settings.interval_s, source_of, rights, max_overhead=settings.max_overhead)
    return _open_text(settings, session) if asked.is_text else _open_screens(settings, session)


def _open_text(settings: Settings, opened: AbstractContextManager[Session]) -> ExitCode:
    with undisturbed():
        from nettop.output.text import run_text

    if sys.stdout is None:
        raise NettopError("standard output is closed", "nettop --table needs somewhere to write to")
    with opened as session:
        return run_text(settings, session, sys.stdout, sys.stdin, sys.stderr)


def _open_screens(settings: Settings, opened: AbstractContextManager[Session]) -> ExitCode:
    from nettop.query.from_settings import columns_from_settings, query_from_settings
    from nettop.query.query import screen_query

    table = find_table(settings.view.view)[1]
    # Wrong words are told while the terminal is still as it was.
    query_from_settings(screen_query(table), settings.view)
    columns_from_settings(table, settings.view)
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise UsageError("the screens need a terminal for input and output", "nettop --table needs none")
    if os.environ.get("TERM") == "dumb":
        raise UsageError("a terminal with TERM=dumb cannot show the screens", "use nettop --table")
    from nettop.screens.app import run_app

    with opened as session:
        return run_app(settings, session)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


_DOORS: dict[type, Callable[[Any, Callable[[str], Source] | None], int]] = {
    ViewOptions: _open,
    LogOptions: open_log,
    ExportOptions: open_export,
    RunOptions: open_run,
    DoctorOptions: open_doctor,
}
"""What opens the door that was asked for, by what it was asked with."""


# --- the way in and out ---------------------------------------------------------------------------------------


def main() -> int:
    """The program: reads its own command line, and returns what the shell gets."""
    try:
        with ended_by_signals():
            return run(sys.argv[1:])
    except KeyboardInterrupt as ended:
        # The doctor's 0 says that everything works, which nobody knows yet.
        return exit_code_of(ended) if sys.argv[1:2] == [DOCTOR] else ExitCode.DONE
    finally:
        leave_output()


def run(words: Sequence[str], source_of: Callable[[str], Source] | None = None) -> int:
    """Do what the words say, and tell on standard error what went wrong. Returns the exit code.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    try:
        asked = _parse(words)
        open_door = _DOORS.get(type(asked))
        return int(asked or 0) if open_door is None else open_door(asked, source_of)
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
        raise _usage(error, command) from None


def _usage(error: Any, command: Any) -> UsageError:
    """typer's complaint in our words, with the nearest option where one is unknown."""
    context = getattr(error, "ctx", None)
    command = command if context is None else context.command
    page = "nettop --help" if context is None else f"{context.command_path} --help"
    known = [name for param in command.params for name in param.opts]
    name = getattr(error, "option_name", None)
    if name is not None and name not in known:
        better = unknown_word("option", name, known)
        near = better.remedy.startswith("did you mean")
        return UsageError(better.what, better.remedy if near else f"{page} lists the options")
    message: str = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], f"{page} shows what there is")


def _tell(error: NettopError) -> None:
    if sys.stderr is None:
        return
    from nettop.snapshots.safe_text import safe_text

    lines = (f"nettop: {error.what}", *(f"  {line}" for line in error.remedy.splitlines()))
    with suppress(OSError):
        sys.stderr.write("".join(safe_text(line) + "\n" for line in lines))
