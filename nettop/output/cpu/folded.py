# SPDX-License-Identifier: Apache-2.0
"""Folded stacks, a line each, as flamegraph.pl and its kin read them: names with ; between, a blank, the count."""

from __future__ import annotations

from collections import Counter

from nettop.query.cpu import Profile, path_of


def folded(profile: Profile) -> str:
    """Each distinct stack once, all CPUs together, in the order of the names; the entry point is its first name."""
    lines: Counter[str] = Counter()
    for count in profile.counts:
        lines[";".join(path_of(count))] += count.samples
    return "".join(f"{stack} {samples}\n" for stack, samples in sorted(lines.items()))
