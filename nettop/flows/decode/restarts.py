# SPDX-License-Identifier: Apache-2.0
"""Signs of an exporter restart: sequence numbers that do not continue, and sets that do not fit their template."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nettop.flows.decode.datagrams import nearest
from nettop.flows.decode.domains import Declared, Domain
from nettop.flows.decode.framing import Batch, Sets
from nettop.flows.decode.templates import Template
from nettop.snapshots.arrays import Array, Mask, as_list

_SAME_START_MS = 60_000
"""Tolerance between start times in messages of one exporter run."""
OTHER_START = -(1 << 32)
"""Lead reported for messages from another exporter run."""
FIRST_NUMBERS = 4096
"""Sequence numbers below this may follow a restart."""
PADDING_MAX = 3
"""Maximum number of bytes that pad a set to a multiple of four."""
_CHECKED_BYTES = 4
"""Bytes checked at either end of the remainder after a set's records."""


def ahead_of(batch: Batch, sets: Sets, of: Declared) -> Array:
    """Return the lead of sets over the message that declared a template, as in `_progress`."""
    rows = batch.messages[sets.message]
    return _progress(rows["boot_ms"], rows["sequence"], of.boot_ms, of.sequence)


def _progress(
    boot_ms: Array, sequences: Array, earlier_boot_ms: Array | int, earlier_sequences: Array | int
) -> Array:
    """Return the lead of sequence numbers over earlier ones; OTHER_START if the exporter restarted in between."""
    has_started = np.abs(nearest(boot_ms - earlier_boot_ms)) > _SAME_START_MS
    return np.where(has_started, OTHER_START, nearest(sequences.astype(np.int64) - earlier_sequences))


def unsteady_domains(batch: Batch, known: Sequence[Domain]) -> Mask:
    """Return which domains have a message that does not continue the previous one, or the last template declaration.

    Templates restored from disk have no such message, so their domains count as unsteady.
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
    """Return which sets hold whole records, followed by only zeros or at most `padding` arbitrary bytes.

    Records of variable length delimit themselves, so their sets always count as fitting.
    """
    fit = np.ones(len(sets), bool)
    left = (sets.end - sets.start) % template.least_length
    if template.is_fixed and left.any():
        for at in range(_CHECKED_BYTES):
            for places in (sets.end - left + at, sets.end - 1 - at):
                fit &= (left <= at) | (buffer[np.where(left <= at, 0, places)] == 0)
        fit |= left <= padding
    return fit
