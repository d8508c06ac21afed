# SPDX-License-Identifier: Apache-2.0
"""Filters: terms such as `nginx`, `10.0.0.0/8`, `pid=1812` and `RTT > 10ms`, with and, or, not and parentheses.

The parser maps what people know from other tools (`port 443`, `process:nginx`, `&&`, `in (a, b)`) to these terms. A
word with signs that mean something elsewhere, but nothing here, is refused, as no row would match it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from nettop.errors import FilterError, UsageError, unknown_word
from nettop.query.columns import Columns
from nettop.query.row_tests import (
    COMPARE,
    Network,
    Pattern,
    Test,
    address_contains,
    all_of,
    any_of,
    in_network,
    known_test,
    label_test,
    number_test,
    once,
    opposite,
    shown_contains,
    text_matches,
    text_test,
)
from nettop.query.units import UNKNOWN, factor_of, parse_quantity, unit_of
from nettop.settings import MAX_PORT
from nettop.snapshots import lenses
from nettop.snapshots.arrays import Mask
from nettop.snapshots.schema import RATE, Field, Kind, Table

_TEXTUAL = frozenset({Kind.TEXT, Kind.ENUM, Kind.ADDRESS})
"""Kinds with few distinct texts as values, which `Columns.texts` returns."""

_CONTAIN = ("~", "!~")
_NAMED = ("=", "!=", *_CONTAIN)
_ORDERED = tuple(COMPARE)
_OPPOSITES = {"!=": "=", "!~": "~"}


@dataclass(frozen=True)
class Filter:
    """A filter of rows. Two filters are equal if their texts and tables are; the empty one matches all rows.

    `names` are the columns it compares.
    """

    table: str
    text: str
    names: tuple[str, ...] = ()
    test: Test | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def is_empty(self) -> bool:
        """True if every row matches."""
        return self.test is None

    def mask(self, columns: Columns) -> Mask:
        """Return the mask of matching rows, shape (columns.size,).

        A comparison with an unknown value is never true, not even `!=`; `not` matches all rows that its term does not.
        """
        return np.ones(columns.size, bool) if self.test is None else self.test(columns)


def parse_filter(table: Table, text: str) -> Filter:
    """Parse a filter of `table`. Terms are combined by a space or `and`, which binds more tightly than `or`; `not`
    precedes a term or parentheses.

    `pid=–` matches rows without a value there. Raise FilterError with the position of an error and its remedy.
    """
    parser = _Parser(table, text)
    test = parser.test()
    return Filter(table.name, text.strip(), tuple(dict.fromkeys(parser.names)), test)


def combined(table: Table, filters: Sequence[Filter]) -> Filter:
    """Combine filters of `table` by `and`."""
    filters = [part for part in filters if part.test is not None]
    tests = [part.test for part in filters if part.test is not None]
    names = tuple(dict.fromkeys(name for part in filters for name in part.names))
    several = len(filters) > 1
    texts = (f"({part.text})" if several and _OR.search(part.text) else part.text for part in filters)
    return Filter(table.name, " and ".join(texts), names, all_of(*tests) if tests else None)


def replace_values(table: Table, text: str, replace: Callable[[tuple[str, ...], str], str]) -> str:
    """Return a filter of `table` with other values: `replace` gets the columns that a value is compared with, none for
    a bare word, and the value. Raise FilterError if the filter is invalid."""
    parser = _Parser(table, text)
    parser.test()
    replaced, at = [], 0
    for value in parser.values:
        other = replace(value.names, value.text)
        if other == value.text:
            continue
        is_plain = _PLAIN.fullmatch(other) and not _SIGNS.search(other) and text[value.begin] not in _QUOTES
        replaced += [text[at : value.begin], other if is_plain else quote(other)]
        at = value.end
    return "".join([*replaced, text[at:]])


def quote(text: str) -> str:
    """Quote a text so that a filter reads it as one value or word."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- parsing ------------------------------------------------------------------------------------------------

