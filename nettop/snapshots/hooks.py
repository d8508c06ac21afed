# SPDX-License-Identifier: Apache-2.0
"""By which mechanism each hook of a lens works, or why by none; without numpy, which doctor may report as missing."""

from __future__ import annotations

from dataclasses import dataclass

NOT_AVAILABLE = "n/a"
"""How every frontend writes what is not available on this kernel or host."""


@dataclass(frozen=True, slots=True)
class HookStatus:
    """The mechanism that provides a hook of a lens, and those better ones that were refused (name and why, best first).

    Where `mechanism` is None none works, and `fields`, which depend on the hook, are not available on this kernel or
    host. `remedy` is what would help the best of the refused ones, as far as its refusal says.
    """

    hook: str
    mechanism: str | None
    refused: tuple[tuple[str, str], ...] = ()
    fields: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def why(self) -> str:
        """Why there is no mechanism, or none of the better ones; empty where the best one is used."""
        reasons = {why for _, why in self.refused}
        if len(reasons) == 1:
            return reasons.pop()
        return "; ".join(f"{name}: {why}" for name, why in self.refused)

    def __str__(self) -> str:
        return f"{NOT_AVAILABLE}: {self.why}" if self.mechanism is None else self.mechanism
