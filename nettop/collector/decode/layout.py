# SPDX-License-Identifier: Apache-2.0
"""Offsets of records and fields in data sets: vectorized for records of fixed length, else record by record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from nettop.collector.decode.datagrams import consecutive
from nettop.collector.decode.elements import BASIC_LIST, IANA, LISTS, SUBTEMPLATE_LIST, VARIABLE, Element
from nettop.collector.decode.framing import Sets
from nettop.collector.decode.records import ABSENT, FieldPlaces
from nettop.collector.decode.templates import ENTERPRISE_BIT, Malformed, Template, TemplateField
from nettop.snapshots.arrays import Array, Index, Mask, as_list

DEPTH_MAX = 4
"""Maximum nesting of lists that are decoded."""
_CHECKED_BYTES = 4
"""Bytes checked at either end of the remainder after a set's records."""

Fields = dict[Element, FieldPlaces]
_Spans = dict[Element, tuple[int, int]]
"""Offset and length of each element in one record; of repeated elements the first."""


def locate_records(
    buffer: Array, template: Template, starts: Index, ends: Index, templates: Mapping[int, Template]
) -> tuple[Index, Fields, Index]:
    """Locate the records and fields in data sets of one template, given the sets' offsets (s,).

    Return the set index of each record (n,), the places of its fields, and the sets that end within a record.
    `templates` are those of the same domain, for lists of records.
    """
    if template.is_fixed:
        return *_fixed_layout(template, starts, ends), np.zeros(0, np.intp)
    return _walk_records(buffer, template, starts, ends, templates)


def fits(template: Template, buffer: Array, sets: Sets, padding: int = 0) -> Mask:
    """Return which sets hold whole records, followed by only zeros or at most `padding` arbitrary bytes.

    Records of variable length delimit themselves, so their sets always count as fitting.
    """
    fit = np.ones(len(sets.id), bool)
    left = (sets.end - sets.start) % template.least_length
    if template.is_fixed and left.any():
        for at in range(_CHECKED_BYTES):
            for places in (sets.end - left + at, sets.end - 1 - at):
                fit &= (left <= at) | (buffer[np.where(left <= at, 0, places)] == 0)
        fit |= left <= padding
    return fit


def _fixed_layout(template: Template, starts: Index, ends: Index) -> tuple[Index, Fields]:
    length = template.least_length
    # The remainder is padding (RFC 7011, section 3.3.1).
    which, begins = consecutive(starts, (ends - starts) // length, length)
    fields: Fields = {}
    at = 0
    for field in template.fields:
        # Skip empty fields: a template of one-byte records could declare a thousand of them.
        if field.length and field.element not in fields:
            lengths = np.broadcast_to(np.intp(field.length), len(begins))
            fields[field.element] = FieldPlaces(begins + at, lengths)
        at += field.length
    return which, fields


def _walk_records(
    buffer: Array, template: Template, starts: Index, ends: Index, templates: Mapping[int, Template]
) -> tuple[Index, Fields, Index]:
    # A memoryview, as copying would duplicate the whole buffer once per template.
    walk = _FieldWalk(buffer.data, templates)
    which: list[int] = []
    records: list[_Spans] = []
    broken: list[int] = []
    for place, (start, end) in enumerate(zip(as_list(starts), as_list(ends), strict=True)):
        at = start
        try:
            while end - at >= template.least_length:
                spans, at = walk.record(template, at, end)
                which.append(place)
                records.append(spans)
        except Malformed:
            broken.append(place)
    elements = dict.fromkeys(element for spans in records for element in spans)
    fields = {
        element: _places([spans.get(element, (0, ABSENT)) for spans in records]) for element in elements
    }
    return np.array(which, np.intp), fields, np.array(broken, np.intp)


def _places(spans: list[tuple[int, int]]) -> FieldPlaces:
    columns = np.array(spans, np.intp).reshape(-1, 2)
    return FieldPlaces(columns[:, 0], columns[:, 1])


class _FieldWalk:
    """Walk over a record and its lists, noting where each field lies."""

    def __init__(self, data: memoryview, templates: Mapping[int, Template]) -> None:
        self._data = data
        self._templates = templates
        self._spans: _Spans = {}

    def record(self, template: Template, at: int, end: int) -> tuple[_Spans, int]:
        """Return the fields of the record at `at`, and its end. Raise Malformed if that lies beyond `end`."""
        self._spans = {}
        return self._spans, self._fields(template.fields, at, end, DEPTH_MAX)

    def _fields(self, fields: Iterable[TemplateField], at: int, end: int, depth: int) -> int:
        lists = []
        for field in fields:
            length = field.length
            if length == VARIABLE:
                at, length = self._variable_length(at, end)
            if at + length > end:
                raise Malformed("a field extends beyond its set")
            self._spans.setdefault(field.element, (at, length))
            if field.element in LISTS and depth:
                lists.append((field.element, at, at + length))
            at += length
        # Lists come last, so that the record's own fields take precedence over those within.
        for element, start, stop in lists:
            self._list(element, start, stop, depth - 1)
        return at

    def _variable_length(self, at: int, end: int) -> tuple[int, int]:
        """Return the offset and length of a variable-length field's content (RFC 7011, section 7)."""
        if at < end and self._data[at] < 0xFF:
            return at + 1, self._data[at]
        if at + 3 > end:
            raise Malformed("a field extends beyond its set")
        return at + 3, self._number(at + 1)

    def _number(self, at: int, width: int = 2) -> int:
        return int.from_bytes(self._data[at : at + width])

    # --- lists (RFC 6313, section 4.5), which begin with a semantic byte -------------------------------------------

    def _list(self, element: Element, at: int, end: int, depth: int) -> None:
        if element == BASIC_LIST:
            self._basic_list(at + 1, end, depth)
        elif element == SUBTEMPLATE_LIST:
            self._records(self._number(at + 1), at + 3, end, depth)
        else:
            self._multi_list(at + 1, end, depth)

    def _basic_list(self, at: int, end: int, depth: int) -> None:
        """Note the first of several values of one element."""
        number, length = self._number(at), self._number(at + 2)
        at += 4
        enterprise = IANA
        if number & ENTERPRISE_BIT:
            enterprise, at = self._number(at, 4), at + 4
        if at < end:
            self._fields([TemplateField((enterprise, number & ~ENTERPRISE_BIT), length)], at, end, depth)

    def _multi_list(self, at: int, end: int, depth: int) -> None:
        """Walk over records of several templates; each group states its total length."""
        while end - at >= 4:
            length = self._number(at + 2)
            if length < 4 or at + length > end:
                raise Malformed("a field extends beyond its set")
            self._records(self._number(at), at + 4, at + length, depth)
            at += length

    def _records(self, template_id: int, at: int, end: int, depth: int) -> None:
        """Walk over records of one template, unless it is unknown."""
        template = self._templates.get(template_id)
        while template is not None and end - at >= template.least_length:
            at = self._fields(template.fields, at, end, depth)
