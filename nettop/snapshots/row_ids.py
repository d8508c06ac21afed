# SPDX-License-Identifier: Apache-2.0
"""Row ids: hashes of a row's identity, below 2⁵³ because many JSON readers have no larger integers.

Among a million rows, two collide once in ten thousand readings.
"""

from __future__ import annotations

from _blake2 import blake2b  # hashlib would load OpenSSL too: 3 MB
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nettop.snapshots.arrays import Array

ID_BITS = 53
_HASH_BYTES = 8


def row_ids(hashes: Array) -> Array:
    """Return the ids of rows with these 64-bit hashes, in the same order."""
    return hashes >> np.uint64(8 * _HASH_BYTES - ID_BITS)


def row_id(*identity: object) -> int:
    """Return the id of one row, the same in every process."""
    digest = blake2b(repr(identity).encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest) >> 8 * _HASH_BYTES - ID_BITS
