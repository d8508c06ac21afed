# SPDX-License-Identifier: Apache-2.0
"""Folded stacks for flamegraph.pl, one per line: names separated by `;`, a space, the count."""

from __future__ import annotations

from collections import Counter

from nettop.stacks.counts import Profile, path_of


def folded(profile: Profile) -> str:
    """Return each distinct stack, summed over all CPUs and sorted by name; the first name is the entry point."""
    lines: Counter[str] = Counter()
    for count in profile.counts:
        lines[";".join(path_of(count))] += count.samples
    return "".join(f"{stack} {samples}\n" for stack, samples in sorted(lines.items()))
