# SPDX-License-Identifier: Apache-2.0
"""The command line: parse the arguments, build the settings, start a command and report errors.

Do not import Textual or numpy here before a command starts: --help and completion must stay fast.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nettop import version_of_build
from nettop.commands.invoker import invoking_user
from nettop.commands.options import (
    WIDTH,
    Subcommand,
    checked_why,
    checked_word,
    complete_columns,
    complete_sort,
    completer,
    follow_namespaces_option,
    max_overhead_option,
    mechanism_option,
    option,
    parse_count,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    parse_seconds,
    quoted,
    split_names,
    view_to_open,
    why_option,
    with_lens_options,
)
from nettop.commands.privilege import open_session, why_still_root
from nettop.errors import (
    ExitCode,
    FilterError,
    NettopError,
    UsageError,
    file_limit_error,
    limit_reached,
    missing_package,
    unknown_word,
)
from nettop.process.importing import importing
from nettop.process.interrupts import exit_code_of, exit_on_signals, leave_output
from nettop.settings import MAX_PORT, Format, Settings, TextSettings, ViewSettings
from nettop.snapshots import all_views, find_table, views
from nettop.snapshots.bandwidth import INTERFACE
from nettop.snapshots.findings import FIREWALL
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.commands.help import HelpOptions
    from nettop.engine.session import Session
    from nettop.snapshots.source import Source

_ParseError: type[Exception] = typer.BadParameter.__bases__[0]
"""typer's exception for invalid arguments; the package that defines it depends on the version of typer."""
_INTERRUPTED = 130
"""Exit code that typer returns instead of raising KeyboardInterrupt."""

_SUBCOMMANDS = (
    "check",
    "doctor",
    "compile",
    "log",
    "serve",
    "collect",
    "flows",
    "export",
    "config",
    "run",
    "help",
)
"""Modules of nettop.commands, in the order of --help."""

EXAMPLES = """[bold]Examples[/bold]

nettop  [dim]everything, live[/dim]

nettop --filter 'nginx rtt_us>10ms'  [dim]nginx's slow connections[/dim]

nettop --table -d --once --limit 10  [dim]the ten largest senders[/dim]

nettop --table --port 443 --deltas -t 5  [dim]traffic of port 443, every 5 s[/dim]

nettop --format jsonl --once --all | jq .process  [dim]every socket, as JSON[/dim]

nettop --table --columns process,remote,bytes_sent_per_s --sort -bytes_sent_per_s

nettop export cpu.stacks cpu.svg  [dim]CPU time of the network stack as a flame graph[/dim]

A lens answers one question and has its own screen and tables; nettop help LENS explains it. A hook is something a
lens needs from the kernel; the mechanisms that provide it are listed by nettop doctor.

Exit codes: 0 done or interrupted, 1 failure, 2 usage error, 3 not supported on this kernel or host,
4 missing permission, 5 a data source failed."""


# --- options --------------------------------------------------------------------------------------------------


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"nettop {version_of_build()}")
        raise typer.Exit


def _help_all(ctx: typer.Context, requested: bool) -> None:
    if requested:
        formatter = ctx.make_formatter()
        cast("_Group", ctx.command).format_all_help(ctx, formatter)
        typer.echo(formatter.getvalue(), nl=False)
        raise typer.Exit


_SHOW, _SHORT, _TEXT = "What to show", "Filter shortcuts", "Plain output"


