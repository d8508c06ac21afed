# SPDX-License-Identifier: Apache-2.0
"""Imports at the start of a command."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from threading import get_ident

from nettop.process.interrupts import delay_interrupts

_RARELY_USED = frozenset(f"numpy.{name}" for name in ("ctypeslib", "fft", "ma", "polynomial", "random"))
"""What numpy before 2 imports with itself: 9 MB and a third of its time."""


@dataclass(frozen=True)
class _Finder:
    """A finder of modules that are loaded once they are used, and of those that one thread does not get."""

    without: frozenset[str]
    thread: int

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: object = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return the spec of a rarely used module; None of others, which the next finder finds.

        Raise ModuleNotFoundError for those left out. Other threads get them: the sampler may need them meanwhile.
        """
        if name in self.without and get_ident() == self.thread:
            raise ModuleNotFoundError(f"{name} is left out", name=name)
        spec = PathFinder.find_spec(name, path) if name in _RARELY_USED else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


@contextmanager
def importing(*, without: Sequence[str] = ()) -> Iterator[None]:
    """Delay interrupts, and collect no garbage: modules are kept, and scanning them took 25 ms before the first row.

    Rarely used modules are loaded when they are used. `without` names modules that others import only if they exist:
    for them, they do not.
    """
    finder = _Finder(frozenset(without), get_ident())
    gc.disable()
    sys.meta_path.insert(0, finder)
    try:
        with delay_interrupts():
            yield
    finally:
        sys.meta_path.remove(finder)
        gc.freeze()
        gc.enable()
