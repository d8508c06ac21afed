# SPDX-License-Identifier: Apache-2.0
"""Declare benchmarks, run them in interleaved turns, and write what they measured as JSON."""

import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
RESULTS = CHECKOUT / "bench" / "results"
OURS, NOTHING = "nettop", "nothing"
"""The subject that targets are about unless they name another, and the usual base of ratios."""

Number = int | float
Sample = Number | Sequence[Number] | Mapping[str, Number | Sequence[Number]]
"""Result of a turn: one value or several, or those of each metric."""
Turn = Callable[[], Sample]
Turns = Mapping[str, Turn]
"""The turns of each subject."""


@dataclass(frozen=True)
class Scale:
    """What one set-up is for: its size, whether it is only tried, and how nettop is started."""

    size: int
    quick: bool = False

    def pick(self, whole: Any, quick: Any) -> Any:
        """Return the value for a whole run or for a quick one."""
        return quick if self.quick else whole


@dataclass(frozen=True)
class Target:
    """The most that a figure may be, or with `at_least` the least; None as size stands for every size."""

    bound: float
    metric: str = ""
    size: int | None = None
    subject: str = OURS
    at_least: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A comparison of subjects. Its set-up yields their turns for one size of what `over` names."""

    name: str
    title: str
    about: str
    set_up: Callable[[Scale], AbstractContextManager[Turns]]
    units: Mapping[str, str]
    """Unit of each metric; the only metric may have the empty name."""
    over: str = ""
    sizes: tuple[int, ...] = (0,)
    quick_size: int = 0
    rounds: int = 5
    base: str = ""
    """With it, values are ratios to those of the base in the adjacent turn (one between every two subjects); its own
    are as measured."""
    peers: Mapping[str, str] = field(default_factory=dict)
    """The program that each subject other than nettop needs; `python3-NAME` stands for a module."""
    needs: tuple[str, ...] = ()
    """Programs without which nothing is measured."""
    targets: tuple[Target, ...] = ()
    more_is_better: tuple[str, ...] = ()
    """Metrics of which more is better."""
    has_reference: bool = False
    """Whether the commits of REFERENCES are measured too."""

    def missing(self, subject: str) -> str | None:
        """Return the program that a subject lacks."""
        program = self.peers.get(subject, "")
        is_module = program.startswith("python3-")
        found = importlib.util.find_spec(program[8:]) if is_module else shutil.which(program)
        return program if program and not found else None


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(
    name: str, title: str, unit: str | Mapping[str, str], **more: Any
) -> Callable[[Callable[[Scale], Iterator[Turns]]], Benchmark]:
    """Declare a benchmark by a generator that sets up one size and yields the turns; its docstring is printed."""

    def declare(generator: Callable[[Scale], Iterator[Turns]]) -> Benchmark:
        about = " ".join((generator.__doc__ or "").split())
        units = {"": unit} if isinstance(unit, str) else unit
        BENCHMARKS[name] = Benchmark(name, title, about, contextmanager(generator), units, **more)
        return BENCHMARKS[name]

    return declare


# --- turns ------------------------------------------------------------------------------------------------------------

Values = dict[tuple[str, str], list[float]]
"""Values by subject and metric."""


def values_of(sample: Sample) -> dict[str, list[float]]:
    """Return the values of each metric in the result of a turn; the empty name if it names none."""
    named = sample if isinstance(sample, Mapping) else {"": sample}
    return {
        metric: [float(item) for item in (value if isinstance(value, Sequence) else [value])]
        for metric, value in named.items()
    }


def take(bench: Benchmark, turns: Turns, rounds: int) -> tuple[Values, dict[str, str]]:
    """Return the values of all turns, and why peers failed.

    Turns alternate between the subjects so that a busy moment affects all of them. A peer that fails is left out.
    """
    taken: Values = {}
    failed: dict[str, str] = {}

    def keep(subject: str, sample: Mapping[str, Sequence[float]]) -> None:
        for metric, values in sample.items():
            taken.setdefault((subject, metric), []).extend(values)

    def run(subjects: Sequence[str]) -> None:
        got: dict[str, dict[str, list[float]]] = {}
        for subject in (name for name in subjects if name not in failed):
            try:
                got[subject] = values_of(turns[subject]())
            except SystemExit as error:
                if subject not in bench.peers:
                    raise
                failed[subject] = str(error)
        base = got.get(bench.base, {})
        for subject, sample in got.items():
            is_ratio = base and subject != bench.base
            keep(subject, {m: ratios(sample[m], base[m]) for m in sample} if is_ratio else sample)

    compared = [subject for subject in turns if subject != bench.base]
    for number in range(rounds):
        order = compared[:: -1 if number % 2 else 1]
        for at in range(0, len(order), 2 if bench.base else 1):
            run((order[at], bench.base, *order[at + 1 : at + 2]) if bench.base else (order[at],))
    return taken, failed


def ratios(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """Return a turn's ratio to the adjacent turn of the base; none if either has no value."""
    return [statistics.median(values) / statistics.median(bases)] if values and bases else []


