# SPDX-License-Identifier: Apache-2.0
"""Write docs/benchmarks.md, docs/reference/benchmarks.md and their plots from bench/results/*.json.

`.venv/bin/python bench/page.py [--results DIR] [--docs DIR]`
"""

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import plot
from harness import CHECKOUT, NOTHING, OURS, RESULTS, described, git
from run import BENCHMARKS, REFERENCES, declare

Result = dict[str, Any]
Figure = dict[str, Any]
UNKNOWN = "–"
CONTROLS = (NOTHING, "empty programs")
LARGE = 2_000_000
"""The size to which growth is extrapolated."""
MADE = "<!-- Made by `make bench` from bench/results/*.json: do not edit. -->"
HEAD = f"""\
# Benchmarks

{MADE}

`make bench` measures everything here in half an hour and writes this page. Turns of nettop and of other tools
alternate, so that a busy moment affects all of them. A figure is the median, and its quartiles are in brackets. [All
figures](reference/benchmarks.md) has the tables, and [Scaling](internals/scaling.md) what follows for larger machines.
"""
PICTURES = """\
Lines are medians over sizes, those of other tools dashed; bars are ratios to the same load without any tool, those of
other tools grey, with quartiles as whiskers.
"""
TABLES_HEAD = f"""\
# All figures

{MADE}

[Benchmarks](../benchmarks.md) has the targets, the plots and the machine. A figure is the median of several turns, and
its quartiles are in brackets. Growth is the exponent fitted to the largest three sizes; what
follows from it for two million is no measurement.
"""


def read_results(folder: Path) -> dict[str, Result]:
    """Return the results by name, in the order of declaration; what was never measured has no figures."""
    found = {}
    for name, bench in BENCHMARKS.items():
        path = folder / f"{name}.json"
        measured = json.loads(path.read_text()) if path.exists() else {"figures": []}
        found[name] = measured | described(bench)
    return found


def figure_of(figures: Sequence[Figure], subject: str, metric: str, size: int) -> Figure | None:
    """Return the figure of a subject."""
    key = subject, metric, size
    return next(
        (
            measured
            for measured in figures
            if (measured["subject"], measured["metric"], measured["size"]) == key
        ),
        None,
    )


def shown(figure: Figure | None, spread: bool = True) -> str:
    """Return the median and the quartiles."""
    if figure is None:
        return UNKNOWN
    value = plot.number(figure["median"])
    if figure["n"] < 3 or not spread:
        return value
    return f"{value} ({plot.number(figure['low'])}–{plot.number(figure['high'])})"


def unit_of(result: Result, metric: str) -> str:
    """Return the unit of a metric; of ratios, the multiplication sign."""
    bases = [
        figure
        for figure in result["figures"]
        if figure["metric"] == metric and figure["subject"] != result["base"]
    ]
    return str(bases[0]["unit"]) if bases else ""


def named(result: Result, subject: str) -> str:
    """Return a subject's name, or nothing for nettop as a whole."""
    return (
        "" if subject == OURS and len({figure["subject"] for figure in result["figures"]}) == 1 else subject
    )


# --- verdicts ---------------------------------------------------------------------------------------------------------


def verdict(target: Mapping[str, Any], figure: Figure | None, base: str, stale: str | None) -> str:
    """Say whether a target is met. One whose spread is larger than what it claims is no figure."""
    if figure is None:
        return "not measured"
    if stale:
        return f"not measured since {stale}"
    claim = abs(target["bound"] - bool(base))
    if (base and figure["n"] < 3) or (figure["high"] - figure["low"]) / 2 > claim:
        return "no figure: the spread is larger than the claim"
    is_met = (
        figure["median"] >= target["bound"] if target["at_least"] else figure["median"] <= target["bound"]
    )
    return "met" if is_met else "**missed**"


@cache
def package_of(commit: str) -> str:
    """Return the last commit before this one that changed the package: others measure the same."""
    return git("log", "-1", "--format=%H", commit, "--", "nettop") or commit


