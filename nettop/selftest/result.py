# SPDX-License-Identifier: Apache-2.0
"""What a self-test saw of its traffic."""

from __future__ import annotations

from dataclasses import dataclass

REPORT_IT = "please report it, with what nettop doctor --bundle FILE writes"


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """Traffic that the self-test made, and what a lens saw of it. It was not tried where `why_not` says why.

    `detail` tells more of what differs.
    """

    lens: str
    what: str
    expected: int = 0
    measured: int | None = None
    unit: str = ""
    why_not: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether both agree; None where it was not tried."""
        return None if self.why_not else self.measured == self.expected

    @property
    def remedy(self) -> str:
        """What to do; empty where there is nothing to be done."""
        return self.why_not or ("" if self.ok else REPORT_IT)
