#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run the core kernel tests on this kernel and, in virtual machines, on Debian's kernels; see `--help`.

The machines are emulated (no KVM needed), see this host's files read-only, and run a copy of the checkout made when
this script starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kernel_support import HOST, PAGE, Run, read_run, support_page

ROOT = Path(__file__).resolve().parent.parent
DEBIAN = ROOT / "scripts" / "debian.sh"
PATIENCE = 10
"""Factor for test deadlines in an emulated machine."""
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist"
)
QUICKER = "mitigations=off init_on_alloc=0 rcupdate.rcu_expedited=1 tsc=reliable"
"""Turns off safety and power features that take most of an emulated kernel's time. Also trusts the TSC, which all
emulated CPUs share: every read of another clock would exit the emulated machine."""
HOST_FILES = "nettop-host"
QEMU = (
    f"-fsdev local,id={HOST_FILES},path=/,security_model=none,readonly=on,multidevs=remap"
    f" -device virtio-9p-pci,fsdev={HOST_FILES},mount_tag={HOST_FILES}"
    " -global virtio-serial-pci.ioeventfd=off"
)
"""Exports this host's files again under a name that kernel-guest.sh mounts with its own options. Also avoids one
descriptor per queue: a few terminals have hundreds, and polling them took a third of the time."""
PYTEST = (
    *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:syrupy", "-p", "no:textual-snapshot"),
    *("-p", "no:xdist", "--timeout", "0"),
    *("-m", "kernel and core", "--deselect", "tests/kernel/test_doctor.py"),
)
"""Disables plugins that no kernel test needs: importing them takes seconds there. doctor runs separately. The limit is
per kernel, not per test."""
TESTED = re.compile(rb"(?:PASSED|FAILED|ERROR|SKIPPED)[^\n]*\[ *(\d+)%\]")
FAILED, LACKING, NOT_ROOT = 1, 3, 4
BOOTS = 3
"""Most starts of a virtual machine."""
BOOT_S = 300.0
"""Seconds after which a machine that has not booted is started again: an emulated CPU may hang."""


class Stop(Exception):
    """No kernel can be tested: the reason and the exit status."""

    def __init__(self, why: str, status: int = FAILED) -> None:
        super().__init__(why)
        self.status = status


def main() -> int:
    """Run the selected kernels; return 0 if all passed, 3 if this machine lacks a requirement."""
    options = read_options()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    signal.signal(signal.SIGTERM, end_in_order)
    try:
        check_machine(options.kernels)
        images = {name: Path(words(DEBIAN, "kernel", name)[0]) for name in options.kernels if name != HOST}
        with work_folder() as work:
            tests = [*core_files(work / "copy"), *(["-k", options.tests] if options.tests else [])]
            flaky: dict[str, dict[str, str]] = {}
            try:
                for name in options.kernels:
                    kernel = Kernel(name, images.get(name), work, options.limit * 60)
                    flaky[name] = run_patiently(kernel, tests)
            finally:
                runs = [read_run(name, work / "results" / name) for name in options.kernels]
                report(runs, work, options)
                report_flaky(flaky)
    except Stop as stop:
        print(f"test-kernels: {stop}", file=sys.stderr)
        return stop.status
    return 0 if all(run.passed for run in runs) else FAILED


def end_in_order(number: int, _frame: object) -> NoReturn:
    """Exit without leaving a machine or directory behind, and report the results so far. Ignore a second signal:
    `timeout` signals the process, then its group."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def read_options() -> argparse.Namespace:
    """Parse the command line; `kernels` are the names to run on, in order."""
    known, others = [HOST, *words(DEBIAN, "kernels")], words(DEBIAN, "others")
    parser = argparse.ArgumentParser(description="Run the core kernel tests on one kernel after the other.")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*known, *others],
        dest="kernels",
        metavar="NAME",
        help=f"run on {', '.join(known)}, or {', '.join(others)}, which does not run by default; repeatable",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=20,
        metavar="MINUTES",
        help="time limit for one kernel, including retries (default: 20)",
    )
    parser.add_argument(
        "-k", dest="tests", metavar="EXPRESSION", help="run only matching tests, as in pytest"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help=f"write {PAGE.relative_to(ROOT)} from this run"
    )
    parser.add_argument(
        "--keep", metavar="FOLDER", type=Path, help="keep consoles, JUnit XML and doctor's reports in FOLDER"
    )
    options = parser.parse_args()
    options.kernels = options.kernels or known
    if options.write_docs and (options.tests or options.kernels != known):
        parser.error("--write-docs needs every test on every kernel")
    return options


def words(*command: object) -> list[str]:
    """Return the words in a command's output; raise Stop if it fails."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Stop(f"{shlex.join(map(str, command))} failed.")
    return done.stdout.split()


