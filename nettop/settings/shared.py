# SPDX-License-Identifier: Apache-2.0
"""Settings that several commands have, and the options that lenses declare."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from nettop.errors import UsageError
from nettop.process.priority import NICE
from nettop.settings import EMPTY, LineFormat
from nettop.settings.declared import choice, complete_list, declared_in, setting, words_starting_with
from nettop.settings.values import (
    checked_word,
    hooks,
    parse_mechanisms,
    parse_overhead,
    parse_seconds,
    parse_size,
)
from nettop.snapshots import find_table, lenses, logged_views
from nettop.snapshots.schema import Lens, Option, OptionValues, Table

LensView: TypeAlias = tuple[Lens, Table]


class CommandSettings:
    """Base of the settings of a command, each declared by its field.

    A command that reads lenses has their options for `VIEWS`, with separate defaults for `IS_LOG` or `IS_UNATTENDED`.
    """

    PANEL: ClassVar[str | None] = None
    """The part of the help that lists what names no other."""
    VIEWS: ClassVar[Sequence[LensView]] = ()
    IS_LOG: ClassVar[bool] = False
    IS_UNATTENDED: ClassVar[bool] = False

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other; `given` is what was given, by name."""

    def watched(self) -> tuple[Collection[LensView], float]:
        """Return the views that options of lenses must concern, and the seconds between readings."""
        return self.VIEWS, 1.0


# --- how this host is read ------------------------------------------------------------------------------------


def complete_mechanism(incomplete: str) -> list[str]:
    """Complete the hook before `=`; after it offer `none`, which every hook accepts."""
    hook, sign, _ = incomplete.partition("=")
    return words_starting_with([f"{hook}=none"] if sign else [f"{name}=" for name in hooks()], incomplete)


def mechanism_setting() -> Any:
    """Declare --mechanism."""
    return setting(
        EMPTY, "--mechanism", metavar="HOOK=NAME", kind=list[str], parse=parse_mechanisms, complete=complete_mechanism,
        help="Use this mechanism for a hook, not the best one: sockets=sock_diag, events=none",
    )  # fmt: skip


def priority_setting() -> Any:
    """Declare --normal-priority. Only commands with this option keep the priority that nettop started with."""
    return setting(False, "--normal-priority",
                   help=f"Do not run at nice {NICE}, which root's nettop does to get through on full CPUs")  # fmt: skip


def namespaces_setting() -> Any:
    """Declare --follow-namespaces; see nettop.commands.privilege."""
    return setting(False, "--follow-namespaces",
                   help="Also enter network namespaces created later; keeps the capabilities for it")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Watching(CommandSettings):
    """How a command reads this host all the time. `max_overhead` is the share of one CPU that nettop may use (None: no
    limit), `mechanisms` are those to use instead of the best ones, by hook."""

    interval_s: float = setting(1.0, "--interval", "-t", metavar="SECONDS", parse=parse_seconds,
                                help="Seconds between readings (1)")  # fmt: skip
    max_overhead: float | None = setting(None, "--max-overhead", metavar="PERCENT", parse=parse_overhead,
                                         help="Refresh less often while nettop uses more of one CPU than this, e.g. "
                                         "2%")  # fmt: skip
    normal_priority: bool = priority_setting()
    mechanisms: Mapping[str, str] = mechanism_setting()
    follow_namespaces: bool = namespaces_setting()
    options: OptionValues = field(default_factory=dict)
    """The options of lenses that were given, or have another default for this command."""

    def watched(self) -> tuple[Collection[LensView], float]:
        """Return all views, and the interval."""
        return self.VIEWS, self.interval_s


# --- a recording instead of this host ---------------------------------------------------------------------------


def at_setting(panel: str | None = None, *, default: str = "the beginning") -> Any:
    """Declare --at; nettop.commands.recordings.moment_of parses its value."""
    return setting(
        None, "--at", metavar="TIME", panel=panel,
        help="Begin at this moment of the recording, UTC: 14:32, '2026-11-28 14:32:05', '2 hours ago', -5m for five "
        f"minutes before its end, +30s for half a minute after its beginning ({default})",
    )  # fmt: skip


def from_setting(what: str) -> Any:
    """Declare --from; `what` is done with the recording."""
    return setting(None, "--from", metavar="FILE|DIR|-", kind=Path,
                   help=f"{what} a recording instead of this host; - is standard input")  # fmt: skip


