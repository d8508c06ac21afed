# SPDX-License-Identifier: Apache-2.0
"""Templates of NetFlow v9 and IPFIX: the fields of a record, as declared by the exporter."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from nettop.collector.decode.elements import LISTS, SAME_AS, VARIABLE, Element

NETFLOW_9, IPFIX = 9, 10
TEMPLATES = {NETFLOW_9: 0, IPFIX: 2}
"""Set ID of templates; options templates use the next one (RFC 3954, section 5.2; RFC 7011, section 3.3.2)."""
FIRST_DATA_SET = 256
TEMPLATE_FIELDS_MAX = 1024
"""Maximum fields of a template. A datagram could not hold a record with more."""
SCOPE = -1
"""Enterprise number given to scopes of NetFlow v9, which are not elements."""
ENTERPRISE_BIT = 0x8000
"""Bit of an element number that an enterprise number follows (RFC 7011, section 3.2)."""


class Malformed(Exception):
    """A violation of the protocol by a datagram or part of it."""


@dataclass(frozen=True, slots=True)
class TemplateField:
    """A field: its element, and its length in bytes or VARIABLE."""

    element: Element
    length: int


@dataclass(frozen=True)
class Template:
    """The fields of a record in order, and whether records are options.

    The first `scopes` fields of an options template say what the others apply to; without scopes they apply to the
    whole domain.
    """

    id: int
    fields: tuple[TemplateField, ...]
    of_options: bool = False
    scopes: int = 0

    @cached_property
    def is_fixed(self) -> bool:
        """Whether all records have the same length."""
        return all(field.length != VARIABLE for field in self.fields)

    @cached_property
    def has_lists(self) -> bool:
        """Whether records hold lists, which other templates of the same domain describe."""
        return any(field.element in LISTS for field in self.fields)

    @cached_property
    def least_length(self) -> int:
        """Length of a record whose variable-length fields are empty."""
        return sum(1 if field.length == VARIABLE else field.length for field in self.fields)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Withdrawal of a template or, if `id` is a set ID, of all templates of a kind."""

    id: int
    of_options: bool


def parse_templates(version: int, set_id: int, body: bytes) -> Iterator[Template | Withdrawal]:
    """Yield the templates in the body of a set. Raise Malformed after the last readable one."""
    of_options = set_id == TEMPLATES[version] + 1
    at = 0
    # Anything shorter than a header is padding, and so are zeros.
    while len(body) - at >= 4:
        template_id, count, scopes, at = _header(version, body, at, of_options)
        if template_id == 0 and (count == 0 or version == NETFLOW_9):
            return
        is_withdrawal = count == 0 and version == IPFIX
        # ID 2 withdraws all templates, 3 all options templates (RFC 7011, section 8.1).
        if template_id < FIRST_DATA_SET and not (is_withdrawal and template_id == set_id):
            raise Malformed(f"template {template_id}: IDs start at {FIRST_DATA_SET}")
        if is_withdrawal:
            yield Withdrawal(template_id, of_options)
            continue
        # RFC 7011 requires a scope (section 3.4.2.2), but exporters of both protocols send options without one.
        if not scopes <= count <= TEMPLATE_FIELDS_MAX:
            raise Malformed(f"template {template_id} has {count} fields and {scopes} scopes")
        fields, at = _fields(version, body, at, count, scopes)
        yield _checked(Template(template_id, fields, of_options, scopes))


def _header(version: int, body: bytes, at: int, of_options: bool) -> tuple[int, int, int, int]:
    """Return a template's ID, its numbers of fields and scopes, and the offset of its fields."""
    if of_options and version == NETFLOW_9:
        template_id, scope_bytes, option_bytes = _unpacked("!HHH", body, at)
        return template_id, (scope_bytes + option_bytes) // 4, scope_bytes // 4, at + 6
    template_id, count = _unpacked("!HH", body, at)
    if of_options and count:
        (scopes,) = _unpacked("!H", body, at + 4)
        return template_id, count, scopes, at + 6
    return template_id, count, 0, at + 4


def _fields(
    version: int, body: bytes, at: int, count: int, scopes: int
) -> tuple[tuple[TemplateField, ...], int]:
    """Return the fields of a template, and where they end."""
    fields: list[TemplateField] = []
    for place in range(count):
        number, length = _unpacked("!HH", body, at)
        at += 4
        enterprise = 0
        if version == NETFLOW_9:
            # Scopes have types of their own (RFC 3954, section 6.1), which are not elements.
            enterprise = SCOPE if place < scopes else 0
        elif number & ENTERPRISE_BIT:
            (enterprise,) = _unpacked("!I", body, at)
            number, at = number & ~ENTERPRISE_BIT, at + 4
        fields.append(TemplateField((enterprise, number), length))
    return tuple(fields), at


def _unpacked(form: str, body: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, body, at)
    except struct.error:
        raise Malformed("a template ends before its last field") from None


def _checked(template: Template) -> Template:
    declared = {field.element for field in template.fields}
    if not SAME_AS.keys().isdisjoint(declared):
        # An element stays as it is if the template has its equivalent as well.
        same = {element: to for element, to in SAME_AS.items() if to not in declared}
        fields = (
            TemplateField(same.get(field.element, field.element), field.length) for field in template.fields
        )
        template = replace(template, fields=tuple(fields))
    if template.least_length == 0:
        raise Malformed(f"template {template.id} describes records of zero length")
    return template