_SYNONYMS = {"==": "=", ":": "=", "in": "=", "is": "=", "not in": "!=", "contains": "~"}
"""Operators of other tools."""
_MEANT = {"src": "source local", "dst": "destination remote", "sport": "local_port", "dport": "remote_port"}
"""Fields of other tools, and those that may be meant here."""
_COMPARISON = re.compile(
    r"""(?P<name>[^\s=!<>~"'(),:&|-][^=!<>~"'(),:&|]*?)"""
    r"(?:(?<=\S)(?P<colon>:)(?=[^\s:])|\s*(?P<sign>!=|!~|>=|<=|==|=~|=|>|<|~)"
    r"|\s+(?P<word>(?:not\s+)?in(?=\s*\()|(?:is|contains)(?=\s+[^\s)])))\s*",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z_][\w./%]*")
_PAIR = re.compile(
    r"([A-Za-z_][\w./%]*)\s+(?!(?:and|or|not|in)\b|[\w./%]+\s*[=<>~!])([^\s()&|,!-][^\s()&|]*)", re.IGNORECASE
)
"""Two words: a comparison without an operator if the first is a field."""
_QUOTES = "\"'"
_QUOTED = re.compile(r"""(["'])((?:(?!\1)[^\\]|\\.)*)\1(?=[\s),&|]|$)""", re.DOTALL)
_PLAIN = re.compile(r"(?:[^\s(),&|]|\([^\s(),]*\))+")
"""Text without spaces and commas, and with balanced parentheses, as in `process=(sd-pam)`."""
_PLAIN_AMOUNT = re.compile(r"[^\s()&|]+")
_SIGNS = re.compile(r"""^-|^/.+/\w*$|["'`!$;<=>?\\^{}~*]""")
"""What a text has to be quoted for."""
_AMOUNT = re.compile(r"([\d.,]+)\s+([A-Za-zµμ%/]+)(?=[\s)&|]|$)")
_SPACE = re.compile(r"\s*")
_ENDPOINT = re.compile(
    r"(?P<host>\d+\.\d+\.\d+\.\d+(?:%[^\s:]+)?|\[[0-9A-Fa-f:.]+(?:%[^\s\]]+\]|\](?:%[^\s:]+)?)|localhost|)"
    r":(?P<port>[0-9]{1,5})(?:-(?P<last>[0-9]{1,5}))?",
    re.IGNORECASE,
)
"""An address and a port or range of ports, with an optional device: `[fe80::1%eth0]:80` or, as ss writes it,
`[fe80::1]%eth0:80`."""
_ZONED = re.compile(r"(?P<address>[^%]+)%(?P<zone>[^%\]/]+)\]?")
_AND, _OR, _NOT = (
    re.compile(rf"\b{word}(?=[\s()]|$)|{sign}", re.IGNORECASE)
    for word, sign in (("and", "&&?"), ("or", r"\|\|?"), ("not", r"!(?![=~])|-(?=\S)"))
)
_OPEN, _CLOSE, _COMMA = re.compile(r"\("), re.compile(r"\)"), re.compile(",")
_MAX_DEPTH = 50
"""Maximum nesting of `not` and parentheses."""


class _Value(NamedTuple):
    """A value in a filter: the columns it is compared with, where it begins and ends, and what it is."""

    names: tuple[str, ...]
    begin: int
    end: int
    text: str


