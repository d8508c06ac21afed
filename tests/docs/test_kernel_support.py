# SPDX-License-Identifier: Apache-2.0
"""scripts/kernel_support.py turns test results into docs/reference/kernels.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kernel_support import HOST, Run, complete_page, read_run, support_page

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.kernel.test_rungs" name="test_a[fexit]"><properties>
<property name="hook" value="accepts"/><property name="mechanism" value="fexit/inet_csk_accept"/>
<property name="verdict" value="same"/></properties></testcase>
<testcase classname="tests.kernel.test_rungs" name="test_a[kretprobe]"><properties>
<property name="hook" value="accepts"/><property name="mechanism" value="kretprobe/inet_csk_accept"/>
<property name="verdict" value="same"/></properties></testcase>
<testcase classname="tests.kernel.test_rungs" name="test_a[tp_btf]"><properties>
<property name="hook" value="accepts"/><property name="mechanism" value="tp_btf/sock_send_length"/>
<property name="verdict" value="refused"/><property name="why" value="no such tracepoint"/></properties>
<skipped message="no such tracepoint"/></testcase>
{more}</testsuite></testsuites>"""
FAILED = '<testcase classname="tests.kernel.test_x" name="test_y"><failure>it was 1</failure></testcase>'
PASSED = '<testcase classname="tests.kernel.test_x" name="test_y"/>'


def report(mechanism: str | None, *refused: tuple[str, str]) -> dict[str, Any]:
    """Return a doctor report on one hook."""
    refusals = [{"mechanism": name, "why": why} for name, why in refused]
    hooks = [{"hook": "accepts", "mechanism": mechanism, "refused": refusals, "fields": []}]
    host = {"bcc": "0.26.0", "llvm": "14", "kprobes": True}
    return {"version": 1, "host": host, "lenses": [{"id": "connections", "error": None, "hooks": hooks}]}


def a_run(folder: Path, name: str, release: str, doctor: object, more: str = "") -> Run:
    """Write a run's folder and read it back."""
    folder.mkdir()
    (folder / "release").write_text(release + "\n")
    (folder / "status").write_text("1\n" if more else "0\n")
    (folder / "doctor.status").write_text("0\n")
    (folder / "junit.xml").write_text(JUNIT.format(more=more))
    (folder / "doctor.json").write_text(json.dumps(doctor))
    return read_run(name, folder)


def row(page: str, begins: str) -> list[str]:
    """Return the cells of the only table row that begins with `begins`."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {begins}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mechanisms_of_each_kernel(tmp_path: Path) -> None:
    """The mechanism in use is bold, others that work follow, refused ones have a reason; oldest kernel first."""
    runs = [
        a_run(tmp_path / "new", "newest", "7.2.1-amd64", report("fexit/inet_csk_accept")),
        a_run(tmp_path / "old", "6.1", "6.1.0-5-amd64", report(None, ("fexit/inet_csk_accept", "no|room"))),
        a_run(tmp_path / "here", HOST, "6.18.4", None),
    ]
    page = support_page(runs)
    assert row(page.split("\n## ")[2], "hook | what it provides")[2:] == ["6.1", "6.18 (host)", "7.2"]
    assert row(page, "`accepts` | the")[2:] == [
        "n/a<br>fexit/inet_csk_accept<br>kretprobe/inet_csk_accept",
        "–<br>fexit/inet_csk_accept<br>kretprobe/inet_csk_accept",
        "**fexit/inet_csk_accept**<br>kretprobe/inet_csk_accept",
    ]
    assert row(page, "bcc")[1:] == ["0.26.0", "–", "0.26.0"]
    assert row(page, "kprobes")[1:] == ["yes", "–", "yes"]
    assert row(page, "`accepts` | fexit")[1:] == ["fexit/inet_csk_accept", "no¦room", "6.1"]
    assert row(page, "`accepts` | tp_btf")[2:] == ["no such tracepoint", "6.1, 6.18 (host), 7.2"]
    assert page == support_page(runs[::-1])


def test_a_page_is_completed(tmp_path: Path) -> None:
    """A recorded page keeps its cells, and gets what was declared since; a complete one stays as it is."""
    whole = support_page([a_run(tmp_path / "run", "6.1", "6.1.0-5-amd64", report("fexit/inet_csk_accept"))])
    assert complete_page(whole) == whole
    without = re.sub(r"## Services.*?(?=## )|\| `routes` [^\n]*\n", "", whole, flags=re.DOTALL)
    assert "## Services" not in without
    assert complete_page(without) == whole


def test_a_lens_that_is_refused(tmp_path: Path) -> None:
    """On an unsupported kernel a lens may be refused, and the page says why; on a supported one the run fails."""
    refused = report("fexit/inet_csk_accept")
    error = {"what": "this kernel has no function x", "remedy": ""}
    refused["lenses"].append({"id": "cpu", "error": error, "hooks": []})
    for name, release in (("old", "5.10.0-32-amd64"), ("new", "6.1.0-50-amd64")):
        a_run(tmp_path / name, name, release, refused)
        (tmp_path / name / "doctor.status").write_text("3\n")
    old, new = (read_run(name, tmp_path / name) for name in ("old", "new"))
    assert (old.passed, new.passed) == (True, False)
    page = support_page([old])
    assert row(page, "`samples` | what")[2:] == ["n/a"]
    assert row(page, "`cpu` | every mechanism")[2:] == ["this kernel has no function x", "5.10"]


def test_verdict_on_a_run(tmp_path: Path) -> None:
    """A run passes if tests ran, none failed and doctor exited with 0; failures have pytest's message."""
    good = a_run(tmp_path / "good", "6.1", "6.1.0", None)
    assert (good.passed, good.summary) == (True, "2 passed, 1 skipped, doctor: 0")
    bad = a_run(tmp_path / "bad", "6.1", "6.1.0", None, FAILED)
    assert (bad.passed, bad.summary) == (False, "1 failed, 2 passed, 1 skipped, doctor: 0")
    assert bad.failures == {"tests/kernel/test_x.py::test_y": "it was 1"}
    (tmp_path / "good" / "doctor.status").write_text("3\n")
    assert not read_run("6.1", tmp_path / "good").passed
    (tmp_path / "none").mkdir()
    none = read_run("6.1", tmp_path / "none")
    assert (none.passed, none.release, none.summary) == (
        False,
        "did not boot",
        "no test, did not finish, doctor: did not finish",
    )


def test_a_second_run_replaces_its_tests(tmp_path: Path) -> None:
    """If a test ran twice the second result counts; everything else, including doctor, stays."""
    a_run(tmp_path / "first", "6.1", "6.1.0", report("x"), FAILED)
    again = tmp_path / "first" / "again-1"
    again.mkdir()
    (again / "junit.xml").write_text(f"<testsuites><testsuite>{PASSED}</testsuite></testsuites>")
    (again / "status").write_text("0\n")
    run = read_run("6.1", tmp_path / "first")
    assert (run.passed, run.summary) == (True, "3 passed, 1 skipped, doctor: 0")
    assert len(run.proofs) == 3
    assert run.doctor == report("x")
