# SPDX-License-Identifier: Apache-2.0
"""What is made of files, made anew when one of them has changed, beside the threads that use it."""

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
    """Which files were read again, and why others that have changed could not be."""

    reloaded: list[Path]
    warnings: list[str]


class Reloading(Generic[Part, Whole]):
    """The whole that is made of the parts in files. Any thread may take `current`; one thread checks.

    A file that was replaced and one that was written over are read again as a whole, and so is one that has come back.
    What cannot be read does not count: what it held before stays in use. Raises NettopError if a file cannot be read at
    first.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[Path], Part],
        combine: Callable[[Sequence[Part]], Whole],
    ) -> None:
        self._read, self._combine = read, combine
        # Before they are read: a change meanwhile is seen by the next check.
        self._states = {path: _state(path) for path in paths}
        self._parts = {path: read(path) for path in self._states}
        self.current = combine(list(self._parts.values()))

    def check(self) -> Check:
        """Read again what has changed since the last check, which may take seconds. A change is reported once."""
        reloaded, warnings = [], []
        for path, last in self._states.items():
            state = _state(path)
            if state == last:
                continue
            self._states[path] = state
            try:
                self._parts[path] = self._read(path)
            except NettopError as error:
                warnings.append(f"{error.what}; what it held before stays in use ({error.remedy})")
            else:
                reloaded.append(path)
        if reloaded:
            self.current = self._combine(list(self._parts.values()))
        return Check(reloaded, warnings)


def _state(path: Path) -> _State:
    """What differs after a change: of the file, or the number of the error that keeps it from being looked at."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
