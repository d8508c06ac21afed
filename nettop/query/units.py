# SPDX-License-Identifier: Apache-2.0
"""Parsing and formatting of quantities: `10ms`, `2GiB` and `1Mb/s` in, `21.4 ms` and `38.2 Mb/s` out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from nettop.errors import UsageError
from nettop.snapshots.schema import RATE, Kind, Table

UNKNOWN = "–"
"""Placeholder for an unknown value on screens."""
TOO_NARROW = "…"
"""Placeholder for a number that its column has no room for."""

RATIO = "ratio"
"""The unit of a share: 0.031 is shown as 3.1%."""


def unit_of(table: Table, name: str) -> str:
    """Return the base unit of a column, also of rates and ratios; "" for a plain number or a text."""
    field = table.by_name.get(name)
    if field is None:
        return unit_of(table, name.removesuffix(RATE)) + "/s"
    if field.kind is Kind.RATIO:
        return field.unit or RATIO
    return table.by_name[field.parts[0]].unit if field.kind in (Kind.SUM, Kind.GROUP) else field.unit


# --- reading ------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:e(\+?\d{1,2}))?", re.ASCII)
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
_BINARY = {f"{p}i": 1024.0**power for power, p in enumerate("kmgtpe", 1)}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
TIMES = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0}
"""Time units of fields, and how many make a second."""

_EXAMPLES = {
    "bytes": "500, 10k, 2GiB",
    "bytes/s": "1Mb/s (bits), 10kB/s (bytes), 500",
    RATIO: "1%, 0.01",
    "packets": "500, 3k",
    "packets/s": "500, 3k",
    "ns/s": "1% (of one CPU), 10000000",
    "us/s": "90%, 900000",
}


def parse_quantity(text: str, unit: str) -> float:
    """Parse an amount into the base unit `unit`; a number without a unit is in base units.

    Raise UsageError if it is not an amount of that unit.
    """
    match = _NUMBER.match(text.strip())
    whole, fraction, power = match.groups() if match else (None, None, None)
    if match is None or not (whole or fraction):
        raise _not_an_amount(text, unit)
    factor = factor_of(text.strip()[match.end() :].strip(), unit)
    if factor is None:
        raise _not_an_amount(text, unit)
    return float((whole or "").replace(",", "") + (fraction or "")) * 10.0 ** int(power or 0) * factor


def factor_of(suffix: str, unit: str) -> float | None:
    """Return how many base units one `suffix` is (1000 for "ms" in us); None if it does not fit the unit.

    `b` is a bit and `B` a byte; all other letters are case-insensitive.
    """
    known = _suffixes(unit)
    return known.get(suffix, known.get(suffix.replace("B", "\0").lower().replace("\0", "B")))


def example_amounts(unit: str) -> str:
    """Return example amounts of a unit: `200us, 10ms, 3s`."""
    return _EXAMPLES.get(unit, "200us, 10ms, 3s" if unit in TIMES else "500, 3k")


def _not_an_amount(text: str, unit: str) -> UsageError:
    remedy = f"write it like {example_amounts(unit)}"
    return UsageError(f"{text!r} is not an amount{f' in {unit}' if unit else ''}", remedy)


@cache
def _suffixes(unit: str) -> Mapping[str, float]:
    """Return every suffix that may follow a number of this unit, and its factor."""
    if unit in TIMES:
        return {"": 1.0} | {word: seconds * TIMES[unit] for word, seconds in _SECONDS.items()}
    if unit == RATIO:
        return {"": 1.0, "%": 0.01}
    if unit.removesuffix("/s") in TIMES:
        return {"": 1.0, "%": TIMES[unit.removesuffix("/s")] / 100}
    known = {prefix + noun: f for noun in _nouns(unit) for prefix, f in _PREFIXES.items()}
    if unit.startswith("bytes"):
        known |= {prefix + noun: f for noun in _nouns(unit) for prefix, f in _BINARY.items()}
    if unit == "bytes/s":
        bits = {prefix: f / 8 for prefix, f in (_PREFIXES | _BINARY).items()}
        known |= {prefix + noun: f for noun in ("b/s", "bit/s", "bps") for prefix, f in bits.items()}
    return MappingProxyType(known)


def _nouns(unit: str) -> tuple[str, ...]:
    thing, _, per = unit.partition("/")
    names = ("", "B") if thing == "bytes" else ("", thing)
    if not per:
        return names
    rates = tuple(f"{name}/{per}" for name in names)
    return (*names, *rates, f"p/{per}") if thing == "packets" else (*names, *rates)


# --- showing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    """A display scale: from `least` (in base units) on, a value is shown as value ÷ `size`, followed by `suffix`.

    `decimals` applies below 10; below 100 there is at most one decimal, from 100 on none.
    """

    least: float
    size: float
    suffix: str
    decimals: int = 1


def _decimal(noun: str, *, bits: bool = False) -> tuple[Scale, ...]:
    base = 1 / 8 if bits else 1.0
    steps = [("E", 1e18, 2), ("P", 1e15, 2), ("T", 1e12, 2), ("G", 1e9, 2), ("M", 1e6, 1), ("k", 1e3, 1)]
    # A value that would round up to "1000 k" is shown as "1.0 M".
    scales = [
        Scale(0.9995 * size * base, size * base, f" {prefix}{noun}", digits) for prefix, size, digits in steps
    ]
    return (*scales, Scale(0.0, base, f" {noun}" if noun else "", 0))


def _durations(per_second: float) -> tuple[Scale, ...]:
    second, ms, us = per_second, per_second / 1e3, per_second / 1e6
    seconds = Scale(0.9995 * second, second, " s", 2)
    if us <= 1:
        # Values measured in µs are mostly shown in ms, so that a column of round-trip times can be read at a glance.
        return seconds, Scale(0.0995 * ms, ms, " ms"), Scale(0.0, us, " µs", 0)
    nanoseconds = Scale(0.0, 1.0, " ns", 0)
    return seconds, Scale(0.9995 * ms, ms, " ms"), Scale(0.9995 * us, us, " µs"), nanoseconds


_BITS, _BYTES = _decimal("b/s", bits=True), _decimal("B/s")
_SCALES: dict[str, tuple[Scale, ...]] = {
    "bytes": _decimal("B"),
    "bytes/s": _BITS,
    "packets": _decimal(""),
    "packets/s": _decimal("p/s"),
    # Time per time: a thread's share of one CPU, or the share of time in which a connection had data to send.
    "ns/s": (Scale(0.0, 1e7, "%", 2),),
    "us/s": (Scale(0.0, 1e4, "%", 2),),
} | {unit: _durations(count) for unit, count in TIMES.items()}


def show_rates(*, in_bytes: bool) -> None:
    """Show byte rates in bytes or in bits from now on, in the whole process."""
    _SCALES["bytes/s"] = _BYTES if in_bytes else _BITS


def human(value: float | None, unit: str, width: int | None = None) -> str:
    """Format a value for a screen: about three digits and a unit. The caller aligns it.

    Byte rates are shown in bits, unless changed by `show_rates`; plain counts keep all digits; unknown (None) is `–`.
    An amount longer than `width` loses its space, then its decimals, then all but the first letter of its unit.
    """
    if value is None:
        return UNKNOWN
    if unit == RATIO:
        text = _percent(value)
    elif unit in _SCALES:
        scale = _scale(value, unit)
        text = _digits(value, scale) + scale.suffix
    else:
        text = f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    return text if width is None or len(text) <= width else _squeezed(value, unit, text, width)


def plural(noun: str, count: int) -> str:
    """Return the noun in singular or plural: 1 `sample`, 2 `samples`."""
    return noun if count == 1 else f"{noun}s"


def human_spread(value: float | None, deviation: float | None, unit: str) -> str:
    """Format a value and its deviation on the value's scale, which must be in `_SCALES`: `21.4 ±3.1 ms`."""
    if value is None or deviation is None:
        return human(value, unit)
    scale = _scale(value, unit)
    shown = _digits(value, scale)
    spread = _digits(deviation, scale) if "." in shown else f"{deviation / scale.size:.0f}"
    return f"{shown} ±{spread}{scale.suffix}"


