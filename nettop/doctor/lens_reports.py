# SPDX-License-Identifier: Apache-2.0
"""Attaches each lens as a frontend would, reads it, and runs its self-test meanwhile."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from nettop.doctor.deadline import within
from nettop.doctor.report import LensReport
from nettop.errors import ExitCode, NettopError, UsageError, failure_of
from nettop.interrupts import undisturbed
from nettop.selftest.paths import TrafficPath
from nettop.selftest.result import SelfTestResult
from nettop.snapshots.schema import Lens
from nettop.snapshots.source import Source

SelfTest: TypeAlias = Callable[[Source, Sequence[TrafficPath]], list[SelfTestResult]]


def examine(
    lens: Lens,
    source_of: Callable[[str], Source],
    paths: Sequence[TrafficPath],
    mechanisms: Mapping[str, str],
) -> tuple[LensReport, list[SelfTestResult]]:
    """The status of a lens on this host, and its self-test's results; none without paths for traffic.

    `mechanisms` are those to use in place of the best ones, by hook. Raises UsageError for one that does not exist.
    """
    try:
        with within("it"):
            return _examined(lens, source_of, paths, mechanisms)
    except UsageError:
        raise
    except NettopError as error:
        failure = error
        # doctor is running already, and what the user left out needs no remedy.
        if error.remedy.startswith("nettop doctor") or error.exit_code is ExitCode.USAGE:
            failure.remedy = ""
    except Exception as error:  # noqa: BLE001 - the border of a source: the other lenses go on
        failure = failure_of(lens.id, error)
    return LensReport(lens, error=failure), []


def _examined(
    lens: Lens,
    source_of: Callable[[str], Source],
    paths: Sequence[TrafficPath],
    mechanisms: Mapping[str, str],
) -> tuple[LensReport, list[SelfTestResult]]:
    with undisturbed():  # the probe is imported
        source = source_of(lens.id)
    try:
        source.set("mechanisms", mechanisms)
        for option in lens.options:
            default = option.default_of(log=True)
            if default != option.default:
                source.set(option.name, default)
        for table in lens.tables:
            source.set("table", table.name)
        source.start()
        results = _self_test_of(lens.id)(source, paths) if paths else []
        snapshot = source.read(time.monotonic_ns())
        return LensReport(lens, snapshot.hooks, dict(snapshot.gaps)), results
    finally:
        source.close()


def _self_test_of(lens: str) -> SelfTest:
    """`run` of the module `self_test` in the lens's probe package."""
    run: SelfTest = importlib.import_module(f"nettop.probes.{lens}.self_test").run
    return run