# fmt: off
@dataclass(frozen=True, slots=True)
@with_lens_options(all_views())
class ViewOptions:
    """Options as given, in the order of --help. See `view_settings`."""

    view: Annotated[str, option("--view", metavar="LENS[.TABLE]", panel=_SHOW, autocompletion=completer(views()),
                                help=f"Lens or table to show: {', '.join(views())}; self is "
                                "nettop's own cost (connections)")] = "connections"
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_SHOW,
                                               help="Show only matching rows: a word in any column, "
                                               "10.0.0.0/8, :443, pid=1812, rtt_us>10ms, combined by and, or, not and "
                                               "parentheses; if repeated, all filters must match")] = None
    columns: Annotated[str | None, option("--columns", metavar="A,B,C", panel=_SHOW, autocompletion=complete_columns,
                                          help="Columns to show; NAME_per_s is the rate of a counter")] = None
    limit: Annotated[str | None, option("--limit", metavar="N", panel=_SHOW, help="Show at most N rows")] = None
    sort: Annotated[str | None, option("--sort", metavar="[-]COLUMN", panel=_SHOW, autocompletion=complete_sort,
                                       help="Sort by this column; with -, in descending order")] = None
    all: Annotated[bool, option("--all", panel=_SHOW,
                              help="Also show listeners, TIME_WAIT, and UDP sockets without peer or traffic")] = False
    resolve: Annotated[bool, option("--resolve/--numeric", panel=_SHOW,
                                    help="Show host names or addresses (--numeric)")] = False
    interval: Annotated[str, option("--interval", "-t", metavar="SECONDS", panel=_SHOW,
                                    help="Seconds between refreshes (1)")] = "1"
    max_overhead: Annotated[str | None, max_overhead_option(_SHOW)] = None
    mechanism: Annotated[list[str] | None, mechanism_option(_SHOW)] = None
    follow_namespaces: Annotated[bool, follow_namespaces_option(_SHOW)] = False
    port: Annotated[str | None, option("--port", metavar="PORT", panel=_SHORT,
                                       help="Show only this local or remote port")] = None
    pid: Annotated[str | None, option("--pid", metavar="PID", panel=_SHORT, help="Show only this process ID")] = None
    process: Annotated[str | None, option("--process", metavar="NAME", panel=_SHORT,
                                          help="Show only processes with exactly this name")] = None
    container: Annotated[str | None, option("--container", metavar="TEXT", panel=_SHORT,
                                            help="Show only containers and units whose name contains this")] = None
    table: Annotated[bool, option("--table", panel=_TEXT, help="Print text instead of showing the screens")] = False
    data_only: Annotated[bool, option("--data-only", "-d", panel=_TEXT,
                                      help="Omit the banner on standard error; implies --table")] = False
    format: Annotated[str | None, option("--format", metavar="table|csv|jsonl", panel=_TEXT,
                                         autocompletion=completer(Format),
                                         help="Output format; implies --table")] = None
    why: Annotated[bool, why_option(_TEXT)] = False
    deltas: Annotated[bool, option("--deltas", panel=_TEXT,
                                   help="Show per-interval values of counters; implies --table")] = False
    once: Annotated[bool, option("--once", panel=_TEXT, help="Stop after one refresh; implies --table")] = False
    count: Annotated[str | None, option("--count", metavar="N", panel=_TEXT,
                                        help="Stop after N refreshes; implies --table")] = None
    version: Annotated[bool, option("--version", is_eager=True, callback=_version, help="Print the version")] = False
    help_all: Annotated[bool, option("--help-all", is_eager=True, callback=_help_all,
                                     help="Show all options and exit")] = False
    # fmt: on

    @property
    def is_text(self) -> bool:
        """True if the options request plain output."""
        implying = (self.data_only, self.format, self.deltas, self.once, self.count)
        return self.table or any(value not in (None, False) for value in implying)


class _Subcommands(Mapping[str, Any]):
    """The parsers of the subcommands, in the order of --help. Each is imported and built when first used."""

    def __getitem__(self, name: str) -> Any:
        if name not in _SUBCOMMANDS:
            raise KeyError(name)
        return _parser_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_SUBCOMMANDS)

    def __len__(self) -> int:
        return len(_SUBCOMMANDS)


@cache
def _parser_of(name: str) -> Any:
    declared: Subcommand = importlib.import_module(f"nettop.commands.{name}").SUBCOMMAND
    _STARTS[declared.options] = declared.start or _start_help
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    register = alone.command(
        name, help=declared.help, epilog=declared.epilog, context_settings=declared.context_settings
    )
    register(declared.options)
    return typer.main.get_command(alone)


