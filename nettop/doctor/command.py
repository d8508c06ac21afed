# SPDX-License-Identifier: Apache-2.0
"""The doctor command: it examines the host and each lens, with its own traffic, and writes the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import BinaryIO, TextIO

from nettop.doctor.bundle import bundle_of
from nettop.doctor.deadline import within
from nettop.doctor.facts import check_stays_root, fentry_check, files_check, host_checks
from nettop.doctor.report import Check, LensReport, Report
from nettop.doctor.text import write_report
from nettop.errors import ExitCode, NettopError, UsageError, failure_of
from nettop.process.clocks import monotonic_ns
from nettop.process.interrupts import delay_interrupts
from nettop.selftest.paths import TrafficPath, traffic_paths
from nettop.selftest.result import SelfTestResult
from nettop.settings.doctor import DoctorSettings
from nettop.snapshots import lens_part, lenses
from nettop.snapshots.schema import Lens
from nettop.snapshots.source import Source, SourceOptions
from nettop.writing import OUTPUT, writing


def run_doctor(
    settings: DoctorSettings,
    source_of: Callable[[str], Source],
    stdout: TextIO,
    bundle: BinaryIO | None,
    drop_privileges: Callable[[], None] | None = None,
) -> ExitCode:
    """Examine and write the report, and the bundle to `bundle`. Call it while there is only one thread.

    `drop_privileges` drops privileges that lenses do not need, after the host was examined. Raise NettopError if the
    report cannot be written.
    """
    report = make_report(settings, source_of, drop_privileges)
    with writing(OUTPUT):
        if settings.format == "json":
            stdout.write(json.dumps(report.as_json(), indent=2) + "\n")
        else:
            write_report(report, stdout)
        stdout.flush()
    if bundle is not None:
        content = bundle_of(report)
        # Close the file inside the context: a file system may report a failed write only on close.
        with writing(bundle.name, "choose another file for --bundle"), bundle:
            bundle.write(content)
    return report.exit_code


def make_report(
    settings: DoctorSettings,
    source_of: Callable[[str], Source],
    drop_privileges: Callable[[], None] | None = None,
) -> Report:
    """Examine the chosen parts. Raise UsageError for an unknown mechanism."""
    parts = settings.parts
    chosen = [lens for lens in lenses() if not parts or lens.id in parts]
    examined: list[LensReport] = []
    results: list[SelfTestResult] = []
    with ExitStack() as cleanup:
        cleanup.callback(_progress, "")
        checks: list[Check] = []
        if not parts or "host" in parts:
            _progress("examining the host")
            checks += [*host_checks(step_s=settings.step_s), *check_stays_root(settings.stays_root)]
        if drop_privileges is not None:
            drop_privileges()
        # Before the first lens, because this forks processes.
        with within("preparing the self-test", settings.step_s):
            paths = cleanup.enter_context(traffic_paths()) if settings.traffic and chosen else ()
        for lens in chosen:
            _progress(f"attaching {lens.id}{', and sending traffic' if settings.traffic else ''}")
            report, compared = _examine(lens, source_of, paths, settings)
            examined.append(report)
            results += compared
    if checks:
        checks += list(fentry_check(examined, checks))
    checks += files_check(examined)
    return Report(tuple(checks), tuple(examined), tuple(results))


def _examine(
    lens: Lens,
    source_of: Callable[[str], Source],
    paths: Sequence[TrafficPath],
    settings: DoctorSettings,
) -> tuple[LensReport, list[SelfTestResult]]:
    """Return the status of a lens on this host, and its self-test's results, none without traffic paths.

    Raise UsageError for an unknown mechanism.
    """
    try:
        with within("it", settings.step_s), ExitStack() as opened:
            with delay_interrupts():  # imports the probe
                source = opened.enter_context(closing(source_of(lens.id)))
            return _examine_source(lens, source, paths, settings.mechanisms)
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


def _examine_source(
    lens: Lens, source: Source, paths: Sequence[TrafficPath], mechanisms: Mapping[str, str]
) -> tuple[LensReport, list[SelfTestResult]]:
    """Attach a source as a frontend does, run its self-test and read it."""
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
    snapshot = source.read(monotonic_ns())
    return LensReport(lens, snapshot.hooks, dict(snapshot.gaps)), results


def _progress(text: str) -> None:
    """Show progress on a terminal, replacing the previous text."""
    stream = sys.stderr
    if stream is not None and stream.isatty():
        with suppress(OSError):
            stream.write(f"\r\x1b[K{text}")
            stream.flush()
