# SPDX-License-Identifier: Apache-2.0
"""Run benchmarks, and write bench/results/NAME.json: `sudo .venv/bin/python bench/run.py [NAME …] [--quick]`.

Each runs in its own process, one after the other; one that fails or takes too long is reported, and its last result
stays. `--reference` measures older commits instead, in working trees of their own, and writes
bench/results/reference.json. `--list` prints the names.
"""

import argparse
import compileall
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from harness import BENCHMARKS, CHECKOUT, RESULTS, described, environment, measure, save

MODULES = (
    *("table", "monitors", "frames", "start", "load", "cpu_cost", "services", "events", "udp", "udp_requests"),
    *("bandwidth", "latency", "loading", "serve", "recording", "flows", "attribution"),
)  # fmt: skip
REFERENCES = ("b43d97d", "8525c88e")
LONGEST_S, LONGEST_QUICK_S = 600, 280
"""Seconds after which a benchmark is ended."""


def declare() -> None:
    """Import the modules, each of which declares its benchmarks."""
    for name in MODULES:
        import_module(name)


def in_this_process(name: str, options: argparse.Namespace) -> None:
    """Run one benchmark and write its result."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    bench = BENCHMARKS[name]
    before = environment()
    result = measure(bench, options.quick, reference=options.reference)
    save(options.results / f"{name}.json", described(bench) | result | {"environment": before})


def in_children(names: list[str], options: argparse.Namespace, more: dict[str, str] | None = None) -> int:
    """Run benchmarks in processes of their own; return the number of those that failed."""
    failed = 0
    for name in names:
        words = [sys.executable, "-B", __file__, "--here", name, "--results", str(options.results)]
        words += ["--quick"] * options.quick + ["--reference"] * options.reference
        began, limit = time.monotonic(), LONGEST_QUICK_S if options.quick else LONGEST_S
        child = subprocess.Popen(words, env=os.environ | (more or {}), start_new_session=True)
        try:
            status: int | str = child.wait(limit)
        except subprocess.TimeoutExpired:
            status = f"not within {limit} s"
        finally:
            child.terminate()  # it ends what it started
            with suppress(subprocess.TimeoutExpired):
                child.wait(60)
            child.kill()
        failed += bool(status)
        print(
            f"{name:<20} {time.monotonic() - began:6.1f} s  {f'FAILED ({status})' if status else 'ok'}",
            flush=True,
        )
    return failed


@contextmanager
def older(commit: str) -> Iterator[dict[str, str]]:
    """Check a commit out; yield the variables that have the benchmarks start its nettop."""
    with tempfile.TemporaryDirectory(prefix="nettop-reference") as folder:
        tree, command = Path(folder, "tree"), Path(folder, "nettop")
        # Its helper processes ignore PYTHONPATH, so it gets an environment of its own beside the installed packages.
        venv.create(Path(folder, "venv"), system_site_packages=True)
        added = Path(sysconfig.get_path("purelib", vars={"base": str(Path(folder, "venv"))}), "tree.pth")
        added.write_text(f"{tree}\n{sysconfig.get_path('purelib')}\n")
        git = ("git", "-C", str(CHECKOUT), "worktree")
        subprocess.run((*git, "add", "--quiet", "--detach", str(tree), commit), check=True)
        command.write_text(
            f'#!/bin/sh\nunset PYTHONDONTWRITEBYTECODE\ncd {tree} && exec {folder}/venv/bin/python -m nettop "$@"\n'
        )
        os.chmod(folder, 0o755)
        command.chmod(0o755)
        try:
            yield {"NETTOP_COMMAND": str(command), "NETTOP_TREE": str(tree)}
        finally:
            subprocess.run((*git, "remove", "--force", str(tree)), check=True)


def measure_references(names: list[str], options: argparse.Namespace) -> int:
    """Measure older commits; keep what was measured before of benchmarks that are not named."""
    path, failed = options.results / "reference.json", 0
    document: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for commit in REFERENCES:
        with older(commit) as variables, tempfile.TemporaryDirectory() as folder:
            options.results = Path(folder)
            failed += in_children(names, options, variables)
            for each in sorted(options.results.glob("*.json")):
                document.setdefault(commit, {})[each.stem] = json.loads(each.read_text())["figures"]
    save(path, document)
    return failed


def main() -> int:
    """Run all benchmarks, or the named ones; return 1 if any fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    declare()
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="one size, one round: check that it works")
    parser.add_argument("--reference", action="store_true", help=f"measure {' and '.join(REFERENCES)}")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="bench/results, or of --quick build/bench"
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--here", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.results = options.results or (CHECKOUT / "build" / "bench" if options.quick else RESULTS)
    if options.here:
        in_this_process(options.here, options)
        return 0
    names = options.names or [
        name for name, bench in BENCHMARKS.items() if bench.has_reference or not options.reference
    ]
    if options.list:
        print("\n".join(names))
        return 0
    # As an installed nettop is, also where PYTHONDONTWRITEBYTECODE keeps a clone from being compiled as it runs.
    compileall.compile_dir(CHECKOUT / "nettop", quiet=1)
    return int(bool((measure_references if options.reference else in_children)(names, options)))


if __name__ == "__main__":
    sys.exit(main())
