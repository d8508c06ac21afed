# SPDX-License-Identifier: Apache-2.0
"""The hook ladder: each point that a probe wants, with ways to get it, best first. This kernel decides which is used.

Nothing here goes by a kernel's version. A way is taken when the kernel has loaded and attached all of its programs
and, where a hook can be there and yet never be passed, when it was seen to fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from nettop.errors import PermissionMissing, Unsupported, unknown_word
from nettop.snapshots.schema import Hook
from nettop.snapshots.snapshot import HookStatus

NO_MECHANISM = "none"
"""The word that asks for a point to be left alone."""
NOT_CHOSEN = "another way was asked for"
LEFT_OUT = "left out by --use"
"""Why a way is not taken that nothing but the user stands against."""
ChosenMechanisms = Mapping[str, str]
"""Mechanisms chosen by the user in place of the best ones: by hook, the beginning of a name, or NO_MECHANISM."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A way as it is shown (`fexit/inet_csk_accept`), and the functions of the program's text that it takes."""

    name: str
    programs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """A point, and the ways to it, best first."""

    hook: Hook
    mechanisms: tuple[Mechanism, ...]


class Refused(Unsupported):
    """Why a way is not taken here."""


def attach_best(
    fallbacks: Fallbacks, take: Callable[[Mechanism], None], asked: ChosenMechanisms
) -> HookStatus:
    """Take the first way that works. For one that does not `take` raises Unsupported, PermissionMissing or OSError;
    whatever else it raises is no refusal, and goes on to the caller.
    """
    refused: list[tuple[str, str]] = []
    for way in fallbacks.mechanisms:
        try:
            _require_asked(fallbacks, way, asked)
            take(way)
        except (Unsupported, PermissionMissing) as error:
            refused.append((way.name, error.what))
        except OSError as error:
            refused.append((way.name, error.strerror or str(error)))
        else:
            return HookStatus(fallbacks.hook.name, way.name, tuple(refused), fallbacks.hook.fields)
    return HookStatus(fallbacks.hook.name, None, tuple(refused), fallbacks.hook.fields)


def check_chosen(all_fallbacks: Iterable[Fallbacks], asked: ChosenMechanisms) -> None:
    """Raise UsageError where a way is asked for that no ladder has; a point of another lens is none of these."""
    for fallbacks in all_fallbacks:
        word = asked.get(fallbacks.hook.name, NO_MECHANISM)
        names = [way.name for way in fallbacks.mechanisms]
        if word != NO_MECHANISM and not any(name.startswith(word) for name in names):
            raise unknown_word(f"way to {fallbacks.hook.name}", word, [*names, NO_MECHANISM])


def _require_asked(fallbacks: Fallbacks, way: Mechanism, asked: ChosenMechanisms) -> None:
    word = asked.get(fallbacks.hook.name)
    if word is not None and (word == NO_MECHANISM or not way.name.startswith(word)):
        raise Refused(LEFT_OUT if word == NO_MECHANISM else NOT_CHOSEN)
