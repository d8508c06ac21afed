# SPDX-License-Identifier: Apache-2.0
"""Write docs/reference/kernels.md from the results of test-kernels.py: kernel × lens × hook × mechanism.

test-kernels.py --write-docs calls it at the end; run it as a script with the directory of --keep to do so later.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.snapshots import lenses  # noqa: E402 - the checkout comes first
from nettop.snapshots.schema import Hook, Lens  # noqa: E402

LENSES = lenses()
"""Imported at the start: runs take half an hour, and the checkout may change meanwhile."""
PAGE = ROOT / "docs" / "reference" / "kernels.md"
HOST = "host"
"""Name of the run on the running kernel."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A test's verdict on a mechanism selected for a hook: "same" as the others, or "refused" with the reason."""

    hook: str
    mechanism: str
    verdict: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """The core tests and doctor on one kernel, with doctor's exit status and its report or None.

    `failures` maps pytest's names of failed tests to its messages.
    """

    name: str
    release: str
    counts: Counter[str]
    ended: bool
    failures: Mapping[str, str] = field(default_factory=dict)
    proofs: tuple[Proof, ...] = ()
    doctor_status: str = ""
    doctor: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether all tests ran, none failed, and doctor reported no problem.

        On an unsupported kernel, doctor may report that a lens cannot work.
        """
        tested = self.ended and bool(self.counts["passed"]) and not self.counts["failed"]
        return tested and self.doctor_status in (["0"] if self.is_supported else ["0", LENS_REFUSED])

    @property
    def is_supported(self) -> bool:
        """Whether nettop supports the kernel."""
        return not self.release[:1].isdigit() or _version(self.release) >= OLDEST

    @property
    def summary(self) -> str:
        """Return a summary such as `14 passed, 2 skipped`."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.counts.items()))
        ends = (
            ("" if self.ended else ", did not finish"),
            f", doctor: {self.doctor_status or 'did not finish'}",
        )
        return (counts or "no test") + "".join(ends)


def read_run(name: str, results: Path) -> Run:
    """Read the results in one kernel's directory, including incomplete ones. Those of later tries, in `again-N` below
    it, replace those of the same tests.
    """
    tries = [results, *sorted(results.glob("again-*"))]
    reports = [ET.parse(file).getroot() for attempt in tries if (file := attempt / "junit.xml").exists()]  # noqa: S314 - our own files
    cases = {_test(case): case for report in reports for case in report.iter("testcase")}.values()
    failures = dict(filter(None, map(_failure, cases))) if reports else _failures_so_far(tries)
    return Run(
        name,
        _newest(tries, "release") or "did not boot",
        Counter(map(_verdict, cases)),
        ended=_newest(tries, "status") in {"0", "1"},  # pytest's status: all passed, or some failed
        failures=failures,
        proofs=tuple(filter(None, map(_proof, cases))),
        doctor_status=_newest(tries, "doctor.status"),
        doctor=_report(_newest(tries, "doctor.json")),
    )


def _newest(tries: list[Path], name: str) -> str:
    """Return the text of the newest file of this name; empty if there is none."""
    files = [attempt / name for attempt in tries if (attempt / name).exists()]
    return files[-1].read_text().strip() if files else ""


