# SPDX-License-Identifier: Apache-2.0
"""Tests of rows, of which filters are made: each gives a mask of the rows of a view that pass."""

from __future__ import annotations

import ipaddress
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nettop.query.address import address_halves
from nettop.snapshots.arrays import Mask

if TYPE_CHECKING:
    from nettop.query.view import View

Test = Callable[["View"], Mask]
"""Gives which rows of a view pass, gone ones included."""

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


def text_matches(op: str, value: str) -> TextMatcher:
    """Compares a text with `value`, without regard to case: = and != whole, ~ and !~ a part of it."""
    folded = value.casefold()
    return {
        "=": lambda text: text.casefold() == folded,
        "!=": lambda text: text.casefold() != folded,
        "~": lambda text: folded in text.casefold(),
        "!~": lambda text: folded not in text.casefold(),
    }[op]


def number_test(name: str, op: str, number: float) -> Test:
    """Compares a column of numbers; an unknown one never passes."""
    compare = COMPARE[op]

    def test(view: View) -> Mask:
        column = view.column(name)
        passed: Mask = np.asarray(compare(column.numbers, number), bool) & column.known
        return passed

    return test


def text_test(name: str, matches: TextMatcher) -> Test:
    """`matches` is called once per distinct text; a row without a value never passes."""

    def test(view: View) -> Mask:
        texts, places = view.texts(name)
        passes = np.zeros(len(texts) + 1, bool)
        passes[:-1] = [matches(text) for text in texts]
        passed: Mask = passes[places]
        return passed

    return test


def address_contains(name: str, text: str) -> Test:
    """As `text_test`, but addresses are not even written for a word that no address can contain."""
    contains = text_test(name, text_matches("~", text))
    possible = set(text.lower()) <= set("0123456789abcdef.:")

    def test(view: View) -> Mask:
        return contains(view) if possible or view.has_names else np.zeros(view.size, bool)

    return test


def in_network(name: str, network: Network) -> Test:
    """Addresses that are in a network, which is written in the IPv6 form that rows hold."""
    masks, wanted = _halves(int(network.netmask)), _halves(int(network.network_address))

    def test(view: View) -> Mask:
        high, low = address_halves(view.raw(name))
        passed: Mask = (high & masks[0] == wanted[0]) & (low & masks[1] == wanted[1])
        return passed & view.known(name)

    return test


def _halves(number: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(number >> 64), np.uint64(number & 0xFFFF_FFFF_FFFF_FFFF)


def shown_contains(name: str, text: str) -> Test:
    """For what has no table of distinct texts: looks at each row as it is shown."""
    folded = text.casefold()

    def test(view: View) -> Mask:
        shown = view.values(name, np.arange(view.size))
        passes = (value is not None and folded in value.casefold() for value in shown)
        return np.fromiter(passes, bool, view.size)

    return test


def known_test(name: str) -> Test:
    """Rows in which the column has a value, as `View.known` says."""
    return lambda view: view.known(name)


def opposite(test: Test) -> Test:
    """Rows that do not pass the test."""
    return lambda view: ~test(view)


def all_of(*tests: Test) -> Test:
    """Rows that pass every test: those that may need columns of their own stand last."""

    def all_rows(view: View) -> Mask:
        passed = np.ones(view.size, bool)
        for test in tests:
            if not passed.any():
                break
            passed &= test(view)
        return passed

    return tests[0] if len(tests) == 1 else all_rows


def any_of(*tests: Test) -> Test:
    """Rows that pass at least one of the tests."""

    def some(view: View) -> Mask:
        passed = np.zeros(view.size, bool)
        for test in tests:
            passed |= test(view)
        return passed

    return tests[0] if len(tests) == 1 else some
