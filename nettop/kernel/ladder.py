# SPDX-License-Identifier: Apache-2.0
"""The hook ladder: each point that a probe wants, with ways to get it, best first. This kernel decides which is used.

Nothing here goes by a kernel's version. A way is taken when the kernel has loaded and attached all of its programs
and, where a hook can be there and yet never be passed, when it was seen to fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from nettop.errors import PermissionMissing, Unsupported, unknown_word
from nettop.snapshots.schema import Point
from nettop.snapshots.snapshot import Hook

NO_WAY = "none"
"""The word that asks for a point to be left alone."""
NOT_ASKED_FOR = "another way was asked for"
LEFT_OUT = "left out by --use"
"""Why a way is not taken that nothing but the user stands against."""
Ways = Mapping[str, str]
"""Ways that were asked for in place of the best ones: by point, the beginning of a way's name, or NO_WAY."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way as it is shown (`fexit/inet_csk_accept`), and the functions of the program's text that it takes."""

    name: str
    programs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ladder:
    """A point, and the ways to it, best first."""

    point: Point
    ways: tuple[Way, ...]


class Refused(Unsupported):
    """Why a way is not taken here."""


def climb(ladder: Ladder, take: Callable[[Way], None], asked: Ways) -> Hook:
    """Take the first way that works. For one that does not `take` raises Unsupported, PermissionMissing or OSError;
    whatever else it raises is no refusal, and goes on to the caller.
    """
    refused: list[tuple[str, str]] = []
    for way in ladder.ways:
        try:
            _require_asked(ladder, way, asked)
            take(way)
        except (Unsupported, PermissionMissing) as error:
            refused.append((way.name, error.what))
        except OSError as error:
            refused.append((way.name, error.strerror or str(error)))
        else:
            return Hook(ladder.point.name, way.name, tuple(refused), ladder.point.fields)
    return Hook(ladder.point.name, None, tuple(refused), ladder.point.fields)


def check_asked(ladders: Iterable[Ladder], asked: Ways) -> None:
    """Raise UsageError where a way is asked for that no ladder has; a point of another lens is none of these."""
    for ladder in ladders:
        word = asked.get(ladder.point.name, NO_WAY)
        names = [way.name for way in ladder.ways]
        if word != NO_WAY and not any(name.startswith(word) for name in names):
            raise unknown_word(f"way to {ladder.point.name}", word, [*names, NO_WAY])


def _require_asked(ladder: Ladder, way: Way, asked: Ways) -> None:
    word = asked.get(ladder.point.name)
    if word is not None and (word == NO_WAY or not way.name.startswith(word)):
        raise Refused(LEFT_OUT if word == NO_WAY else NOT_ASKED_FOR)
