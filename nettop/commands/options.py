# SPDX-License-Identifier: Apache-2.0
"""Functions shared by the commands to declare, complete and parse options."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_type_hints

import typer

from nettop.errors import NettopError, UsageError, unknown_word
from nettop.process.priority import NICE
from nettop.settings import (
    MAX_INTERVAL_S,
    MIN_INTERVAL_S,
    LineFormat,
    LogSettings,
    ViewSettings,
    checked_seconds,
)
from nettop.snapshots import find_table, lenses, logged_views
from nettop.snapshots.schema import Lens, Option, OptionValues, Table

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

_SIZE = re.compile(r"([0-9]{1,15})([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(s|min|m|h|d|w|y)")
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}


WIDTH = 100
"""Maximum width of help, in columns."""
SourceOf: TypeAlias = "Callable[[str], Source] | None"
"""Function that creates the source of a lens; None uses the probes."""


def option(*names: str, panel: str | None = None, **kwargs: Any) -> Any:
    """Declare an option. Its help text states the default. Files are checked when they are opened, maybe as another
    user."""
    return typer.Option(*names, rich_help_panel=panel, show_default=False, readable=False, **kwargs)


def require_packages(command: str, names: Iterable[str], remedy: str) -> None:
    """Raise NettopError if packages that a command needs are not installed."""
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise NettopError(
            f"nettop {command} needs packages that are not installed: {', '.join(missing)}", remedy
        )


def require_output(remedy: str = "redirect it to a file or a pipe") -> None:
    """Raise NettopError if standard output is closed."""
    if sys.stdout is None:
        raise NettopError("standard output is closed", remedy)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def mechanism_option(panel: str | None = None) -> Any:
    """Declare --mechanism; `parse_mechanisms` parses its values."""
    return option("--mechanism", metavar="HOOK=NAME", panel=panel, autocompletion=complete_mechanism,
                  help="Use this mechanism for a hook, not the best one: sockets=sock_diag, events=none")  # fmt: skip


def max_overhead_option(panel: str | None = None) -> Any:
    """Declare --max-overhead; `parse_overhead` parses its value."""
    return option("--max-overhead", metavar="PERCENT", panel=panel,
                  help="Refresh less often while nettop uses more of one CPU than this, e.g. 2%")  # fmt: skip


def normal_priority_option(panel: str | None = None) -> Any:
    """Declare --normal-priority. Only commands with this option keep the priority that nettop started with."""
    return option("--normal-priority", panel=panel,
                  help=f"Do not run at nice {NICE}, which root's nettop does to get through on full CPUs")  # fmt: skip


def redact_option(panel: str | None = None) -> Any:
    """Declare --redact."""
    return option(
        "--redact",
        panel=panel,
        help="Replace addresses, names and texts, each always by the same word, so that the file can go into a ticket",
    )


def redact_key_option(panel: str | None = None) -> Any:
    """Declare --redact-key; see nettop.commands.redaction."""
    return option("--redact-key", metavar="FILE", panel=panel,
                  help="Redact by the key in this file, so that several recordings have their words in common (random "
                  "key)")  # fmt: skip


def follow_namespaces_option(panel: str | None = None) -> Any:
    """Declare --follow-namespaces; see nettop.commands.privilege."""
    return option("--follow-namespaces", panel=panel,
                  help="Also enter network namespaces created later; keeps the capabilities for it")  # fmt: skip


def why_option(panel: str | None = None) -> Any:
    """Declare --why; see `checked_why`."""
    return option("--why", panel=panel, help="In JSON Lines, add the reason why values are not available")


# --- options that lenses declare --------------------------------------------------------------------------------

_Options = TypeVar("_Options", bound=type)


def evaluated(options: _Options) -> _Options:
    """Evaluate the annotations of a class of options, before it becomes a dataclass: typer evaluates those of a
    subclass where that is defined."""
    options.__annotations__ = get_type_hints(options, include_extras=True)
    return options


def with_lens_options(
    views: Iterable[tuple[Lens, Table]], *, log: bool = False, unattended: bool = False
) -> Callable[[_Options], _Options]:
    """Add the options that lenses declare for these views to a class of options, before it becomes a dataclass.

    Each becomes a field of the same name, of type `str | None`, or `list[str] | None` if repeatable. The help text
    states the default for logs with `log`, and for unattended commands with `unattended`.
    """

    def extend(options: _Options) -> _Options:
        for lens, table in views:
            for declared in lens.options:
                if declared.concerns(table) and declared.name not in options.__annotations__:
                    annotation = _annotated(lens, declared, log=log, unattended=unattended)
                    options.__annotations__[declared.name] = annotation
                    setattr(options, declared.name, None)
        return options

    return extend


def _annotated(lens: Lens, declared: Option[Any], *, log: bool, unattended: bool) -> Any:
    default = declared.default_of(log=log, unattended=unattended)
    kind: Any = list[str] | None if declared.repeatable else str | None
    return Annotated[
        kind,
        option(
            *filter(None, (declared.flag, declared.short)),
            metavar=declared.metavar,
            panel=f"{lens.title} (view {lens.id})",
            autocompletion=completer([declared.text(step) for step in declared.steps]),
            help=declared.help_with(default),
        ),
    ]


def parse_lens_options(
    options: object,
    interval_s: float,
    views: Collection[tuple[Lens, Table]],
    *,
    log: bool = False,
    unattended: bool = False,
) -> OptionValues:
    """Parse the lens options that were given.

    With `log` or `unattended`, options with a separate default for that get it. Raise UsageError for an invalid value,
    and for an option that has no effect on `views`.
    """
    values: dict[Option[Any], Any] = {}
    for owner in lenses():
        for declared in owner.options:
            given = getattr(options, declared.name, None)
            text = (",".join(given) or None) if isinstance(given, list) else given
            concerned = any(lens is owner and declared.concerns(table) for lens, table in views)
            if text is not None and not concerned:
                where = ", ".join(f"{owner.id}.{name}" for name in declared.tables) or f"the lens {owner.id}"
                raise UsageError(
                    f"{declared.flag} is an option of {where}", "leave it out, or choose another view"
                )
            if text is not None:
                values[declared] = _parsed(declared, text, interval_s)
            elif (
                concerned
                and (default := declared.default_of(log=log, unattended=unattended)) != declared.default
            ):
                values[declared] = default
    return values


def view_to_open(options: object, view: str) -> str:
    """Return the view to show: instead of a lens's main table, the one that a given lens option opens, if any."""
    lens, table = find_table(view)
    opens = (o.opens for o in lens.options if o.opens and getattr(options, o.name, None) is not None)
    name = next(opens, None) if table is lens.main else None
    return view if name is None else f"{lens.id}.{name}"