class _Parser:
    """A recursive-descent parser of filters, the only code that knows their syntax."""

    def __init__(self, table: Table, text: str) -> None:
        self._table = table
        self._text = text
        self._at = 0
        self._term_at = 0
        self._token_at = 0
        self._depth = 0
        self._compared: tuple[str, ...] = ()
        self.names: list[str] = []
        """The columns compared so far."""
        self.values: list[_Value] = []
        """The values and bare words so far."""

    def test(self) -> Test | None:
        """Parse the whole text; None if it is empty. Raise FilterError if it is invalid."""
        self._take(_SPACE)
        if self._is_at_end:
            return None
        try:
            test = self._or_terms()
            if not self._is_at_end:
                self._begin_term()
                raise UsageError(
                    "this ) has no matching (", f"remove it, or write {quote(')')} to find the text"
                )
        except UsageError as error:
            rest = _PLAIN.match(self._text, self._token_at)
            end = max(self._at, rest.end() if rest else self._token_at + 1)
            term = self._text[self._term_at : end].strip()
            named = "" if error.what.startswith(f"{term} ") else term  # once is enough
            raise FilterError(error.what, error.remedy, self._text, self._token_at, named) from None
        return test

    # --- combining terms ---

    def _or_terms(self) -> Test:
        tests = [self._and_terms()]
        while self._take(_OR):
            tests.append(self._and_terms())
        return any_of(*tests)

    def _and_terms(self) -> Test:
        tests = [self._factor()]
        while not (self._is_at_end or self._sees(_CLOSE) or self._sees(_OR)):
            self._take(_AND)
            tests.append(self._factor())
        return all_of(*tests)

    def _factor(self) -> Test:
        self._begin_term()
        if self._depth == _MAX_DEPTH:
            raise UsageError(f"more than {_MAX_DEPTH} nested parentheses", "use fewer")
        self._depth += 1
        begins_at = self._term_at
        if self._take(_NOT):
            test = opposite(self._factor())
        elif self._take(_OPEN):
            opened_at = self._token_at
            test = self._or_terms()
            self._close(opened_at)
        else:
            test = self._term()
        self._depth -= 1
        return once(self._text[begins_at : self._at].strip(), test)

    def _close(self, opened_at: int) -> None:
        if not self._take(_CLOSE):
            self._term_at = self._token_at = opened_at
            raise UsageError("this ( is not closed", f"add ), or write {quote('(')} to find the text")

    # --- terms ---

    def _term(self) -> Test:
        if self._is_at_end or any(map(self._sees, (_CLOSE, _AND, _OR))):
            seen = _PLAIN.match(self._text, self._at)
            literally = f"; to find the text itself write {quote(seen[0])}" if seen else ""
            raise UsageError("a term is missing here", f"write a word or field=value{literally}")
        match = _COMPARISON.match(self._text, self._at)
        if match:
            name = " ".join(match["name"].split())
            names = self._columns(name)
            if names:
                self._take(_COMPARISON)
                op = match["colon"] or match["sign"] or " ".join(match["word"].casefold().split())
                return self._comparison(names, op)
            if _NAME.fullmatch(name) and (match["sign"] or name.casefold() in _all_names()):
                raise self._unknown(name)
        pair = _PAIR.match(self._text, self._at)
        return self._bare() if pair is None else self._pair(*pair.groups())

    def _pair(self, word: str, following: str) -> Test:
        """Parse `port 443`, a comparison without an operator; other words are bare ones."""
        names = self._columns(word)
        field = self._table.by_name.get(_compared_column(self._table, names[0], "=")) if names else None
        if field is not None and field.kind in _MAKERS.keys() - {Kind.TIME}:
            self._take(_NAME)
            return self._comparison(names, "=")
        if not re.search(r"\d", following) or not (names or word.casefold() in _all_names()):
            return self._bare()
        if names:
            raise UsageError(f"{word} needs an operator", f"write {word}>{following}")
        raise self._unknown(word)

    def _comparison(self, names: tuple[str, ...], op: str) -> Test:
        """Parse the values that columns are compared with."""
        if op == "=~":
            remedy = f"write {names[0]}~text to find a part, or {names[0]}=text* with * for any text"
            raise UsageError("there are no regular expressions", remedy)
        self.names += names
        self._compared = names
        opened_at = self._at if op.endswith("in") else None
        op = _SYNONYMS.get(op, op)
        columns = [_compared_column(self._table, name, op) for name in names]
        (unit,) = {_checked_unit(self._table, column, op) for column in columns}
        if opened_at is not None:
            self._take(_OPEN)
        unit = unit if opened_at is None else None
        values = [self._value(unit)]
        while op in _NAMED and self._take(_COMMA):
            values.append(self._value(unit))
        if opened_at is not None:
            self._close(opened_at)
        positive = _OPPOSITES.get(op, op)
        test = any_of(
            *(_comparison(self._table, shown, positive, value) for shown in columns for value in values)
        )
        if op == positive:
            return test
        return all_of(
            any_of(*(_has_value(self._table, shown, op, values) for shown in columns)), opposite(test)
        )

    def _columns(self, word: str) -> tuple[str, ...]:
        """Return the columns meant by a field's name, a title on the screen, `port` or `address`."""
        table, folded = self._table, word.casefold()
        by_title = {title.casefold(): name for title, name in table.by_title.items()}
        former = table.former.get(folded.replace("/s", RATE))
        for name in (word, folded, by_title.get(folded), by_title.get(f"{folded} utc"), former):
            if name in table.names:
                return (name,)
        return _multi_columns(table).get(folded, ())

    def _unknown(self, word: str) -> UsageError:
        meant = [name for name in _MEANT.get(word.casefold(), "").split() if self._columns(name)]
        if meant:
            return UsageError(f"unknown field {word!r}", f"did you mean {' or '.join(meant)}?")
        return unknown_word(
            "field", word, self._table.names, (*self._table.by_title, *_multi_columns(self._table))
        )

    def _value(self, unit: str | None = None) -> str:
        """Read the value after an operator. For a field with a `unit`, `10 ms` is one value, as on the screen."""
        if unit is not None:
            amount = _AMOUNT.match(self._text, self._at)
            if amount and factor_of(amount[2], unit) is not None:
                self._take(_AMOUNT)
                return self._noted(amount, amount[0])
        if quoted := self._take(_QUOTED):
            return self._noted(quoted, re.sub(r"\\(.)", r"\1", quoted[2], flags=re.DOTALL))
        self._token_at = self._at
        if self._text.startswith(tuple(_QUOTES), self._at):
            remedy = 'write "…", followed by a space'
            raise UsageError("the quote is not closed, or has no space after it", remedy)
        plain = self._take(_PLAIN if unit is None else _PLAIN_AMOUNT)
        if plain is None:
            remedy = 'write it after the operator; "" is the empty text, and quotes allow parentheses'
            raise UsageError("the value is missing", remedy)
        return self._noted(plain, _pattern(plain[0]))

    def _noted(self, match: re.Match[str], text: str) -> str:
        """Return a value, and note where it is."""
        self.values.append(_Value(self._compared, match.start(), match.end(), text))
        return text

    def _bare(self) -> Test:
        """Parse bare words with commas between them, of which one has to match."""
        self._compared = ()
        tests = [self._word()]
        while self._take(_COMMA):
            tests.append(self._word())
        return any_of(*tests)

    def _word(self) -> Test:
        """Interpret a bare word: a port, an address and port, an address or network, or a text anywhere."""
        if self._text.startswith(tuple("=!<>~"), self._at):
            remedy = "write field, operator, value: rtt_us>10ms; not before a term negates it"
            raise UsageError("no field before the operator", remedy)
        is_quoted, word = self._text.startswith(tuple(_QUOTES), self._at), self._value()
        if is_quoted:
            return _anywhere(self._table, word)
        endpoints = [field for field in self._table.fields if field.kind is Kind.ENDPOINT]
        match = _ENDPOINT.fullmatch(word)
        if endpoints and match:
            return any_of(*(_endpoint_equals(field, match) for field in endpoints))
        addresses = [field for field in self._table.fields if field.kind is Kind.ADDRESS]
        if addresses and _networks(word):
            return any_of(*(_in_network(field, word) for field in addresses))
        return _anywhere(self._table, word)

    # --- the text ---

    @property
    def _is_at_end(self) -> bool:
        return self._at == len(self._text)

    def _begin_term(self) -> None:
        self._term_at = self._token_at = self._at

    def _sees(self, pattern: re.Pattern[str]) -> bool:
        return pattern.match(self._text, self._at) is not None

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Consume a match at this position and the space after it; None if there is none."""
        match = pattern.match(self._text, self._at)
        if match:
            self._token_at = match.start()
            space = _SPACE.match(self._text, match.end())
            self._at = space.end() if space else match.end()
        return match


def _multi_columns(table: Table) -> dict[str, tuple[str, ...]]:
    """Return the words that name several columns: the ports of all endpoints, and all addresses."""
    ports = tuple(field.parts[1] for field in table.fields if field.kind is Kind.ENDPOINT)
    addresses = tuple(field.name for field in table.fields if field.kind is Kind.ADDRESS)
    words = {"port": ports, "address": addresses, "addr": addresses}
    return {word: names for word, names in words.items() if names}


@cache
def _all_names() -> frozenset[str]:
    """Return the names of the fields of all tables, and those of other tools."""
    tables = [table for lens in lenses() for table in lens.tables]
    return frozenset(chain(_MEANT, *(table.names for table in tables), *map(_multi_columns, tables)))


def _pattern(text: str) -> str:
    """Return a text without quotes, in which * matches any text. Raise UsageError for signs that mean nothing here."""
    sign = next((sign for sign in _SIGNS.findall(text) if sign != "*"), None)
    if sign is not None:
        remedy = f"write {quote(text)} to find the text itself; * matches any text"
        raise UsageError(f"{sign} has no meaning {'here' if sign == text else f'in {text}'}", remedy)
    return Pattern(text) if "*" in text else text


# --- bare words ---------------------------------------------------------------------------------------------


def _anywhere(table: Table, word: str) -> Test:
    """Match rows in which the word is part of a text, or equals a number that is a name, such as a port."""
    test = _contains_in_any(table.stored, word)
    if test is None:
        raise UsageError(f"no column of {table.name} can hold {word!r}", "compare a field: name>5")
    return test


def _contains_in_any(fields: Sequence[Field], word: str) -> Test | None:
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
    return any_of(*tests) if tests else None


# --- comparisons --------------------------------------------------------------------------------------------


def _compared_column(table: Table, name: str, op: str) -> str:
    """Return the column that a comparison is about: of a group its first part, unless `~` searches all of them."""
    field = table.by_name.get(name)
    if field is None or field.kind is not Kind.GROUP:
        return name
    has_texts = any(table.by_name[part].kind in _TEXTUAL for part in field.parts)
    return name if op in _CONTAIN and has_texts else _compared_column(table, field.parts[0], op)


def _checked_unit(table: Table, name: str, op: str) -> str | None:
    """Return the unit of a column's amounts; None if it has none. Raise UsageError if it does not support `op`."""
    field = table.by_name.get(name)
    if field is not None and field.kind is Kind.HISTOGRAM:
        instead = ", ".join(table.quantiles_of(name)) or "another field"
        raise UsageError(f"{name} is a histogram, which {op} cannot compare", f"compare {instead} instead")
    allowed, make = _MAKERS.get(field.kind, (_ORDERED, None)) if field is not None else (_ORDERED, None)
    if op not in allowed:
        raise UsageError(f"{name} does not support {op}", f"use one of: {' '.join(allowed)}")
    return unit_of(table, name) if make is None else None


