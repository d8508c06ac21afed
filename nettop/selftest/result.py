# SPDX-License-Identifier: Apache-2.0
"""The results of a self-test."""

from __future__ import annotations

from dataclasses import dataclass

REPORT_IT = "please report it, with the file from nettop doctor --bundle FILE"


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """A comparison of the self-test's traffic with a lens's measurement.

    `skipped` is the reason why it could not be made; `detail` explains a difference.
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
        """True if both agree; None if the comparison was skipped."""
        return None if self.skipped else self.measured == self.expected

    @property
    def remedy(self) -> str:
        """The remedy for a skipped or failed comparison; empty if both agree."""
        return self.skipped or ("" if self.ok else REPORT_IT)
