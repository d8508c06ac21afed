# SPDX-License-Identifier: Apache-2.0
"""The results of a self-test."""

from __future__ import annotations

from dataclasses import dataclass

REPORT_IT = "please report it, with what nettop doctor --bundle FILE writes"


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """One comparison: traffic that the self-test sent, and what a lens measured of it.

    `skipped` is the reason why the comparison could not be made; `detail` says more about a difference.
    """

    lens: str
    what: str
    expected: int = 0
    measured: int | None = None
    unit: str = ""
    skipped: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether both agree; None where the comparison was skipped."""
        return None if self.skipped else self.measured == self.expected

    @property
    def remedy(self) -> str:
        """What to do about it; empty where all is well."""
        return self.skipped or ("" if self.ok else REPORT_IT)
