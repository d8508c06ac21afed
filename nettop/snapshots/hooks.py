# SPDX-License-Identifier: Apache-2.0
"""The mechanism behind each hook of a lens, or why there is none. Imports no numpy: doctor may report it as missing."""

from __future__ import annotations

from dataclasses import dataclass

from nettop.errors import ExitCode, NettopError, refusal

NOT_AVAILABLE = "n/a"
"""Placeholder, in every frontend, for a value not available to this kernel, host or user."""


@dataclass(frozen=True, slots=True)
class HookStatus:
    """The mechanism that provides a hook, and the better ones that were refused (name and reason, best first).

    If `mechanism` is None, none works, and the hook's `fields` are not available on this kernel or host. `remedy` is
    the remedy for the best refused mechanism, if known; `code` is the exit code of a command that has
    nothing to show without the hook.
    """

    hook: str
    mechanism: str | None
    refused: tuple[tuple[str, str], ...] = ()
    fields: tuple[str, ...] = ()
    remedy: str = ""
    code: ExitCode = ExitCode.UNSUPPORTED

    @property
    def why(self) -> str:
        """Reason why there is no mechanism, or no better one; empty if the best one is used."""
        reasons = {why for _, why in self.refused}
        if len(reasons) == 1:
            return reasons.pop()
        return "; ".join(f"{name}: {why}" for name, why in self.refused)

    @property
    def advice(self) -> str:
        """Reason why there is no mechanism, and the remedy, on one line."""
        return "; ".join(filter(None, (self.why, self.remedy)))

    def error(self, what: str = "") -> NettopError:
        """Return the error for `what`, which needs this hook, or for anything that needs it.

        A missing permission reads the same everywhere, so it does not name `what`.
        """
        named = f"{what} is not available: " if what and self.code is not ExitCode.PERMISSION else ""
        return refusal(self.code, named + self.why, self.remedy or "run nettop doctor to see what was tried")

    def __str__(self) -> str:
        return f"{NOT_AVAILABLE}: {self.why}" if self.mechanism is None else self.mechanism