def _comparison(table: Table, name: str, op: str, text: str) -> Test:
    """Return the test of `name op text`, by the field's kind. `op` is not negated."""
    field = table.by_name.get(name)
    if field is None or field.kind not in _MAKERS:
        # Without a unit it stays an integer, so that 64 bits are compared exactly.
        whole = _whole_number(text)
        return number_test(name, op, parse_quantity(text, unit_of(table, name)) if whole is None else whole)
    if field.kind is Kind.GROUP:
        contains = _contains_in_any([table.by_name[part] for part in field.parts], text)
        assert contains is not None, f"{field.name} has a part with texts"
        return all_of(known_test(field.name), contains)
    if text == UNKNOWN and op == "=":
        return opposite(known_test(name))
    return _MAKERS[field.kind][1](field, op, text)


def _has_value(table: Table, name: str, op: str, values: Sequence[str]) -> Test:
    """Match rows in which a column has a value, so that it may differ from others."""
    field = table.by_name.get(name)
    if field is None or field.kind not in _MAKERS:
        return lambda columns: columns.column(name).known
    if field.kind is Kind.ENUM:
        return label_test(field, bool)
    if field.kind is Kind.ENDPOINT and op == "!=" and any(map(_ENDPOINT.fullmatch, values)):
        return all_of(known_test(name), known_test(field.parts[1]))
    return known_test(field.parts[0] if field.kind is Kind.GROUP else name)


