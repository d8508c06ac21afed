# SPDX-License-Identifier: Apache-2.0
"""Row tests, the parts of filters. Each returns the mask of the rows that match."""

from __future__ import annotations

import ipaddress
import operator
import re
from collections.abc import Callable
from fnmatch import translate
from functools import reduce
from glob import escape
from typing import Any

import numpy as np

from nettop.query.address import address_halves
from nettop.query.columns import Columns
from nettop.query.values import values_of
from nettop.snapshots.arrays import Mask
from nettop.snapshots.schema import Field

Test = Callable[[Columns], Mask]
"""Function that returns the mask of matching rows, including gone ones."""

TextMatcher = Callable[[str], bool]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Pattern(str):
    """A text in which `*` matches any text, even none."""

    __slots__ = ()


def text_matches(op: str, value: str) -> TextMatcher:
    """Return a case-insensitive comparison with `value`: = compares the whole text, ~ a part."""
    folded = value.casefold()
    if isinstance(value, Pattern):
        around = "*" if op == "~" else ""
        glob = around + "*".join(map(escape, folded.split("*"))) + around
        matches = re.compile(translate(glob)).match  # linear in time, unlike .* in between
        return lambda text: matches(text.casefold()) is not None
    return (lambda text: folded in text.casefold()) if op == "~" else (lambda text: text.casefold() == folded)


def number_test(name: str, op: str, number: float) -> Test:
    """Compare a column of numbers. Unknown values never match."""
    compare = COMPARE[op]

    def test(columns: Columns) -> Mask:
        column = columns.column(name)
        passed: Mask = np.asarray(compare(column.numbers, number), bool) & column.known
        return passed

    return test


def text_test(name: str, matches: TextMatcher) -> Test:
    """Match a column of texts, calling `matches` once per distinct text. Rows without a value never match."""

    def test(columns: Columns) -> Mask:
        texts, places = columns.texts(name)
        passes = np.array([*map(matches, texts), False])
        passed: Mask = passes[places]
        return passed

    return test


def label_test(field: Field, matches: TextMatcher) -> Test:
    """Match a column of labels. Rows without a value, or with a number that has no label, never match."""
    passing = [code for code, label in field.labels.items() if matches(label)]

    def test(columns: Columns) -> Mask:
        passed = np.zeros(columns.size, bool)
        for code in passing if field.name not in columns.missing else ():
            passed |= columns.raw(field.name) == code
        return passed

    return test


def address_contains(name: str, text: str) -> Test:
    """Match addresses that contain `text`, without formatting them if no address can contain it."""
    contains = text_test(name, text_matches("~", text))
    possible = set(text.lower()) <= set("0123456789abcdef.:*")

    def test(columns: Columns) -> Mask:
        return contains(columns) if possible or columns.has_names else np.zeros(columns.size, bool)

    return test


def in_network(name: str, network: Network) -> Test:
    """Match addresses in a network, which is in IPv6 form like the rows' addresses."""
    masks, wanted = _halves(int(network.netmask)), _halves(int(network.network_address))

    def test(columns: Columns) -> Mask:
        high, low = address_halves(columns.raw(name))
        passed: Mask = (high & masks[0] == wanted[0]) & (low & masks[1] == wanted[1])
        return passed & columns.known(name)

    return test


def _halves(number: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(number >> 64), np.uint64(number & 0xFFFF_FFFF_FFFF_FFFF)


def shown_contains(name: str, text: str) -> Test:
    """Match rows by their displayed text, for columns without a table of distinct texts."""
    contains = text_matches("~", text)

    def test(columns: Columns) -> Mask:
        shown = values_of(columns, name, np.arange(columns.size))
        passes = (value is not None and contains(value) for value in shown)
        return np.fromiter(passes, bool, columns.size)

    return test


def known_test(name: str) -> Test:
    """Match rows in which the column has a value (`Columns.known`)."""
    return lambda columns: columns.known(name)


def once(text: str, test: Test) -> Test:
    """Test the same columns once for all filters that have this text in common, as the rules of a table do."""

    def tested(columns: Columns) -> Mask:
        masks = columns.tested
        if text not in masks:
            masks[text] = test(columns)
        return masks[text]

    return tested


def opposite(test: Test) -> Test:
    """Match rows that fail the test."""
    return lambda columns: ~test(columns)


def all_of(*tests: Test) -> Test:
    """Match rows that pass every test. Put tests that may compute columns last."""

    first, *others = tests

    def all_rows(columns: Columns) -> Mask:
        passed = first(columns)
        for test in others:
            if not passed.any():
                break
            passed = passed & test(columns)
        return passed

    return all_rows if others else first


def any_of(*tests: Test) -> Test:
    """Match rows that pass at least one of the tests."""
    first, *others = tests
    return (lambda columns: reduce(operator.or_, (test(columns) for test in tests))) if others else first
