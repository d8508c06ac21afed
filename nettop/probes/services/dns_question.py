# SPDX-License-Identifier: Apache-2.0
"""The question of a DNS request as text."""

from __future__ import annotations

from nettop.snapshots.safe_text import safe_text

_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR",
    43: "DS", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 251: "IXFR", 252: "AXFR", 255: "ANY",
}  # fmt: skip
_LABEL_MAX = 63
_CUT = "…"


def question_text(question: bytes) -> str:
    """Return the name and type that a question begins with, such as `example.org AAAA`; empty if it has no name.

    A name that continues after the end of `question` ends in an ellipsis. Characters are escaped as in zone files
    (RFC 4343); a name in a question is never compressed.
    """
    labels, at = [], 0
    while at < len(question) and 0 < question[at] <= _LABEL_MAX:
        labels.append(question[at + 1 : at + 1 + question[at]])
        at += 1 + question[at]
    if at < len(question) and question[at]:
        return ""
    name = ".".join("".join(map(_escaped, label)) for label in labels)
    if at >= len(question):
        return safe_text(name + _CUT) if name else ""
    number = int.from_bytes(question[at + 1 : at + 3])
    kind = _TYPES.get(number, f"TYPE{number}") if at + 3 <= len(question) else ""
    return safe_text(f"{name or '.'} {kind}".rstrip())


def _escaped(byte: int) -> str:
    character = chr(byte)
    if character in ".\\":
        return f"\\{character}"
    return character if 0x21 <= byte < 0x7F else f"\\{byte:03}"
