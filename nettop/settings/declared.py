# SPDX-License-Identifier: Apache-2.0
"""Declare a setting once, as a field of a dataclass: its flag, how its text is parsed, its help and its completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from nettop.errors import unknown_word

Parse: TypeAlias = Callable[[str, Any], Any]
"""Function that parses the text of the option `flag`, or the list of texts of a repeatable one."""
Complete: TypeAlias = Callable[..., list[str]]
"""Function that completes the word `incomplete`; it may also take the context `ctx`, whose `params` are those given."""

_Settings = TypeVar("_Settings")
_KEY = "declared"


@dataclass(frozen=True, slots=True)
class Declared:
    """How a setting is given on the command line: by one of `flags`, or as an argument if there are none.

    `kind` is the type of what is given: text, a list of texts, a path, or whether a flag is there. The help text states
    the default. `panel` is the part of the help that lists it: with None, that of its class. `more` goes to typer.
    """

    flags: tuple[str, ...]
    help: str
    metavar: str
    kind: Any
    parse: Parse | None
    complete: Complete | None
    panel: str | None
    more: Mapping[str, Any]


def setting(
    default: Any,
    *flags: str,
    help: str,  # noqa: A002 - typer's name
    metavar: str = "",
    kind: Any = None,
    parse: Parse | None = None,
    complete: Complete | Iterable[str] | None = None,
    panel: str | None = None,
    **more: Any,
) -> Any:
    """Declare a field that is set by an option, or without flags by an argument; with MISSING it must be given.

    Its kind is text, but a flag's if the default is False, and repeatable texts' if it is a tuple and nothing parses
    them; `complete` are the words that it may have.
    """
    if isinstance(default, tuple) and parse is None:
        kind, parse = list[str], _as_given
    kind = kind or (bool if default is False else str)
    if complete is not None and not callable(complete):
        complete = starting_with(complete)
    metadata = {_KEY: Declared(flags, help, metavar, kind, parse, complete, panel, more)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def _as_given(_flag: str, texts: list[str]) -> tuple[str, ...]:
    return tuple(texts)


def choice(default: Any, flag: str, words: type[StrEnum], *, help: str, panel: str | None = None) -> Any:  # noqa: A002
    """Declare an option whose value is a member of an enumeration."""
    names = [str(word) for word in words]

    def parse(_flag: str, text: str) -> StrEnum:
        if text not in names:
            raise unknown_word(flag.lstrip("-"), text, names)
        return words(text)

    return setting(
        default, flag, metavar="|".join(names), parse=parse, complete=names, help=help, panel=panel
    )


def declared_in(kind: type) -> Mapping[str, tuple[Declared, bool]]:
    """Return what the fields of a class declare, and whether they must be given, by name."""
    return {
        declared.name: (declared.metadata[_KEY], declared.default is declared.default_factory is MISSING)
        for declared in fields(kind)
        if _KEY in declared.metadata
    }


def parsed(kind: type[_Settings], given: Mapping[str, Any]) -> _Settings:
    """Return the settings with what was given, by field. Raise UsageError for invalid values."""
    values = {}
    for name, (declared, _) in declared_in(kind).items():
        if name in given:
            flag = declared.flags[0] if declared.flags else declared.metavar
            values[name] = given[name] if declared.parse is None else declared.parse(flag, given[name])
    return kind(**values)


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


def starting_with(words: Iterable[str]) -> Complete:
    """Return a completer for an option with these values."""
    return lambda incomplete: words_starting_with(words, incomplete)


def listed(words: Iterable[str]) -> Complete:
    """Return a completer for a comma-separated list of these words."""
    return lambda incomplete: complete_list(words, incomplete)
