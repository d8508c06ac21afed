# SPDX-License-Identifier: Apache-2.0
"""What commands share: declaring options, completing them, and parsing their values."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import typer

from nettop.errors import UsageError, unknown_word
from nettop.settings import (
    MAX_INTERVAL_S,
    MIN_INTERVAL_S,
    LineFormat,
    LogSettings,
    ViewSettings,
    checked_seconds,
)
from nettop.snapshots import find_table, lenses, logged_views
from nettop.snapshots.schema import Lens, Option, Table

_SIZE = re.compile(r"([0-9]{1,15})([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def option(*names: str, panel: str | None = None, **kwargs: Any) -> Any:
    """The declaration of an option; its help names its default."""
    return typer.Option(*names, rich_help_panel=panel, show_default=False, **kwargs)


def mechanism_option(panel: str | None = None) -> Any:
    """--mechanism; its values are what `parse_mechanisms` takes."""
    return option("--mechanism", metavar="HOOK=NAME", panel=panel, autocompletion=complete_mechanism,
                  help="Use this mechanism instead of the best one: sockets=sock_diag, events=none")  # fmt: skip


def max_overhead_option(panel: str | None = None) -> Any:
    """--max-overhead; its value is what `parse_overhead` takes."""
    return option("--max-overhead", metavar="PERCENT", panel=panel,
                  help="Refresh less often when nettop takes more of one CPU than this, e.g. 2%")  # fmt: skip


def follow_namespaces_option(panel: str | None = None) -> Any:
    """--follow-namespaces; see nettop.commands.privilege."""
    return option("--follow-namespaces", panel=panel,
                  help="Also enter network namespaces that appear later; keeps capabilities for it")  # fmt: skip


def why_option(panel: str | None = None) -> Any:
    """--why; see `checked_why`."""
    return option("--why", panel=panel, help="In JSON, give the reason for values that are not available")


# --- options that lenses declare --------------------------------------------------------------------------------

_Options = TypeVar("_Options", bound=type)


def with_lens_options(
    views: Iterable[tuple[Lens, Table]], *, log: bool = False, unattended: bool = False
) -> Callable[[_Options], _Options]:
    """Adds, to the dataclass of a command's options, those that lenses declare for the views it can show.

    Each is a field with the option's name, `str | None`, or `list[str] | None` where it is repeatable. Help names
    the default of logs, or of what runs unattended.
    """
    declared_fields = {
        declared.name: (declared.name, _annotated(lens, declared, log=log, unattended=unattended), None)
        for lens, table in views
        for declared in lens.options
        if declared.concerns(table)
    }

    def extend(options: _Options) -> _Options:
        # typer evaluates annotations in the module of the function it is given, which is not that of the options here.
        types = get_type_hints(options, include_extras=True)
        own = [(f.name, types[f.name], field(default=f.default)) for f in fields(options)]
        extended: Any = make_dataclass(
            options.__name__, [*own, *declared_fields.values()], bases=(options,), frozen=True, slots=True
        )
        return cast("_Options", extended)

    return extend


def _annotated(lens: Lens, declared: Option, *, log: bool, unattended: bool) -> Any:
    default = declared.default_of(log=log, unattended=unattended)
    kind: Any = list[str] | None if declared.repeatable else str | None
    return Annotated[
        kind,
        option(
            *filter(None, (declared.flag, declared.short)),
            metavar=declared.metavar,
            panel=f"{lens.title} (view {lens.id})",
            autocompletion=completing([declared.text(step) for step in declared.steps]),
            help=f"{declared.help} ({declared.text(default)})" if default != "" else declared.help,
        ),
    ]


def parse_lens_options(
    options: object,
    interval_s: float,
    views: Collection[tuple[Lens, Table]],
    *,
    log: bool = False,
    unattended: bool = False,
) -> dict[str, object]:
    """The values of the options that lenses declare, by name, as far as they were given.

    Those that have a default of their own for logs, or for what runs unattended, have that there. Raises UsageError for
    a value that is not possible, and for an option that changes nothing about the `views` that are shown.
    """
    values: dict[str, object] = {}
    for owner in lenses():
        for declared in owner.options:
            given = getattr(options, declared.name, None)
            text = (",".join(given) or None) if isinstance(given, list) else given
            concerned = any(lens is owner and declared.concerns(table) for lens, table in views)
            if text is not None and not concerned:
                where = ", ".join(f"{owner.id}.{name}" for name in declared.tables) or f"the lens {owner.id}"
                raise UsageError(
                    f"{declared.flag} is an option of {where}", "leave it out, or choose such a view"
                )
            if text is not None:
                values[declared.name] = _parsed(declared, text, interval_s)
            elif (
                concerned
                and (default := declared.default_of(log=log, unattended=unattended)) != declared.default
            ):
                values[declared.name] = default
    return values


def opened_view(options: object, view: str) -> str:
    """The view to show: of a lens's main table, that which an option of the lens that was given is about."""
    lens, table = find_table(view)
    opens = (o.opens for o in lens.options if o.opens and getattr(options, o.name, None) is not None)
    name = next(opens, None) if table is lens.main else None
    return view if name is None else f"{lens.id}.{name}"


