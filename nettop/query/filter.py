# SPDX-License-Identifier: Apache-2.0
"""Filters: terms such as `nginx`, `:443`, `pid=1812` and `rtt_us > 10ms`, all of which must hold."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from nettop.errors import UsageError, unknown_word
from nettop.query.row_tests import (
    COMPARE,
    Network,
    Test,
    address_contains,
    all_of,
    any_of,
    in_network,
    known_test,
    number_test,
    opposite,
    shown_contains,
    text_matches,
    text_test,
)
from nettop.query.units import UNKNOWN, factor_of, parse_quantity, unit_of
from nettop.snapshots.arrays import Mask
from nettop.snapshots.schema import Field, Kind, Table

if TYPE_CHECKING:
    from nettop.query.view import View

_TEXTUAL = frozenset({Kind.TEXT, Kind.ENUM, Kind.ADDRESS})
"""Kinds whose values are few distinct texts: `View.texts` has them."""

_EQUAL = ("=", "!=")
_CONTAIN = ("~", "!~")


@dataclass(frozen=True)
class Filter:
    """Which rows to show. Two filters are equal when their texts and tables are; the empty one passes all.

    `names` are the columns that it compares.
    """

    table: str
    text: str
    names: tuple[str, ...] = ()
    test: Test | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def is_empty(self) -> bool:
        """True when every row passes."""
        return self.test is None

    def mask(self, view: View) -> Mask:
        """Which rows pass: shape (len(view.rows),).

        A comparison with an unknown value is never true, not even `!=`.
        """
        return np.ones(view.size, bool) if self.test is None else self.test(view)


def parse_filter(table: Table, text: str) -> Filter:
    """The filter that `text` means for `table`. Filters are joined by a space: all of them must hold.

    `pid=–` passes rows without a value there. Raises UsageError, which names the term that is wrong and says how to
    correct it.
    """
    parser = _Parser(table, text)
    tests = tuple(parser.tests())
    names = tuple(dict.fromkeys(parser.names))
    return Filter(table.name, text.strip(), names, all_of(*tests) if tests else None)


def quote(text: str) -> str:
    """The text as one value or word of a filter, whatever it holds."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- reading the words --------------------------------------------------------------------------------------

