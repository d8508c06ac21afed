# SPDX-License-Identifier: Apache-2.0
"""Is what nettop says of the network stack's CPU time true: `sudo .venv/bin/python bench/cpu_categories.py [SCENE …]
[--samples 6000]`.

nettop and `perf record` sample the same traffic at the same time; perf_stacks.py classifies what perf saw with
tables of its own. Shares have to agree within 3 points. One after the other would not do: two runs of
perf alone differ more. Ends with 1 where a bound is not kept.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

from cpu_scenes import EVERYWHERE, SCENES, Expected, Scene, on_stage
from measure import NETTOP, in_background
from perf_stacks import BESIDE_HZ, NETWORK_ACTION, SAME_HZ, SOFTIRQ, Sample, Seen, classified, perf_record

APART, UNKNOWN = 3.0, 3.0
"""Points that a category's shares may be apart, and percent that no category may have."""
MORE = 5.0
"""Percent of samples that one of them may have more: what has no stack is missing from all shares."""
ENOUGH, TO_SPARE = 5_000, 1.3
PATIENCE_S = 120.0
ENTRIES = ("TX syscalls", "RX syscalls", "TX softirq", "RX softirq")
"""Of those that nettop knows: the others are no part of these scenes."""
UNRESOLVED = "[unknown]"
FORMAT = ("-d", "--format", "jsonl", "-t", "1")

Row = Mapping[str, object]
Shares = Mapping[str, float]
Counted = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Reading:
    """A refresh of nettop's: its time (UTC, s), samples by entry point and category, those with unknown addresses."""

    at_s: float
    samples: Counted
    unresolved: int

    def since(self, before: "Reading") -> Counted:
        """What came since then."""
        return self.samples - before.samples


@dataclass(frozen=True)
class Compared:
    """What both saw of a scene; `unresolved` in nettop's own stacks, `adds_up`: its categories to its entry points."""

    nettop: Counted
    unresolved: int
    perf: Seen
    adds_up: bool


def refreshes(lines: Iterator[bytes]) -> Iterator[list[Row]]:
    """The rows of nettop's refreshes as they end: those of one time are one."""
    rows: list[Row] = []
    for line in lines:
        row = json.loads(line)
        if rows and row["time"] != rows[0]["time"]:
            yield rows
            rows = []
        rows.append(row)


def reading_of(rows: Sequence[Row]) -> Reading:
    """One refresh of cpu.stacks.

    Left out is what stands at a softirq's border, nettop's own hooks above all: perf cannot tell which softirq that is.
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
    """Whether a stack, root first, is a softirq's, but not inside of what it does for the network."""
    return SOFTIRQ.fullmatch(frames[0]) is not None and NETWORK_ACTION.keys().isdisjoint(frames[1:2])


def adds_up() -> bool:
    """Whether the samples of nettop's categories are all of each entry point's, now."""
    command = [NETTOP, "--view", "cpu.categories", *FORMAT, "--count", "3"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True).stdout
    told: list[Row] = [json.loads(line) for line in lines.splitlines()]
    sums: Counter[tuple[object, object]] = Counter()
    whole: dict[tuple[object, object], object] = {}
    for row in told:
        if row["samples"] is not None:
            sums[row["time"], row["entry"]] += int(str(row["samples"]))
            whole[row["time"], row["entry"]] = row["entry_samples"]
    return bool(whole) and whole == sums


def watched(scene: Scene, wanted: int) -> Compared:
    """Both tools at once, until nettop has so many samples.

    perf begins some time after its file does: what counts is the time between nettop's first refresh after perf's first
    sample and its last one.
    """
    stacks = ("--view", "cpu.stacks", *FORMAT, "--columns", "entry,category,samples,stack")
    with perf_record() as perf:
        with on_stage(scene):
            with in_background(*stacks) as nettop:
                assert nettop.stdout
                told = until_enough(map(reading_of, refreshes(iter(nettop.stdout))), perf.has_begun, wanted)
                perf.end()
            sum_is_right = adds_up()
        booted_s = time.time() - time.monotonic()
        samples = perf.samples()
    first = next(one for one in told if one.at_s - booted_s >= samples[0].at_s)
    last = told[-1]
    seen = classified(between(samples, first.at_s - booted_s, last.at_s - booted_s))
    return Compared(last.since(first), last.unresolved - first.unresolved, seen, sum_is_right)


def until_enough(told: Iterator[Reading], may_begin: Callable[[], bool], wanted: int) -> list[Reading]:
    """The readings from when it may begin until they have so many samples, with some to spare, or patience ends."""
    first = next(one for one in told if may_begin())
    kept = [first]
    end = time.monotonic() + PATIENCE_S
    while kept[-1].since(first).total() < wanted * TO_SPARE and time.monotonic() < end:
        kept.append(next(told))
    return kept


