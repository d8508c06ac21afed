# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs, small and briefly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .lab import REPOSITORY

RUN = (sys.executable, "-B", str(REPOSITORY / "bench" / "run.py"))
NAMES = subprocess.run((*RUN, "--list"), capture_output=True, text=True, check=True).stdout.split()

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_measures_nettop(name: str, tmp_path: Path) -> None:
    """A quick run of a benchmark has positive figures, at least one of which is not another tool's."""
    done = subprocess.run(
        (*RUN, "--quick", "--results", str(tmp_path), name), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    result = json.loads((tmp_path / f"{name}.json").read_text())
    if result["missing"] and not result["figures"]:
        pytest.skip("; ".join(result["missing"].values()))
    assert {each["subject"] for each in result["figures"]} - {*result["peers"], result["base"]}
