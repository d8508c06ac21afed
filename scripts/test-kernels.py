#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the core of the kernel tests on this kernel and, in virtual machines, on Debian's: `--help` says how.

The machines are emulated (no KVM is needed), see this host's files read-only, and run a copy of the checkout that is
made when this script starts.
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

from kernel_support import HOST, PAGE, Run, put_in_place, read_run, support_page

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
PATIENCE = 10
"""The factor by which tests wait longer in an emulated machine than on the host."""
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist"
)
QUICKER = "mitigations=off init_on_alloc=0 rcupdate.rcu_expedited=1 tsc=reliable"
"""What a kernel does for safety, or to spare CPUs, and what costs an emulated one most of its time. It need not doubt
its CPUs' clock either, which is one for all: every reading of another one would lead out of the emulated machine."""
HOST_FILES = "nettop-host"
QEMU = (
    f"-fsdev local,id={HOST_FILES},path=/,security_model=none,readonly=on,multidevs=remap"
    f" -device virtio-9p-pci,fsdev={HOST_FILES},mount_tag={HOST_FILES}"
    " -global virtio-serial-pci.ioeventfd=off"
)
"""This host's files once more, under a name by which kernel-guest.sh mounts them in its own way. And no descriptor for
each of the hundreds of queues that a few terminals have: a third of the time went into polling them."""
PYTEST = (
    *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:syrupy", "-p", "no:textual-snapshot"),
    *("-p", "no:xdist", "--timeout", "0"),
    *("-m", "kernel and core", "--deselect", "tests/kernel/test_doctor.py"),
)
"""Without plugins that no kernel test needs: importing them takes seconds there. doctor is run by itself. The kernel
as a whole has a limit, no test of it has."""
TESTED = re.compile(rb"(?:PASSED|FAILED|ERROR|SKIPPED)[^\n]*\[ *(\d+)%\]")
FAILED, LACKING, NOT_ROOT = 1, 3, 4
BOOTS = 3
"""How often a virtual machine is started, at most."""


class Stop(Exception):
    """Why no kernel can be tested, and the exit status for that kind of reason."""

    def __init__(self, why: str, status: int = FAILED) -> None:
        super().__init__(why)
        self.status = status


def main() -> int:
    """Run the chosen kernels; 0 where every one passed, 3 where this machine lacks something for it."""
    options = read_options()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    signal.signal(signal.SIGTERM, end_in_order)
    try:
        check_machine(options.kernels)
        kernels = [(name, vmlinuz_of(name)) for name in options.kernels]
        with work_folder() as work:
            tests = [*core_files(work / "copy"), *(["-k", options.tests] if options.tests else [])]
            flaky: dict[str, dict[str, str]] = {}
            try:
                for name, vmlinuz in kernels:
                    flaky[name] = run_patiently(Kernel(name, vmlinuz, work, options.limit * 60), tests)
            finally:
                runs = [read_run(name, work / "results" / name) for name in options.kernels]
                report(runs, work, options)
                report_flaky(flaky)
    except Stop as stop:
        print(f"test-kernels: {stop}", file=sys.stderr)
        return stop.status
    return 0 if all(run.passed for run in runs) else FAILED


def end_in_order(number: int, _frame: object) -> NoReturn:
    """Leave neither a machine nor a folder behind, and report what is known. `timeout` sends its signal twice: to the
    process, then to its group."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def read_options() -> argparse.Namespace:
    """The command line; `kernels` are the names of those to run on, in order."""
    known, others = [HOST, *words(SCRIPTS / "kernels.sh", "list")], words(SCRIPTS / "kernels.sh", "others")
    parser = argparse.ArgumentParser(
        description="Runs the core of the kernel tests on one kernel after the other."
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--only",
        action="append",
        choices=[*known, *others],
        dest="kernels",
        metavar="NAME",
        help=f"one of {', '.join(known)}; {', '.join(others)} runs only so",
    )
    which.add_argument(
        "--host-only", action="store_const", const=[HOST], dest="kernels", help="no virtual machine"
    )
    which.add_argument(
        "--guests-only", action="store_const", const=known[1:], dest="kernels", help="virtual machines alone"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=20,
        metavar="MINUTES",
        help="for one kernel, with its second try (default: 20)",
    )
    parser.add_argument(
        "-k", dest="tests", metavar="EXPRESSION", help="only those of the tests, as pytest takes it"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help=f"write {PAGE.relative_to(ROOT)} of this run"
    )
    parser.add_argument(
        "--keep", metavar="FOLDER", type=Path, help="keep consoles, JUnit XML and doctor's reports in"
    )
    options = parser.parse_args()
    options.kernels = options.kernels or known
    if options.write_docs and (options.tests or options.kernels != known):
        parser.error("--write-docs needs every test on every kernel")
    return options


def words(*command: object) -> list[str]:
    """What a command prints, in words; Stop with its own complaint where it fails."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Stop(f"{shlex.join(map(str, command))} failed.")
    return done.stdout.split()