def figures(bench: Benchmark, size: int, taken: Values) -> list[dict[str, Any]]:
    """Return median and quartiles of the values of each subject and metric."""
    rows = []
    for (subject, metric), values in taken.items():
        if not values:
            continue
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 2 else (min(values), 0, max(values))
        unit = "×" if bench.base and subject != bench.base else bench.units[metric]
        row = {"subject": subject, "metric": metric, "size": size, "unit": unit, "n": len(values)}
        rows.append(row | {"median": statistics.median(values), "low": low, "high": high})
    return rows


def measure(bench: Benchmark, quick: bool, reference: bool = False) -> dict[str, Any]:
    """Run a benchmark at all its sizes, or briefly at one; of a reference, only nettop's own subjects."""
    began, rows = time.monotonic(), []
    missing = {program: f"{program} is not installed" for program in bench.needs if not shutil.which(program)}
    sizes = (bench.quick_size or bench.sizes[0],) if quick else bench.sizes
    for size in () if missing else sizes:
        with bench.set_up(Scale(size, quick)) as turns:
            lacking = {subject: program for subject in turns if (program := bench.missing(subject))}
            present = {
                subject: turn
                for subject, turn in turns.items()
                if subject not in lacking and not (reference and subject in bench.peers)
            }
            taken, failed = take(bench, present, 1 if quick else bench.rounds)
            rows += figures(bench, size, taken)
            missing |= {
                subject: f"{program} is not installed" for subject, program in lacking.items()
            } | failed
    return {"figures": rows, "missing": missing, "seconds": round(time.monotonic() - began, 1)}


# --- results ----------------------------------------------------------------------------------------------------------

VERSION_FLAGS = {
    "ss": "-V", "nethogs": "-V", "iftop": "-h", "atop": "-V", "perf": "--version", "nginx": "-v", "wrk": "-v",
    "redis-server": "--version", "iperf3": "--version", "prometheus-node-exporter": "--version", "nfcapd": "-V",
    "sfcapd": "-V", "nfacctd": "-V", "nfdump": "-V",
}  # fmt: skip


def version(program: str) -> str | None:
    """Return the version that a program prints."""
    if not (path := shutil.which(program)):
        return None
    words = (path, VERSION_FLAGS[program])
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    found = re.search(r"\d+\.\d+[\w.]*", f"{done.stdout} {done.stderr}".replace(path, ""))
    return found[0] if found else "of an unknown version"


def git(*words: str) -> str:
    """Return what git prints of this checkout; empty if it fails."""
    done = subprocess.run(("git", "-C", str(CHECKOUT), *words), capture_output=True, text=True, check=False)
    return done.stdout.strip()


def commit() -> str:
    """Return the commit of this checkout, with a plus sign if the package differs from it."""
    return git("rev-parse", "--short=8", "HEAD") + ("+" if git("status", "--porcelain", "nettop") else "")


def environment() -> dict[str, Any]:
    """Describe the machine, its load at the moment, and what is compared."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {flag: version(flag) for flag in VERSION_FLAGS},
    }


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON, one figure a line, for whoever owns the checkout."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    text = re.sub(r"\n {3,}(?=\S)", " ", re.sub(r"\n {2,}([\]}])", r" \1", text)) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    owner = CHECKOUT.stat()
    for written in (path.parent, path):
        os.chown(written, owner.st_uid, owner.st_gid)


def described(bench: Benchmark) -> dict[str, Any]:
    """Return what the page says of a benchmark that was measured."""
    kept = ("name", "title", "about", "units", "over", "base", "more_is_better")
    return {name: getattr(bench, name) for name in kept} | {
        "peers": sorted(bench.peers),
        "targets": [asdict(target) for target in bench.targets],
    }
