# SPDX-License-Identifier: Apache-2.0
"""Parse the texts of options. Each function takes the flag, for its errors, and the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from nettop.errors import UsageError, unknown_word
from nettop.settings import MAX_INTERVAL_S, MIN_INTERVAL_S, checked_seconds
from nettop.snapshots import lenses

_SIZE = re.compile(r"([0-9]{1,15})([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(s|min|m|h|d|w|y)")
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}


def parse_off(_flag: str, is_given: bool) -> bool:
    """Return the value of a flag that turns something off."""
    return not is_given


def parse_names(_flag: str, text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def parse_count(flag: str, text: str, most: int | None = None) -> int:
    """Parse an integer from 1 to `most`."""
    if text.isdecimal() and int(text) > 0:
        if most is not None and int(text) > most:
            raise UsageError(f"{flag} {text} is too high", f"use {flag} {most} or less")
        return int(text)
    raise UsageError(f"{flag} {text!r} is not a positive whole number", f"write it like {flag} 10")


def parse_seconds(flag: str, text: str, least: float = MIN_INTERVAL_S, most: float = MAX_INTERVAL_S) -> float:
    """Parse seconds within these bounds."""
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not a number of seconds", f"write it like {flag} 0.5") from None
    return checked_seconds(flag, number, least, most)


def parse_duration(flag: str, text: str, examples: str = "30s, 10m, 6h or 2d") -> float:
    """Parse a duration (`90s`, `10m`, `6h`, `2d`, `4w`, `1y`) as seconds."""
    match = _DURATION.fullmatch(text)
    if match is None or not float(match[1]):
        raise UsageError(f"{flag} {text!r} is not a duration", f"write it like {flag} {examples}")
    return float(match[1]) * _SECONDS[match[2]]


def parse_overhead(flag: str, text: str) -> float:
    """Parse a share of one CPU: `2%` and `2` are 0.02."""
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not a percentage", f"write it like {flag} 2%") from None
    if not 0.1 <= percent <= 100:
        raise UsageError(f"{flag} {percent:g}% is out of range", "use 0.1% to 100%")
    return percent / 100


def parse_size(flag: str, text: str, least: str = "0") -> int:
    """Parse a size (`65536`, `64K`, `1GiB`), at least as large as another one, as bytes in powers of 1024."""
    match, bound = _SIZE.fullmatch(text), _SIZE.fullmatch(least)
    if match is None:
        raise UsageError(f"{flag} {text!r} is not a size", f"write it like {flag} 64M")
    if bound is not None and _bytes_of(match) < _bytes_of(bound):
        raise UsageError(f"{flag} {text} is too small", f"use {least} or more")
    return _bytes_of(match)


def _bytes_of(size: re.Match[str]) -> int:
    return int(size[1]) << _SHIFTS[size[2].lower()]


def parse_mechanisms(flag: str, words: Sequence[str]) -> dict[str, str]:
    """Parse the chosen mechanisms, HOOK=NAME, by hook. The source checks that they exist."""
    mechanisms: dict[str, str] = {}
    for word in words:
        hook, _, name = word.partition("=")
        if not (hook and name):
            raise UsageError(f"{flag} {word!r} is not HOOK=NAME", f"write it like {flag} events=none")
        checked_word("hook", hook, hooks())
        if mechanisms.setdefault(hook, name) != name:
            raise UsageError(
                f"{flag} {hook}={mechanisms[hook]} conflicts with {word}", "use only one of them"
            )
    return mechanisms


def hooks() -> list[str]:
    """Return the names of all hooks."""
    return [hook.name for lens in lenses() for hook in lens.hooks]


def one_of(kind: str, words: Iterable[str]) -> Callable[[str, str], str]:
    """Return the parser of an option with these words."""
    return lambda _flag, text: checked_word(kind, text, list(words))


def some_of(kind: str, words: Iterable[str]) -> Callable[[str, Sequence[str]], tuple[str, ...]]:
    """Return the parser of a repeatable option with these words."""
    return lambda _flag, texts: tuple(checked_word(kind, text, list(words)) for text in texts)


def checked_word(kind: str, word: str, known: Sequence[str]) -> str:
    """Return the word if it is known. Raise UsageError with the nearest known words otherwise."""
    if word not in known:
        raise unknown_word(kind, word, known)
    return word
