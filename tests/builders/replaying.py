# SPDX-License-Identifier: Apache-2.0
"""Commands over recordings, and a clock that the test moves."""

from __future__ import annotations

from typing import NoReturn


def no_probes(lens: str) -> NoReturn:
    """Fail: a replay reads no kernel. With this, the test keeps its privileges."""
    raise AssertionError(lens)


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now
