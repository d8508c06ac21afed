# SPDX-License-Identifier: Apache-2.0
"""Each lens attached and read as any door would, and put to the test while it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from nettop.doctor.report import LensReport
from nettop.doctor.self_test import self_test_of
from nettop.errors import NettopError, UsageError, failure_of
from nettop.interrupts import undisturbed
from nettop.selftest.paths import Place
from nettop.selftest.result import SelfTestResult
from nettop.snapshots.schema import Lens
from nettop.snapshots.source import Source


def examine(
    lens: Lens, source_of: Callable[[str], Source], places: Sequence[Place], mechanisms: Mapping[str, str]
) -> tuple[LensReport, list[SelfTestResult]]:
    """How the lens is had here, and what its self-test saw; none where there are no places for traffic.

    `ways` are those to use in place of the best ones, by point. Raises UsageError for one that there is not.
    """
    source: Source | None = None
    try:
        with undisturbed():  # the probe is imported
            source = source_of(lens.id)
        source.set("mechanisms", mechanisms)
        for option in lens.options:
            if option.log_default is not None:
                source.set(option.name, option.log_default)
        for table in lens.tables:
            source.set("table", table.name)
        source.start()
        self_test = self_test_of(lens.id) if places else None
        results = self_test(source, places) if self_test else []
        snapshot = source.read(time.monotonic_ns())
        return LensReport(lens, snapshot.hooks, dict(snapshot.gaps)), results
    except UsageError:
        raise
    except NettopError as error:
        failure = error
        if error.remedy.startswith("nettop doctor"):  # it is what says so
            failure.remedy = ""
    except Exception as error:  # noqa: BLE001 - the border of a source: the other lenses go on
        failure = failure_of(lens.id, error)
    finally:
        if source is not None:
            source.close()
    return LensReport(lens, error=failure), []
