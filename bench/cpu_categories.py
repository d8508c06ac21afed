# SPDX-License-Identifier: Apache-2.0
"""Check nettop's categories against perf: `sudo .venv/bin/python bench/cpu_categories.py [SCENE …] [--samples 6000]`.

nettop and `perf record` sample the same traffic at the same time; perf_stacks.py classifies perf's samples with its own
tables. Shares must agree within 3 percentage points. They run at the same time because even two runs of perf differ
more than that. The exit code is 1 if a bound is missed.
"""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

from cpu_scenes import SCENES, traffic_of
from measure import Figure, arguments, at_least, judge
from perf_stacks import NETWORK_ACTION, PERF_HZ, SAME_HZ, SOFTIRQ, Recording, Seen, classified
from programs import in_background

APART, UNKNOWN = 3.0, 3.0
"""Percentage points by which a category's shares may differ, and percent that may have no category."""
MORE = 5.0
"""Percent by which the sample counts of the tools may differ: samples without a stack are in no share."""
ENOUGH, TO_SPARE = 5_000, 1.3
PATIENCE_S = 120.0
ENTRIES = ("TX syscalls", "RX syscalls", "TX softirq", "RX softirq")
"""The entry points that occur in these scenes."""
UNRESOLVED = "[unknown]"
FORMAT = ("-d", "--format", "jsonl", "-t", "1")

Row = Mapping[str, object]
Shares = Mapping[str, float]
Counted = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Reading:
    """A refresh of nettop: time (UTC, s), samples by entry point and category, and those with unknown addresses."""

    at_s: float
    samples: Counted
    unresolved: int

    def since(self, before: "Reading") -> Counted:
        """Return the samples since an earlier reading."""
        return self.samples - before.samples


@dataclass(frozen=True)
class Compared:
    """Samples of both tools; `unresolved` are nettop's."""

    nettop: Counted
    unresolved: int
    perf: Seen


def refreshes(lines: Iterator[bytes]) -> Iterator[list[Row]]:
    """Group nettop's rows by time; yield the rows of each complete refresh."""
    rows: list[Row] = []
    for line in lines:
        row = json.loads(line)
        if row.get("type") == "lost":
            continue
        if rows and row["time"] != rows[0]["time"]:
            yield rows
            rows = []
        rows.append(row)


def reading_of(rows: Sequence[Row]) -> Reading:
    """Summarize one refresh of cpu.stacks.

    Skip stacks at the border of a softirq, mostly nettop's own hooks: perf cannot tell which softirq it is.
    """
    samples: Counted = Counter()
    unresolved = 0
    for row in rows:
        frames, count = str(row["stack"]).split(";"), int(str(row["samples"]))
        if row["entry"] in ENTRIES and not is_border(frames):
            samples[str(row["entry"]), str(row["category"])] += count
            unresolved += count * (UNRESOLVED in frames)
    return Reading(datetime.fromisoformat(str(rows[0]["time"])).timestamp(), samples, unresolved)


def is_border(frames: Sequence[str]) -> bool:
    """Return whether a stack, root first, is in a softirq but not in its network handler."""
    return SOFTIRQ.fullmatch(frames[0]) is not None and NETWORK_ACTION.keys().isdisjoint(frames[1:2])


def watched(scene: str, wanted: int) -> Compared:
    """Run both tools until nettop has `wanted` samples.

    perf starts sampling some time after it creates its file, so the comparison covers nettop's first refresh after
    perf's first sample to nettop's last refresh.
    """
    stacks = ("--view", "cpu.stacks", *FORMAT, "--columns", "entry,category,samples,stack")
    with Recording() as perf:
        with traffic_of(scene), in_background(*stacks) as nettop:
            assert nettop.stdout
            readings = until_enough(
                map(reading_of, refreshes(iter(nettop.stdout))), perf.is_recording, wanted
            )
            perf.end()
        booted_s = time.time() - time.monotonic()
        samples = perf.samples()
    first = next(reading for reading in readings if reading.at_s - booted_s >= samples[0].at_s)
    last = readings[-1]
    both = [sample for sample in samples if first.at_s <= sample.at_s + booted_s < last.at_s]
    return Compared(last.since(first), last.unresolved - first.unresolved, classified(both))


def until_enough(readings: Iterator[Reading], may_begin: Callable[[], bool], wanted: int) -> list[Reading]:
    """Return the readings from when `may_begin` holds until they have enough samples, or time is up."""
    first = next(reading for reading in readings if may_begin())
    kept = [first]
    end = time.monotonic() + PATIENCE_S
    while kept[-1].since(first).total() < wanted * TO_SPARE and time.monotonic() < end:
        kept.append(next(readings))
    return kept


def shares(counted: Counted, place: int) -> Shares:
    """Return the percentage of samples by entry point (place 0) or category (1)."""
    counts: Counter[str] = Counter()
    for key, count in counted.items():
        counts[key[place]] += count
    return {name: 100 * count / counts.total() for name, count in counts.items()}


def scene_figures(seen: Compared) -> Iterator[Figure]:
    """Yield all figures of a scene."""
    ours, theirs = seen.nettop.total(), seen.perf.parts.total()
    yield at_least("network samples: nettop", ours, "", ENOUGH)
    yield at_least("network samples: perf", theirs, "", ENOUGH)
    more = 100 * (ours / theirs * fmean(PERF_HZ) / int(SAME_HZ) - 1)
    yield Figure(f"difference ({more:+.1f}%), frequencies taken into account", abs(more), "%", MORE)
    for place, title in enumerate(("entry point", "category")):
        yield from differences(title, shares(seen.nettop, place), shares(seen.perf.parts, place))
    for tool, counted, unresolved in (
        ("nettop", seen.nettop, seen.unresolved),
        ("perf", seen.perf.parts, seen.perf.unresolved),
    ):
        yield Figure(f"{tool}: other", shares(counted, 1).get("other", 0.0), "%", UNKNOWN)
        yield Figure(f"{tool}: unresolved", 100 * unresolved / counted.total(), "%", UNKNOWN)
    for frames, times in seen.perf.strange.most_common(3):
        print(f"    unclassified, {times}×: {frames}")


def differences(title: str, ours: Shares, theirs: Shares) -> Iterator[Figure]:
    """Yield the differences between the tools' shares."""
    for name in sorted(ours.keys() | theirs.keys(), key=lambda name: -ours.get(name, 0.0)):
        have, expected = ours.get(name, 0.0), theirs.get(name, 0.0)
        yield Figure(
            f"{title} {name:<22} {have:7.2f}% perf {expected:7.2f}%", abs(have - expected), "%", APART
        )


def main() -> int:
    """Compare the named scenes, or all."""
    options = arguments(__doc__, SCENES, samples=(6_000, "network samples per scene"))
    return judge(
        (f"{name}: {SCENES[name].__doc__}", scene_figures(watched(name, options.samples)))
        for name in options.parts
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
