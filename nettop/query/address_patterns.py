# SPDX-License-Identifier: Apache-2.0
"""Patterns of addresses in free text. Imports no numpy: doctor may report it as missing."""

IPV4 = r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)"
IPV6 = r"(?<![\w.:])(?=[^\s]*:[^\s]*:)[0-9A-Fa-f:.]+"
"""Also matches other texts with two colons."""
MAC = r"(?<![0-9A-Za-z:-])(?:[0-9A-Fa-f]{2}[:-]){5,}[0-9A-Fa-f]{2}(?![0-9A-Za-z])"