def check_machine(kernels: list[str]) -> None:
    """Raise Stop if this machine lacks a requirement."""
    if os.geteuid() != 0:
        raise Stop("needs root; run it with sudo.", NOT_ROOT)
    if kernels == [HOST]:
        return
    if os.uname().machine != "x86_64":
        raise Stop(f"virtual machines need x86_64, not {os.uname().machine}; see --only host.", LACKING)
    missing = [
        tool for tool in ("apt-get", "qemu-system-x86_64", "depmod", str(vng())) if not shutil.which(tool)
    ]
    if missing:
        remedy = "on Debian or Ubuntu, run: sudo scripts/install-deps.sh --kernels"
        raise Stop(f"needs {', '.join(missing)}; {remedy}", LACKING)


def vng() -> Path:
    """Return the path of virtme-ng's command, installed next to the running Python."""
    return Path(sys.executable).with_name("vng")


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a directory with a copy of the checkout, compiled, since compiling is slow under emulation."""
    with tempfile.TemporaryDirectory(prefix="nettop-kernels.") as made:
        copy = Path(made) / "copy"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED, symlinks=True)
        (copy / ".venv").mkdir()
        subprocess.run([sys.executable, "-m", "compileall", "-q", "nettop"], cwd=copy, check=True)
        yield Path(made)


def core_files(copy: Path) -> list[str]:
    """Return the files with core tests. Collecting them also caches pytest's own bytecode."""
    command = [sys.executable, "-m", "pytest", *PYTEST, "-q", "--collect-only", "tests/kernel"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if not (files := sorted({line.split("::")[0] for line in done.stdout.splitlines() if "::" in line})):
        raise Stop(f"pytest finds no core tests:\n{done.stdout}{done.stderr}")
    return files


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to run on: its image, or None for the running one; the path of the copy; and the total time limit."""

    name: str
    vmlinuz: Path | None
    work: Path
    limit_s: float

    @property
    def results(self) -> Path:
        """Directory of its results."""
        return self.work / "results" / self.name


def run_patiently(kernel: Kernel, tests: list[str]) -> dict[str, str]:
    """Run the tests on one kernel; return the tests that failed and then passed, with the reason.

    Tests that failed in a virtual machine run once more, in a new one and within the same limit, since deadlines may
    pass under emulation on a busy host; the first failure is reported anyway. A machine that died is restarted: in QEMU
    before 8.1 a CPU may keep code that another was patching (int3; docs/costs-and-limits.md says why).
    """
    deadline = time.monotonic() + kernel.limit_s
    run = run_on(kernel, tests, deadline)
    failed: dict[str, str] = {}
    for number in range(1, BOOTS):
        if run.passed or kernel.vmlinuz is None or time.monotonic() > deadline:
            break
        has_failed = run.ended
        failed |= run.failures or {"doctor" if has_failed else "the machine": run.summary}
        say(f"{kernel.name:>7}: {'retrying failed tests' if has_failed else 'died, restarting'}")
        run = run_on(kernel, list(run.failures) if has_failed else tests, deadline, (number, run))
        if has_failed:
            break
    return {test: why for test, why in failed.items() if run.passed}


def run_on(kernel: Kernel, tests: list[str], deadline: float, before: tuple[int, Run] | None = None) -> Run:
    """Run these tests on a kernel, and doctor unless it passed in an earlier try (`before`: its number and result).
    Return the combined results of all tries.

    Reports the results so far however it ends.
    """
    number, first = before or (0, None)
    folder = kernel.results / f"again-{number}" if first else kernel.results
    folder.mkdir(parents=True)
    say(f"{kernel.name:>7}: starting", passing=True)
    began, ended = time.monotonic(), ", STOPPED"
    try:
        in_time = follow(guest_command(kernel, folder, tests, first), folder, deadline, kernel.name)
        ended = "" if in_time else ", KILLED at its limit"
    finally:
        run = read_run(kernel.name, kernel.results)
        minutes, seconds = divmod(round(time.monotonic() - began), 60)
        took = f"{f'including try {number + 1}, ' if first else ''}in {minutes}:{seconds:02} min{ended}"
        say(
            f"{kernel.name:>7}: {run.release}: {run.summary} {took}",
            *(f"         {test}: {in_short(why)}" for test, why in run.failures.items()),
        )
    return run


def guest_command(kernel: Kernel, folder: Path, tests: list[str], first: Run | None) -> list[str]:
    """Return the command that runs these tests, and doctor if needed, and writes the results to a directory."""
    copy, doctor = kernel.work / "copy", "no" if first and first.doctor_status == "0" else "yes"
    guest = [str(copy / "scripts/kernel-guest.sh"), str(ROOT), str(copy), str(folder), doctor]
    return machine(kernel.vmlinuz, [*guest, *([*PYTEST, *tests] if tests else [])], folder)


def in_short(failure: str) -> str:
    """Return the first line of the error in pytest's report."""
    lines = [line[1:].strip() for line in failure.splitlines() if line.startswith("E ")]
    return (lines or failure.splitlines() or ["no reason"])[0][:200]


def say(*lines: str, passing: bool = False) -> None:
    """Print lines. A `passing` text is printed only on a terminal, where the next text replaces it."""
    text = "\n".join(lines)
    if sys.stdout.isatty():
        print(f"\r\033[K{text}" + "\n" * (not passing), end="", flush=True)
    elif not passing:
        print(f"{text}\n", end="", flush=True)


def machine(vmlinuz: Path | None, guest: list[str], results: Path) -> list[str]:
    """Return the command that runs the guest's script on the running kernel or on the given image. For a virtual
    machine the command is in a file: virtme-ng passes it on the kernel command line, too short for test names."""
    if vmlinuz is None:
        return ["unshare", "--mount", "--propagation", "private", *guest]
    busybox, script = vmlinuz.with_name("busybox"), results / "command"
    command = ["env", f"NETTOP_TEST_PATIENCE={PATIENCE}", f"NETTOP_HOST_FILES={HOST_FILES}", *guest]
    script.write_text(shlex.join(command) + "\n", encoding="utf-8")
    return [
        str(vng()), "--verbose", "--disable-kvm", "--disable-microvm", "--force-9p", "--cpus", "2", "--memory", "3G",
        "--run", str(vmlinuz), "--append", QUICKER, "--busybox", str(busybox), f"--qemu-opts={QEMU}",
        "--rwdir", str(results), "--cwd", str(results), "--exec", f"sh {shlex.quote(str(script))}",
    ]  # fmt: skip


def follow(command: list[str], folder: Path, deadline: float, title: str) -> bool:
    """Run a command on its own terminal with its output in a file; return False if it was killed at the deadline.

    It is also killed if it has not booted, and so written its release, within BOOT_S.
    """
    booted, boot_deadline = folder / "release", min(deadline, time.monotonic() + BOOT_S)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PATH": f"{vng().parent}:{os.environ['PATH']}"}  # virtme-ng's other commands
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment
    )
    os.close(theirs)
    try:
        with (folder / "console").open("wb", buffering=0) as file:
            while time.monotonic() < (deadline if booted.exists() else boot_deadline):
                if not select.select([ours], [], [], 1.0)[0]:
                    continue
                if not (output := read_terminal(ours)):
                    return True
                file.write(output)
                if share := TESTED.findall(output):
                    say(f"{title:>7}: {share[-1].decode()} % of the tests", passing=True)
            return time.monotonic() < deadline
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