class _Group(typer.core.TyperGroup):
    """The top-level command, with one screen of help. Rejects options before a subcommand, which would not receive
    them, and --install-completion under sudo.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = cast("MutableMapping[str, Any]", _Subcommands())

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the most used options and the question that each lens answers."""
        from nettop.commands.help import write_overview

        write_overview(self, ctx, formatter)

    def format_all_help(self, ctx: Any, formatter: Any) -> None:
        """Write every option."""
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raise UsageError if root would write into the home of the user who called sudo."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        if invoking_user() is not None and "install_completion" in given:
            raise UsageError("--install-completion writes to your home directory", "run it without sudo")
        return list(super().parse_args(ctx, args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the subcommand and its arguments. Raise UsageError for options before it."""
        resolved = super().resolve_command(ctx, args)
        for name, field in ViewOptions.__dataclass_fields__.items():
            if ctx.params.get(name) not in (field.default, None, [], ()):
                given = "--" + name.replace("_", "-")
                raise UsageError(f"{given} before {args[0]} has no effect on it", f"write it after {args[0]}")
        return resolved


app = typer.Typer(
    name="nettop",
    help="Show live who uses the network, how each connection performs and how much CPU time it takes.",
    epilog=EXAMPLES,
    cls=_Group,
    subcommand_metavar="[COMMAND]",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"max_content_width": WIDTH},
)
app.callback(invoke_without_command=True)(ViewOptions)


# --- from options to settings ---------------------------------------------------------------------------------


def view_settings(options: ViewOptions) -> Settings:
    """Convert the options to settings. Raise UsageError for invalid values and combinations."""
    _check_combinations(options)
    shown = view_to_open(options, options.view)
    view = ViewSettings(
        view=shown,
        columns=split_names(options.columns),
        sort=options.sort,
        filters=_filters(options),
        limit=_count("--limit", options.limit),
        # A user who names an interface wants to see it even while it is down.
        all_rows=options.all or bool(getattr(options, INTERFACE.name)),
        deltas=options.deltas,
        resolve=options.resolve,
    )
    form = Format(checked_word("format", options.format or Format.TABLE, list(Format)))
    count = 1 if options.once else _count("--count", options.count)
    text = TextSettings(form, count, options.data_only, checked_why(options.why, form))
    interval_s = parse_seconds("--interval", options.interval)
    return Settings(
        interval_s,
        view,
        text,
        parse_mechanisms(options.mechanism),
        parse_overhead(options.max_overhead),
        parse_lens_options(options, interval_s, [find_table(shown)] if options.is_text else all_views()),
    )


def _count(name: str, value: str | None) -> int | None:
    return None if value is None else parse_count(name, value)


def _check_combinations(options: ViewOptions) -> None:
    if options.once and options.count not in (None, "1"):
        raise UsageError(f"--once conflicts with --count {options.count}", "use only one of them")


def _filters(options: ViewOptions) -> tuple[str, ...]:
    """Return the filters: those of --filter, then those of the shortcuts."""
    # The kernel keeps 15 bytes of a process's name (TASK_COMM_LEN in include/linux/sched.h).
    name = os.fsencode(options.process or "")[:15].decode(errors="ignore")
    shortcuts = (
        None if options.port is None else f":{parse_count('--port', options.port, MAX_PORT)}",
        None if options.pid is None else f"pid={parse_count('--pid', options.pid)}",
        None if options.process is None else f"process={quoted(name)}",
        None if options.container is None else f"container~{quoted(options.container)}",
    )
    return (*(options.filter or ()), *filter(None, shortcuts))


def _check_process(pid: str | None) -> None:
    """Raise UsageError if no process has the PID: an empty table would look like an idle process."""
    if pid is None:
        return
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # it exists, but belongs to another user
        return
    except (ProcessLookupError, OverflowError):
        raise UsageError(f"no process has PID {pid}", "list the processes with ps -e") from None


# --- starting a command ---------------------------------------------------------------------------------------


def _start_view(options: ViewOptions, source_of: Callable[[str], Source] | None) -> ExitCode:
    settings = view_settings(options)
    if source_of is None:
        _check_process(options.pid)
    lens, table = find_table(settings.view.view)  # report a wrong name before the heavy imports
    user = invoking_user() if source_of is None else None
    session = open_session(
        settings.interval_s,
        source_of,
        user,
        on_screen=not options.is_text,
        follow_namespaces=options.follow_namespaces,
        program_statistics=lens.id == SELF.id or settings.max_overhead is not None,
        ask_firewall=not options.is_text or table is FIREWALL,
        max_overhead=settings.max_overhead,
        together=(lens.id,) if options.is_text else (),
    )
    if options.is_text:
        return _show_text(settings, session)
    return _show_screens(settings, session, why_still_root(user) or "")


def _show_text(settings: Settings, opened: AbstractContextManager[Session]) -> ExitCode:
    with importing():
        from nettop.output.text import run_text

    if sys.stdout is None:
        raise NettopError("standard output is closed", "redirect it to a file or a pipe")
    with opened as session:
        return run_text(settings, session, sys.stdout, sys.stdin, sys.stderr)


def _show_screens(settings: Settings, opened: AbstractContextManager[Session], writing_refused: str) -> ExitCode:
    """Run the screens. `writing_refused` says why they may not write files; empty if they may."""
    from nettop.query.query import columns_from_settings, query_from_settings, screen_query

    table = find_table(settings.view.view)[1]
    # Report wrong names before the screens take over the terminal.
    query_from_settings(screen_query(table), settings.view)
    columns_from_settings(table, settings.view)
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise UsageError("standard input or output is not a terminal", "use nettop --table")
    if os.environ.get("TERM") == "dumb":
        raise UsageError("the terminal cannot show the screens (TERM=dumb)", "use nettop --table")
    with importing():
        from nettop.commands.config import load_own_preferences
        from nettop.screens.app import run_app

    loaded = load_own_preferences()  # while there is only one thread
    with opened as session:
        return run_app(settings, session, loaded, writing_refused)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _start_help(options: HelpOptions, _source_of: Callable[[str], Source] | None) -> ExitCode:
    from nettop.commands.help import show_help

    show_help(typer.main.get_command(app), options.topic)
    return ExitCode.DONE


_Start = Callable[[Any, "Callable[[str], Source] | None"], int]

_STARTS: dict[type, _Start] = {ViewOptions: _start_view}
"""Start function of each command parsed so far, by the class of its options; see Subcommand."""


# --- the program ----------------------------------------------------------------------------------------------


def main() -> int:
    """Run nettop with the process's arguments and return the exit status."""
    try:
        with exit_on_signals():
            return run(sys.argv[1:])
    except KeyboardInterrupt as ended:
        # Exit code 0 would claim that every check passed, that all is compiled, or that the command ran.
        return exit_code_of(ended) if sys.argv[1:2] in (["doctor"], ["compile"], ["run"]) else ExitCode.DONE
    finally:
        leave_output()
        gc.freeze()  # the interpreter's last collections would take 50 ms


def run(arguments: Sequence[str], source_of: Callable[[str], Source] | None = None) -> int:
    """Run nettop with these arguments, report errors on standard error and return the exit code.

    `source_of` creates the source of a lens; None uses the probes.
    """
    try:
        options = _parse(arguments)
        start = _STARTS.get(type(options))
        if start is None:
            return int(options or 0)
        if too_few := file_limit_error():
            raise too_few
        return start(options, source_of)
    except BrokenPipeError:  # the reader has read enough
        return ExitCode.DONE
    except NettopError as error:
        failure = error
    except (ImportError, AttributeError) as error:
        missing = missing_package(error)
        if missing is None:
            raise
        failure = missing
    except (OSError, RuntimeError, MemoryError) as error:
        limit = limit_reached("nettop cannot continue", error)
        if limit is None:
            raise
        failure = limit
    _report(failure)
    return failure.exit_code


def _parse(arguments: Sequence[str]) -> Any:
    """Parse the arguments into the command's options, or return an exit code after --help or --version."""
    command = typer.main.get_command(app)
    try:
        parsed = command.main(list(arguments), "nettop", standalone_mode=False)
    except BrokenPipeError:
        raise
    except SystemExit as ended:  # rich exits when the reader has closed the pipe
        raise BrokenPipeError from ended
    except OSError as error:  # while printing --help or --version
        raise NettopError(f"the output cannot be written: {error.strerror}") from error
    except _ParseError as error:
        raise _usage(error, command) from None
    if parsed == _INTERRUPTED:
        raise KeyboardInterrupt
    return parsed


def _usage(error: Any, command: Any) -> UsageError:
    """Convert typer's error to a UsageError, with the nearest option if one is unknown."""
    context = getattr(error, "ctx", None)
    command = command if context is None else context.command
    page = "nettop --help" if context is None else f"{context.command_path} --help"
    known = [name for param in command.params for name in param.opts]
    name = getattr(error, "option_name", None)
    if name is not None and name not in known:
        unknown = unknown_word("option", name, known)
        has_near = unknown.remedy.startswith("did you mean")
        return UsageError(unknown.what, unknown.remedy if has_near else f"see {page}")
    message: str = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], f"see {page}")


def _report(error: NettopError) -> None:
    if sys.stderr is None:
        return
    from nettop.snapshots.safe_text import safe_text

    pointed = (error.text, " " * error.at + "^") if isinstance(error, FilterError) else ()
    below = (*pointed, *error.remedy.splitlines())
    lines = (f"nettop: {error.what}", *(f"  {line}" for line in below))
    with suppress(OSError):
        sys.stderr.write("".join(safe_text(line) + "\n" for line in lines))
