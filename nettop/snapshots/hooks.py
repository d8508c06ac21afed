# SPDX-License-Identifier: Apache-2.0
"""By which mechanism each hook of a lens works, or why by none; without numpy, which doctor may report as missing."""

from __future__ import annotations

from dataclasses import dataclass

from nettop.errors import ExitCode, NettopError, refusal

NOT_AVAILABLE = "n/a"
"""How every frontend writes what this kernel, host or user does not have."""


@dataclass(frozen=True, slots=True)
class HookStatus:
    """The mechanism that provides a hook of a lens, and those better ones that were refused (name and why, best first).

    Where `mechanism` is None none works, and `fields`, which depend on the hook, are not available on this kernel or
    host. `remedy` is what would help the best of the refused ones, as far as its refusal says; `code` is how a command
    exits that has nothing to show without the hook.
    """

    hook: str
    mechanism: str | None
    refused: tuple[tuple[str, str], ...] = ()
    fields: tuple[str, ...] = ()
    remedy: str = ""
    code: ExitCode = ExitCode.UNSUPPORTED

    @property
    def why(self) -> str:
        """Why there is no mechanism, or none of the better ones; empty where the best one is used."""
        reasons = {why for _, why in self.refused}
        if len(reasons) == 1:
            return reasons.pop()
        return "; ".join(f"{name}: {why}" for name, why in self.refused)

    @property
    def advice(self) -> str:
        """Why there is no mechanism, and the remedy, on one line."""
        return "; ".join(filter(None, (self.why, self.remedy)))

    def error(self, what: str = "") -> NettopError:
        """Return the error for `what` has nothing without this hook; without `what` for whatever depends on it.

        A missing permission is the same for everything: it reads alike everywhere.
        """
        named = f"{what} is not available: " if what and self.code is not ExitCode.PERMISSION else ""
        return refusal(self.code, named + self.why, self.remedy or "nettop doctor says what was tried")

    def __str__(self) -> str:
        return f"{NOT_AVAILABLE}: {self.why}" if self.mechanism is None else self.mechanism
