# SPDX-License-Identifier: Apache-2.0
"""Add columns to flows by looking up their addresses in files."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nettop.collector.columns import ADDRESS, Coded, Flows
from nettop.collector.enrichment.networks import Intervals, Ranges, overlaid
from nettop.collector.enrichment.sources import NetworkFile
from nettop.snapshots.arrays import Array


class FlowSide(IntEnum):
    """Direction of a flow relative to own networks: values of the column `side`."""

    UNKNOWN = 0
    """No own networks given, or an address of the flow is unknown."""
    IN = 1
    OUT = 2
    INTERNAL = 3
    """From an own network to the same or another own network."""
    THROUGH = 4
    """From and to other networks."""


_UNREPORTED, _FOREIGN, _OWN = range(3)
_SIDES = np.array(
    [
        [FlowSide.UNKNOWN, FlowSide.UNKNOWN, FlowSide.UNKNOWN],
        [FlowSide.UNKNOWN, FlowSide.THROUGH, FlowSide.IN],
        [FlowSide.UNKNOWN, FlowSide.OUT, FlowSide.INTERNAL],
    ],
    np.int8,
)
"""FlowSide of a flow, indexed by the owner of its source, then of its destination."""


class Added(NamedTuple):
    """Columns added to flows (n,): values, including the completed `src_as` and `dst_as`, and texts."""

    values: Flows
    texts: dict[str, Coded]


class Enrichment:
    """Combined knowledge of all sources about every address, in one table. Immutable, so threads may share it.

    Without `own_networks` the side of every flow is unknown.
    """

    def __init__(self, sources: Sequence[NetworkFile] = (), own_networks: Ranges | None = None) -> None:
        own = own_networks or Ranges.of([])
        ranges = Ranges.joined([source.ranges for source in sources])
        files = np.repeat(np.arange(len(sources)), [len(source.ranges) for source in sources])
        words, codes = _joined_names(sources)
        values = (
            np.concatenate([np.zeros(0, np.uint32), *(source.as_numbers for source in sources)]),
            np.concatenate([np.zeros(0, "S2"), *(source.countries for source in sources)]),
            codes,
        )
        # Of names, the most specific one wins among all files.
        ranks = (files, files, np.zeros(len(ranges), np.uint8))
        known = [_known(ranges, *item) for item in zip(values, ranks, strict=True)]
        own_intervals = Intervals.of(own, np.zeros(len(own), np.int32))
        numbered, (own_indices, *indices) = overlaid([own_intervals, *(intervals for intervals, _ in known)])
        owners = np.where(own_indices < 0, _FOREIGN, _OWN) if len(own) else np.zeros(len(numbered), np.intp)
        owners[numbered.look_up(np.zeros(1, ADDRESS))] = _UNREPORTED
        of_intervals = [each[at] for (_, each), at in zip(known, indices, strict=True)]
        facts, columns = _fold_attributes([*of_intervals, owners])
        self._intervals = numbered.with_indices(facts)
        self._as_numbers, countries, name_codes, self._owners = columns
        self._countries = Coded.of(country.decode() for country in countries)
        self._names = Coded(name_codes, words)
        self._as_names: dict[int, str] = {}
        for source in reversed(sources):
            self._as_names |= source.as_names

    def enrich(self, flows: Flows) -> Added:
        """Look up flows, which have at least `src`, `dst`, `src_as` and `dst_as`.

        Keep an AS that the exporter reported.
        """
        both = np.concatenate([flows["src"], flows["dst"]])
        src, dst = np.split(self._intervals.look_up(both), 2)
        values = {"side": _SIDES[self._owners[src], self._owners[dst]]}
        texts = {}
        for side, facts in (("src", src), ("dst", dst)):
            reported = flows[f"{side}_as"]
            values[f"{side}_as"] = np.where(reported == 0, self._as_numbers[facts], reported)
            texts[f"{side}_country"] = self._countries.take(facts)
            texts[f"{side}_network"] = self._names.take(facts)
        return Added(values, texts)

    def as_names(self) -> dict[int, str]:
        """Return the names of AS numbers, unsanitized. Of two files the first one wins."""
        return dict(self._as_names)


def _joined_names(sources: Sequence[NetworkFile]) -> tuple[tuple[str, ...], Array]:
    """Return the words of all sources, and the name of every network as a code into them (n,)."""
    code_of = {"": 0}
    codes = [np.zeros(0, np.uint32)]
    for source in sources:
        own_codes = [code_of.setdefault(word, len(code_of)) for word in source.names.words]
        codes.append(np.array(own_codes, np.uint32)[source.names.codes])
    return tuple(code_of), np.concatenate(codes)


def _known(ranges: Ranges, values: Array, ranks: Array) -> tuple[Intervals, Array]:
    """Return the intervals of networks with a value, and the value of each index; the last one is for index −1."""
    unknown = np.zeros(1, values.dtype)
    rows = np.flatnonzero(values != unknown)
    distinct, codes = np.unique(values[rows], return_inverse=True)
    return Intervals.of(ranges.taken(rows), codes, ranks[rows]), np.append(distinct, unknown)


def _fold_attributes(attributes: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Return each interval's distinct combination of values (m,), and each attribute's value per combination."""
    facts: Array = np.zeros(len(attributes[0]), np.intp)
    for values in attributes:
        distinct, codes = np.unique(values, return_inverse=True)
        _, facts = np.unique(facts * len(distinct) + codes, return_inverse=True)
    _, firsts = np.unique(facts, return_index=True)
    return facts, [values[firsts] for values in attributes]
