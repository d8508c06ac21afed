# SPDX-License-Identifier: Apache-2.0
"""Losses, counted from one report to the next."""

from __future__ import annotations

from dataclasses import dataclass

QUEUE_FULL = "queue full"
"""Cause of losing rows of an append table that were not taken from their feed in time."""
NOT_LISTED = "closed too long before this output, or too many"
"""Cause of not listing closed connections one by one, but only in the row for the rest."""
CAUSES = {"events": "ring full or hook busy"}
"""Causes of a snapshot's losses, by name, if the name does not imply the cause."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A loss: `count` since the last report, `total` so far; `cause` may be empty."""

    what: str
    cause: str
    count: int
    total: int

    def __str__(self) -> str:
        return f"{self.count} {self.what}{f' ({self.cause})' if self.cause else ''}, {self.total} in all"


class Losses:
    """The losses reported so far: `totals` by name and cause."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], int] = {}

    def new_losses(self, what: str, cause: str, total: int) -> list[Lost]:
        """Return the losses to report for a new `total`; empty unless it has grown."""
        reported = self.totals.get((what, cause), 0)
        if total <= reported:
            return []
        self.totals[what, cause] = total
        return [Lost(what, cause, total - reported, total)]
