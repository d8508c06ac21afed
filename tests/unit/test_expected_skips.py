# SPDX-License-Identifier: Apache-2.0
"""The whole check fails if a test is skipped for an unexpected reason."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.expected_skips import ONLY_HERE

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("reason", "only_here", "status", "workers"),
    [
        ("this kernel has no geneve device: ip link add", "1", 0, "2"),
        ("needs root", "1", 1, "0"),
        ("needs root", "1", 1, "2"),
        ("needs root", "", 0, "0"),
    ],
)
def test_a_skipped_test(tmp_path: Path, reason: str, only_here: str, status: int, workers: str) -> None:
    """A listed reason passes; another one fails and is shown, but only in the complete check."""
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it(): pytest.skip({reason!r})\n")
    options = ("-p", "xdist", "-p", "tests.conftest", "-p", "no:cacheprovider", "--numprocesses", workers)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-q", *options, "--rootdir", tmp_path, tmp_path],
        cwd=ROOT,
        env={**os.environ, ONLY_HERE: only_here, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    assert ("expected_skips.py ===" in done.stdout) == bool(status)
    assert not status or reason in done.stdout
