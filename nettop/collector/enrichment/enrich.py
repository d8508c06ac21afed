# SPDX-License-Identifier: Apache-2.0
"""Add columns to flows by looking up their addresses in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nettop.collector.columns import ADDRESS, Flows
from nettop.collector.enrichment.networks import Intervals, Ranges, overlaid
from nettop.collector.enrichment.sources import Known, NetworkFile
from nettop.collector.enrichment.texts import Coded
from nettop.snapshots.arrays import Array

_UNKNOWN_RANK = 0xFF


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
        words, names = _join_names(sources)
        groups = ([each.as_numbers for each in sources], [each.countries for each in sources], names)
        known = [each for group in groups for each in group]
        own_intervals = Intervals.of(own, np.zeros(len(own), np.int32))
        numbered, (own_indices, *indices) = overlaid([own_intervals, *(each.intervals for each in known)])
        owners = np.where(own_indices < 0, _FOREIGN, _OWN) if len(own) else np.zeros(len(numbered), np.intp)
        owners[numbered.look_up(np.zeros(1, ADDRESS))] = _UNREPORTED
        each_index = iter(indices)
        attributes = [
            *(
                _choose_values([(each, next(each_index)) for each in group], dtype, len(numbered))
                for group, dtype in zip(groups, ("u4", "S2", "u4"), strict=True)
            ),
            (np.arange(3), owners),
        ]
        facts, columns = _fold_attributes(attributes)
        self._intervals = numbered.with_indices(facts)
        self._as_numbers, countries, name_codes, self._owners = columns
        self._countries = Coded.of(country.decode() for country in countries)
        self._names = Coded(name_codes, words)
        self._as_names: dict[int, str] = {}
        for each in reversed(sources):
            self._as_names |= each.as_names

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


def _join_names(sources: Sequence[NetworkFile]) -> tuple[tuple[str, ...], list[Known]]:
    """Return the words of all sources, and each source's names as codes into them."""
    code_of = {"": 0}
    names = []
    for source in sources:
        codes = [code_of.setdefault(word, len(code_of)) for word in source.words]
        names.append(replace(source.names, values=np.array(codes, np.uint32)[source.names.values]))
    return tuple(code_of), names


def _choose_values(known: Sequence[tuple[Known, Array]], dtype: str, count: int) -> tuple[Array, Array]:
    """Return the values of all sources, and for every interval the code of the best-ranked one (m,).

    Each source has its own index per interval.
    """
    unknown = np.zeros(1, dtype)
    values, codes = np.unique(
        np.concatenate([unknown, *(each.values for each, _ in known)]), return_inverse=True
    )
    chosen, best = np.zeros(count, np.intp), np.full(count, _UNKNOWN_RANK, np.uint8)
    begin = 1
    for each, index in known:
        end = begin + len(each.values)
        # The last entry is for index −1.
        rank = np.append(each.ranks, np.uint8(_UNKNOWN_RANK))[index]
        is_better = rank < best
        chosen[is_better] = codes[begin:end][index[is_better]]
        best[is_better] = rank[is_better]
        begin = end
    return values, chosen


def _fold_attributes(attributes: Sequence[tuple[Array, Array]]) -> tuple[Array, list[Array]]:
    """Return each interval's distinct combination of values (m,), and each attribute's value per combination."""
    facts: Array = np.zeros(len(attributes[0][1]), np.intp)
    for values, codes in attributes:
        if len(values) > 1:
            _, facts = np.unique(facts * len(values) + codes, return_inverse=True)
    _, firsts = np.unique(facts, return_index=True)
    return facts, [values[codes[firsts]] for values, codes in attributes]
