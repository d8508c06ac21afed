# SPDX-License-Identifier: Apache-2.0
"""Benchmarks alternate their turns, and their page says first where another tool does better."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
ENVIRONMENT = {
    "at": "2026-11-30 12:00 UTC",
    "commit": "aaaaaaaa",
    "cpu": "x",
    "cpus": 2,
    "memory_gb": 8,
    "kernel": "6.1",
    "python": "3.11",
    "load": [0.1, 0.1, 0.1],
    "versions": {"ss": "6.1.0", "atop": None},
}


@pytest.fixture(name="modules")
def bench_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The harness without benchmarks, and the page."""
    before = {*sys.modules}
    monkeypatch.syspath_prepend(str(BENCH))
    import harness
    import page

    monkeypatch.setattr(page, "BENCHMARKS", harness.BENCHMARKS)
    yield {"harness": harness, "page": page}
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]


def test_every_script_can_be_imported() -> None:
    """Every script's imports exist, also of those that only some make target runs."""
    names = ", ".join(sorted(path.stem for path in BENCH.glob("*.py")))
    words = (
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = {[str(BENCH), str(BENCH.parent)]}; import {names}",
    )
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def declared(harness: ModuleType, turns: dict[str, Any], **more: Any) -> Any:
    """Declare a benchmark of these turns."""

    @harness.benchmark("trial", "A trial", {"time": "ms"}, over="rows", **more)
    def trial(_: Any) -> Iterator[dict[str, Any]]:
        """Nothing in particular."""
        yield turns

    return trial


def test_turns_alternate_around_the_base(modules: dict[str, Any]) -> None:
    """Each subject's turn is next to one of the base, and the order is reversed in every other round."""
    order: list[str] = []

    def turn(name: str, value: float) -> dict[str, float]:
        order.append(name)
        return {"time": value}

    values = {"none": 2.0, "a": 3.0, "b": 4.0, "c": 5.0}
    turns = {name: lambda name=name, value=value: turn(name, value) for name, value in values.items()}
    bench = declared(modules["harness"], turns, base="none", rounds=2, sizes=(1,))
    figures = modules["harness"].measure(bench, quick=False)["figures"]
    assert order == ["a", "none", "b", "c", "none", "c", "none", "b", "a", "none"]
    assert {measured["subject"]: (measured["median"], measured["unit"]) for measured in figures} == {
        "none": (2.0, "ms"),
        "a": (1.5, "×"),
        "b": (2.0, "×"),
        "c": (2.5, "×"),
    }


def test_a_peer_that_fails_is_named(modules: dict[str, Any]) -> None:
    """Another tool that fails or is not installed is left out, with the reason; nettop's own failure is an error."""

    def fail() -> float:
        raise SystemExit("it fails")

    turns = {"nettop": lambda: {"time": 1.0}, "sh": fail, "gone": lambda: {"time": 1.0}}
    bench = declared(modules["harness"], turns, peers={"sh": "sh", "gone": "no-such-program"}, sizes=(1,))
    result = modules["harness"].measure(bench, quick=False)
    assert {each["subject"] for each in result["figures"]} == {"nettop"}
    assert result["missing"] == {"sh": "it fails", "gone": "no-such-program is not installed"}
    with pytest.raises(SystemExit, match="it fails"):
        modules["harness"].measure(declared(modules["harness"], {"nettop": fail}, sizes=(1,)), quick=False)


def figure(subject: str, size: int, median: float, spread: float = 0.0) -> dict[str, Any]:
    """Return a figure as a result has it."""
    quartiles = {"low": median - spread, "median": median, "high": median + spread}
    return {"subject": subject, "metric": "time", "size": size, "unit": "ms", "n": 11} | quartiles


def pages(
    modules: dict[str, Any], folder: Path, figures: list[dict[str, Any]], **more: Any
) -> tuple[str, str]:
    """Write the pages of one result; return both."""
    harness = modules["harness"]
    bench = declared(harness, {}, sizes=(10, 100, 1000), peers={"ss": "ss"}, **more)
    result = harness.described(bench) | {"figures": figures, "missing": {"atop": "atop is not installed"}}
    harness.save(folder / "results" / "trial.json", result | {"seconds": 1.0, "environment": ENVIRONMENT})
    (folder / "docs" / "reference").mkdir(parents=True)
    modules["page"].write_pages(folder / "results", folder / "docs")
    return (folder / "docs" / "benchmarks.md").read_text(), (
        folder / "docs" / "reference" / "benchmarks.md"
    ).read_text()


def test_the_page_says_first_where_another_tool_is_faster(modules: dict[str, Any], tmp_path: Path) -> None:
    """The size with the largest disadvantage stands there, and the growth is that of the three largest sizes."""
    sizes = {10: (5.0, 1.0), 100: (6.0, 3.0), 1000: (7.0, 9.0)}
    figures = [
        figure(who, size, both[at]) for size, both in sizes.items() for at, who in enumerate(("nettop", "ss"))
    ]
    page, tables = pages(modules, tmp_path, figures)
    first = page.split("\n## ")[1]
    assert "- A trial, time, 10 rows: nettop 5.00; ss 1.00 (ms)" in first
    assert first.count("\n- ") == 1
    assert "atop (atop is not installed)" in tables
    assert (tmp_path / "docs" / "benchmarks" / "trial-time.svg").exists()
    growing = [figure("nettop", size, size**1.5 / 1000) for size in (10, 100, 1000)]
    assert modules["page"].growth([figure("nettop", 1, 50.0), *growing]) == ["n^1.50", "2,828,427"]


@pytest.mark.parametrize(
    ("quartiles", "base", "expected"),
    [
        ((1.02, 0.01), "none", "met"),
        ((1.05, 0.01), "none", "**missed**"),
        ((1.02, 0.04), "none", "no figure: the spread is larger than the claim"),
        ((1.02, 0.04), "", "met"),
    ],
)
def test_verdicts(
    modules: dict[str, Any], tmp_path: Path, quartiles: tuple[float, float], base: str, expected: str
) -> None:
    """A ratio whose spread is larger than its claim has no verdict."""
    target = modules["harness"].Target(1.03, "time", 1000)
    page, _ = pages(modules, tmp_path, [figure("nettop", 1000, *quartiles)], targets=(target,), base=base)
    (row,) = [line for line in page.splitlines() if line.startswith("| A trial")]
    assert row.split(" | ")[3] == expected
