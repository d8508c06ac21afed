# SPDX-License-Identifier: Apache-2.0
"""The right finding comes first: beside each fault of faults.py, in random order, and none beside healthy loads."""

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import pytest

from nettop.engine.consumer import Consumer
from nettop.engine.session import Session
from nettop.engine.source import probe_of
from nettop.kernel.host.facts import Host
from nettop.kernel.net.nf_rules import open_asker
from nettop.output.watching import watched
from nettop.probes.findings import growth, limits
from nettop.probes.findings.probe import Findings
from nettop.probes.services.udp_programs import REQUESTS_MAX
from nettop.query.found import listed
from nettop.snapshots import lenses
from nettop.snapshots.findings import FINDINGS, LATE, LIMITS, LOSSES
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Severity
from nettop.snapshots.services import SERVICES, UNTIMED
from nettop.snapshots.snapshot import Frame, known
from nettop.snapshots.source import SourceOptions

from . import fault_programs as programs
from .fault_loads import LOADS
from .fault_oracles import nstat
from .faults import FAULTS, Fault, Scene, made
from .lab import NETNS_FOLDER, Lab, Namespace, process_state, until

pytestmark = pytest.mark.kernel

INTERVAL_S = 1.0
SEED = os.environ.get("NETTOP_FAULTS_SEED", "49")
ORDERED = random.Random(SEED).sample(FAULTS, len(FAULTS))
RULES = {rule.name: rule for lens in lenses() for table in lens.tables for rule in table.rules}
WITHIN = 2
"""Readings in which something else, or nothing, may come first, besides those that the rule itself waits for."""
CALM_READINGS = 10


class Watch:
    """A running check of the whole host."""

    def __init__(self, session: Session, consumer: Consumer) -> None:
        self.session = session
        self._consumer = consumer
        self._last: Frame | None = None

    def next_reading(self) -> list[dict[str, Any]]:
        """Return the findings of the next reading, by rank."""

        def new_frame() -> Frame | None:
            if self._consumer.failure is not None:
                raise self._consumer.failure
            self._consumer.wait(timeout_s=0.1)
            frame = self._consumer.frame
            return frame if frame is not self._last else None

        self._last = until(new_frame, "a reading")
        return listed(self._last, explained=True)

    def readings_in(self, namespaces: list[Namespace]) -> Iterator[list[dict[str, Any]]]:
        """Yield the findings about these namespaces, or about the machine, that no other finding explains.

        Those seen last in an earlier reading may be about a removed namespace with the same inode number.
        """
        inodes = {None, *(namespace.inode for namespace in namespaces)}
        while True:
            rows = self.next_reading()
            yield [
                row for row in rows if row["cause"] is None and row["netns"] in inodes and not row["unseen"]
            ]

    def has_entered(self, namespaces: list[Namespace]) -> bool:
        """Return whether the counters of these namespaces are read."""
        frame = self._consumer.frame
        assert frame is not None
        rows = frame.now.tables[LIMITS.name].array
        return {namespace.inode for namespace in namespaces} <= set(rows["netns"].tolist())

    def lost_requests(self) -> int:
        """Return the number of UDP requests that the services lens has not timed for lack of room."""
        frame = self.session.bus.frame("services")
        return 0 if frame is None else frame.now.lost[UNTIMED]

    def knows_usual_times(self, pid: int) -> bool:
        """Return whether the usual response times of the service of a process are known."""
        frame = self.session.bus.frame("services")
        rows = None if frame is None else frame.now.tables.get(SERVICES.name)
        return rows is not None and bool(known(rows.array["usual_p99"][rows.array["pid"] == pid]).any())


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """Yield a check that all tests share. It forecasts the use of local ports seven times as soon as usual."""
    host = Host()
    with (
        pytest.MonkeyPatch.context() as patched,
        open_asker(host),
        Session(INTERVAL_S, partial(probe_of, host=host)) as session,
        watched(session, SourceOptions(whole=True)),
        Consumer(session, FINDINGS_LENS.id, (FINDINGS,), SourceOptions(whole=True)) as consumer,
    ):
        patched.setattr(growth, "STEP_S", growth.STEP_S / 7)
        patched.setattr(limits, "_PORTS", replace(limits._PORTS, levels_off_s=limits._PORTS.levels_off_s / 7))
        until(lambda: consumer.frame, "the first reading")
        yield Watch(session, consumer)


