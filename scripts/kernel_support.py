# SPDX-License-Identifier: Apache-2.0
"""Makes docs/kernel-support.md of what test-kernels.py found: kernel × lens × point × way.

test-kernels.py --write-docs does it at its end; run by itself with the folder of --keep this does it later.
"""

from __future__ import annotations

import json
import re
import shutil
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
from nettop.snapshots.schema import Lens  # noqa: E402

LENSES = lenses()
"""Read at the start: runs take half an hour, in which somebody may change the checkout."""
PAGE = ROOT / "docs" / "kernel-support.md"
HOST = "host"
"""The name of the run on the running kernel."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a test found when it forced a way to a point: `verdict` is "same" as by the others, or "refused" and why."""

    hook: str
    mechanism: str
    verdict: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """The core of the tests on one kernel, and doctor there: its exit status, and its report or None.

    `failures` are the words of pytest on what failed, by the names that it takes for the tests.
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
        """Whether tests ran to their end, none failed, and doctor found everything well.

        On a kernel that is too old a lens may say so.
        """
        tested = self.ended and bool(self.counts["passed"]) and not self.counts["failed"]
        return tested and self.doctor_status in (["0"] if self.is_supported else ["0", LENS_REFUSED])

    @property
    def is_supported(self) -> bool:
        """Whether the kernel is one that nettop is for."""
        return not self.release[:1].isdigit() or _version(self.release) >= OLDEST

    @property
    def summary(self) -> str:
        """`14 passed, 2 skipped`."""
        told = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        ends = ("" if self.ended else ", did not end"), f", doctor: {self.doctor_status or 'did not end'}"
        return (told or "no test") + "".join(ends)


def read_run(name: str, results: Path) -> Run:
    """What one kernel's folder holds, whatever of it was written."""
    junit = _junit(results)
    cases = [] if junit is None else list(junit.iter("testcase"))
    failures = _failures_so_far(results) if junit is None else dict(filter(None, map(_failure, cases)))
    return Run(
        name,
        _text(results / "release") or "did not boot",
        Counter(map(_verdict, cases)),
        ended=_text(results / "status") in {"0", "1"},  # pytest's: all passed, or some failed
        failures=failures,
        proofs=tuple(filter(None, map(_proof, cases))),
        doctor_status=_text(results / "doctor.status"),
        doctor=_report(results / "doctor.json"),
    )


def put_in_place(results: Path, again: Path) -> None:
    """Have the outcomes of a second try replace those of the first: of what was tried twice, and of nothing else."""
    first, second = _junit(results), _junit(again)
    if first is not None and second is not None:
        outcomes = {_test(case): case for tried in (first, second) for case in tried.iter("testcase")}
        next(second.iter("testsuite"))[:] = outcomes.values()
        ET.ElementTree(second).write(again / "junit.xml", encoding="utf-8")
    for file in ("junit.xml", "status", "failures", "doctor.json", "doctor.stderr", "doctor.status"):
        if (again / file).exists():
            if (results / file).exists():
                (results / file).rename(results / f"first-{file}")
            shutil.copyfile(again / file, results / file)


def _junit(results: Path) -> ET.Element | None:
    path = results / "junit.xml"
    return ET.parse(path).getroot() if path.exists() else None  # noqa: S314 - our own file


