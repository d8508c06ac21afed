# SPDX-License-Identifier: Apache-2.0
"""The command line: parse the arguments, build the settings, start a command and report errors.

Do not import Textual or numpy here before a command starts: --help and completion must stay fast.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import typer

from nettop.commands.invoker import invoking_user
from nettop.commands.options import WIDTH, SourceOf, epilog, parser_of
from nettop.commands.view import LiveSettings, start_view
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
from nettop.process.interrupts import ending_with_threads, exit_code_of, exit_on_signals, leave_output
from nettop.process.priority import restore_priority
from nettop.snapshots import views

if TYPE_CHECKING:
    from nettop.commands.help import HelpSettings

_ParseError: type[Exception] = typer.BadParameter.__bases__[0]
"""typer's exception for invalid arguments; the package that defines it depends on the version of typer."""
_INTERRUPTED = 130
"""Exit code that typer returns instead of raising KeyboardInterrupt."""

_SUBCOMMANDS = (
    "check", "doctor", "compile", "log", "record", "replay", "diff", "bundle", "serve", "collect", "flows", "export",
    "config", "run", "help",
)  # fmt: skip
"""Modules of nettop.commands, in the order of --help. Each declares HELP, EXAMPLES, its settings, such as LogSettings,
and its start, such as start_log; and CONTEXT, if its arguments are parsed in another way."""

EXAMPLES = """\
nettop  # everything, live
nettop services  # one lens: response times
nettop --filter 'nginx rtt_us>10ms'  # nginx's slow connections
nettop --table -d --once --limit 10  # the ten largest senders
nettop --table --port 443 --deltas -t 5  # traffic of port 443, every 5 s
nettop --format jsonl --once --all | jq .process  # every socket, as JSON
nettop --table --columns process,remote,bytes_sent_per_s --sort -bytes_sent_per_s
nettop export cpu.stacks cpu.svg  # CPU time of the network stack as a flame graph

A lens answers one question and has its own screen and tables; nettop help LENS explains it. Without --view,
LENS names its view too: nettop drops. A hook is something a lens needs from the kernel; the mechanisms that
provide it are listed by nettop doctor.

Exit codes: 0 done or interrupted, 1 failure, 2 usage error, 3 not supported on this kernel or host,
4 missing permission, 5 a data source failed."""


# --- the parser -----------------------------------------------------------------------------------------------


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
    module: Any = importlib.import_module(f"nettop.commands.{name}")
    settings = getattr(module, f"{name.title()}Settings")
    _STARTS[settings] = _start_help if name == "help" else getattr(module, f"start_{name}")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    context = getattr(module, "CONTEXT", None)
    alone.command(name, help=module.HELP, epilog=epilog(module.EXAMPLES), context_settings=context)(
        parser_of(settings)
    )
    return typer.main.get_command(alone)


class _TopLevel(typer.core.TyperGroup):
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
        """Parse the arguments; a lens or table in place of a command is that of --view.

        Raise UsageError if root would write into the home of the user who called sudo.
        """
        given, rest, _ = self.make_parser(ctx).parse_args(list(args))
        if invoking_user() is not None and "install_completion" in given:
            raise UsageError("--install-completion writes to your home directory", "run it without sudo")
        if rest and "view" not in given and rest[0] not in _SUBCOMMANDS and rest[0] in views():
            args = [*args[: -len(rest)], "--view", *rest]
        return list(super().parse_args(ctx, args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the subcommand and its arguments. Raise UsageError for another word, and options before it."""
        if args[0] not in _SUBCOMMANDS:
            if args[0] in views():
                raise UsageError(f"{args[0]}: one lens or table is shown at a time", "name only one")
            raise unknown_word("command, lens or table", args[0], _SUBCOMMANDS, views())
        resolved: Any = super().resolve_command(ctx, args)
        known = {name for param in resolved[1].params for name in param.opts}
        for param in self.params:
            if ctx.params.get(param.name) not in (None, False, [], ()):
                remedy = f"write it after {args[0]}" if param.opts[0] in known else "leave it out"
                raise UsageError(f"{param.opts[0]} before {args[0]} has no effect on it", remedy)
        return resolved


app = typer.Typer(
    name="nettop",
    help="Show live who uses the network, how each connection performs and how much CPU time it takes.",
    epilog=epilog(EXAMPLES),
    cls=_TopLevel,
    subcommand_metavar="[COMMAND]",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"max_content_width": WIDTH, "help_option_names": ["-h", "--help"]},
)
app.callback(invoke_without_command=True)(parser_of(LiveSettings))


# --- starting a command ---------------------------------------------------------------------------------------


def _start_help(settings: HelpSettings, _source_of: SourceOf) -> ExitCode:
    from nettop.commands.help import show_help

    show_help(typer.main.get_command(app), settings.topic)
    return ExitCode.DONE


_STARTS: dict[type, Callable[[Any, SourceOf], int]] = {LiveSettings: start_view}
"""Start function of each command parsed so far, by the class of its settings."""


# --- the program ----------------------------------------------------------------------------------------------

_ANSWERING = (["check"], ["compile"], ["diff"], ["doctor"], ["run"])
"""Commands of which exit code 0, if they are interrupted, would claim that nothing is wrong or has changed, that all is
compiled, that every check passed, or that the command ran."""


def main() -> int:
    """Run nettop with the process's arguments and return the exit status."""
    try:
        with exit_on_signals():
            return run(sys.argv[1:])
    except KeyboardInterrupt as ended:
        return exit_code_of(ended) if sys.argv[1:2] in _ANSWERING else ExitCode.DONE
    finally:
        leave_output()
        restore_priority()
        gc.freeze()  # the interpreter's last collections would take 50 ms


def run(arguments: Sequence[str], source_of: SourceOf = None) -> int:
    """Run nettop with these arguments, report errors on standard error and return the exit code.

    `source_of` creates the source of a lens; None uses the probes.
    """
    try:
        options = parse(arguments)
        start = _STARTS.get(type(options))
        if start is None:
            return int(options or 0)
        if too_few := file_limit_error():
            raise too_few
        if source_of is None:
            from nettop.process.limits import set_up_process

            set_up_process()
        with ending_with_threads():
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


def parse(arguments: Sequence[str]) -> Any:
    """Parse the arguments into the command's settings, or return an exit code after --help or --version.

    Keep the raised priority for commands that watch this host.
    """
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
    if getattr(parsed, "normal_priority", True) or getattr(parsed, "hosts", None):
        restore_priority()
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
