# SPDX-License-Identifier: Apache-2.0
"""Mechanisms for a hook, best first: the first that this kernel accepts is used.

Nothing here goes by a kernel's version. A mechanism is accepted when the kernel has loaded and attached all of its
programs and, where a hook may exist and yet never fire, when it was seen to fire (see `nettop.kernel.hook_check`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from nettop.errors import (
    ExitCode,
    NettopError,
    PermissionMissing,
    Unsupported,
    limit_reached,
    unknown_word,
)
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Hook

NO_MECHANISM = "none"
"""The user's word for leaving a hook unused."""
NOT_CHOSEN = "another mechanism was chosen"
DISABLED = "disabled by --mechanism"
"""Why a mechanism is not used that only the user rules out."""
_DECIDING = (ExitCode.PERMISSION, ExitCode.USAGE, ExitCode.SOURCE, ExitCode.UNSUPPORTED)
"""The exit code where mechanisms are refused for several reasons: first what the user can do something about."""
ChosenMechanisms = Mapping[str, str]
"""Mechanisms chosen by the user in place of the best ones: by hook, the beginning of a name, or NO_MECHANISM."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism by the name that is shown (`fexit/inet_csk_accept`), and the functions of the program it needs."""

    name: str
    programs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """A hook, and the mechanisms for it, best first."""

    hook: Hook
    mechanisms: tuple[Mechanism, ...]


class Refused(Unsupported):
    """Why a mechanism is not used."""


class SwitchedOff(Refused):
    """An option of the user's rules it out."""

    exit_code = ExitCode.USAGE


def attach_best(
    fallbacks: Fallbacks, attach: Callable[[Mechanism], None], chosen: ChosenMechanisms
) -> HookStatus:
    """Attach by the first mechanism that works. `attach` refuses one by Unsupported, PermissionMissing or OSError;
    whatever else it raises is no refusal, and goes on to the caller.
    """
    refused: list[tuple[str, str]] = []
    errors: list[NettopError] = []
    used = None
    word = chosen.get(fallbacks.hook.name, "")
    for mechanism in fallbacks.mechanisms:
        try:
            if word == NO_MECHANISM:
                raise SwitchedOff(DISABLED, f"leave out --mechanism {fallbacks.hook.name}={NO_MECHANISM}")
            if not mechanism.name.startswith(word):
                raise Refused(NOT_CHOSEN)
            attach(mechanism)
        except (Unsupported, PermissionMissing) as error:
            refused.append((mechanism.name, error.what))
            errors.append(error)
        except OSError as error:
            why = error.strerror or str(error)
            kind = PermissionMissing if isinstance(error, PermissionError) else Unsupported
            failure = limit_reached("it cannot be attached", error) or kind(why)
            refused.append((mechanism.name, failure.what))
            errors.append(failure)
        else:
            used = mechanism.name
            break
    remedy = next((error.remedy for error in errors if error.remedy), "")
    code = min((error.exit_code for error in errors), key=_DECIDING.index, default=ExitCode.UNSUPPORTED)
    return HookStatus(fallbacks.hook.name, used, tuple(refused), fallbacks.hook.fields, remedy, code)


def check_chosen(all_fallbacks: Iterable[Fallbacks], chosen: ChosenMechanisms) -> None:
    """Raise UsageError for a mechanism that does not exist. Hooks of other lenses are ignored."""
    for fallbacks in all_fallbacks:
        word = chosen.get(fallbacks.hook.name, NO_MECHANISM)
        names = [mechanism.name for mechanism in fallbacks.mechanisms]
        if word != NO_MECHANISM and not any(name.startswith(word) for name in names):
            raise unknown_word(f"mechanism for {fallbacks.hook.name}", word, [*names, NO_MECHANISM])
