# SPDX-License-Identifier: Apache-2.0
"""The command line: parses the arguments, builds the settings, starts a command, and reports what went wrong.

Neither Textual nor numpy is imported here before a command starts: --help and completion stay quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nettop import version_of_build
from nettop.commands.collect import COLLECT_EXAMPLES, COLLECT_HELP, CollectOptions, start_collect
from nettop.commands.config import (
    CONFIG_EXAMPLES,
    CONFIG_HELP,
    ConfigOptions,
    load_own_preferences,
    start_config,
)
from nettop.commands.doctor import DOCTOR, DOCTOR_EXAMPLES, DOCTOR_HELP, DoctorOptions, start_doctor
from nettop.commands.export import EXPORT_EXAMPLES, EXPORT_HELP, ExportOptions, start_export
from nettop.commands.flows import FLOWS_EXAMPLES, FLOWS_HELP, FlowsOptions, start_flows
from nettop.commands.invoker import invoking_user
from nettop.commands.log import LOG_EXAMPLES, LOG_HELP, LogOptions, start_log
from nettop.commands.options import (
    checked_why,
    checked_word,
    complete_columns,
    complete_sort,
    completing,
    follow_namespaces_option,
    listed_names,
    max_overhead_option,
    mechanism_option,
    opened_view,
    option,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    quoted,
    seconds,
    whole,
    why_option,
    with_lens_options,
)
from nettop.commands.privilege import Rights, opened_session, why_still_root
from nettop.commands.run import RUN, RUN_EXAMPLES, RUN_HELP, RunOptions, start_run
from nettop.commands.serve import SERVE_EXAMPLES, SERVE_HELP, ServeOptions, start_serve
from nettop.errors import (
    ExitCode,
    FilterError,
    NettopError,
    UsageError,
    limit_reached,
    missing_package,
    unknown_word,
    why_too_few_files,
)
from nettop.interrupts import ended_by_signals, exit_code_of, leave_output, undisturbed
from nettop.settings import MAX_PORT, Format, Settings, TextSettings, ViewSettings
from nettop.snapshots import all_views, find_table, views
from nettop.snapshots.bandwidth import INTERFACE
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.snapshots.source import Source

_ParseError: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for arguments that it does not know, whichever package defines it."""
_INTERRUPTED = 130
"""What typer returns in place of a KeyboardInterrupt."""

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


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"nettop {version_of_build()}")
        raise typer.Exit


_SHOW, _SHORT, _TEXT = "What to show", "Shortcuts of --filter", "Plain output"


# fmt: off
@with_lens_options(all_views())
@dataclass(frozen=True, slots=True)
class ViewOptions:
    """The options as they were given, in the order of --help. See `view_settings`."""

    view: Annotated[str, option("--view", metavar="LENS[.TABLE]", panel=_SHOW, autocompletion=completing(views()),
                                help=f"Lens, or one of its tables: {', '.join(views())}. self is "
                                "nettop's own cost (default: the first)")] = "connections"
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_SHOW,
                                               help="Show only rows that match: words in any column, "
                                               "10.0.0.0/8, :443, pid=1812, rtt_us>10ms, with and, or, not and "
                                               "parentheses; several filters must all match")] = None
    columns: Annotated[str | None, option("--columns", metavar="A,B,C", panel=_SHOW, autocompletion=complete_columns,
                                          help="Columns to show; NAME_per_s is a counter's rate")] = None
    limit: Annotated[str | None, option("--limit", metavar="N", panel=_SHOW, help="Show at most N rows")] = None
    sort: Annotated[str | None, option("--sort", metavar="[-]COLUMN", panel=_SHOW, autocompletion=complete_sort,
                                       help="Sort rows by this column; - for descending order")] = None
    all: Annotated[bool, option("--all", panel=_SHOW,
                              help="Also show listeners, TIME_WAIT, UDP that has no peer and no traffic")] = False
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
                                         autocompletion=completing(Format),
                                         help="Output format; implies --table")] = None
    why: Annotated[bool, why_option(_TEXT)] = False
    deltas: Annotated[bool, option("--deltas", panel=_TEXT, help="Show what each interval added to counters")] = False
    once: Annotated[bool, option("--once", panel=_TEXT, help="Stop after one refresh")] = False
    count: Annotated[str | None, option("--count", metavar="N", panel=_TEXT, help="Stop after N refreshes")] = None
    version: Annotated[bool, option("--version", is_eager=True, callback=_version, help="Show the version")] = False
    # fmt: on

    @property
    def is_text(self) -> bool:
        """Whether the options ask for plain output."""
        return self.table or self.data_only or self.format is not None


