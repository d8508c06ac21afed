# SPDX-License-Identifier: Apache-2.0
"""Values built from files, rebuilt when a file changes, while other threads use them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from nettop.errors import NettopError

Part = TypeVar("Part")
Whole = TypeVar("Whole")

_State = tuple[int, ...]


class Check(NamedTuple):
    """Files that were reloaded, and warnings for changed files that could not be."""

    reloaded: list[Path]
    warnings: list[str]


class Reloading(Generic[Part, Whole]):
    """A value built from the contents of several files. Any thread may read `current`; one thread calls `check`.

    `check` reloads a replaced, overwritten or restored file as a whole. If that fails, the previous contents stay in
    use. The constructor raises NettopError if it cannot read a file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[Path], Part],
        combine: Callable[[Sequence[Part]], Whole],
    ) -> None:
        self._read, self._combine = read, combine
        # Taken before reading, so that the next check notices a change meanwhile.
        self._states = {path: _state(path) for path in paths}
        self._parts = {path: read(path) for path in self._states}
        self.current = combine(list(self._parts.values()))

    def check(self) -> Check:
        """Reload what changed since the last check, which may take seconds. Report each change once."""
        reloaded, warnings = [], []
        for path, last in self._states.items():
            state = _state(path)
            if state == last:
                continue
            self._states[path] = state
            try:
                self._parts[path] = self._read(path)
            except NettopError as error:
                warnings.append(f"{error.what}; its previous contents stay in use ({error.remedy})")
            else:
                reloaded.append(path)
        if reloaded:
            self.current = self._combine(list(self._parts.values()))
        return Check(reloaded, warnings)


def _state(path: Path) -> _State:
    """Return the fields of a file's status that a change alters, or the error that prevents reading it."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
