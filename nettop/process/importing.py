# SPDX-License-Identifier: Apache-2.0
"""Imports at the start of a command."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader

from nettop.process.interrupts import delay_interrupts

_RARELY_USED = frozenset(f"numpy.{name}" for name in ("ctypeslib", "fft", "ma", "polynomial", "random"))
"""What numpy before 2 imports with itself: 9 MB and a third of its time."""


class _Lazily:
    """A finder of modules that are loaded once they are used."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:  # noqa: ARG004
        """Return the spec of a rarely used module; None of others, which the next finder finds."""
        spec = PathFinder.find_spec(name, path) if name in _RARELY_USED else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


@contextmanager
def importing(*, without: Sequence[str] = ()) -> Iterator[None]:
    """Delay interrupts, and collect no garbage: modules are kept, and scanning them took 25 ms before the first row.

    Rarely used modules are loaded when they are used, and modules `without` which others can do are not loaded.
    """
    left_out = set(without) - sys.modules.keys()
    gc.disable()
    sys.meta_path.insert(0, _Lazily)
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type] # None has an import fail
    try:
        with delay_interrupts():
            yield
    finally:
        sys.meta_path.remove(_Lazily)
        for name in left_out:
            del sys.modules[name]
        gc.freeze()
        gc.enable()
