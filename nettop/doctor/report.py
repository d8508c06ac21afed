# SPDX-License-Identifier: Apache-2.0
"""What the doctor found, as data: facts of the host, how each point of a lens is had, and what the self-test saw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nettop.errors import ExitCode, NettopError, PermissionMissing
from nettop.kernel.mechanisms import LEFT_OUT, NOT_CHOSEN
from nettop.selftest.result import SelfTestResult
from nettop.snapshots.schema import Hook, Lens
from nettop.snapshots.snapshot import HookStatus

VERSION = 1
"""Of the JSON report; another number means that a field changed its meaning."""
USER_CHOICES = (NOT_CHOSEN, LEFT_OUT)
"""Why a mechanism is not used that the host may well support."""


class Verdict(StrEnum):
    """What a line means."""

    OK = "ok"
    NOTE = "note"
    """Works, but is worth knowing; or it could not be tried."""
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """A fact of the host: `key` names it in JSON, where it is `data` if that says more than `value`."""

    key: str
    name: str
    value: str
    verdict: Verdict = Verdict.OK
    remedy: str = ""
    data: object = None


@dataclass(frozen=True, slots=True)
class LensReport:
    """A lens: the hooks that its snapshot tells of, or the error that it ends with here."""

    lens: Lens
    hooks: tuple[HookStatus, ...] = ()
    gaps: dict[str, str] = field(default_factory=dict)
    error: NettopError | None = None

    def declared(self, hook: str) -> Hook:
        """What the lens declares of one of its hooks."""
        return next((known for known in self.lens.hooks if known.name == hook), Hook(hook, ""))


@dataclass(frozen=True, slots=True)
class Report:
    """All of it."""

    checks: tuple[Check, ...] = ()
    lenses: tuple[LensReport, ...] = ()
    results: tuple[SelfTestResult, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """3 when a lens cannot work, 4 when nothing but a permission is missing, 1 when the self-test disagrees."""
        errors = [one.error for one in self.lenses if one.error is not None]
        if errors:
            only_permission = all(isinstance(error, PermissionMissing) for error in errors)
            return ExitCode.PERMISSION if only_permission else ExitCode.UNSUPPORTED
        return ExitCode.FAILURE if self.wrong_trials else ExitCode.DONE

    @property
    def wrong_trials(self) -> tuple[SelfTestResult, ...]:
        """Where the self-test disagrees."""
        return tuple(trial for trial in self.results if trial.ok is False)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "version": VERSION,
            "host": {one.key: one.value if one.data is None else one.data for one in self.checks},
            "checks": [_chosen(one, ("name", "value", "verdict", "remedy")) for one in self.checks],
            "lenses": [_lens(one) for one in self.lenses],
            "self_test": [
                _chosen(one, ("lens", "what", "expected", "measured", "unit", "ok", "remedy", "detail"))
                for one in self.results
            ],
            "ok": self.exit_code is ExitCode.DONE,
        }


def _chosen(one: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(one, name) for name in names}


def _lens(one: LensReport) -> dict[str, Any]:
    return {
        "id": one.lens.id,
        "title": one.lens.title,
        "works": one.error is None,
        "error": None if one.error is None else _chosen(one.error, ("what", "remedy")),
        "hooks": [
            {
                "hook": hook.hook,
                "mechanism": hook.mechanism,
                "refused": [{"mechanism": way, "why": why} for way, why in hook.refused],
                "fields": list(hook.fields),
            }
            for hook in one.hooks
        ],
        "gaps": dict(one.gaps),
    }