class _Group(typer.core.TyperGroup):
    """Refuses options in front of a command, which would not receive them, and root's hand in somebody's home."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises UsageError where sudo would have root write into the home directory of who called it."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        if invoking_user() is not None and "install_completion" in given:
            raise UsageError("--install-completion writes into your home directory", "leave out sudo")
        return list(super().parse_args(ctx, args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command and its arguments. Raises UsageError for options in front of it."""
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
app.command("serve", help=SERVE_HELP, epilog=SERVE_EXAMPLES)(ServeOptions)
app.command("collect", help=COLLECT_HELP, epilog=COLLECT_EXAMPLES)(CollectOptions)
app.command("flows", help=FLOWS_HELP, epilog=FLOWS_EXAMPLES)(FlowsOptions)
app.command("export", help=EXPORT_HELP, epilog=EXPORT_EXAMPLES)(ExportOptions)
app.command("config", help=CONFIG_HELP, epilog=CONFIG_EXAMPLES)(ConfigOptions)
app.command(
    RUN,
    help=RUN_HELP,
    epilog=RUN_EXAMPLES,
    # Arguments after the command's name belong to the command.
    context_settings={"allow_interspersed_args": False},
)(RunOptions)


# --- from options to settings ---------------------------------------------------------------------------------


def view_settings(options: ViewOptions) -> Settings:
    """The settings for these options. Raises UsageError for invalid values and combinations."""
    _check_together(options)
    shown = opened_view(options, options.view)
    view = ViewSettings(
        view=shown,
        columns=listed_names(options.columns),
        sort=options.sort,
        filters=_filters(options),
        limit=_count("--limit", options.limit),
        # Who names an interface wants to see it, also while it is down.
        all_rows=options.all or bool(getattr(options, INTERFACE.name)),
        deltas=options.deltas,
        resolve=options.resolve,
    )
    form = Format(checked_word("format", options.format or Format.TABLE, list(Format)))
    count = 1 if options.once else _count("--count", options.count)
    text = TextSettings(form, count, options.data_only, checked_why(options.why, form))
    interval_s = seconds("--interval", options.interval)
    return Settings(
        interval_s,
        view,
        text,
        parse_mechanisms(options.mechanism),
        parse_overhead(options.max_overhead),
        parse_lens_options(options, interval_s, [find_table(shown)] if options.is_text else all_views()),
    )


def _count(name: str, value: str | None) -> int | None:
    return None if value is None else whole(name, value)


def _check_together(options: ViewOptions) -> None:
    if options.once and options.count not in (None, "1"):
        raise UsageError(f"--once and --count {options.count} contradict each other", "give one of them")
    only_text = ("once", "count", "deltas")
    given = [name for name in only_text if getattr(options, name) not in (None, False)]
    if given and not options.is_text:
        raise UsageError(f"--{given[0]} applies to plain output only", "add --table, or --format csv or jsonl")


def _filters(options: ViewOptions) -> tuple[str, ...]:
    """The filters, those of the shortcuts last."""
    shortcuts = (
        None if options.port is None else f":{whole('--port', options.port, MAX_PORT)}",
        None if options.pid is None else f"pid={whole('--pid', options.pid)}",
        None if options.process is None else f"process={quoted(_kept_name(options.process))}",
        None if options.container is None else f"container~{quoted(options.container)}",
    )
    return (*(options.filter or ()), *filter(None, shortcuts))


def _check_process(pid: str | None) -> None:
    """Raise UsageError for a --pid that no process has: an empty table would look like a quiet process."""
    if pid is None:
        return
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # somebody else's
        return
    except (ProcessLookupError, OverflowError):
        raise UsageError(f"no process has PID {pid}", "ps -e lists the processes") from None


def _kept_name(process: str) -> str:
    """Return what the kernel keeps of a process's name: 15 bytes (TASK_COMM_LEN in include/linux/sched.h)."""
    return os.fsencode(process)[:15].decode(errors="ignore")


# --- starting a command ---------------------------------------------------------------------------------------


def _start_view(options: ViewOptions, source_of: Callable[[str], Source] | None) -> ExitCode:
    settings = view_settings(options)
    if source_of is None:
        _check_process(options.pid)
    lens, _ = find_table(settings.view.view)  # a wrong name is reported before anything heavy is imported
    user = invoking_user() if source_of is None else None
    rights = Rights(
        user,
        on_screen=not options.is_text,
        later_lenses=not options.is_text,
        follow_namespaces=options.follow_namespaces,
        program_statistics=lens.id == SELF.id or settings.max_overhead is not None,
    )
    session = opened_session(
        settings.interval_s,
        source_of,
        rights,
        max_overhead=settings.max_overhead,
        together=(lens.id,) if options.is_text else (),
    )
    if options.is_text:
        return _show_text(settings, session)
    return _show_screens(settings, session, why_still_root(user) or "")


