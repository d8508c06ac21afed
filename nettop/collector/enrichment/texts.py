# SPDX-License-Identifier: Apache-2.0
"""Texts of rows, encoded as codes into distinct words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from nettop.snapshots.arrays import Array

TEXT_MAX = 128
"""Longer texts are cut to this many characters."""


class Coded(NamedTuple):
    """Texts as codes, u4 (n,), into distinct `words`. The first word is empty and means unknown.

    Words are as in the file or from the exporter, unsanitized.
    """

    codes: Array
    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Encode texts, each cut to TEXT_MAX."""
        code_of = {"": 0}
        codes = [code_of.setdefault(text[:TEXT_MAX], len(code_of)) for text in texts]
        return cls(np.array(codes, np.uint32), tuple(code_of))

    def take(self, at: Array) -> Self:
        """Return the texts at these positions."""
        return self._replace(codes=self.codes[at])
