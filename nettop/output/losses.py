# SPDX-License-Identifier: Apache-2.0
"""What was lost, counted from one report to the next."""

from __future__ import annotations

from dataclasses import dataclass

QUEUE_FULL = "queue full"
"""Why rows of an append table are lost that nobody took from their feed in time."""
NOT_TAKEN = "closed too long before this output, or too many"
"""Why rows of what has closed are not listed one by one, but in the row for the rest."""
CAUSES = {"events": "ring full or hook busy"}
"""Why that is lost which a snapshot counts under a name, where the name does not say it."""


@dataclass(frozen=True, slots=True)
class Lost:
    """So many more of something are lost since the last report, and so many in all; `cause` may be empty."""

    what: str
    cause: str
    count: int
    total: int

    def __str__(self) -> str:
        return f"{self.count} {self.what}{f' ({self.cause})' if self.cause else ''}, {self.total} in all"


class Losses:
    """Remembers what was reported, in `totals`, by what is lost and why."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], int] = {}

    def more(self, what: str, cause: str, total: int) -> list[Lost]:
        """What is to be reported, now that `total` are lost: nothing, unless they have become more."""
        reported = self.totals.get((what, cause), 0)
        if total <= reported:
            return []
        self.totals[what, cause] = total
        return [Lost(what, cause, total - reported, total)]
