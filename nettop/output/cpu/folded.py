# SPDX-License-Identifier: Apache-2.0
"""Folded stacks, one a line, as flamegraph.pl reads them: names separated by ;, a space, the count."""

from __future__ import annotations

from collections import Counter

from nettop.query.cpu import Profile, path_of


def folded(profile: Profile) -> str:
    """Each distinct stack once, summed over all CPUs and sorted by name; its first name is the entry point."""
    lines: Counter[str] = Counter()
    for count in profile.counts:
        lines[";".join(path_of(count))] += count.samples
    return "".join(f"{stack} {samples}\n" for stack, samples in sorted(lines.items()))
