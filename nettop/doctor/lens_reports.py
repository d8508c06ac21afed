# SPDX-License-Identifier: Apache-2.0
"""Examination of lenses: each is attached as by a frontend, self-tested and read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from nettop.doctor.deadline import within
from nettop.doctor.report import LensReport
from nettop.errors import ExitCode, NettopError, UsageError, failure_of
from nettop.process.interrupts import delay_interrupts
from nettop.selftest.paths import TrafficPath
from nettop.selftest.result import SelfTestResult
from nettop.snapshots import lens_part
from nettop.snapshots.schema import Lens
from nettop.snapshots.source import Source, SourceOptions


def examine(
    lens: Lens,
    source_of: Callable[[str], Source],
    paths: Sequence[TrafficPath],
    mechanisms: Mapping[str, str],
) -> tuple[LensReport, list[SelfTestResult]]:
    """Return the status of a lens on this host, and its self-test's results, none without traffic paths.

    `mechanisms` are those to use instead of the best ones, by hook. Raise UsageError for an unknown mechanism.
    """
    try:
        with within("it"):
            return _examined(lens, source_of, paths, mechanisms)
    except UsageError:
        raise
    except NettopError as error:
        failure = error
        # The user is already running doctor, and needs no remedy for mechanisms they excluded.
        if error.remedy.startswith("nettop doctor") or error.exit_code is ExitCode.USAGE:
            failure.remedy = ""
    except Exception as error:  # noqa: BLE001 - the other lenses go on
        failure = failure_of(lens.id, error)
    return LensReport(lens, error=failure), []


def _examined(
    lens: Lens,
    source_of: Callable[[str], Source],
    paths: Sequence[TrafficPath],
    mechanisms: Mapping[str, str],
) -> tuple[LensReport, list[SelfTestResult]]:
    with delay_interrupts():  # imports the probe
        source = source_of(lens.id)
    try:
        self_test = lens_part(lens.id, "self_test") if paths else None
        values = {option: option.default_of(log=True) for option in lens.options}
        values |= getattr(self_test, "OPTIONS", {})
        tables = frozenset(table.name for table in lens.tables)
        source.configure(SourceOptions(tables, mechanisms, values=values))
        source.start()
        results = []
        if self_test is not None:
            results = self_test.run(source, paths)
        elif paths:
            results = [SelfTestResult(lens.id, "self-test", skipped="the lens has none")]
        snapshot = source.read(time.monotonic_ns())
        return LensReport(lens, snapshot.hooks, dict(snapshot.gaps)), results
    finally:
        source.close()
