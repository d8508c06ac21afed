# SPDX-License-Identifier: Apache-2.0
"""The self-tests of lenses: traffic whose numbers are known, compared with what a lens says of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from nettop.selftest.paths import Place
from nettop.selftest.result import SelfTestResult
from nettop.snapshots.source import Source

SelfTest: TypeAlias = Callable[[Source, Sequence[Place]], list[SelfTestResult]]


def self_test_of(lens: str) -> SelfTest | None:
    """`run` of the module `self_test` in the lens's probe package; None where a lens has none."""
    name = f"nettop.probes.{lens}.self_test"
    try:
        run: SelfTest = importlib.import_module(name).run
    except ModuleNotFoundError as error:
        if error.name not in (name, f"nettop.probes.{lens}"):
            raise
        return None
    return run