@pytest.mark.parametrize("fault", ORDERED, ids=lambda fault: fault.name)
def test_the_right_finding_comes_first(fault: Fault, watch: Watch) -> None:
    """Once the kernel's own numbers show the fault, within two intervals, with who and where in its sentence.

    Afterwards the processes and namespaces of the fault are gone.
    """
    if why := fault.lacks() or unseen(fault, watch):
        pytest.skip(why)
    with made(fault) as scene:
        namespaces = list(scene.namespaces.values())
        pids = [worker.pid for worker in scene.processes.values()]
        if scene.worsens is not None:
            worsens = scene.processes[scene.worsens]
            until(lambda: watch.knows_usual_times(worsens.pid), "the usual times are known", 90)
            scene.worsen()
        until(lambda: watch.has_entered(namespaces), "the namespaces are entered")
        until(lambda: fault.proof(scene), str(scene))
        assert_first(fault, scene, watch)
    assert not [pid for pid in pids if process_state(pid)]
    assert not [namespace.name for namespace in namespaces if (NETNS_FOLDER / namespace.name).exists()]


def unseen(fault: Fault, watch: Watch) -> str | None:
    """Return why this kernel does not let nettop see the fault."""
    frame = watch.session.bus.frame("connections")
    why = frame.now.why_not("routes") if frame is not None else None
    return f"routes: {why}" if why and fault.name == "prohibited" else None


def assert_first(fault: Fault, scene: Scene, watch: Watch) -> None:
    """Assert that the finding is first before too many readings have passed."""
    rule, seen = RULES[fault.kind], []
    # The reading under way began before the fault was proven, and an interval needs two.
    allowed = WITHIN + 1 + ceil((rule.after_s + rule.min_interval_s + fault.takes_s) / INTERVAL_S)
    for rows in watch.readings_in(list(scene.namespaces.values())):
        first = rows[0] if rows else None
        if first and first["kind"] == fault.kind and re.search(fault.says, first["finding"]):
            return
        seen.append(first and f"{first['kind']}: {first['finding']}")
        assert len(seen) <= allowed, seen


def test_what_nettop_loses_is_a_finding(lab: Lab, watch: Watch) -> None:
    """More requests than nettop has room for: the services lens counts those that it lost, and the finding says so."""
    home, at = lab.namespace(), ("127.0.0.1", 53)
    lab.worker(home, "dnssrv").call(programs.bind_udp, at)
    lab.worker(home, "crawler").start(programs.ask_without_end, at, REQUESTS_MAX)

    def finding() -> dict[str, Any] | None:
        rows = watch.next_reading()
        return next((row for row in rows if row["kind"] == LOSSES.rules[0].name), None)

    row = until(finding, "the loss is found")
    assert row is not None
    assert re.match(r"nettop loses [\d.]+( k)?/s in Services: UDP requests not timed", row["finding"])
    assert row["severity"] == Severity.HINT.value
    assert watch.lost_requests() > 0


def test_missed_readings_are_losses() -> None:
    """Of every reading of findings, so that recordings, text and metrics have them."""
    with closing(Findings()) as findings:
        findings.start()
        findings.note_skipped(7)
        reading = findings.read(time.monotonic_ns())
    assert reading.lost[LATE] == 7
    losses = reading.tables[LOSSES.name]
    assert [(losses.texts["lens"][row["lens"]], row["lost"]) for row in losses.array] == [("all", 7)]


@pytest.mark.parametrize("name", LOADS)
def test_a_healthy_load_has_no_finding(name: str, lab: Lab, watch: Watch) -> None:
    """Nothing is found about it, not even a hint."""
    if why := LOADS[name].lacks():
        pytest.skip(why)
    with LOADS[name].running(lab) as load:
        until(lambda: nstat(load.namespace, "TcpOutSegs") > 1000, str(load))
        readings = watch.readings_in([load.namespace])
        found = [row["finding"] for _ in range(CALM_READINGS) for row in next(readings) if row["netns"]]
        assert found == []
