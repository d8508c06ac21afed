# SPDX-License-Identifier: Apache-2.0
"""Where flows are kept: ClickHouse's tables, in this process or on servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Store(Protocol):
    """Keeps blocks of rows and answers queries; may be used by several threads, of which one inserts."""

    def insert(self, blocks: Mapping[str, bytes], token: str) -> None:
        """Stores blocks of ClickHouse's format Native, by table, durably; again with the same token it stores nothing.

        Raises SourceFailed if they cannot all be known to be stored: they may be given again.
        """

    def check(self) -> None:
        """Find out whether what is stored is still whole, and mend it. Raises SourceFailed if it was not."""

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """The answer to a query that only reads, in one of ClickHouse's formats.

        Raises UsageError for what is refused, wrong, or takes too much; SourceFailed if the store does not answer.
        """

    def close(self) -> None:
        """Ends the use of the store. Once is enough, twice does no harm."""
