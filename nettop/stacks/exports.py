# SPDX-License-Identifier: Apache-2.0
"""Exports of stacks as text: folded for flamegraph.pl, and for https://www.speedscope.app."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain

from nettop import __version__
from nettop.snapshots.cpu import CATEGORIES, CATEGORY_OF
from nettop.stacks.counts import Profile, path_of

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def folded(profile: Profile) -> str:
    """Return a line per distinct stack, sorted by name: names separated by `;`, a space, the samples of all CPUs.

    The first name is the entry point.
    """
    lines: Counter[str] = Counter()
    for count in profile.counts:
        lines[";".join(path_of(count))] += count.samples
    return "".join(f"{stack} {samples}\n" for stack, samples in sorted(lines.items()))


def speedscope(profile: Profile) -> str:
    """Return one sampled profile, in ns of CPU time, summed over all CPUs.

    The category of a function is its `file`, which speedscope shows and uses for the colour.
    """
    times: Counter[tuple[str, ...]] = Counter()
    for count in profile.counts:
        times[path_of(count)] += count.time_ns
    stacks = sorted(times)
    symbols = list(dict.fromkeys(chain(*stacks)))
    frames = {symbol: place for place, symbol in enumerate(symbols)}
    return json.dumps(
        {
            "$schema": _SCHEMA,
            "name": profile.title,
            "exporter": f"nettop {__version__}",
            "activeProfileIndex": 0,
            "shared": {"frames": [_frame(symbol) for symbol in symbols]},
            "profiles": [
                {
                    "type": "sampled",
                    "name": profile.title,
                    "unit": "nanoseconds",
                    "startValue": 0,
                    "endValue": times.total(),
                    "samples": [[frames[symbol] for symbol in stack] for stack in stacks],
                    "weights": [times[stack] for stack in stacks],
                }
            ],
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _frame(symbol: str) -> dict[str, str]:
    number = CATEGORY_OF.get(symbol)
    return {"name": symbol} if number is None else {"name": symbol, "file": CATEGORIES[number].label}