def _test(case: ET.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _verdict(case: ET.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def _failure(case: ET.Element) -> tuple[str, str] | None:
    told = case.find("failure") if case.find("failure") is not None else case.find("error")
    return None if told is None else (_test(case), told.text or "")


def _failures_so_far(results: Path) -> dict[str, str]:
    """What the tests wrote down as it happened, of a run that had to end before its report."""
    told = map(json.loads, _text(results / "failures").splitlines())
    return {one["test"]: one["why"] for one in told}


def _proof(case: ET.Element) -> Proof | None:
    told = {one.get("name", ""): one.get("value", "") for one in case.iter("property")}
    return (
        Proof(**told)
        if {"hook", "mechanism", "verdict"} <= told.keys() <= {"hook", "mechanism", "verdict", "why"}
        else None
    )


def _report(path: Path) -> dict[str, Any] | None:
    """Doctor's report; None where there is none, or not of the version that is understood here."""
    try:
        report = json.loads(_text(path))
    except ValueError:
        return None
    return report if isinstance(report, dict) and report.get("version") == 1 else None


# --- the page -----------------------------------------------------------------------------------------------------

HEAD = """# Kernel support

Made by `make kernel-support` of a run on each of these kernels: Debian's in virtual machines, and the one of the host.
On each the core of the kernel tests passed. Every way to a point that a kernel offers was forced there, and all of them
told the same bytes, packets, retransmits and owners of the same traffic.

**Bold** is the way that nettop takes by itself; the others work too.
"""
OLDEST = (5, 12)
"""The oldest kernel that nettop is for."""
LENS_REFUSED = "3"
"""The doctor's exit status where a lens cannot work."""
NONE = "n/a"
UNRECORDED = "not recorded"
FACTS = {"bcc": "bcc", "llvm": "LLVM in bcc", "kprobes": "kprobes"}
"""What the page says of a host, by doctor's key."""


def support_page(runs: list[Run]) -> str:
    """The whole document, oldest kernel first. The same facts give the same text."""
    runs = sorted(runs, key=lambda run: _version(run.release))
    points = [line for lens in LENSES if lens.hooks for line in _lens(lens, runs)]
    return "\n".join([HEAD, *_kernels(runs), *points, *_refusals(runs)])


def _kernels(runs: list[Run]) -> list[str]:
    rows = [[title, *(_fact(run, key) for run in runs)] for key, title in FACTS.items()]
    return ["## Kernels", "", *_table(["", *map(_title, runs)], rows), ""]


def _fact(run: Run, key: str) -> str:
    value = (run.doctor or {}).get("host", {}).get(key, UNRECORDED)
    return {True: "yes", False: "no", None: NONE}.get(value, str(value))


def _lens(lens: Lens, runs: list[Run]) -> list[str]:
    rows = [
        [f"`{point.name}`", point.help, *(_ways(run, lens.id, point.name) for run in runs)]
        for point in lens.hooks
    ]
    return [f"## {lens.title}", "", *_table(["hook", "what it tells", *map(_title, runs)], rows), ""]


def _ways(run: Run, lens: str, point: str) -> str:
    """The way that is used there, and those that work as well."""
    told = _point(run, lens, point)
    used = None if told is None else told["mechanism"]
    others = sorted(
        {one.mechanism for one in run.proofs if (one.hook, one.verdict) == (point, "same")} - {used}
    )
    refused = told is not None or _refusal(run, lens) is not None
    first = UNRECORDED if not refused else NONE if used is None else f"**{used}**"
    return "<br>".join([first, *others])


def _point(run: Run, lens: str, point: str) -> dict[str, Any] | None:
    """What doctor says of a point; None where it says nothing."""
    told = [one for one in (run.doctor or {}).get("lenses", ()) if one["id"] == lens]
    return next((one for lens_told in told for one in lens_told["hooks"] if one["hook"] == point), None)


def _refusal(run: Run, lens: str) -> str | None:
    """Why a lens cannot work there at all; None where it does, or where doctor says nothing."""
    errors = [one["error"] for one in (run.doctor or {}).get("lenses", ()) if one["id"] == lens]
    return next((error["what"] for error in errors if error), None)


def _refusals(runs: list[Run]) -> list[str]:
    """Why each way is refused that is, and where."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        for refusal in sorted(_refused(run)):
            where.setdefault(refusal, []).append(_title(run))
    rows = [[f"`{point}`", way, why, ", ".join(where[point, way, why])] for point, way, why in sorted(where)]
    head = ["## Refused", "", "ChosenMechanisms that a kernel does not offer, in its words or nettop's.", ""]
    return [*head, *_table(["hook", "mechanism", "why", "kernels"], rows), ""] if rows else []


def _refused(run: Run) -> set[tuple[str, str, str]]:
    found = {(one.hook, one.mechanism, one.why) for one in run.proofs if one.verdict == "refused"}
    for lens in (run.doctor or {}).get("lenses", ()):
        for point in lens["hooks"]:
            found |= {(point["hook"], one["mechanism"], one["why"]) for one in point["refused"]}
        if (why := _refusal(run, lens["id"])) is not None:
            found.add((lens["id"], "every way", why))
    return found


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return [f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |" for cells in lines]


def _title(run: Run) -> str:
    """`6.1`; the host's kernel may be of any make."""
    major, minor = _version(run.release)
    return f"{major}.{minor}" + (" (host)" if run.name == HOST else "")


def _version(release: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", release)[:2]
    return int(major), int(minor)


if __name__ == "__main__":
    kept = [read_run(folder.name, folder) for folder in Path(sys.argv[1]).iterdir()]
    PAGE.write_text(support_page(kept), encoding="utf-8")
