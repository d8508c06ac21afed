# SPDX-License-Identifier: Apache-2.0
"""Write the names of autonomous systems to the store, where queries look them up: flows hold only the numbers."""

from __future__ import annotations

import time

import numpy as np

from nettop.flows.enrichment.enrich import Enrichment
from nettop.flows.enrichment.lookups import LookupFiles
from nettop.flows.enrichment.texts import Coded
from nettop.flows.spool import Block, Spool
from nettop.flows.store.native import Values, native_block
from nettop.flows.store.schema import TABLES

_TABLE = "as_names"


class AsNames:
    """Writer of AS names from lookup files into a spool, at the start and whenever a file changes."""

    def __init__(self, spool: Spool, files: LookupFiles) -> None:
        self._spool, self._files = spool, files
        self._written: Enrichment | None = None

    def write(self) -> None:
        """Write the names if they changed. If the spool rejects them, retry at the next call."""
        enrichment = self._files.current().enrichment
        names = enrichment.as_names() if enrichment is not self._written else {}
        if not names or self._spool.put({_TABLE: _block(names)}, {}) is not None:
            self._written = enrichment


def _block(names: dict[int, str]) -> Block:
    columns: dict[str, Values] = {
        "time": np.full(len(names), time.time_ns() // 1_000_000, "i8"),
        "as_number": np.array(list(names), "u4"),
        "name": Coded.of(names.values()),
    }
    return Block(native_block(TABLES[_TABLE].types, columns), len(names))