def _label(field: Field, op: str, value: str) -> Test:
    number = _whole_number(value)
    if number is None:
        raise UsageError(f"{field.name} is a whole number, not {value!r}", f"write {field.name}{op}80")
    if field.name.rpartition("_")[2] == "port":
        _require_port(number)
    return number_test(field.name, op, number)


def _time(field: Field, op: str, value: str) -> Test:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        remedy = "write it as 2026-11-20T08:00:00Z, or a date alone"
        raise UsageError(f"{value!r} is not a time", remedy) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return number_test(field.name, op, since // timedelta(microseconds=1) * 1000)


def _text(field: Field, op: str, value: str) -> Test:
    if field.kind is not Kind.ENUM:
        return text_test(field.name, text_matches(op, value))
    is_whole = op == "=" and not isinstance(value, Pattern)
    return label_test(field, text_matches(op, _enum_label(field, value) if is_whole else value))


def _address(field: Field, op: str, value: str) -> Test:
    return address_contains(field.name, value) if op == "~" else _in_network(field, value)


def _endpoint(field: Field, op: str, value: str) -> Test:
    """Compare an endpoint with `address:port`, `:port`, an address or a network."""
    if op == "~":
        return all_of(known_test(field.name), shown_contains(field.name, value))
    match = _ENDPOINT.fullmatch(value)
    return all_of(
        known_test(field.name), _endpoint_equals(field, match) if match else _in_network(field, value)
    )


_MAKERS: dict[Kind, tuple[Sequence[str], Callable[[Field, str, str], Test]]] = {
    Kind.KEY: (_ORDERED, _label),
    Kind.LABEL: (_ORDERED, _label),
    Kind.TIME: (_ORDERED, _time),
    Kind.TEXT: (_NAMED, _text),
    Kind.ENUM: (_NAMED, _text),
    Kind.ADDRESS: (_NAMED, _address),
    Kind.ENDPOINT: (_NAMED, _endpoint),
    Kind.GROUP: (_CONTAIN, _text),
}
"""The operators and the comparison of each kind; all other kinds are numbers with a unit. Of a group all parts are
compared."""


# --- values -------------------------------------------------------------------------------------------------


def _whole_number(text: str) -> int | None:
    """Parse up to 20 digits, the most that 64 bits need; None for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


def _enum_label(field: Field, text: str) -> str:
    """Return the label that equals `text`, or the only one that begins with it."""
    labels = {label.casefold(): label for label in field.labels.values()}
    wanted = text.casefold()
    near = [label for folded, label in labels.items() if folded.startswith(wanted)]
    if wanted in labels or len(near) == 1:
        return labels.get(wanted) or near[0]
    if near and text:
        remedy = f"write one of them, or {field.name}~{text}"
        raise UsageError(f"{text!r} could be {' or '.join(near)}", remedy)
    raise unknown_word(field.name, text, field.labels.values())


def _networks(text: str) -> list[Network]:
    """Parse an address or network, IPv4 in IPv6 form like the rows', or `localhost`, with or without a zone; empty if
    it is none of these."""
    if zoned := _ZONED.fullmatch(text):
        return _networks(zoned["address"])
    if text.casefold() == "localhost":
        return [*_networks("127.0.0.0/8"), *_networks("::1")]
    if "%" in text:  # no zone, which ip_network would drop
        return []
    try:
        network = ipaddress.ip_network(text.removeprefix("[").removesuffix("]"), strict=False)
    except ValueError:
        return []
    if network.version == 4:
        mapped = int(network.network_address) | 0xFFFF_0000_0000
        return [ipaddress.ip_network((mapped, network.prefixlen + 96))]
    return [network]


def _in_network(field: Field, text: str) -> Test:
    """Match rows whose address (the field, or an endpoint's first part) is in a network, and in the zone given
    after a %."""
    name = field.parts[0] if field.parts else field.name
    networks = _networks(text)
    if not networks:
        remedy = "write 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32; ~ finds a part of an address"
        raise UsageError(f"{text!r} is not an address or network", remedy)
    inside, zoned = any_of(*(in_network(name, network) for network in networks)), _ZONED.fullmatch(text)
    if zoned is None:
        return inside
    if not field.zone:
        raise UsageError(
            f"{text!r} names a device, which {field.name} does not have", f"write {zoned['address']}"
        )
    return all_of(inside, text_test(field.zone, text_matches("=", zoned["zone"])))


def _require_port(number: int) -> None:
    """Raise UsageError for an impossible port, which no row could match."""
    if number > MAX_PORT:
        raise UsageError(f"there is no port {number}", f"write a number up to {MAX_PORT}")


def _endpoint_equals(field: Field, match: re.Match[str]) -> Test:
    first, last = sorted((int(match["port"]), int(match["last"] or match["port"])))
    _require_port(last)
    ports = all_of(number_test(field.parts[1], ">=", first), number_test(field.parts[1], "<=", last))
    return all_of(_in_network(field, match["host"]), ports) if match["host"] else ports