def _show_text(settings: Settings, opened: AbstractContextManager[Session]) -> ExitCode:
    with undisturbed():
        from nettop.output.text import run_text

    if sys.stdout is None:
        raise NettopError("standard output is closed", "nettop --table needs somewhere to write to")
    with opened as session:
        return run_text(settings, session, sys.stdout, sys.stdin, sys.stderr)


def _show_screens(settings: Settings, opened: AbstractContextManager[Session], writing_refused: str) -> ExitCode:
    """`writing_refused` says why the screens may write no files; empty where they may."""
    from nettop.query.query import columns_from_settings, query_from_settings, screen_query

    table = find_table(settings.view.view)[1]
    # Wrong names are reported before the screens take the terminal.
    query_from_settings(screen_query(table), settings.view)
    columns_from_settings(table, settings.view)
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise UsageError("the screens need a terminal for input and output", "nettop --table needs none")
    if os.environ.get("TERM") == "dumb":
        raise UsageError("a terminal with TERM=dumb cannot show the screens", "use nettop --table")
    with undisturbed():
        from nettop.screens.app import run_app

    loaded = load_own_preferences()  # while there is one thread
    with opened as session:
        return run_app(settings, session, loaded, writing_refused)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


_COMMANDS: dict[type, Callable[[Any, Callable[[str], Source] | None], int]] = {
    ViewOptions: _start_view,
    LogOptions: start_log,
    ServeOptions: start_serve,
    CollectOptions: start_collect,
    FlowsOptions: start_flows,
    ExportOptions: start_export,
    RunOptions: start_run,
    ConfigOptions: start_config,
    DoctorOptions: start_doctor,
}
"""What starts each command, by the class of its options."""


# --- the program ----------------------------------------------------------------------------------------------


def main() -> int:
    """Run nettop with the arguments of the process; the exit status."""
    try:
        with ended_by_signals():
            return run(sys.argv[1:])
    except KeyboardInterrupt as ended:
        # 0 would say that everything works, or what the command did, which has not begun.
        return exit_code_of(ended) if sys.argv[1:2] in ([DOCTOR], [RUN]) else ExitCode.DONE
    finally:
        leave_output()


def run(arguments: Sequence[str], source_of: Callable[[str], Source] | None = None) -> int:
    """Run the command with these arguments, and report on standard error what went wrong. Returns the exit code.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    try:
        options = _parse(arguments)
        start = _COMMANDS.get(type(options))
        if start is None:
            return int(options or 0)
        if too_few := why_too_few_files():
            raise too_few
        return start(options, source_of)
    except BrokenPipeError:  # the reader has what it wanted
        return ExitCode.DONE
    except NettopError as error:
        failure = error
    except (ImportError, AttributeError) as error:
        missing = missing_package(error)
        if missing is None:
            raise
        failure = missing
    except (OSError, RuntimeError, MemoryError) as error:
        limit = limit_reached("nettop cannot go on", error)
        if limit is None:
            raise
        failure = limit
    _report(failure)
    return failure.exit_code


def _parse(arguments: Sequence[str]) -> Any:
    """The options of the command, or an exit code after --help or --version."""
    command = typer.main.get_command(app)
    try:
        parsed = command.main(list(arguments), "nettop", standalone_mode=False)
    except BrokenPipeError:
        raise
    except SystemExit as ended:  # what rich does when the reader has gone
        raise BrokenPipeError from ended
    except OSError as error:  # of --help and --version
        raise NettopError(f"the output cannot be written: {error.strerror}") from error
    except _ParseError as error:
        raise _usage(error, command) from None
    if parsed == _INTERRUPTED:
        raise KeyboardInterrupt
    return parsed


def _usage(error: Any, command: Any) -> UsageError:
    """typer's error as one of ours, with the nearest option where one is unknown."""
    context = getattr(error, "ctx", None)
    command = command if context is None else context.command
    page = "nettop --help" if context is None else f"{context.command_path} --help"
    known = [name for param in command.params for name in param.opts]
    name = getattr(error, "option_name", None)
    if name is not None and name not in known:
        unknown = unknown_word("option", name, known)
        has_near = unknown.remedy.startswith("did you mean")
        return UsageError(unknown.what, unknown.remedy if has_near else f"{page} lists the options")
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
