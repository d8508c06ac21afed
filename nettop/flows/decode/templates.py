# SPDX-License-Identifier: Apache-2.0
"""Templates of NetFlow v9 and IPFIX: the fields of a record, as declared by the exporter."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from nettop.flows.decode.elements import LISTS, SAME_AS, VARIABLE, Element

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

    @property
    def is_of_all(self) -> bool:
        """Whether all templates of a kind are withdrawn."""
        return self.id < FIRST_DATA_SET


def parse_templates(version: int, set_id: int, body: bytes) -> Iterator[Template | Withdrawal]:
    """Yield the templates in the body of a set. Raise Malformed after the last readable one."""
    of_options = set_id == TEMPLATES[version] + 1
    at = 0
    # Anything shorter than a header is padding.
    while len(body) - at >= 4:
        read = _netflow_9_template if version == NETFLOW_9 else _ipfix_template
        template, at = read(body, at, of_options)
        if template is None:
            return
        yield template


def _netflow_9_template(body: bytes, at: int, of_options: bool) -> tuple[Template | Withdrawal | None, int]:
    if of_options:
        template_id, scope_bytes, option_bytes = _unpacked("!HHH", body, at)
        count, scopes, at = (scope_bytes + option_bytes) // 4, scope_bytes // 4, at + 6
    else:
        template_id, count = _unpacked("!HH", body, at)
        scopes, at = 0, at + 4
    if template_id < FIRST_DATA_SET:
        # Padding is zeros (RFC 3954, section 5.2).
        if template_id == 0:
            return None, len(body)
        raise Malformed(f"template {template_id}: IDs start at {FIRST_DATA_SET}")
    fields: list[TemplateField] = []
    _check_count(template_id, count)
    for _ in range(count):
        number, length = _unpacked("!HH", body, at)
        # Scopes have types of their own (RFC 3954, section 6.1), which are not elements.
        element = (SCOPE, number) if len(fields) < scopes else (0, number)
        fields.append(TemplateField(element, length))
        at += 4
    return _checked(Template(template_id, tuple(fields), of_options, scopes)), at


def _ipfix_template(body: bytes, at: int, of_options: bool) -> tuple[Template | Withdrawal | None, int]:
    template_id, count = _unpacked("!HH", body, at)
    at += 4
    if count == 0:
        if template_id == 0:
            return None, len(body)
        # ID 2 withdraws all templates, 3 all options templates (RFC 7011, section 8.1).
        if template_id < FIRST_DATA_SET and template_id != TEMPLATES[IPFIX] + of_options:
            raise Malformed(f"withdrawal of template {template_id}: IDs start at {FIRST_DATA_SET}")
        return Withdrawal(template_id, of_options), at
    if template_id < FIRST_DATA_SET:
        raise Malformed(f"template {template_id}: IDs start at {FIRST_DATA_SET}")
    scopes = 0
    if of_options:
        (scopes,) = _unpacked("!H", body, at)
        at += 2
        # RFC 7011 requires a scope (section 3.4.2.2), but exporters of both protocols send options without one.
        if scopes > count:
            raise Malformed(f"options template {template_id} has {scopes} scopes among {count} fields")
    _check_count(template_id, count)
    fields = []
    for _ in range(count):
        number, length = _unpacked("!HH", body, at)
        at += 4
        enterprise = 0
        if number & ENTERPRISE_BIT:
            (enterprise,) = _unpacked("!I", body, at)
            at += 4
        fields.append(TemplateField((enterprise, number & ~ENTERPRISE_BIT), length))
    return _checked(Template(template_id, tuple(fields), of_options, scopes)), at


def _unpacked(form: str, body: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, body, at)
    except struct.error:
        raise Malformed("a template ends before its last field") from None


def _check_count(template_id: int, count: int) -> None:
    if count > TEMPLATE_FIELDS_MAX:
        raise Malformed(f"template {template_id} has {count} fields, more than {TEMPLATE_FIELDS_MAX}")


def _checked(template: Template) -> Template:
    declared = {field.element for field in template.fields}
    if not SAME_AS.keys().isdisjoint(declared):
        template = replace(template, fields=tuple(_same(field, declared) for field in template.fields))
    if template.least_length == 0:
        raise Malformed(f"template {template.id} describes records of zero length")
    return template


def _same(field: TemplateField, declared: set[Element]) -> TemplateField:
    """Return the field with its equivalent IANA element, unless the template has that one as well."""
    same = SAME_AS.get(field.element, field.element)
    return field if same in declared else TemplateField(same, field.length)
