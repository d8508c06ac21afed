# SPDX-License-Identifier: Apache-2.0
"""Storage of flows in ClickHouse tables, in this process or on servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from nettop.errors import SourceFailed


class Store(Protocol):
    """Storage for blocks of rows that answers queries. Several threads may use it; only one inserts."""

    damage: SourceFailed | None
    """Damage to stored rows that a query has met since the start."""
    batch_s: float
    """Seconds between inserts of what waits, while nobody queries it and it is little."""
    before_query: Callable[[], None]
    """Called before a query if nobody can query the tables otherwise, so that they are up to date."""

    def insert(self, blocks: Mapping[str, bytes], token: str) -> None:
        """Store blocks in ClickHouse's Native format durably, by table. A repeated token stores nothing.

        Raise SourceFailed unless all blocks are known to be stored; the caller may then retry.
        """

    def check(self) -> None:
        """Check that stored data is intact, and repair it. Raise SourceFailed if it was not."""

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """Return the answer to a read-only query, in one of ClickHouse's formats.

        Raise UsageError if the query is refused, wrong or exceeds a limit; SourceFailed if the store
        is damaged or does not answer.
        """

    def close(self) -> None:
        """Close the store. Closing it twice is harmless."""
