# SPDX-License-Identifier: Apache-2.0
"""Compiling the programs of all lenses before they are needed, for the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from nettop.errors import NettopError, Unsupported
from nettop.kernel.bpf import program_cache
from nettop.kernel.bpf.compiling import Compiler
from nettop.kernel.bpf.program_text import ProgramText
from nettop.probes.probe import Probe
from nettop.snapshots import lens_part, lenses

_REMEDY = f"make {program_cache.DIRECTORY} a directory of root's, which nobody else may write to"


@dataclass(slots=True)
class Precompiled:
    """Numbers of texts: `found` in the cache, and `added` to it; and why the others do not compile, by lens."""

    found: int
    added: int
    refused: dict[str, NettopError]


def texts() -> Iterator[tuple[str, ProgramText]]:
    """Yield the texts that nettop usually loads, with their lenses."""
    for lens in lenses():
        module = lens_part(lens.id, "probe")
        probe = module.make_probe(None) if module is not None else None
        if isinstance(probe, Probe):
            for text in probe.texts():
                yield lens.id, text


def precompile(show: Callable[[int, int], None]) -> Precompiled:
    """Compile the texts that are not in the cache, and store them. Call it as root.

    `show` is called with the number of texts that are done, and of all. Raise NettopError if the cache cannot be
    written, or the compiler ends.
    """
    done, wanted = Precompiled(0, 0, {}), list(texts())
    with ExitStack() as opened:
        compiler: Compiler | None = None
        for number, (lens, text) in enumerate(wanted):
            show(number, len(wanted))
            if program_cache.find(text) is not None:
                done.found += 1
                continue
            if compiler is None:
                compiler = Compiler()
                opened.callback(compiler.close)
            try:
                compiled = compiler.compile(text)
            except Unsupported as error:
                done.refused[lens] = error
                continue
            _store(partial(program_cache.store, text, compiled))
            done.added += 1
    _store(program_cache.set_complete)
    return done


def _store(store: Callable[[], None]) -> None:
    """Write to the cache. Raise NettopError if that fails."""
    try:
        store()
    except OSError as error:
        raise NettopError(f"cannot write to {program_cache.DIRECTORY}: {error.strerror}", _REMEDY) from error
    except program_cache.Distrusted as error:
        raise NettopError(f"{program_cache.DIRECTORY} {error}", _REMEDY) from error
