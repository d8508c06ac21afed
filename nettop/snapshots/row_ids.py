# SPDX-License-Identifier: Apache-2.0
"""Numbers for rows, made of what identifies them, and below 2⁵³: many readers of JSON have no larger whole numbers.

Two of a million rows have the same number once in ten thousand readings.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nettop.snapshots.snapshot import Array

ID_BITS = 53
_HASH_BYTES = 8


def row_ids(hashes: Array) -> Array:
    """Return the numbers of rows with these hashes of 64 bits, in the same order."""
    return hashes >> np.uint64(8 * _HASH_BYTES - ID_BITS)


def row_id(*identity: object) -> int:
    """Return the number of one row, the same in every process."""
    digest = blake2b(repr(identity).encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest) >> 8 * _HASH_BYTES - ID_BITS