_COMPARISON = re.compile(r"([A-Za-z_]\w*)\s*(!=|!~|>=|<=|==|=|>|<|~)\s*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s|$)')
_PLAIN = re.compile(r"\S+")
_SPACE = re.compile(r"\s*")
_AMOUNT = re.compile(r"([\d.,]+)\s+([A-Za-zµμ%/]+)(?=\s|$)")
_ENDPOINT = re.compile(r"(?P<host>\d+\.\d+\.\d+\.\d+|\[[0-9A-Fa-f:.]+\]|):(?P<port>[0-9]{1,5})")
_RESERVED = frozenset({"and", "or", "not"})


class _Parser:
    """Reads a filter from left to right. The one place that knows how terms are written and combined."""

    def __init__(self, table: Table, text: str) -> None:
        self._table = table
        self._text = text
        self._at = 0
        self.names: list[str] = []
        """The columns that were compared so far."""

    def tests(self) -> Iterable[Test]:
        """The test of each term, in their order."""
        while self._take(_SPACE) and self._at < len(self._text):
            start = self._at
            try:
                yield self._term()
            except UsageError as error:
                self._take(_PLAIN)
                seen = self._text[start : self._at].strip()
                raise UsageError(f"filter term ‘{seen}’: {error.what}", error.remedy) from None

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match

    def _term(self) -> Test:
        comparison = self._take(_COMPARISON)
        if comparison:
            name, op = comparison.groups()
            name = name if name in self._table.names else name.lower()
            if name not in self._table.names:
                raise unknown_word("field", comparison[1], self._table.names)
            self.names.append(name)
            return _comparison(self._table, name, "=" if op == "==" else op, self._value)
        quoted = self._quoted()
        return self._word() if quoted is None else _anywhere(self._table.stored, quoted)

    def _value(self, unit: str | None = None) -> str:
        """The value after an operator; of a field with a `unit`, `10 ms` is one value, as on the screen."""
        if unit is not None:
            amount = _AMOUNT.match(self._text, self._at)
            if amount and factor_of(amount[2], unit) is not None:
                self._at = amount.end()
                return amount[0]
        quoted = self._quoted()
        if quoted is not None:
            return quoted
        plain = self._take(_PLAIN)
        if plain is None:
            raise UsageError("the value is missing", 'write it after the operator; "" is the empty text')
        return plain[0]

    def _quoted(self) -> str | None:
        quoted = self._take(_QUOTED)
        if quoted:
            return re.sub(r"\\(.)", r"\1", quoted[1])
        if self._text.startswith('"', self._at):
            raise UsageError(
                "the quote is not closed, or text follows it directly",
                'write "…" and a space after it',
            )
        return None

    def _word(self) -> Test:
        """What a bare word means: a port, an address and port, or a text anywhere."""
        plain = self._take(_PLAIN)
        word = plain[0] if plain else ""
        if word.lower() in _RESERVED or "(" in word or ")" in word:
            raise UsageError(f"{word!r} has no meaning here", f"to find the text itself write {quote(word)}")
        if word[0] in "=!<>~":
            raise UsageError("no field before the operator", "write field, operator, value: rtt_us>10ms")
        endpoints = [field for field in self._table.fields if field.kind is Kind.ENDPOINT]
        match = _ENDPOINT.fullmatch(word)
        if endpoints and match:
            return any_of(*(_endpoint_equals(f, match["host"], int(match["port"])) for f in endpoints))
        return _anywhere(self._table.stored, word)


# --- words --------------------------------------------------------------------------------------------------


def _anywhere(fields: Iterable[Field], word: str) -> Test:
    """The word is part of a text, or is a number that names something."""
    fields = tuple(fields)
    tests = [
        address_contains(f.name, word)
        if f.kind is Kind.ADDRESS
        else text_test(f.name, text_matches("~", word))
        for f in fields
        if f.kind in _TEXTUAL
    ]
    number = _whole_number(word)
    if number is not None:
        tests += [number_test(f.name, "=", number) for f in fields if f.kind is Kind.LABEL]
    return any_of(*tests)


# --- comparisons --------------------------------------------------------------------------------------------


def _comparison(table: Table, name: str, op: str, value: Callable[..., str]) -> Test:
    """What `name op value` means, by the kind of the field. `value` reads the rest of the term."""
    field = table.by_name.get(name)
    if field is not None and field.kind is Kind.GROUP:
        return _group_comparison(table, field, op, value)
    if field is not None and field.kind is Kind.HISTOGRAM:
        raise _not_comparable(table, field, op)
    make = _MAKERS.get(field.kind) if field is not None else None
    if field is None or make is None:
        _check(name, op, COMPARE)
        unit = unit_of(table, name)
        text = value(unit)
        # Without a unit it stays whole, so that 64 bits are compared exactly.
        whole = _whole_number(text)
        return number_test(name, op, parse_quantity(text, unit) if whole is None else whole)
    text = value()
    if text == UNKNOWN and op in _EQUAL:
        return opposite(known_test(name)) if op == "=" else known_test(name)
    return make(field, op, text)


def _group_comparison(table: Table, field: Field, op: str, value: Callable[..., str]) -> Test:
    """A group contains what any of its parts does; in all else it is its first part."""
    parts = [table.by_name[part] for part in field.parts]
    if op not in _CONTAIN or not any(part.kind in _TEXTUAL for part in parts):
        return _comparison(table, field.parts[0], op, value)
    contains = _anywhere(parts, value())
    is_known = known_test(field.parts[0]) if op == "!~" else known_test(field.name)
    return all_of(is_known, contains if op == "~" else opposite(contains))


def _label(field: Field, op: str, value: str) -> Test:
    _check(field.name, op, COMPARE)
    number = _whole_number(value)
    if number is None:
        raise UsageError(
            f"{field.name} is a whole number, which {value!r} is not", f"write {field.name}{op}80"
        )
    return number_test(field.name, op, number)


def _time(field: Field, op: str, value: str) -> Test:
    _check(field.name, op, COMPARE)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        remedy = "write it as 2026-11-20T08:00:00Z, or a date alone"
        raise UsageError(f"{value!r} is not a time", remedy) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return number_test(field.name, op, since // timedelta(microseconds=1) * 1000)


def _text(field: Field, op: str, value: str) -> Test:
    _check(field.name, op, (*_EQUAL, *_CONTAIN))
    if field.kind is Kind.ENUM and op in _EQUAL:
        value = _enum_label(field, value)
    return text_test(field.name, text_matches(op, value))


def _address(field: Field, op: str, value: str) -> Test:
    _check(field.name, op, (*_EQUAL, *_CONTAIN))
    if op in _CONTAIN:
        contains = address_contains(field.name, value)
        return contains if op == "~" else all_of(known_test(field.name), opposite(contains))
    inside = in_network(field.name, _network(value))
    return inside if op == "=" else all_of(known_test(field.name), opposite(inside))


def _endpoint(field: Field, op: str, value: str) -> Test:
    """An endpoint is compared with `address:port`, `:port`, an address, or a network."""
    _check(field.name, op, (*_EQUAL, *_CONTAIN))
    address, port = field.parts
    if op in _CONTAIN:
        test = shown_contains(field.name, value)
    elif match := _ENDPOINT.fullmatch(value):
        test = _endpoint_equals(field, match["host"], int(match["port"]))
        if op == "!=":
            test = any_of(test, opposite(known_test(port)))
    else:
        test = in_network(address, _network(value))
    return all_of(known_test(field.name), opposite(test) if op.startswith("!") else test)


def _not_comparable(table: Table, field: Field, op: str) -> UsageError:
    instead = ", ".join(table.quantiles_of(field.name)) or "another field"
    return UsageError(f"{field.name} is a histogram, which {op} cannot compare", f"compare {instead} instead")


_MAKERS: dict[Kind, Callable[[Field, str, str], Test]] = {
    Kind.KEY: _label,
    Kind.LABEL: _label,
    Kind.TIME: _time,
    Kind.TEXT: _text,
    Kind.ENUM: _text,
    Kind.ADDRESS: _address,
    Kind.ENDPOINT: _endpoint,
}
"""How each kind is compared; the others are numbers with a unit."""


def _check(name: str, op: str, allowed: Iterable[str]) -> None:
    if op not in allowed:
        raise UsageError(f"{name} cannot be compared by {op}", f"use one of: {' '.join(allowed)}")


# --- values -------------------------------------------------------------------------------------------------


def _whole_number(text: str) -> int | None:
    """The number that up to 20 digits are, which is what 64 bits need."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


def _enum_label(field: Field, text: str) -> str:
    """The label that `text` is, or is the beginning of."""
    labels = {label.casefold(): label for label in field.labels.values()}
    wanted = text.casefold()
    near = [label for folded, label in labels.items() if folded.startswith(wanted)]
    if wanted in labels or len(near) == 1:
        return labels.get(wanted) or near[0]
    if near and text:
        remedy = f"write one of them, or {field.name}~{text}"
        raise UsageError(f"{text!r} could be {' or '.join(near)}", remedy)
    raise unknown_word(field.name, text, field.labels.values())


def _network(text: str) -> Network:
    """The address or network, IPv4 in the IPv6 form that rows hold."""
    try:
        network = ipaddress.ip_network(text.removeprefix("[").removesuffix("]"), strict=False)
    except ValueError:
        remedy = "write 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32; ~ finds a part of one"
        raise UsageError(f"{text!r} is not an address or network", remedy) from None
    if network.version == 4:
        mapped = int(network.network_address) | 0xFFFF_0000_0000
        return ipaddress.ip_network((mapped, network.prefixlen + 96))
    return network


def _endpoint_equals(field: Field, host: str, port: int) -> Test:
    address_name, port_name = field.parts
    same_port = number_test(port_name, "=", port)
    return all_of(in_network(address_name, _network(host)), same_port) if host else same_port
