# SPDX-License-Identifier: Apache-2.0
"""Texts of rows as codes into distinct words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from nettop.snapshots.arrays import as_list
from nettop.snapshots.snapshot import Array

TEXT_MAX = 128
"""Longer texts are cut, in characters."""


class Coded(NamedTuple):
    """Texts as codes, u4 (n,), into distinct `words`. The first word is empty and stands for unknown.

    Words are as a file or an exporter has them, not safe to show.
    """

    codes: Array
    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """The codes of these texts, each cut to TEXT_MAX."""
        code_of = {"": 0}
        codes = [code_of.setdefault(text[:TEXT_MAX], len(code_of)) for text in texts]
        return cls(np.array(codes, np.uint32), tuple(code_of))

    def taken(self, at: Array) -> Self:
        """The texts at these positions."""
        return self._replace(codes=self.codes[at])

    def reduced(self) -> Self:
        """The same texts, without words that none of them is."""
        is_used = np.bincount(self.codes, minlength=len(self.words)) > 0
        is_used[0] = True
        codes = np.cumsum(is_used) - 1
        words = tuple(self.words[at] for at in as_list(np.flatnonzero(is_used)))
        return self._replace(codes=codes[self.codes].astype(np.uint32), words=words)