def _test(case: ET.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def _verdict(case: ET.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def _failure(case: ET.Element) -> tuple[str, str] | None:
    failure = case.find("failure") if case.find("failure") is not None else case.find("error")
    return None if failure is None else (_test(case), failure.text or "")


def _failures_so_far(tries: list[Path]) -> dict[str, str]:
    """Return the failures that tests recorded as they happened, for a run killed before its report."""
    failures = map(json.loads, _newest(tries, "failures").splitlines())
    return {failure["test"]: failure["why"] for failure in failures}


def _proof(case: ET.Element) -> Proof | None:
    values = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
    required = {"hook", "mechanism", "verdict"}
    return Proof(**values) if required <= values.keys() <= required | {"why"} else None


def _report(text: str) -> dict[str, Any] | None:
    """Return doctor's report; None if it is missing or of an unknown version."""
    try:
        report = json.loads(text)
    except ValueError:
        return None
    return report if isinstance(report, dict) and report.get("version") == 1 else None


# --- the page -----------------------------------------------------------------------------------------------------

HEAD = """# Kernels

What works on which kernel, for each lens. `make kernel-support` runs the core kernel tests and `nettop doctor` on
Debian's kernels in virtual machines and on the host's, and writes this page. Where a hook has several mechanisms, each
that the kernel accepts was selected in turn, and all of them reported the same numbers for the same traffic.

**Bold** is the mechanism that nettop selects by itself; the others work too. `n/a`: the kernel has none;
[Fields](fields.md) lists what is then missing. `–`: not recorded yet.
"""
OLDEST = (5, 12)
"""The oldest supported kernel."""
LENS_REFUSED = "3"
"""Doctor's exit status if a lens cannot work."""
NONE = "n/a"
UNRECORDED = "–"
ANY_KERNEL = frozenset({"collector"})
"""Hooks that need nothing from the kernel."""
FACTS = {"bcc": "bcc", "llvm": "LLVM in bcc", "kprobes": "kprobes"}
"""Titles of facts about a host, by doctor's key."""


def support_page(runs: list[Run]) -> str:
    """Return docs/reference/kernels.md, oldest kernel first. The same results give the same text."""
    runs = sorted(runs, key=lambda run: _version(run.release))
    titles = [_title(run) for run in runs]
    cells = {
        (lens.title, hook.name): [_mechanisms(run, lens.id, hook.name) for run in runs]
        for lens in LENSES
        for hook in lens.hooks
    }
    return "\n".join([HEAD, *_kernels(runs), *_lenses(titles, cells), *_refusals(runs)])


def complete_page(page: str) -> str:
    """Return the page with every currently declared lens and hook, those without a recorded run as `–`."""
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    tables = {title: [_cells(line) for line in text.strip().splitlines()] for title, text in sections.items()}
    cells = {
        (title, row[0].strip("`")): row[2:]
        for title in tables.keys() - {"Kernels", "Refused"}
        for row in tables[title][2:]
    }
    facts = f"## Kernels\n{sections['Kernels']}"
    refused = f"## Refused\n{sections['Refused']}" if "Refused" in sections else ""
    return "\n".join([HEAD, facts, *_lenses(tables["Kernels"][0][1:], cells), refused])


def _kernels(runs: list[Run]) -> list[str]:
    rows = [[title, *(_fact(run, key) for run in runs)] for key, title in FACTS.items()]
    return ["## Kernels", "", *markdown_table(["", *map(_title, runs)], rows), ""]


def _fact(run: Run, key: str) -> str:
    value = (run.doctor or {}).get("host", {}).get(key, UNRECORDED)
    return {True: "yes", False: "no", None: NONE}.get(value, str(value))


def _lenses(kernels: list[str], cells: Mapping[tuple[str, str], list[str]]) -> list[str]:
    """Return the sections of the lenses; `cells` are the mechanisms on each kernel, by the lens's title and hook."""
    return [line for lens in LENSES if lens.hooks for line in _lens(lens, kernels, cells)]


def _lens(lens: Lens, kernels: list[str], cells: Mapping[tuple[str, str], list[str]]) -> list[str]:
    def on_each(hook: Hook) -> list[str]:
        if hook.name in ANY_KERNEL:
            return ["any kernel"] * len(kernels)
        return cells.get((lens.title, hook.name), [UNRECORDED] * len(kernels))

    rows = [[f"`{hook.name}`", hook.help, *on_each(hook)] for hook in lens.hooks]
    return [f"## {lens.title}", "", *markdown_table(["hook", "what it provides", *kernels], rows), ""]


def _mechanisms(run: Run, lens: str, hook: str) -> str:
    """Return the mechanism in use on a kernel, and the others that work."""
    status = _hook_status(run, lens, hook)
    used = None if status is None else status["mechanism"]
    working = {proof.mechanism for proof in run.proofs if (proof.hook, proof.verdict) == (hook, "same")}
    others = sorted(working - {used})
    is_recorded = status is not None or _refusal(run, lens) is not None
    first = UNRECORDED if not is_recorded else NONE if used is None else f"**{used}**"
    return "<br>".join([first, *others])


def _hook_status(run: Run, lens: str, hook: str) -> dict[str, Any] | None:
    """Return doctor's report on a hook, if any."""
    hooks = [status for report in _lens_reports(run) if report["id"] == lens for status in report["hooks"]]
    return next((status for status in hooks if status["hook"] == hook), None)


def _lens_reports(run: Run) -> list[dict[str, Any]]:
    return (run.doctor or {}).get("lenses", [])


def _refusal(run: Run, lens: str) -> str | None:
    """Return why a lens cannot work on that kernel; None if it works, or if doctor has no report."""
    errors = [report["error"] for report in _lens_reports(run) if report["id"] == lens]
    return next((error["what"] for error in errors if error), None)


def _refusals(runs: list[Run]) -> list[str]:
    """Return the section on refused mechanisms, with the reason and the kernels."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        for refusal in sorted(_refused(run)):
            where.setdefault(refusal, []).append(_title(run))
    rows = [[f"`{hook}`", name, why, ", ".join(where[hook, name, why])] for hook, name, why in sorted(where)]
    head = ["## Refused", "", "Mechanisms that a kernel refuses, with the reason.", ""]
    return [*head, *markdown_table(["hook", "mechanism", "reason", "kernels"], rows), ""] if rows else []


def _refused(run: Run) -> set[tuple[str, str, str]]:
    refused = {(proof.hook, proof.mechanism, proof.why) for proof in run.proofs if proof.verdict == "refused"}
    for lens in _lens_reports(run):
        for hook in (hook for hook in lens["hooks"] if hook["hook"] not in ANY_KERNEL):
            refused |= {(hook["hook"], refusal["mechanism"], refusal["why"]) for refusal in hook["refused"]}
        if (why := _refusal(run, lens["id"])) is not None:
            refused.add((lens["id"], "every mechanism", why))
    return refused


def markdown_table(titles: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table; `|` in a cell becomes `¦`."""
    head, *lines = [
        f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |" for cells in (titles, *rows)
    ]
    return [head, "|---" * len(titles) + "|", *lines]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]


def _title(run: Run) -> str:
    """Return a title such as `6.1`; mark the host's kernel."""
    major, minor = _version(run.release)
    return f"{major}.{minor}" + (" (host)" if run.name == HOST else "")


def _version(release: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", release)[:2]
    return int(major), int(minor)


if __name__ == "__main__":
    kept = [read_run(folder.name, folder) for folder in Path(sys.argv[1]).iterdir()]
    PAGE.write_text(support_page(kept), encoding="utf-8")