def between(samples: list[Sample], begin_s: float, end_s: float) -> list[Sample]:
    """The samples of that time (CLOCK_MONOTONIC)."""
    return [sample for sample in samples if begin_s <= sample.at_s < end_s]


def shares(names: Iterable[tuple[str, int]]) -> Shares:
    """Percent of all samples by name."""
    counts: Counter[str] = Counter()
    for name, count in names:
        counts[name] += count
    return {name: 100 * count / counts.total() for name, count in counts.items()}


def of_entries(counted: Counted) -> Shares:
    """Shares of entry points."""
    return shares((entry, count) for (entry, _), count in counted.items())


def of_categories(counted: Counted, of: str = EVERYWHERE) -> Shares:
    """Shares of categories, in all entry points or in one."""
    return shares((name, count) for (entry, name), count in counted.items() if of in (EVERYWHERE, entry))


class Verdicts:
    """Prints each figure beside its bound, and counts those that are not kept."""

    def __init__(self) -> None:
        self.not_kept = 0
        self._told: dict[str, Counted] = {}

    def say(self, text: str, kept: bool) -> None:
        """One line."""
        self.not_kept += not kept
        print(f"  {text} {'ok' if kept else 'NOT KEPT'}", flush=True)

    def scene(self, name: str, seen: Compared) -> None:
        """All that is to be said of a scene."""
        self._told[name] = seen.nettop
        ours, theirs = seen.nettop.total(), seen.perf.parts.total()
        print(f"\n{name}: {SCENES[name].about}")
        more = 100 * (ours / theirs * fmean(BESIDE_HZ) / int(SAME_HZ) - 1)
        self.say(f"network samples: nettop {ours:,}, perf {theirs:,}", min(ours, theirs) >= ENOUGH)
        self.say(f"nettop has {more:+.1f}% of them, frequencies taken into account", abs(more) <= MORE)
        self._compare("entry point", of_entries(seen.nettop), of_entries(seen.perf.parts))
        self._compare("category", of_categories(seen.nettop), of_categories(seen.perf.parts))
        self.say("nettop's categories add up to its entry points", seen.adds_up)
        self._unknown("nettop", seen.nettop, seen.unresolved)
        self._unknown("perf", seen.perf.parts, seen.perf.unresolved)
        for frames, times in seen.perf.strange.most_common(3):
            print(f"    in no part, {times}×: {frames}")
        for expected in SCENES[name].expected:
            self._expect(expected, seen.nettop)

    def _compare(self, title: str, ours: Shares, theirs: Shares) -> None:
        """A table of shares side by side."""
        print(f"  {title:<22} {'nettop':>8} {'perf':>8} {'apart':>8}")
        apart = {name: ours.get(name, 0.0) - theirs.get(name, 0.0) for name in ours.keys() | theirs.keys()}
        for name in sorted(apart, key=lambda name: -ours.get(name, 0.0)):
            figures = f"{ours.get(name, 0.0):7.2f}% {theirs.get(name, 0.0):7.2f}% {apart[name]:+7.2f} "
            self.say(f"{name:<22} {figures}", abs(apart[name]) <= APART)
        furthest = max(apart, key=lambda name: abs(apart[name]))
        print(f"  {'furthest apart':<22} {abs(apart[furthest]):26.2f}  {furthest}")

    def _unknown(self, tool: str, counted: Counted, unresolved: int) -> None:
        other, unknown = of_categories(counted).get("other", 0.0), 100 * unresolved / counted.total()
        self.say(f"{tool}: other {other:.2f}%, unresolved {unknown:.2f}%", max(other, unknown) <= UNKNOWN)

    def _expect(self, expected: Expected, counted: Counted) -> None:
        share = of_categories(counted, expected.entry).get(expected.category, 0.0)
        text = f"{expected.category} {share:.1f}% of {expected.entry}"
        if not expected.above:
            self.say(f"{text}, expected ≥ {expected.least:g}%", share >= expected.least)
        elif expected.above in self._told:
            more = share - of_categories(self._told[expected.above], expected.entry).get(
                expected.category, 0.0
            )
            text += f", {more:+.1f} points above {expected.above}, expected ≥ {expected.least:g}"
            self.say(text, more >= expected.least)


def main() -> None:
    """Compares the named scenes, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--samples", type=int, default=6_000, help="network samples of each scene")
    asked = parser.parse_args()
    verdicts = Verdicts()
    for name in asked.scenes or SCENES:
        verdicts.scene(name, watched(SCENES[name], asked.samples))
    print(f"\n{verdicts.not_kept} bounds not kept" if verdicts.not_kept else "\nall bounds kept")
    sys.exit(verdicts.not_kept > 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
