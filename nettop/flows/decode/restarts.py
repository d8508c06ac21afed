# SPDX-License-Identifier: Apache-2.0
"""Signs that an exporter has started anew: numbers that do not go on, and sets that do not fit their template."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nettop.flows.decode.datagrams import nearest
from nettop.flows.decode.domains import Declared, Domain
from nettop.flows.decode.framing import Batch, Sets
from nettop.flows.decode.templates import Template
from nettop.snapshots.arrays import Mask, as_list
from nettop.snapshots.snapshot import Array

_SAME_START_MS = 60_000
"""By how much a start may differ that messages of one exporter give."""
OTHER_START = -(1 << 32)
"""In place of how far messages are ahead of one that came before their exporter has started."""
FIRST_NUMBERS = 4096
"""Sequence numbers of an exporter that may just have started."""
PADDING_MAX = 3
"""Bytes that make a set end where numbers of four bytes may begin."""
_LOOKED_AT = 4
"""Bytes at either end of what is left after the records of a set."""


def ahead_of(batch: Batch, sets: Sets, of: Declared) -> Array:
    """By how much sets are ahead of the message that has declared a template, as `_progress` says."""
    rows = batch.messages[sets.message]
    return _progress(rows["boot_ms"], rows["sequence"], of.boot_ms, of.sequence)


def _progress(
    boot_ms: Array, sequences: Array, earlier_boot_ms: Array | int, earlier_sequences: Array | int
) -> Array:
    """By how much sequence numbers are ahead of earlier ones; OTHER_START if the exporter has started in between."""
    has_started = np.abs(nearest(boot_ms - earlier_boot_ms)) > _SAME_START_MS
    return np.where(has_started, OTHER_START, nearest(sequences.astype(np.int64) - earlier_sequences))


def unsteady(batch: Batch, known: Sequence[Domain]) -> Mask:
    """Which domains have messages that do not go on from each other, or from the one that last declared a template.

    Where templates are from before nettop was started, that is not known.
    """
    order = np.argsort(batch.domains, kind="stable")
    boot_ms, sequences = (batch.messages[name][order].astype(np.int64) for name in ("boot_ms", "sequence"))
    earlier_boot_ms, earlier_sequences = np.roll(boot_ms, 1), np.roll(sequences, 1)
    domains = batch.domains[order]
    firsts = np.searchsorted(domains, np.arange(len(known)))
    earlier_boot_ms[firsts], earlier_sequences[firsts] = boot_ms[firsts], sequences[firsts] - 1
    for first, domain in zip(as_list(firsts), known, strict=True):
        if domain.declared:
            _, earlier_boot_ms[first], earlier_sequences[first] = next(reversed(domain.declared.values()))
    is_unsteady = np.array([len(domain.declared) < len(domain.templates) for domain in known], bool)
    is_unsteady[domains[_progress(boot_ms, sequences, earlier_boot_ms, earlier_sequences) <= 0]] = True
    return is_unsteady


def fits(template: Template, buffer: Array, sets: Sets, padding: int = 0) -> Mask:
    """Which sets have whole records of a template, and after them nothing but zeros, or so many bytes of `padding`.

    Records of various lengths say by themselves where they end: their sets are taken to fit.
    """
    fit = np.ones(len(sets), bool)
    left = (sets.end - sets.start) % template.least_length
    if template.is_fixed and left.any():
        for at in range(_LOOKED_AT):
            for places in (sets.end - left + at, sets.end - 1 - at):
                fit &= (left <= at) | (buffer[np.where(left <= at, 0, places)] == 0)
        fit |= left <= padding
    return fit
