# SPDX-License-Identifier: Apache-2.0
"""Retries and reports of test-kernels.py, on simulated machines."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "test-kernels.py"
FAILS = "tests/kernel/test_x.py::test_fails"
CASE = '<testcase classname="tests.kernel.test_x" name="{name}">{result}</testcase>'
FAILURE = "<failure>E   AssertionError: it was 1\nE   more</failure>"


@pytest.fixture
def with_machines(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("kernel_runs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kernel_runs", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(with_machines: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module, whose commands run on this host as they are."""
    monkeypatch.setattr(with_machines, "machine", lambda vmlinuz, guest, folder: guest)
    return with_machines


def play(work: Path, *tries: str) -> None:
    """Replace each try on a kernel: record the tests to run, and leave the given results."""
    guest = work / "copy" / "scripts" / "kernel-guest.sh"
    guest.parent.mkdir(parents=True)
    (work / "tries").write_text("\n".join(tries))
    guest.write_text(
        "#!/bin/bash\n"
        f'cd "$3" && echo "${{@:4}}" >>{shlex.quote(str(work))}/requests && echo 6.1.0 >release\n'
        f'eval "$(sed -n "$(wc -l <{shlex.quote(str(work))}/requests)p" {shlex.quote(str(work))}/tries)"\n'
    )
    guest.chmod(0o755)


def results(status: int, *cases: tuple[str, str], doctor: str = "echo 0 >doctor.status") -> str:
    """Return the commands that write a try's files: pytest's status and report, and doctor's status."""
    testcases = "".join(CASE.format(name=name, result=result) for name, result in cases)
    junit = f"<testsuites><testsuite>{testcases}</testsuite></testsuites>".replace("\n", "&#10;")
    return f"echo {status} >status; echo {shlex.quote(junit)} >junit.xml; {doctor}"


def kernel(script: ModuleType, work: Path) -> object:
    """Return one that is no file."""
    return script.Kernel("6.1", work / "vmlinuz", work, 60)


def test_any_number_of_tests_fits(with_machines: ModuleType, tmp_path: Path) -> None:
    """The guest's commands go into a file, as a kernel's command line has 2,048 bytes."""
    guest = ["echo", *(f"{FAILS}[{number} of many]" for number in range(100))]
    command = with_machines.machine(tmp_path / "vmlinuz", guest, tmp_path)
    run = command[command.index("--exec") + 1]
    assert len(run) < 300
    done = subprocess.run(["sh", "-c", run], capture_output=True, text=True, check=True)
    assert done.stdout.split() == " ".join(guest[1:]).split()


def test_only_what_failed_is_tried_again(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second try runs only the failed tests, not doctor, which passed; the first failure is reported."""
    first = results(1, ("test_fails", FAILURE), ("test_passes", ""))
    play(tmp_path, first, results(0, ("test_fails", ""), doctor=":"))
    flaky = script.run_patiently(kernel(script, tmp_path), ["tests/kernel/test_x.py"])
    requests = (tmp_path / "requests").read_text().splitlines()
    assert [line.split()[0] for line in requests] == ["yes", "no"]
    assert [line.split()[-1] for line in requests] == ["tests/kernel/test_x.py", FAILS]
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("    6.1: 6.1.0: 1 failed, 1 passed, doctor: 0 in ")
    assert output[1].strip() == f"{FAILS}: AssertionError: it was 1"
    assert output[2].strip() == "6.1: retrying failed tests"
    assert output[3].startswith("    6.1: 6.1.0: 2 passed, doctor: 0 including try 2, in ")
    script.report_flaky({"6.1": flaky})
    assert capsys.readouterr().out == f"FLAKY on 6.1: {FAILS}: AssertionError: it was 1\n"
    assert script.read_run("6.1", tmp_path / "results" / "6.1").passed


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_machine_that_died_is_tried_again_whole(script: ModuleType, tmp_path: Path, deaths: int) -> None:
    """Without a report all tests run again, but after three dead machines the run has failed."""
    play(tmp_path, *["rm release"] * deaths, results(0, ("test_passes", "")))
    flaky = script.run_patiently(kernel(script, tmp_path), ["tests/kernel/test_x.py"])
    assert list(flaky) == (["the machine"] if deaths < 3 else [])
    requests = (tmp_path / "requests").read_text().splitlines()
    assert len(set(requests)) == 1
    assert len(requests) == min(deaths + 1, 3)
    assert script.read_run("6.1", tmp_path / "results" / "6.1").passed == (deaths < 3)


def test_a_machine_that_does_not_boot_is_started_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that hangs before its script runs does not use up the time of its kernel."""
    monkeypatch.setattr(script, "BOOT_S", 2.0)
    play(tmp_path, "rm release; exec sleep 1000", results(0, ("test_passes", "")))
    flaky = script.run_patiently(kernel(script, tmp_path), ["tests/kernel/test_x.py"])
    assert list(flaky) == ["the machine"]
    assert script.read_run("6.1", tmp_path / "results" / "6.1").passed


def test_failures_are_reported_on_an_interrupt(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run reports its failures so far, and runs nothing again."""

    def interrupted(command: list[str], folder: Path, deadline: float, title: str) -> bool:
        note = {"test": FAILS, "why": "trace\nE   AssertionError: it was 1"}
        (folder / "failures").write_text(json.dumps(note) + "\n")
        script.end_in_order(signal.SIGTERM, None)

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(script, "follow", interrupted)
    with pytest.raises(SystemExit):
        script.run_patiently(kernel(script, tmp_path), ["tests"])
    output = capsys.readouterr().out
    assert f"{FAILS}: AssertionError: it was 1" in output
    assert "STOPPED" in output
    assert "retrying" not in output
