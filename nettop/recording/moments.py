# SPDX-License-Identifier: Apache-2.0
"""Moments of a recording as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from nettop.errors import UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_UNIT = r"s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?"
_DISTANCE = re.compile(rf"([+-]?)\s*(\d+(?:\.\d+)?)\s*({_UNIT})\.?(\s+ago)?", re.IGNORECASE)
_TIME = re.compile(r"(?:(\d{4}-\d\d-\d\d)[ T])?(\d{1,2}):(\d\d)(?::([0-5]\d(?:\.\d+)?))?Z?")
EXAMPLES = "14:32, 14:32:05, '2026-11-28 14:32', -5m, +30s, '2 hours ago', begin or end"
_NS = 1_000_000_000
_LONGEST_S = 1e10
"""Three centuries; more does not fit into 64 bits of nanoseconds."""


def parse_moment(text: str, *, begin_ns: int, end_ns: int, here_ns: int, now_ns: int) -> int:
    """Return a moment (ns since 1970) of a recording from `begin_ns` to `end_ns`.

    Times of day are UTC, as on the screens, and mean the last such time in the recording. Distances count from
    `here_ns` and reach no further than both ends; with `ago`, they count from `now_ns`. Raise UsageError if it is
    unreadable, or not in the recording.
    """
    wanted = _moment(text.strip(), begin_ns, end_ns, here_ns, now_ns)
    if not begin_ns - _NS <= wanted <= end_ns + _NS:
        side = "before its beginning" if wanted < begin_ns else "after its end"
        if (
            (found := _TIME.fullmatch(text.strip()))
            and not found[1]
            and _at(wanted).date() < _at(end_ns).date()
        ):
            side = "not in it"  # today's is after its end, yesterday's before its beginning
        raise UsageError(
            f"{text!r} is {side}", f"it is from {time_text(begin_ns)} to {time_text(end_ns)} UTC"
        )
    return max(begin_ns, min(wanted, end_ns))


def _moment(text: str, begin_ns: int, end_ns: int, here_ns: int, now_ns: int) -> int:
    if text in ("begin", "end"):
        return begin_ns if text == "begin" else end_ns
    if found := _DISTANCE.fullmatch(text):
        sign, amount, unit, ago = found.groups()
        distance = _length_ns(text, amount, unit)
        if ago and not sign:
            return now_ns - distance
        if sign and not ago:
            return max(begin_ns, min(here_ns + (distance if sign == "+" else -distance), end_ns))
    elif found := _TIME.fullmatch(text):
        day, hour, minute, second = found.groups()
        try:
            last = _at(end_ns)
            date = last.date() if day is None else datetime.fromisoformat(day).date()
            wanted = datetime(date.year, date.month, date.day, int(hour), int(minute), tzinfo=UTC)
            wanted += timedelta(seconds=float(second or 0))
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{text!r} is no time", f"write it like {EXAMPLES}") from error
        if day is None and wanted > last:
            wanted -= timedelta(days=1)
        return round(wanted.timestamp() * 1e6) * 1000
    raise UsageError(f"{text!r} is no moment", f"write it like {EXAMPLES}")


def parse_length(text: str) -> int:
    """Return a length of time in ns: 90, 60s, 15m, 2h. Raise UsageError if it is none, or 0."""
    stripped = text.strip()
    found = _DISTANCE.fullmatch(f"{stripped}s" if stripped[-1:].isdecimal() else stripped)
    length_ns = 0 if found is None or found[1] or found[4] else _length_ns(text, found[2], found[3])
    if not length_ns:
        raise UsageError(f"{text!r} is no length of time", "write it like 60s, 15m or 2h")
    return length_ns


def _length_ns(text: str, amount: str, unit: str) -> int:
    seconds = float(amount) * _SECONDS[unit[0].lower()]
    if seconds > _LONGEST_S:
        raise UsageError(f"{text:.40} is too long", "no recording goes back that far")
    return round(seconds * _NS)


def _at(wall_ns: int) -> datetime:
    return datetime.fromtimestamp(wall_ns / 1e9, UTC)


def exact_text(wall_ns: int) -> str:
    """Return a moment as `time_text`, with the next millisecond: what is shown there was read then, not before, and not
    a moment later."""
    milliseconds = -(-wall_ns // 1_000_000)
    return f"{time_text(milliseconds * 1_000_000)}.{milliseconds % 1000:03}"


def time_text(wall_ns: int, *, with_day: bool = True) -> str:
    """Return `2026-11-28 14:32:05`, or only the time of day, in UTC."""
    return f"{_at(wall_ns):%Y-%m-%d %H:%M:%S}" if with_day else f"{_at(wall_ns):%H:%M:%S}"