def check_machine(kernels: list[str]) -> None:
    """Raise Stop where something is missing that nothing here can bring."""
    if os.geteuid() != 0:
        raise Stop("needs root; run it with sudo.", NOT_ROOT)
    if kernels == [HOST]:
        return
    if os.uname().machine != "x86_64":
        raise Stop(
            f"boots virtual machines on x86_64 only, not on {os.uname().machine}; see --host-only.", LACKING
        )
    missing = [
        tool for tool in ("apt-get", "qemu-system-x86_64", "depmod", str(vng())) if not shutil.which(tool)
    ]
    if missing:
        remedy = "on Debian or Ubuntu run: sudo scripts/install-deps.sh --kernels"
        raise Stop(f"needs {', '.join(missing)}; {remedy}", LACKING)


def vng() -> Path:
    """virtme-ng's command, of the Python that runs this."""
    return Path(sys.executable).with_name("vng")


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """A folder with a copy of the checkout in it, compiled, since compiling takes long under emulation."""
    with tempfile.TemporaryDirectory(prefix="nettop-kernels.") as made:
        copy = Path(made) / "copy"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED, symlinks=True)
        (copy / ".venv").mkdir()
        subprocess.run([sys.executable, "-m", "compileall", "-q", "nettop"], cwd=copy, check=True)
        yield Path(made)