def _parsed(declared: Option, text: str, interval_s: float) -> object:
    value: Any = text
    if declared.steps and isinstance(declared.default, str):
        value = checked_word(declared.name, text, [str(step) for step in declared.steps])
    elif declared.unit == "bytes":
        value = size_bytes(declared.flag, text)
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
        raise UsageError(f"{declared.flag} {text} is too low", f"give {declared.flag} {least} or more")
    if declared.maximum is not None and value > declared.maximum:
        most = declared.text(declared.maximum)
        raise UsageError(f"{declared.flag} {text} is too high", f"give {declared.flag} {most} or less")
    if declared.check is not None:
        declared.check(value, interval_s)
    return value


# --- completion -----------------------------------------------------------------------------------------------


def starting(words: Iterable[str], incomplete: str) -> list[str]:
    """The words that begin like `incomplete`."""
    return [word for word in words if word.startswith(incomplete)]


def complete_list(words: Iterable[str], incomplete: str) -> list[str]:
    """The lists, with commas, that `incomplete` may become: its last word is completed, the others stay."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + word for word in starting(words, last) if word not in before.split(",")]


def completing(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Completes an option whose values are these words."""
    return lambda incomplete: starting(words, incomplete)


def complete_mechanism(incomplete: str) -> list[str]:
    """The hooks that begin like `incomplete`; after `=`, `none`, which every hook accepts."""
    hook, sign, _ = incomplete.partition("=")
    return starting([f"{hook}=none"] if sign else [f"{name}=" for name in _hooks()], incomplete)


def complete_columns(ctx: typer.Context, incomplete: str) -> list[str]:
    """The lists of columns that `incomplete` may become."""
    return complete_list(_names(ctx), incomplete)


def complete_sort(ctx: typer.Context, incomplete: str) -> list[str]:
    """The orders that begin like `incomplete`: each column, ascending and descending."""
    names = [name for table in _tables(ctx) for name in table.sortable]
    return starting([*names, *("-" + name for name in names)], incomplete)


def _names(ctx: typer.Context) -> list[str]:
    """The columns of what the command line shows or logs so far."""
    return list(dict.fromkeys(name for table in _tables(ctx) for name in table.names))


def _tables(ctx: typer.Context) -> list[Table]:
    """The tables that the command line shows or logs so far; none when there is no such view."""
    try:
        if "lens" in ctx.params:
            return [table for _, table in logged_views(ctx.params["lens"] or LogSettings().views)]
        return [find_table(ctx.params.get("view") or ViewSettings().view)[1]]
    except UsageError:
        return []


def listed_names(text: str | None) -> tuple[str, ...] | None:
    """The names in a list with commas; None without such an option."""
    return None if text is None else tuple(filter(None, map(str.strip, text.split(","))))


# --- values ---------------------------------------------------------------------------------------------------


def quoted(value: str) -> str:
    """The value as a quoted text of the filter language (nettop.query.filter.quote would load numpy)."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def whole(name: str, value: str, most: int | None = None) -> int:
    """Parse an option's value as a whole number above 0, and not above `most`. Raises UsageError otherwise."""
    if value.isdecimal() and int(value) > 0:
        if most is not None and int(value) > most:
            raise UsageError(f"{name} {value} is too high", f"the highest possible is {most}")
        return int(value)
    raise UsageError(f"{name} {value!r} is not a whole number above 0", f"write it like {name} 10")


def seconds(name: str, value: str, least: float = MIN_INTERVAL_S, most: float = MAX_INTERVAL_S) -> float:
    """An option's value as a number of seconds within these bounds. Raises UsageError otherwise."""
    try:
        number = float(value)
    except ValueError:
        raise UsageError(
            f"{name} {value!r} is not a number of seconds", f"write it like {name} 0.5"
        ) from None
    return checked_seconds(name, number, least, most)


def parse_overhead(value: str | None) -> float | None:
    """The share of one CPU that --max-overhead gives: `2%` and `2` are 0.02. Raises UsageError otherwise."""
    if value is None:
        return None
    try:
        percent = float(value.removesuffix("%"))
    except ValueError:
        raise UsageError(
            f"--max-overhead {value!r} is not a percentage", "write it like --max-overhead 2%"
        ) from None
    if not 0.1 <= percent <= 100:
        raise UsageError(f"--max-overhead {percent:g}% is out of range", "give --max-overhead 0.1% to 100%")
    return percent / 100


def size_bytes(name: str, value: str) -> int:
    """An option's value as bytes: `65536`, `64K`, `64M` or `1GiB`, in steps of 1024. Raises UsageError otherwise."""
    match = _SIZE.fullmatch(value)
    if match is None:
        raise UsageError(f"{name} {value!r} is not a size", f"write it like {name} 64M")
    return int(match[1]) << _SHIFTS[match[2].lower()]


def parse_mechanisms(words: Sequence[str] | None) -> dict[str, str]:
    """The chosen mechanisms, by hook. The source checks whether they exist.

    Raises UsageError for what is not HOOK=NAME, a hook that no lens has, and a hook with two mechanisms.
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
                f"--mechanism {hook}={mechanisms[hook]} and {word} contradict each other",
                "give one of them",
            )
    return mechanisms


def _hooks() -> list[str]:
    return [hook.name for lens in lenses() for hook in lens.hooks]


def checked_why(why: bool, form: str) -> bool:
    """Whether --why was given. Raises UsageError where the format has no place for it."""
    if why and form != LineFormat.JSONL:
        raise UsageError("--why applies to JSON Lines only", "add --format jsonl")
    return why


def checked_word(kind: str, word: str, known: Sequence[str]) -> str:
    """The word, if it is among the known. Raises UsageError with the nearest ones otherwise."""
    if word not in known:
        raise unknown_word(kind, word, known)
    return word
