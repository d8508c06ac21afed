# SPDX-License-Identifier: Apache-2.0
"""Faults made by hand. test_findings.py makes each of them, and proves it by the kernel's own numbers."""

import os
import re
import signal
import subprocess
import sys

import pytest

from .faults import FAULTS
from .lab import NETNS_FOLDER, REPOSITORY, process_state

pytestmark = pytest.mark.kernel

COMMAND = [sys.executable, "-m", "tests.kernel.faults"]


def test_names() -> None:
    """Names are unique, and each fault says what it is."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.help.endswith(".") and fault.kind and re.compile(fault.says) for fault in FAULTS)


def test_signal_ends_a_fault_made_by_hand() -> None:
    """The command says what it has made, and removes all of it on a signal."""
    with subprocess.Popen(
        [*COMMAND, "slow-reader"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        said = re.search(r"namespaces: home (\S+); processes: reportd (\d+), ordersvc (\d+)", line)
        assert said, line
        assert [process_state(int(pid)) for pid in said.groups()[1:]] != ["", ""]
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
    assert not (NETNS_FOLDER / said[1]).exists()
    assert [process_state(int(pid)) for pid in said.groups()[1:]] == ["", ""]


def test_fault_made_by_hand_for_a_time() -> None:
    """With --for the command ends by itself."""
    words = [*COMMAND, "connect-refused", "--for", "0.5"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("connect-refused: A program connects to a port where nothing listens.")