def core_files(copy: Path) -> list[str]:
    """The files that have tests of the core. pytest compiles in its own way what it reads."""
    command = [sys.executable, "-m", "pytest", *PYTEST, "-q", "--collect-only", "tests/kernel"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if not (files := sorted({line.split("::")[0] for line in done.stdout.splitlines() if "::" in line})):
        raise Stop(f"pytest finds no test of the core:\n{done.stdout}{done.stderr}")
    return files


def vmlinuz_of(name: str) -> Path | None:
    """A kernel's file; None for this one."""
    return None if name == HOST else Path(words(SCRIPTS / "kernels.sh", "fetch", name)[0])


@dataclass(frozen=True, slots=True)
class Kernel:
    """One to run on: its file, or None for this one; where it finds the copy; and how long it may take in all."""

    name: str
    vmlinuz: Path | None
    work: Path
    limit_s: float

    @property
    def results(self) -> Path:
        """The folder of its results."""
        return self.work / "results" / self.name


def run_patiently(kernel: Kernel, tests: list[str]) -> dict[str, str]:
    """Run the tests on one kernel. What failed in a virtual machine runs once more, in a new one and within the same
    limit, since under emulation, on a busy host, a deadline may pass; what failed first is reported all the same. A
    machine that died is begun anew: in QEMU before 8.1 a CPU may keep what another one was just patching (int3;
    docs/costs-and-limits.md says why). Returns what failed and then passed, with the reason."""
    deadline = time.monotonic() + kernel.limit_s
    run = run_on(kernel, tests, deadline)
    failed: dict[str, str] = {}
    for number in range(1, BOOTS):
        if run.passed or kernel.vmlinuz is None or time.monotonic() > deadline:
            break
        has_failed = run.ended
        failed |= run.failures or {"doctor" if has_failed else "the machine": run.summary}
        say(
            f"{kernel.name:>7}: {'once more what failed' if has_failed else 'died, once more from its start'}"
        )
        run = run_on(kernel, list(run.failures) if has_failed else tests, deadline, (number, run))
        if has_failed:
            break
    return {test: why for test, why in failed.items() if run.passed}


def run_on(kernel: Kernel, tests: list[str], deadline: float, before: tuple[int, Run] | None = None) -> Run:
    """Run these tests on a kernel, and doctor unless it passed in an earlier try (`before`: its number and result).
    Returns the results of all tries together.

    However it ends, what is known by then is reported.
    """
    number, first = before or (0, None)
    folder = kernel.results / f"again-{number}" if first else kernel.results
    folder.mkdir(parents=True)
    say(f"{kernel.name:>7}: starting", passing=True)
    began, ended = time.monotonic(), ", STOPPED"
    try:
        in_time = follow(
            guest_command(kernel, folder, tests, first), folder / "console", deadline, kernel.name
        )
        ended = "" if in_time else ", KILLED at its limit"
    finally:
        if first:
            put_in_place(kernel.results, folder)
        run = read_run(kernel.name, kernel.results)
        minutes, seconds = divmod(round(time.monotonic() - began), 60)
        took = f"{f'with try {number + 1}, ' if first else ''}in {minutes}:{seconds:02} min{ended}"
        say(
            f"{kernel.name:>7}: {run.release}: {run.summary} {took}",
            *(f"         {test}: {in_short(why)}" for test, why in run.failures.items()),
        )
    return run


def guest_command(kernel: Kernel, folder: Path, tests: list[str], first: Run | None) -> list[str]:
    """The command that runs these tests, and doctor if needed, and leaves the results in a folder."""
    copy, doctor = kernel.work / "copy", "no" if first and first.doctor_status == "0" else "yes"
    guest = [str(copy / "scripts/kernel-guest.sh"), str(ROOT), str(copy), str(folder), doctor]
    return machine(kernel.vmlinuz, [*guest, *([*PYTEST, *tests] if tests else [])], folder)


def in_short(failure: str) -> str:
    """The first line of the error in pytest's report."""
    lines = [line[1:].strip() for line in failure.splitlines() if line.startswith("E ")]
    return (lines or failure.splitlines() or ["no reason"])[0][:200]


def say(*lines: str, passing: bool = False) -> None:
    """Print lines; on a terminal the next text replaces one that is `passing`, which is printed nowhere else."""
    text = "\n".join(lines)
    if sys.stdout.isatty():
        print(f"\r\033[K{text}" + "\n" * (not passing), end="", flush=True)
    elif not passing:
        print(f"{text}\n", end="", flush=True)


def machine(vmlinuz: Path | None, guest: list[str], results: Path) -> list[str]:
    """Return the command that runs the guest's script, on this kernel or on the one in that file. What a
    virtual machine is to run is in a file: virtme-ng puts it on the kernel's command line, where a few names
    of tests are too long."""
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


def follow(command: list[str], console: Path, deadline: float, title: str) -> bool:
    """Run a command on a terminal of its own, its output in a file; False where it had to be killed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment()
    )
    os.close(theirs)
    try:
        with console.open("wb", buffering=0) as file:
            while select.select([ours], [], [], max(0, deadline - time.monotonic()))[0]:
                if not (output := read_terminal(ours)):
                    return True
                file.write(output)
                if share := TESTED.findall(output):
                    say(f"{title:>7}: {share[-1].decode()} % of the tests", passing=True)
            return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


def environment() -> dict[str, str]:
    """This script's own, in which virtme-ng finds its other commands."""
    return {**os.environ, "PATH": f"{vng().parent}:{os.environ['PATH']}"}


def read_terminal(terminal: int) -> bytes:
    """What the other end wrote; empty when nobody is there any more."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # EIO: the last one closed it
        return b""


def report(runs: list[Run], work: Path, options: argparse.Namespace) -> None:
    """Report what failed, write the page if requested, and keep the results if requested."""
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
    """Report what failed and then passed, a line each."""
    for name, failures in flaky.items():
        for test, why in failures.items():
            print(f"FLAKY on {name}: {test}: {in_short(why)}")


def last_words(console: Path) -> str:
    """The end of what a machine printed."""
    return console.read_text(errors="replace")[-4000:] if console.exists() else "It was not begun."


if __name__ == "__main__":
    sys.exit(main())