def read_terminal(terminal: int) -> bytes:
    """Return what the other end wrote; empty if it is closed."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # EIO: the last writer closed it
        return b""


def report(runs: list[Run], work: Path, options: argparse.Namespace) -> None:
    """Report failures; write the page and keep the results if requested."""
    failed = [run for run in runs if not run.passed]
    for run in failed:
        print(f"\n--- {run.name} {run.release}")
        print(*(f"{test}\n{why}\n" for test, why in run.failures.items()), sep="\n")
        if not run.failures:
            print(last_words(work / "results" / run.name / "console"))
    if options.write_docs and not failed:
        PAGE.write_text(support_page(runs), encoding="utf-8")
        print(f"Wrote {PAGE.relative_to(ROOT)}.")
    if options.keep:
        for results in (work / "results").iterdir():
            shutil.rmtree(options.keep / results.name, ignore_errors=True)
            shutil.copytree(results, options.keep / results.name, ignore=NOT_COPIED)
        print(f"Consoles, JUnit XML and doctor's reports are in {options.keep}.")


def report_flaky(flaky: dict[str, dict[str, str]]) -> None:
    """Report tests that failed and then passed, one per line."""
    for name, failures in flaky.items():
        for test, why in failures.items():
            print(f"FLAKY on {name}: {test}: {in_short(why)}")


def last_words(console: Path) -> str:
    """Return the last lines of a machine's output."""
    return console.read_text(errors="replace")[-4000:] if console.exists() else "It was not started."


if __name__ == "__main__":
    sys.exit(main())