def target_rows(results: Mapping[str, Result], references: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield a row for each target: what, the bound, the figure, the verdict, and the older commits' figures."""
    environments = [one_result["environment"] for one_result in results.values() if one_result["figures"]]
    newest = max(environments, key=lambda environment: environment["at"], default={"commit": ""})["commit"]
    for name, result in results.items():
        measured = result.get("environment", {}).get("commit", "")
        stale = None if package_of(measured) == package_of(newest) else measured
        for target in result["targets"]:
            sizes = sorted({each["size"] for each in result["figures"]}) or [0]
            for size in sizes if target["size"] is None else [target["size"]]:
                key = target["subject"], target["metric"], size
                figure = figure_of(result["figures"], *key)
                unit = "×" if result["base"] else result["units"][key[1]]
                what = words(result["title"], named(result, key[0]), key[1], amount(result, size))
                bound = f"{'≥' if target['at_least'] else '≤'} {target['bound']:g} {unit}"
                said = verdict(target, figure, result["base"], stale)
                olds = [
                    figure_of(references.get(reference, {}).get(name, []), *key) for reference in REFERENCES
                ]
                yield [what, bound, shown(figure), said, *(shown(old, spread=False) for old in olds)]


def words(*parts: str) -> str:
    """Join those that are not empty."""
    return ", ".join(filter(None, parts))


def amount(result: Result, size: int) -> str:
    """Return a size with what it counts."""
    return f"{size:,} {result['over']}" if result["over"] and size else ""


def slower(results: Mapping[str, Result]) -> Iterator[str]:
    """Yield a line for each metric by which another tool does better, at the size where it does so most clearly."""
    for result in (one_result for one_result in results.values() if one_result["figures"]):
        for metric in result["units"]:
            sign = -1 if metric in result["more_is_better"] else 1
            found = []
            for size in {figure["size"] for figure in result["figures"]}:
                at_size = [f for f in result["figures"] if (f["metric"], f["size"]) == (metric, size)]
                peers = [f for f in at_size if f["subject"] in result["peers"]]
                ours = [f for f in at_size if f["subject"] not in (*result["peers"], *CONTROLS)]
                best = min((sign * f["median"] for f in peers), default=math.inf)
                worst = max((sign * f["median"] for f in ours), default=-math.inf)
                if worst > best:
                    worse = [f for f in ours if sign * f["median"] > best]
                    better = [f for f in peers if sign * f["median"] < worst]
                    found.append((abs(worst - best) / max(abs(best), 1e-9), size, worse, better))
            if found:
                _, size, worse, better = max(found, key=lambda pair: pair[0])
                where = words(result["title"], metric, amount(result, size))
                yield f"- {where}: {values(worse)}; {values(better)} ({worse[0]['unit']})"


def values(figures: Sequence[Figure]) -> str:
    """Return subjects with their medians."""
    return ", ".join(f"{measured['subject']} {plot.number(measured['median'])}" for measured in figures)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is the head."""
    head, *rest = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest))


def growth(figures: Sequence[Figure]) -> list[str]:
    """Return the exponent fitted to the largest three sizes, by least squares of the logarithms, and what follows."""
    points = sorted((f["size"], f["median"]) for f in figures if f["size"] > 0 and f["median"] > 0)[-3:]
    if len(points) < 3:
        return [UNKNOWN, UNKNOWN]
    sizes, medians = zip(*points, strict=True)
    slope, _ = statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, medians)])
    return [f"n^{slope:.2f}", plot.number(medians[-1] * (LARGE / sizes[-1]) ** slope)]


def with_references(result: Result, references: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a result, followed by those of older commits, whose subjects name the commit."""
    olds = [
        figure | {"subject": f"{figure['subject']} at {commit}"}
        for commit in REFERENCES
        for figure in references.get(commit, {}).get(result["name"], [])
    ]
    return result["figures"] + olds


def section(result: Result, references: Mapping[str, Any]) -> Iterator[str]:
    """Yield the text of one benchmark: what it is, its plots, its table, and who is missing."""
    yield f"\n## {result['title']}\n\n{result['about']}\n"
    if not result["figures"]:
        reasons = "; ".join(result.get("missing", {}).values())
        yield f"Not measured{f': {reasons}' if reasons else ' yet'}.\n"
        return
    figures = with_references(result, references)
    metrics = list(dict.fromkeys(measured["metric"] for measured in figures))
    subjects = list(dict.fromkeys(measured["subject"] for measured in figures))
    sizes = sorted({measured["size"] for measured in figures})
    if len(sizes) > 1:
        rows = [[result["over"], *(f"{size:,}" for size in sizes), "growth", f"fitted: {LARGE:,}"]]
        for metric in metrics:
            for subject in subjects:
                own = [
                    measured
                    for measured in figures
                    if (measured["subject"], measured["metric"]) == (subject, metric)
                ]
                if own:
                    name = f"{subject}{f', {metric}' if metric else ''} ({own[0]['unit']})"
                    cells = [shown(figure_of(own, subject, metric, size)) for size in sizes]
                    rows.append([name, *cells, *growth(own)])
    else:
        rows = [
            [
                f"{sizes[0]:,} {result['over']}" if result["over"] else "",
                *(f"{m} ({unit_of(result, m)})".strip() for m in metrics),
            ]
        ]
        for subject in subjects:
            cells = [figure_of(figures, subject, metric, sizes[0]) for metric in metrics]
            units = {cell["unit"] for cell in cells if cell}
            own_unit = f" ({units.pop()})" if subject == result["base"] else ""
            rows.append([subject + own_unit, *map(shown, cells)])
    yield table(rows) + "\n"
    if result.get("missing"):
        yield "Not measured: " + "; ".join(f"{who} ({why})" for who, why in result["missing"].items()) + ".\n"


def drawings(result: Result, references: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the file name, the title and the text of each plot: lines over three sizes or more, bars for ratios."""
    figures = with_references(result, references)
    for metric in dict.fromkeys(measured["metric"] for measured in figures):
        title = ", ".join(filter(None, (result["title"], metric)))
        name = "-".join(filter(None, (result["name"], metric.replace(" ", "-"))))
        own = [
            measured
            for measured in figures
            if measured["metric"] == metric and measured["subject"] != result["base"]
        ]
        series: dict[str, list[plot.Point]] = {}
        for figure in own:
            series.setdefault(figure["subject"], []).append(
                (figure["size"], figure["median"], figure["low"], figure["high"])
            )
        peers, unit = result["peers"], unit_of(result, metric)
        if len({figure["size"] for figure in own}) > 2 and any(figure["median"] > 0 for figure in own):
            yield name, title, plot.lines(title, unit, result["over"], series, peers)
        elif result["base"] and result["peers"]:
            yield (
                name,
                title,
                plot.bars(title, unit, {who: points[0] for who, points in series.items()}, 1.0, peers),
            )


def machine(results: Mapping[str, Result]) -> Iterator[str]:
    """Yield where and when it was measured, and the versions of what is compared."""
    measured = [one_result for one_result in results.values() if one_result["figures"]]
    if not measured:
        return
    last = max(
        (environment["environment"] for environment in measured), key=lambda environment: environment["at"]
    )
    loads = [environment["environment"]["load"][0] for environment in measured]
    versions = ", ".join(
        f"{name} {version or '(not installed)'}" for name, version in last["versions"].items()
    )
    minutes = sum(environment["seconds"] for environment in measured) / 60
    yield (
        f"Measured until {last['at']} at commit {last['commit']}, in {minutes:.0f} minutes, on {last['cpus']} CPUs"
        f" ({last['cpu']}) with {last['memory_gb']} GB, Linux {last['kernel']}, Python {last['python']}. The load"
        f" average before each benchmark, of which the last one is a part, was {min(loads):.2f} to {max(loads):.2f}."
        f" {versions}.\n"
    )


# --- pages ------------------------------------------------------------------------------------------------------------


NOWHERE, NOTHING_YET = "- Nowhere that was measured.", "- Nothing was measured yet."


def write_pages(results_folder: Path, docs: Path) -> None:
    """Write both pages and the plots."""
    results = read_results(results_folder)
    path = results_folder / "reference.json"
    references = json.loads(path.read_text()) if path.exists() else {}
    folder = docs / "benchmarks"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    tables, pictures = [], []
    for result in results.values():
        tables += section(result, references)
        for name, title, svg in drawings(result, references) if result["figures"] else ():
            (folder / f"{name}.svg").write_text(svg)
            pictures.append(f"![{title}](benchmarks/{name}.svg)\n")
    worse = list(slower(results)) or [
        NOWHERE if any(map(itemgetter("figures"), results.values())) else NOTHING_YET
    ]
    targets = [["target", "bound", "figure", "verdict", *REFERENCES], *target_rows(results, references)]
    parts = [HEAD, "\n## Where another tool does better\n", *worse, "\n## Targets\n", table(targets)]
    parts += ["\n## Growth and price\n", PICTURES, *pictures, "\n## The machine\n", *machine(results)]
    save(docs / "benchmarks.md", parts)
    save(docs / "reference" / "benchmarks.md", [TABLES_HEAD, *tables])


def save(path: Path, parts: Sequence[str]) -> None:
    """Write a page, with one blank line between its parts."""
    path.write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n")


def main() -> int:
    """Write the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--docs", type=Path, default=CHECKOUT / "docs", metavar="DIR")
    options = parser.parse_args()
    declare()
    write_pages(options.results, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
