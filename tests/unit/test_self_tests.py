# SPDX-License-Identifier: Apache-2.0
"""Self-tests detect wrong measurements of a lens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nettop.collector.reader import EXPORTERS_PATH, STATE_PATH
from nettop.probes.collector import probe
from nettop.probes.collector import self_test as flows
from nettop.probes.cpu import self_test as cpu
from nettop.selftest.paths import CLIENT, TrafficPath
from nettop.selftest.process import CommandFailed
from nettop.snapshots.cpu import CPUS, LENS, PROCESSES
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Rows, Snapshot
from tests.unit.build import make_rows
from tests.unit.test_flow_lens import Answers, answering, exporters

PID, USED_NS = 4711, 200_000_000
HOOKS = (HookStatus("samples", "perf cpu-clock"),)


class Sender:
    """A traffic process that has used some CPU time, or that cannot run commands."""

    name, pid = CLIENT, PID

    def __init__(self, failing: bool = False) -> None:
        self._failing = failing

    def run(self, command: str, *_: object) -> int:
        """Return the CPU time that it has used."""
        if self._failing:
            raise CommandFailed("as planned")
        return USED_NS if command == "send_load" else 9


class Cpu:
    """A CPU lens that has measured nothing at first, and then these times."""

    def __init__(self, hooks: tuple[HookStatus, ...] = HOOKS, softirq_ns: int = 5, **process: Any) -> None:
        self._hooks = hooks
        sender = {"id": 1, "process": CLIENT, "pid": PID, "tx_syscalls_ns": 7}
        self._readings = [
            self._snapshot([], 0, 1),
            self._snapshot([sender | process], softirq_ns, 2),
        ]

    def _snapshot(self, processes: list[dict[str, Any]], softirq_ns: int, taken_ns: int) -> Snapshot:
        cpus = make_rows([{"cpu": 0, "rx_softirq_ns": softirq_ns}], CPUS, taken_ns)
        tables: dict[str, Rows] = {CPUS.name: cpus, PROCESSES.name: make_rows(processes, PROCESSES, taken_ns)}
        return Snapshot(LENS.id, 1, 1, tables, hooks=self._hooks)

    def read(self, _: int) -> Snapshot:
        """Return the next reading."""
        return self._readings.pop(0)


def cpu_results(lens: Cpu, *, failing: bool = False, unavailable: str = "") -> list[bool | None]:
    """Return the self-test's results for the lens."""
    sender: Any = Sender(failing)
    addresses = {"IPv4": "127.0.0.1"}
    path = TrafficPath("loopback", sender, sender, addresses, addresses, unavailable=unavailable)
    source: Any = lens
    return [result.ok for result in cpu.run(source, [path])]


def test_a_load_of_the_cpu() -> None:
    """The time of the sender's calls is positive, and at most the time it used."""
    assert cpu_results(Cpu()) == [True, True]
    assert cpu_results(Cpu(tx_syscalls_ns=USED_NS)) == [True, True]
    assert cpu_results(Cpu(pid=None)) == [True, True]


@pytest.mark.parametrize(
    "wrong", [{"tx_syscalls_ns": 0}, {"tx_syscalls_ns": USED_NS + 1}, {"pid": 1}, {"process": "other"}]
)
def test_a_load_that_is_attributed_wrongly(wrong: dict[str, Any]) -> None:
    """The self-test fails for no time, too much, or another process's."""
    assert cpu_results(Cpu(**wrong)) == [False, True]


def test_softirqs_that_are_not_seen() -> None:
    """Softirq time of zero fails, as the load's packets were handled."""
    assert cpu_results(Cpu(softirq_ns=0)) == [True, False]


def test_incomparable_results_are_skipped() -> None:
    """A hook without a mechanism, a path without a device, or a failed process is skipped."""
    assert cpu_results(Cpu((HookStatus("samples", None, (("perf cpu-clock", "no"),)),))) == [None, None]
    assert cpu_results(Cpu(), unavailable="lo is down") == [None]
    assert cpu_results(Cpu(), failing=True) == [None]


def test_the_ledger_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part's sum is compared; one flow too many fails; without a collector nothing is compared."""
    path: Any = SimpleNamespace()
    source = probe.Flows()
    answering(Answers(exporters()), monkeypatch)
    results = flows.run(source, [path])
    assert [result.ok for result in results] == [True] * 3
    documents = {path: Answers(exporters()).document(path) for path in (STATE_PATH, EXPORTERS_PATH)}
    documents[STATE_PATH]["flows"]["stored"] += 1
    monkeypatch.setattr(Answers, "document", lambda _, path: documents[path])
    assert [result.ok for result in flows.run(source, [path])] == [True, True, False]
    answering(None, monkeypatch)
    (skipped,) = flows.run(probe.Flows(), [path])
    assert "start one with nettop collect" in skipped.remedy
