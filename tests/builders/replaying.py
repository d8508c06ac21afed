# SPDX-License-Identifier: Apache-2.0
"""Commands over recordings, and a clock that the test moves."""

from __future__ import annotations

from typing import NoReturn

import pytest

from nettop.cli import run


def no_probes(lens: str) -> NoReturn:
    """Fail: a replay reads no kernel. With this, the test keeps its privileges."""
    raise AssertionError(lens)


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def said(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command over recordings; return its exit code and what it printed."""
    capfd.readouterr()
    code = run(list(words), no_probes)
    out, err = capfd.readouterr()
    return code, out, err