def _parsed(declared: Option[Any], text: str, interval_s: float) -> Any:
    value: Any = text
    if declared.steps and isinstance(declared.default, str):
        value = checked_word(declared.name, text, [str(step) for step in declared.steps])
    elif declared.unit == "bytes":
        value = parse_size(declared.flag, text)
    elif not isinstance(declared.default, str):
        try:
            value = type(declared.default)(text)
        except ValueError:
            kind = "a whole number" if isinstance(declared.default, int) else "a number"
            raise UsageError(
                f"{declared.flag} {text!r} is not {kind}",
                f"write it like {declared.flag} {declared.text(declared.default)}",
            ) from None
    if declared.minimum is not None and value < declared.minimum:
        least = declared.text(declared.minimum)
        raise UsageError(f"{declared.flag} {text} is too low", f"use {declared.flag} {least} or more")
    if declared.maximum is not None and value > declared.maximum:
        most = declared.text(declared.maximum)
        raise UsageError(f"{declared.flag} {text} is too high", f"use {declared.flag} {most} or less")
    if declared.check is not None:
        declared.check(value, interval_s)
    return value


# --- completion -----------------------------------------------------------------------------------------------


def words_starting_with(words: Iterable[str], incomplete: str) -> list[str]:
    """Return the words that start with `incomplete`."""
    return [word for word in words if word.startswith(incomplete)]


def complete_list(words: Iterable[str], incomplete: str) -> list[str]:
    """Complete the last word of a comma-separated list, skipping words already listed."""
    before, comma, last = incomplete.rpartition(",")
    return [
        before + comma + word for word in words_starting_with(words, last) if word not in before.split(",")
    ]


