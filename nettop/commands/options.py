# SPDX-License-Identifier: Apache-2.0
"""What commands share: how options are declared and completed, and how their words become values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from nettop.errors import UsageError, unknown_word
from nettop.settings import FREQUENCY_HZ, LineFormat, ViewSettings, checked_frequency, checked_overhead
from nettop.snapshots import find_table, lenses, views

_SIZE = re.compile(r"([0-9]{1,15})([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SIZES = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def option(*names: str, panel: str | None = None, **kwargs: Any) -> Any:
    """The declaration of an option; its default is told by its help."""
    return typer.Option(*names, rich_help_panel=panel, show_default=False, **kwargs)


def mechanism_option(panel: str | None = None) -> Any:
    """--use; its values are what `parse_mechanisms` takes."""
    return option("--mechanism", metavar="POINT=WAY", panel=panel, autocompletion=complete_mechanism,
                  help="Use this way in place of the best one, e.g. sockets=sock_diag, events=none")  # fmt: skip


def max_overhead_option(panel: str | None = None) -> Any:
    """--max-overhead; its value is what `parse_overhead` takes."""
    return option("--max-overhead", metavar="PERCENT", panel=panel,
                  help="Sample less, rather than take more of one CPU than that, e.g. 2%")  # fmt: skip


def frequency_option(panel: str | None = None) -> Any:
    """--frequency; its value is what `parse_frequency` takes."""
    return option("--frequency", metavar="HZ", panel=panel,
                  help=f"How often each CPU is sampled a second, for the CPU lens ({FREQUENCY_HZ})")  # fmt: skip


def follow_namespaces_option(panel: str | None = None) -> Any:
    """--follow-namespaces; see nettop.commands.privilege."""
    return option("--follow-namespaces", panel=panel,
                  help="Enter network namespaces that appear later too: keeps rights for it (README)")  # fmt: skip


def why_option(panel: str | None = None) -> Any:
    """--why; see `checked_why`."""
    return option("--why", panel=panel, help="JSON says why something is null that cannot be had here")


# --- completion -----------------------------------------------------------------------------------------------


def starting(words: Iterable[str], incomplete: str) -> list[str]:
    """The words that begin like `incomplete`."""
    return [word for word in words if word.startswith(incomplete)]


def complete_view(incomplete: str) -> list[str]:
    """The views that begin like `incomplete`."""
    return starting(views(), incomplete)


def complete_mechanism(incomplete: str) -> list[str]:
    """The points that begin like `incomplete`; behind the sign the one way that every point has."""
    point, sign, _ = incomplete.partition("=")
    return starting([f"{point}=none"] if sign else [f"{name}=" for name in _points()], incomplete)


def complete_line_format(incomplete: str) -> list[str]:
    """The formats of lines that begin like `incomplete`."""
    return starting(LineFormat, incomplete)


def complete_columns(ctx: typer.Context, incomplete: str) -> list[str]:
    """The lists of columns that `incomplete` may become: its last name is completed, the others stay."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in starting(_names(ctx), last) if name not in before.split(",")]


def complete_sort(ctx: typer.Context, incomplete: str) -> list[str]:
    """The orders that begin like `incomplete`: each column, ascending and descending."""
    names = _names(ctx)
    return starting([*names, *("-" + name for name in names)], incomplete)


def _names(ctx: typer.Context) -> tuple[str, ...]:
    """The columns of the view that the line names so far; none when there is no such view."""
    try:
        return find_table(ctx.params.get("view") or ViewSettings().view)[1].names
    except UsageError:
        return ()


# --- values ---------------------------------------------------------------------------------------------------


def quoted(value: str) -> str:
    """The value as the filter language takes it, whatever it holds (nettop.query.filter.quote loads numpy)."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def whole(name: str, value: str) -> int:
    """The whole number above 0 that an option's value is. Raises UsageError for anything else."""
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise UsageError(f"{name} {value!r} is not a whole number above 0", f"write it like {name} 10")


def seconds(name: str, value: str) -> float:
    """The seconds that an option's value is. Raises UsageError for what is no number."""
    try:
        return float(value)
    except ValueError:
        raise UsageError(
            f"{name} {value!r} is not a number of seconds", f"write it like {name} 0.5"
        ) from None


def share(name: str, value: str) -> float:
    """The share that an option's percentage is: `2%` and `2` are 0.02. Raises UsageError for what is no number."""
    try:
        return float(value.removesuffix("%")) / 100
    except ValueError:
        raise UsageError(f"{name} {value!r} is not a percentage", f"write it like {name} 2%") from None


def parse_overhead(value: str | None) -> float | None:
    """The share of one CPU that --max-overhead gives. Raises UsageError for what is not possible."""
    return None if value is None else checked_overhead(share("--max-overhead", value))


def parse_frequency(value: str | None, span_s: float, spanned_by: str = "--interval") -> int:
    """The samples a second that --frequency gives, for times over such a span, which that option gives.

    Raises UsageError for what is not possible.
    """
    frequency_hz = FREQUENCY_HZ if value is None else whole("--frequency", value)
    return checked_frequency(frequency_hz, span_s, spanned_by)


def size_bytes(name: str, value: str) -> int:
    """The bytes that an option's value is: `65536`, `64K`, `64M` and `1GiB`, in steps of 1024.

    Raises UsageError for anything else.
    """
    found = _SIZE.fullmatch(value)
    if found is None:
        raise UsageError(f"{name} {value!r} is not a size", f"write it like {name} 64M")
    return int(found[1]) << _SIZES[found[2].lower()]


def parse_mechanisms(words: Sequence[str] | None) -> dict[str, str]:
    """The ways to use, by point. Which there are is the source's to say.

    Raises UsageError for what is not POINT=WAY, a point that no lens has, and one that is named twice.
    """
    mechanisms: dict[str, str] = {}
    for word in words or ():
        point, _, way = word.partition("=")
        if not (point and way):
            raise UsageError(f"--mechanism {word!r} is no POINT=WAY", "write it like --mechanism events=none")
        checked_word("hook", point, _points())
        if mechanisms.setdefault(point, way) != way:
            raise UsageError(
                f"--mechanism {point}={mechanisms[point]} and {word} contradict each other",
                "give one of them",
            )
    return mechanisms


def _points() -> list[str]:
    return [point.name for lens in lenses() for point in lens.hooks]


def checked_why(asked: bool, form: str) -> bool:
    """Whether --why is asked for. Raises UsageError where the format has no room for it."""
    if asked and form != LineFormat.JSONL:
        raise UsageError("--why is of JSON Lines", "add --format jsonl")
    return asked


def checked_word(kind: str, word: str, known: Sequence[str]) -> str:
    """The word, if it is among the known. Raises UsageError with the nearest ones otherwise."""
    if word not in known:
        raise unknown_word(kind, word, known)
    return word
