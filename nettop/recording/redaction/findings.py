# SPDX-License-Identifier: Apache-2.0
"""Redaction of findings: their sentences are taken apart by the templates that they were made from, their filters by
the values in them. What matches no template is free text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from nettop.errors import NettopError
from nettop.query.filter import replace_values
from nettop.query.units import UNKNOWN
from nettop.recording.redaction import texts as treatments
from nettop.recording.redaction.texts import Texts, Treatment, treatment_of
from nettop.snapshots import all_rules, find_table, views
from nettop.snapshots.connections import UNATTRIBUTED
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.schema import Field, Kind, Table

_OPTIONAL = re.compile(r"(\[[^\]]*\])")
_VALUE = re.compile(r"(\{\w+\})")
_MORE = re.compile(r"(.*?)( and [\d,]+ more)?", re.DOTALL)
_NUMBER = rf"{UNKNOWN}|<?\d[\d.,]*(?:%|(?: ?[A-Za-zµ/]{{1,8}}))?(?: and [\d,]+ more)?"
_PROCESSES = ("other_end", "listener", "reader", "sender", "client")
"""Values in sentences that are processes, but in no column of the rows."""
_ENDPOINTS = ("target",)
"""Those that are endpoints."""

_SHORT = frozenset(("process", "namespace", "kind", "view", "peer"))
"""Texts that are no sentences; an older recording lacks some."""
Row = Mapping[str, Any]
"""A finding's row: its texts, and the numbers by which it is known."""


def redacted(texts: Texts, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return findings with other texts; None is unknown."""
    sentences = [_sentence(texts, row, "finding") for row in rows]
    return [
        dict(row)
        | {name: _short(texts, name, row[name]) for name in _SHORT & row.keys()}
        | {
            "finding": sentence,
            "advice": _sentence(texts, row, "advice"),
            "explains": _explained(rows, sentences, row),
            "filter": _filter(texts, row),
        }
        for row, sentence in zip(rows, sentences, strict=True)
    ]


def _short(texts: Texts, name: str, text: str | None) -> str | None:
    if text is None or text in (_rules() if name == "kind" else views() if name == "view" else ()):
        return text
    return treatment_of(FINDINGS.by_name[name])(texts, text)


def _explained(rows: Sequence[Row], sentences: Sequence[str | None], row: Row) -> str | None:
    """Return the sentences of the findings that follow from this one."""
    if row["explains"] is None:
        return None
    following = (said for other, said in zip(rows, sentences, strict=True) if other["cause"] == row["id"])
    return "; ".join(dict.fromkeys(said for said in following if said)) or None


# --- sentences --------------------------------------------------------------------------------------------------


_rules = cache(all_rules)


def _sentence(texts: Texts, row: Row, name: str) -> str | None:
    """Return the finding or the advice of a row with other values."""
    text, rule = row[name], _rules().get(row["kind"] or "")
    if text is None:
        return None
    for process in (row["process"], None):
        if process is not None:
            treatments.process(texts, process)  # so that it is known as a name
        parsed = None if rule is None else _parsed(rule[2].name, name, process, text)
        if rule is not None and parsed is not None:
            return "".join(_other(texts, rule[1], *part) for part in parsed)
    return texts.scrubbed(text)


def _parsed(kind: str, name: str, process: str | None, text: str) -> list[tuple[str, str]] | None:
    """Return the parts of a sentence, each with the name of its value, empty for the template's own words; None if
    the sentence was not made from the template. `process` is that of the finding, if known."""
    pattern, names = _pattern(kind, name, process)
    found = pattern.fullmatch(text)
    if found is None:
        return None
    return [(value, part) for value, part in zip(names, found.groups(), strict=True) if part is not None]


@lru_cache(1024)
def _pattern(kind: str, name: str, process: str | None) -> tuple[re.Pattern[str], list[str]]:
    """Return the pattern of a template's sentences, and the name of the value in each of its groups."""
    _, table, rule = _rules()[kind]
    pattern, names = "", list[str]()
    for part in filter(None, _OPTIONAL.split(rule.says if name == "finding" else rule.advice)):
        is_optional = part.startswith("[")
        within = ""
        for piece in filter(None, _VALUE.split(part[1:-1] if is_optional else part)):
            value = piece[1:-1] if piece.startswith("{") else ""
            names.append(value)
            within += f"({_pattern_of(table, value, process) if value else re.escape(piece)})"
        pattern += f"(?:{within})?" if is_optional else within
    return re.compile(pattern, re.DOTALL), names


def _pattern_of(table: Table, name: str, process: str | None) -> str:
    """Return the pattern of a value."""
    field = table.by_name.get(name)
    if name == "process" and process is not None:
        return re.escape(process)
    if name in _ENDPOINTS or (field is not None and field.kind in (Kind.ADDRESS, Kind.ENDPOINT)):
        return r"\S+?(?: and [\d,]+ more)?"
    if name in _PROCESSES or (field is not None and _has_text(field)):
        return ".+?"
    if field is not None and field.kind is Kind.ENUM:
        labels = "|".join(map(re.escape, field.labels.values()))
        return rf"(?:{labels}|{UNKNOWN})(?: and [\d,]+ more)?"
    return _NUMBER


def _has_text(field: Field) -> bool:
    return field.kind in (Kind.TEXT, Kind.ADDRESS, Kind.ENDPOINT, Kind.GROUP)


def _other(texts: Texts, table: Table, name: str, part: str) -> str:
    """Return a part of a sentence in place of another."""
    treatment = _treatment_in(table, name)
    if treatment is None or part in (UNKNOWN, UNATTRIBUTED):
        return part
    found = _MORE.fullmatch(part)
    assert found is not None
    value = treatment(texts, found[1])
    if value == found[1] and texts.knows_name_in(value):  # a name may look like the end of a template
        value = texts.scrubbed(value)
    return value + (found[2] or "")


def _treatment_in(table: Table, name: str) -> Treatment | None:
    """Return what is done with a value in a sentence or a filter; None if it stays."""
    field = table.by_name.get(name)
    if name in _PROCESSES:
        return treatments.process
    if name in _ENDPOINTS:
        return treatments.place
    if field is None or not _has_text(field):
        return None
    if field.kind is Kind.TEXT:
        return treatment_of(field)
    return treatments.place if field.kind in (Kind.ADDRESS, Kind.ENDPOINT) else treatments.scrubbed


# --- filters ----------------------------------------------------------------------------------------------------


def _filter(texts: Texts, row: Row) -> str | None:
    """Return the filter of a row with other values. One that cannot be read is left out, which is all rows."""
    if row["filter"] is None:
        return None
    try:
        _, table = find_table(row["view"] or "")
        return replace_values(
            table, row["filter"], lambda names, value: _other_value(texts, table, names, value)
        )
    except NettopError:
        return ""


def _other_value(texts: Texts, table: Table, names: tuple[str, ...], value: str) -> str:
    """Return a value in place of another, compared with these columns."""
    if value == UNKNOWN:
        return value
    for name in names:
        field = table.by_name.get(name)
        if (
            field is not None
            and field.kind is Kind.ENUM
            and not any(value in label for label in field.labels.values())
        ):
            return texts.scrubbed(value)
        treatment = _treatment_in(table, name)
        if treatment is not None:
            return treatment(texts, value)
    return value if names else texts.scrubbed(value)