def check_source(settings: Any, given: Mapping[str, Any]) -> None:
    """Raise UsageError for settings about this host with a recording, and for --at without one."""
    if settings.recording is not None:
        refuse_live(settings, given)
    elif settings.at is not None:
        raise UsageError(f"--at {settings.at} is a moment of a recording", "name the recording with --from")


def refuse_live(settings: Any, given: Mapping[str, Any]) -> None:
    """Raise UsageError if an option that says how to read this host, or one of a lens, is given with a recording."""
    flags = {option.name: option.flag for lens in lenses() for option in lens.options}
    live = {option.name for option in fields(Watching)} | {"top"}  # --top is for this host's metrics
    flags |= {
        name: declared.flags[0] for name, (declared, _) in declared_in(type(settings)).items() if name in live
    }
    for name in given:
        if name in flags:
            raise UsageError(f"{flags[name]} does not apply to a recording", "leave it out")


# --- redaction ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Redacting(CommandSettings):
    """Whether addresses, names and texts are replaced, and the file of the key; see nettop.commands.redaction."""

    redact: bool = setting(False, "--redact", help="Replace addresses, names and other text with consistent "
                           "pseudonyms, so that the file can be shared")  # fmt: skip
    redact_key: Path | None = setting(None, "--redact-key", metavar="FILE", kind=Path,
                                      help="Read the redaction key from FILE, so that several recordings use the "
                                      "same pseudonyms (default: a random key)")  # fmt: skip


# --- lines ----------------------------------------------------------------------------------------------------------


def why_setting(panel: str | None = None) -> Any:
    """Declare --why, which adds to JSON Lines the reason why a value is not available on this host."""
    return setting(
        False, "--why", panel=panel, help="In JSON Lines, add the reason why values are not available"
    )


def check_why(why: bool, form: str) -> None:
    """Raise UsageError if the format cannot hold reasons."""
    if why and form != LineFormat.JSONL:
        raise UsageError("--why requires JSON Lines", "add --format jsonl")


def line_format(about: str = "Output format", panel: str | None = None) -> Any:
    """Declare --format of lines."""
    return choice(LineFormat.TEXT, "--format", LineFormat, help=f"{about} (text)", panel=panel)


# --- tables ---------------------------------------------------------------------------------------------------------


def complete_columns(ctx: Any, incomplete: str) -> list[str]:
    """Complete a comma-separated list of columns."""
    return complete_list(dict.fromkeys(name for table in _tables(ctx) for name in table.names), incomplete)


def complete_sort(ctx: Any, incomplete: str) -> list[str]:
    """Complete a sort order: each column, ascending or, with `-`, descending."""
    names = [name for table in _tables(ctx) for name in table.sortable]
    return words_starting_with([*names, *("-" + name for name in names)], incomplete)


def _tables(ctx: Any) -> list[Table]:
    """Return the tables chosen on the command line so far, of a log or a view; none if the view does not exist."""
    try:
        if "views" in ctx.params:
            return [table for _, table in logged_views(ctx.params["views"] or ("connections",))]
        return [find_table(ctx.params.get("view") or "connections")[1]]
    except UsageError:
        return []


# --- options that lenses declare --------------------------------------------------------------------------------


def lens_options(kind: type[CommandSettings]) -> Mapping[str, tuple[Lens, Option[Any]]]:
    """Return the options that lenses declare for the views of a command, by name."""
    return {
        declared.name: (lens, declared)
        for lens, table in kind.VIEWS
        for declared in lens.options
        if declared.concerns(table)
    }


def parse_lens_options(
    given: Mapping[str, Any],
    interval_s: float,
    views: Collection[LensView],
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
            text = given.get(declared.name)
            if isinstance(text, list):
                text = ",".join(text)
            concerned = any(lens.id == owner.id and declared.concerns(table) for lens, table in views)
            if text is not None and not concerned:
                where = ", ".join(f"{owner.id}.{name}" for name in declared.tables) or f"the lens {owner.id}"
                raise UsageError(
                    f"{declared.flag} is an option of {where}", "leave it out, or choose another view"
                )
            default = declared.default_of(log=log, unattended=unattended)
            if text is not None:
                values[declared] = _parsed(declared, text, interval_s)
            elif concerned and default != declared.default:
                values[declared] = default
    return values


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
