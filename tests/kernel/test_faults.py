# SPDX-License-Identifier: Apache-2.0
"""Each fault of faults.py is really there, by the kernel's own numbers, and nothing is left of it afterwards."""

import os
import re
import signal
import subprocess
import sys

import pytest

from .fault_loads import LOADS
from .fault_oracles import nstat
from .faults import FAULTS, Fault, made
from .lab import NETNS_FOLDER, REPOSITORY, Lab, process_state, until

pytestmark = pytest.mark.kernel

COMMAND = [sys.executable, "-m", "tests.kernel.faults"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault: Fault) -> None:
    """The kernel's own numbers show the fault; afterwards its processes and namespaces are gone."""
    if why := fault.lacks():
        pytest.skip(why)
    with made(fault) as scene:
        pids = [worker.pid for worker in scene.processes.values()]
        scene.worsen()
        until(lambda: fault.proof(scene), str(scene))
    assert not [pid for pid in pids if process_state(pid)]
    assert not [each.name for each in scene.namespaces.values() if (NETNS_FOLDER / each.name).exists()]


def test_names() -> None:
    """Names are unique, and each fault says what it is."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.help.endswith(".") and fault.kind and re.compile(fault.says) for fault in FAULTS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_ends_a_fault_made_by_hand(number: signal.Signals) -> None:
    """The command says what it has made, and removes all of it on a signal."""
    with subprocess.Popen(
        [*COMMAND, "slow-reader"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        said = re.search(r"namespaces: home (\S+); processes: reportd (\d+), ordersvc (\d+)", line)
        assert said, line
        assert [process_state(int(pid)) for pid in said.groups()[1:]] != ["", ""]
        os.kill(process.pid, number)
        assert process.wait(30) == 0
    assert not (NETNS_FOLDER / said[1]).exists()
    assert [process_state(int(pid)) for pid in said.groups()[1:]] == ["", ""]


def test_fault_made_by_hand_for_a_time() -> None:
    """With --for the command ends by itself."""
    done = subprocess.run(
        [*COMMAND, "connect-refused", "--for", "0.5"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("connect-refused: fetcher connects to 127.0.0.1:9099")


@pytest.mark.parametrize("name", LOADS)
def test_healthy_load(lab: Lab, name: str) -> None:
    """A load without a fault moves segments, and its processes are gone afterwards."""
    if why := LOADS[name].lacks():
        pytest.skip(why)
    with LOADS[name].running(lab) as load:
        until(lambda: nstat(load.namespace, "TcpOutSegs") > 1000, str(load))
        assert process_state(load.server.pid) and process_state(load.client.pid)
