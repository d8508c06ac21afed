# SPDX-License-Identifier: Apache-2.0
"""Doctor's report as data: facts of the host, the mechanism of each lens's hooks, and the self-test's results."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nettop.errors import ExitCode, NettopError
from nettop.kernel.bpf.mechanisms import DISABLED, NOT_CHOSEN
from nettop.selftest.result import SelfTestResult
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Hook, Lens

REPORT_VERSION = 1
"""Version of the JSON report, increased when the meaning of a field changes."""
USER_CHOICES = (NOT_CHOSEN, DISABLED)
"""Reasons for not using a mechanism that the host may support."""

PERF_EVENTS = "perf_events"
"""The key of a fact that, if bad, stops only sampling, not other programs."""


class Verdict(StrEnum):
    """The verdict of a line."""

    OK = "ok"
    NOTE = "note"
    """Works but is worth knowing, or was skipped."""
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """A fact of the host. `key` is its name in JSON, where its value is `data`, or else `value`. `exit_code` is
    doctor's exit code if the fact is bad.
    """

    key: str
    name: str
    value: str
    verdict: Verdict = Verdict.OK
    remedy: str = ""
    data: object = None
    exit_code: ExitCode = ExitCode.UNSUPPORTED


def stops_programs(check: Check) -> bool:
    """Return whether a fact of the host is bad for more than sampling."""
    return check.verdict is Verdict.BAD and check.key != PERF_EVENTS


def bad(key: str, name: str, error: NettopError, data: object = None) -> Check:
    """Return the bad fact for an error, in the same words that every command uses."""
    return Check(key, name, error.what, Verdict.BAD, error.remedy, data, error.exit_code)


@dataclass(frozen=True, slots=True)
class LensReport:
    """The status of a lens's hooks, or the error that stops the lens."""

    lens: Lens
    hooks: tuple[HookStatus, ...] = ()
    gaps: dict[str, str] = field(default_factory=dict)
    error: NettopError | None = None

    def declared(self, hook: str) -> Hook:
        """Return the lens's declaration of a hook."""
        return next((known for known in self.lens.hooks if known.name == hook), Hook(hook, ""))


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that doctor examined."""

    checks: tuple[Check, ...] = ()
    lenses: tuple[LensReport, ...] = ()
    results: tuple[SelfTestResult, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """Exit code: 3 if a lens cannot work or a fact of the host is bad, 4 if only permissions are missing, 1 if the
        self-test disagrees."""
        codes = {lens.error.exit_code for lens in self.lenses if lens.error is not None}
        codes |= {check.exit_code for check in self.checks if check.verdict is Verdict.BAD}
        if codes:
            return ExitCode.PERMISSION if codes == {ExitCode.PERMISSION} else ExitCode.UNSUPPORTED
        return ExitCode.FAILURE if self.disagreements else ExitCode.DONE

    @property
    def disagreements(self) -> tuple[SelfTestResult, ...]:
        """The comparisons in which the self-test disagrees with a lens."""
        return tuple(result for result in self.results if result.ok is False)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "version": REPORT_VERSION,
            "host": {check.key: check.value if check.data is None else check.data for check in self.checks},
            "checks": [_attributes(check, "name", "value", "verdict", "remedy") for check in self.checks],
            "lenses": [_lens(report) for report in self.lenses],
            "self_test": [
                _attributes(result, "lens", "what", "expected", "measured", "unit", "ok", "remedy", "detail")
                for result in self.results
            ],
            "ok": self.exit_code is ExitCode.DONE,
        }


def _attributes(source: object, *names: str) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def _lens(report: LensReport) -> dict[str, Any]:
    return {
        "id": report.lens.id,
        "title": report.lens.title,
        "works": report.error is None,
        "error": None if report.error is None else _attributes(report.error, "what", "remedy"),
        "hooks": [
            {
                "hook": hook.hook,
                "mechanism": hook.mechanism,
                "refused": [{"mechanism": name, "why": why} for name, why in hook.refused],
                "fields": list(hook.fields),
            }
            for hook in report.hooks
        ],
        "gaps": dict(report.gaps),
    }