def completer(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a completer for an option with these values."""
    return lambda incomplete: words_starting_with(words, incomplete)


def list_completer(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a completer for a comma-separated list of these words."""
    return lambda incomplete: complete_list(words, incomplete)


def complete_mechanism(incomplete: str) -> list[str]:
    """Complete the hook before `=`; after it offer `none`, which every hook accepts."""
    hook, sign, _ = incomplete.partition("=")
    return words_starting_with([f"{hook}=none"] if sign else [f"{name}=" for name in _hooks()], incomplete)


def complete_columns(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete a comma-separated list of columns."""
    return complete_list(dict.fromkeys(name for table in _tables(ctx) for name in table.names), incomplete)


def complete_sort(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete a sort order: each column, ascending or, with `-`, descending."""
    names = [name for table in _tables(ctx) for name in table.sortable]
    return words_starting_with([*names, *("-" + name for name in names)], incomplete)


def _tables(ctx: typer.Context) -> list[Table]:
    """Return the tables chosen on the command line so far; none if the view does not exist."""
    try:
        if "lens" in ctx.params:
            return [table for _, table in logged_views(ctx.params["lens"] or LogSettings().views)]
        return [find_table(ctx.params.get("view") or ViewSettings().view)[1]]
    except UsageError:
        return []


def split_names(text: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list of names; None if the option was not given."""
    return None if text is None else tuple(filter(None, map(str.strip, text.split(","))))


# --- values ---------------------------------------------------------------------------------------------------


def quoted(value: str) -> str:
    """Quote a value for the filter language. (nettop.query.filter.quote would import numpy.)"""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_count(name: str, value: str, most: int | None = None) -> int:
    """Parse an option's value as an integer from 1 to `most`. Raise UsageError otherwise."""
    if value.isdecimal() and int(value) > 0:
        if most is not None and int(value) > most:
            raise UsageError(f"{name} {value} is too high", f"use {name} {most} or less")
        return int(value)
    raise UsageError(f"{name} {value!r} is not a positive whole number", f"write it like {name} 10")


def parse_seconds(
    name: str, value: str, least: float = MIN_INTERVAL_S, most: float = MAX_INTERVAL_S
) -> float:
    """Parse an option's value as seconds within these bounds. Raise UsageError otherwise."""
    try:
        number = float(value)
    except ValueError:
        raise UsageError(
            f"{name} {value!r} is not a number of seconds", f"write it like {name} 0.5"
        ) from None
    return checked_seconds(name, number, least, most)


def parse_duration(name: str, value: str, examples: str) -> float:
    """Parse an option's value (`90s`, `10m`, `6h`, `2d`, `4w`, `1y`) as seconds. Raise UsageError otherwise."""
    match = _DURATION.fullmatch(value)
    if match is None or not float(match[1]):
        raise UsageError(f"{name} {value!r} is not a duration", f"write it like {name} {examples}")
    return float(match[1]) * _SECONDS[match[2]]


def parse_overhead(value: str | None) -> float | None:
    """Parse --max-overhead as a share of one CPU: `2%` and `2` are 0.02. Raise UsageError if invalid."""
    if value is None:
        return None
    try:
        percent = float(value.removesuffix("%"))
    except ValueError:
        raise UsageError(
            f"--max-overhead {value!r} is not a percentage", "write it like --max-overhead 2%"
        ) from None
    if not 0.1 <= percent <= 100:
        raise UsageError(f"--max-overhead {percent:g}% is out of range", "use 0.1% to 100%")
    return percent / 100


def parse_size(name: str, value: str) -> int:
    """Parse an option's value (`65536`, `64K`, `1GiB`) as bytes, in powers of 1024. Raise UsageError otherwise."""
    match = _SIZE.fullmatch(value)
    if match is None:
        raise UsageError(f"{name} {value!r} is not a size", f"write it like {name} 64M")
    return int(match[1]) << _SHIFTS[match[2].lower()]


def parse_mechanisms(words: Sequence[str] | None) -> dict[str, str]:
    """Parse the chosen mechanisms, by hook. The source checks that they exist.

    Raise UsageError for a value that is not HOOK=NAME, an unknown hook, and a hook with two mechanisms.
    """
    mechanisms: dict[str, str] = {}
    for word in words or ():
        hook, _, name = word.partition("=")
        if not (hook and name):
            raise UsageError(
                f"--mechanism {word!r} is not HOOK=NAME", "write it like --mechanism events=none"
            )
        checked_word("hook", hook, _hooks())
        if mechanisms.setdefault(hook, name) != name:
            raise UsageError(
                f"--mechanism {hook}={mechanisms[hook]} conflicts with {word}",
                "use only one of them",
            )
    return mechanisms


def _hooks() -> list[str]:
    return [hook.name for lens in lenses() for hook in lens.hooks]


def checked_why(why: bool, form: str) -> bool:
    """Return whether --why was given. Raise UsageError if the format cannot hold reasons."""
    if why and form != LineFormat.JSONL:
        raise UsageError("--why requires JSON Lines", "add --format jsonl")
    return why


def checked_word(kind: str, word: str, known: Sequence[str]) -> str:
    """Return the word if it is known. Raise UsageError with the nearest known words otherwise."""
    if word not in known:
        raise unknown_word(kind, word, known)
    return word
