# SPDX-License-Identifier: Apache-2.0
"""Checks nettop's categories against perf: `sudo .venv/bin/python bench/cpu_categories.py [SCENE …] [--samples 6000]`.

nettop and `perf record` sample the same traffic at the same time; perf_stacks.py classifies perf's samples with its own
tables. Shares have to agree within 3 points. Running one after the other is no use: two runs of perf alone differ more.
Exits with 1 if a bound is not kept.
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

from cpu_scenes import EVERYWHERE, SCENES, Expected, Scene, running
from measure import NETTOP, in_background
from perf_stacks import BESIDE_HZ, NETWORK_ACTION, SAME_HZ, SOFTIRQ, Sample, Seen, classified, perf_record

APART, UNKNOWN = 3.0, 3.0
"""Points by which a category's shares may differ, and percent that may have no category."""
MORE = 5.0
"""Percent of samples that one tool may have more: samples without a stack are in no share."""
ENOUGH, TO_SPARE = 5_000, 1.3
PATIENCE_S = 120.0
ENTRIES = ("TX syscalls", "RX syscalls", "TX softirq", "RX softirq")
"""The others do not occur in these scenes."""
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
        """Samples since then."""
        return self.samples - before.samples


@dataclass(frozen=True)
class Compared:
    """Samples of both tools; `unresolved` is of nettop's stacks, `adds_up`: its categories sum up to entries."""

    nettop: Counted
    unresolved: int
    perf: Seen
    adds_up: bool


def refreshes(lines: Iterator[bytes]) -> Iterator[list[Row]]:
    """The rows of each complete refresh of nettop: those with the same time."""
    rows: list[Row] = []
    for line in lines:
        row = json.loads(line)
        if rows and row["time"] != rows[0]["time"]:
            yield rows
            rows = []
        rows.append(row)


def reading_of(rows: Sequence[Row]) -> Reading:
    """One refresh of cpu.stacks.

    Without stacks at the border of a softirq, mostly nettop's own hooks: perf cannot say which softirq that is.
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
    """Whether a stack, root first, is in a softirq but not in its network work."""
    return SOFTIRQ.fullmatch(frames[0]) is not None and NETWORK_ACTION.keys().isdisjoint(frames[1:2])


def adds_up() -> bool:
    """Whether the samples of nettop's categories sum up to those of each entry point."""
    command = [NETTOP, "--view", "cpu.categories", *FORMAT, "--count", "3"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True).stdout
    rows: list[Row] = [json.loads(line) for line in lines.splitlines()]
    sums: Counter[tuple[object, object]] = Counter()
    whole: dict[tuple[object, object], object] = {}
    for row in rows:
        if row["samples"] is not None:
            sums[row["time"], row["entry"]] += int(str(row["samples"]))
            whole[row["time"], row["entry"]] = row["entry_samples"]
    return bool(whole) and whole == sums


def watched(scene: Scene, wanted: int) -> Compared:
    """Run both tools until nettop has `wanted` samples.

    perf begins some time after it creates its file: the comparison covers nettop's first refresh after perf's first
    sample to its last refresh.
    """
    stacks = ("--view", "cpu.stacks", *FORMAT, "--columns", "entry,category,samples,stack")
    with perf_record() as perf:
        with running(scene):
            with in_background(*stacks) as nettop:
                assert nettop.stdout
                readings = until_enough(
                    map(reading_of, refreshes(iter(nettop.stdout))), perf.has_begun, wanted
                )
                perf.end()
            sum_is_right = adds_up()
        booted_s = time.time() - time.monotonic()
        samples = perf.samples()
    first = next(reading for reading in readings if reading.at_s - booted_s >= samples[0].at_s)
    last = readings[-1]
    seen = classified(between(samples, first.at_s - booted_s, last.at_s - booted_s))
    return Compared(last.since(first), last.unresolved - first.unresolved, seen, sum_is_right)


def until_enough(readings: Iterator[Reading], may_begin: Callable[[], bool], wanted: int) -> list[Reading]:
    """The readings from when `may_begin` holds until they have more than `wanted` samples, or time is up."""
    first = next(reading for reading in readings if may_begin())
    kept = [first]
    end = time.monotonic() + PATIENCE_S
    while kept[-1].since(first).total() < wanted * TO_SPARE and time.monotonic() < end:
        kept.append(next(readings))
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
        self._compared: dict[str, Counted] = {}

    def say(self, text: str, kept: bool) -> None:
        """Print one line."""
        self.not_kept += not kept
        print(f"  {text} {'ok' if kept else 'NOT KEPT'}", flush=True)

    def scene(self, name: str, seen: Compared) -> None:
        """Print all figures of a scene."""
        self._compared[name] = seen.nettop
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
        elif expected.above in self._compared:
            more = share - of_categories(self._compared[expected.above], expected.entry).get(
                expected.category, 0.0
            )
            text += f", {more:+.1f} points above {expected.above}, expected ≥ {expected.least:g}"
            self.say(text, more >= expected.least)


def main() -> None:
    """Compare the named scenes, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--samples", type=int, default=6_000, help="network samples of each scene")
    options = parser.parse_args()
    verdicts = Verdicts()
    for name in options.scenes or SCENES:
        verdicts.scene(name, watched(SCENES[name], options.samples))
    print(f"\n{verdicts.not_kept} bounds not kept" if verdicts.not_kept else "\nall bounds kept")
    sys.exit(verdicts.not_kept > 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
