# SPDX-License-Identifier: Apache-2.0
"""Mechanisms for a hook, best first: nettop uses the first that this kernel accepts.

Nothing here depends on the kernel's version. A mechanism is accepted once the kernel has loaded and attached all of its
programs and, for hooks that may exist yet never fire, once it has been seen to fire (see
`nettop.kernel.net.hook_check`).
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
from nettop.kernel.bpf.compiling import require_loading
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Hook

NO_MECHANISM = "none"
"""Option value that leaves a hook unused."""
NOT_CHOSEN = "another mechanism was chosen"
DISABLED = "disabled by --mechanism"
"""Reason shown for a mechanism that only the user's option rules out."""
_EXIT_CODE_ORDER = (ExitCode.PERMISSION, ExitCode.USAGE, ExitCode.SOURCE, ExitCode.UNSUPPORTED)
"""Order of exit codes if mechanisms are refused for several reasons: first what the user can fix."""
ChosenMechanisms = Mapping[str, str]
"""Mechanisms that the user chose instead of the best ones, by hook: the prefix of a name, or NO_MECHANISM."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism: its display name (`fexit/inet_csk_accept`), and the program functions that it needs."""

    name: str
    programs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """A hook and its mechanisms, best first."""

    hook: Hook
    mechanisms: tuple[Mechanism, ...]


class Refused(Unsupported):
    """Error for a mechanism that is not used."""


class DisabledByUser(Refused):
    """Error for a mechanism that the user's option rules out."""

    exit_code = ExitCode.USAGE


def attach_best(
    fallbacks: Fallbacks, attach: Callable[[Mechanism], None], chosen: ChosenMechanisms
) -> HookStatus:
    """Attach with the first mechanism that works. `attach` refuses one by raising Unsupported, PermissionMissing or
    OSError; other exceptions propagate to the caller. Raise SourceFailed while nettop exits, so that quitting does not
    wait for the other hooks of a lens.
    """
    require_loading()
    refused: list[tuple[str, NettopError]] = []
    used = None
    word = chosen.get(fallbacks.hook.name, "")
    for mechanism in fallbacks.mechanisms:
        try:
            if word == NO_MECHANISM:
                raise DisabledByUser(DISABLED, f"remove --mechanism {fallbacks.hook.name}={NO_MECHANISM}")
            if not mechanism.name.startswith(word):
                raise Refused(NOT_CHOSEN)
            attach(mechanism)
        except (Unsupported, PermissionMissing) as error:
            refused.append((mechanism.name, error))
        except OSError as error:
            kind = PermissionMissing if isinstance(error, PermissionError) else Unsupported
            failure = limit_reached("cannot attach it", error) or kind(error.strerror or str(error))
            refused.append((mechanism.name, failure))
        else:
            used = mechanism.name
            break
    errors = [error for _, error in refused]
    remedy = next((error.remedy for error in errors if error.remedy), "")
    code = min(
        (error.exit_code for error in errors), key=_EXIT_CODE_ORDER.index, default=ExitCode.UNSUPPORTED
    )
    why = tuple((name, error.what) for name, error in refused)
    return HookStatus(fallbacks.hook.name, used, why, fallbacks.hook.fields, remedy, code)


def check_chosen(all_fallbacks: Iterable[Fallbacks], chosen: ChosenMechanisms) -> None:
    """Raise UsageError for a mechanism that does not exist. Ignores hooks of other lenses."""
    for fallbacks in all_fallbacks:
        word = chosen.get(fallbacks.hook.name, NO_MECHANISM)
        names = [mechanism.name for mechanism in fallbacks.mechanisms]
        if word != NO_MECHANISM and not any(name.startswith(word) for name in names):
            raise unknown_word(f"mechanism for {fallbacks.hook.name}", word, [*names, NO_MECHANISM])