def _scale(value: float, unit: str) -> Scale:
    scales = _SCALES[unit]
    for scale in scales:
        if value >= scale.least:
            return scale
    return scales[-1]


def _digits(value: float, scale: Scale) -> str:
    number = value / scale.size
    if number >= 99.95 or not number or (not scale.decimals and number >= 0.95):
        return f"{number:.0f}"
    if not scale.decimals:
        # Base units have no decimals, but a small nonzero value must not look like zero.
        return f"{number:.1f}" if number >= 0.05 else "<0.1"
    if number >= 9.995 or scale.decimals == 1:
        return f"{number:.1f}"
    return f"{number:.2f}"


def _percent(value: float) -> str:
    share = value * 100
    if share >= 99.95:
        return f"{share:.0f}%"
    if share >= 0.095 or not share:
        return f"{share:.1f}%"
    return f"{share:.2f}%" if share >= 0.005 else "<0.01%"


def _squeezed(value: float, unit: str, text: str, width: int) -> str:
    """Return the longest short form that fits."""
    if unit == RATIO:
        number, noun = value * 100, "%"
    else:
        # Plain counts are shortened like packets: 1.2 M.
        scale = _scale(value, unit if unit in _SCALES else "packets")
        text = _digits(value, scale) + scale.suffix
        number, noun = value / scale.size, scale.suffix.strip()
    whole = "<1" if 0 < number <= 0.5 else f"{number:.0f}"
    shorter = (text, text.replace(" ", ""), whole + noun, whole + noun[:1])
    return next((candidate for candidate in shorter if len(candidate) <= width), TOO_NARROW[:width])
