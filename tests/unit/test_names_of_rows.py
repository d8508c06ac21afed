# SPDX-License-Identifier: Apache-2.0
"""Names change by the thousand while rows stay: in every reading, rows that stay keep the names of their processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nettop.engine.bus import Bus
from nettop.kernel import bpf_syscall
from nettop.kernel.host.facts import Host, SocketCounts
from nettop.kernel.host.processes import Processes
from nettop.kernel.net.entered_namespaces import DEVICE_INDEX, Namespaces
from nettop.probes.bandwidth.flows import find_owners, merge_owners, no_owners
from nettop.probes.connections import failures, socket_table
from nettop.probes.connections.event_records import CLOSE, EVENT, FAIL
from nettop.probes.connections.events import ConnectionEvents, EventsStatus
from nettop.probes.connections.failures import Failures
from nettop.probes.connections.probe import Connections
from nettop.probes.connections.socket_rows import HELD_BY_KERNEL, NO_USERS, ROW, STATE, TCP
from nettop.probes.connections.socket_table import TCP_TABLE, WALKS, SocketTable
from nettop.probes.cpu.processes import SAMPLED_NS, ProcessTimes
from nettop.probes.drops.probe import KIND, Drops
from nettop.probes.services import probe as services_module
from nettop.probes.services.probe import Services
from nettop.probes.services.programs import FIRST_SLOT, TOTALS
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.recording.readings import ReadingReader, ReadingWriter
from nettop.snapshots.arrays import Array
from nettop.snapshots.bandwidth import FLOWS
from nettop.snapshots.connections import EVENTS, FAILURES, KERNEL_OWNER, LENS, SOCKETS
from nettop.snapshots.cpu import TX_SYSCALLS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.left_rows import ENDED
from nettop.snapshots.schema import Table
from nettop.snapshots.services import CONNECTIONS, SERVED, SERVICES, USED
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, TextTable
from nettop.snapshots.source import SourceOptions
from tests.unit.build import make_rows
from tests.unit.test_services import counted

READINGS = 300
JOBS = 50
"""Processes that are new in each reading, and gone in the next: fifteen thousand names in all."""
STAYING = range(100, 120)
ORPHANED, KERNEL = 120, 900
"""Sockets that leave the table with the second reading, but have not ended: a process's, and one of the kernel."""
OWN = 4_026_531_840


def unknown(dtype: np.dtype[np.void], count: int) -> Array:
    """Return rows in which everything is unknown."""
    return np.full(count * dtype.itemsize, 0xFF, np.uint8).view(dtype)


def sockets(numbers: Sequence[int], name: str, state: str = "LISTEN") -> Array:
    """Return a socket for each of these processes, which are called by their numbers."""
    rows = unknown(ROW, len(numbers))
    rows["protocol"], rows["state"], rows["netns"], rows["held_by"] = TCP, STATE[state], OWN, 0
    rows["id"] = rows["pid"] = rows["css_set"] = rows["local_port"] = numbers
    rows["start_time"] = 1000 * np.array(numbers)
    rows["comm"] = [f"{name}{number}".encode() for number in numbers]
    if state != "LISTEN":
        rows["bytes_sent"], rows["remote_port"] = 7, 443
    return rows


def kernel_socket() -> Array:
    """Return a connection that the kernel holds."""
    rows = sockets([KERNEL], "", "ESTABLISHED")
    for name in ("pid", "css_set", "start_time"):
        rows[name] = np.iinfo(rows.dtype[name]).max
    rows["held_by"], rows["comm"] = HELD_BY_KERNEL, b""
    return rows


@dataclass
class Kernel:
    """The kernel's tables: what each walk finds."""

    walks: dict[str, Array] = field(default_factory=lambda: {name: unknown(ROW, 0) for name in WALKS})

    def advance(self, reading: int) -> range:
        """Replace all jobs by others; return their numbers."""
        jobs = range(1000 + reading * JOBS, 1000 + (reading + 1) * JOBS)
        owned, unattributed = [sockets(STAYING, "daemon"), sockets(jobs, "job")], []
        if reading < 2:
            owned.append(sockets([ORPHANED], "daemon", "ESTABLISHED"))
            unattributed.append(kernel_socket())
        # Rows of the hash tables are named after those of descriptors: a subflow of one of the jobs.
        subflow = sockets(jobs[:1], "job")
        subflow["id"] += np.uint64(1 << 40)
        self.walks[WALKS[0]] = np.concatenate(owned)
        self.walks[TCP_TABLE] = np.concatenate([*unattributed, subflow])
        return jobs


class Inline:
    """A namespace's thread that runs everything at once."""

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Call the function."""
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done

    def shutdown(self) -> None:
        """There is no thread."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a host whose processes each have a unit of their own, and whose namespaces are not looked for."""
    monkeypatch.setattr(Host, "cgroup", lambda _, pid: f"/system.slice/unit-{pid}.service")
    monkeypatch.setattr(Host, "sockstat", lambda _: SocketCounts(1 << 20, 0, 0))
    monkeypatch.setattr(Namespaces, "follow", lambda *_: None)
    return Host()


@dataclass
class Ends:
    """The events: no connection ends, and a process of each new name fails to connect."""

    failures: Failures = field(default_factory=Failures)
    works: bool = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return what does nothing."""
        return lambda *_: None

    def status(self) -> EventsStatus:
        """Nothing was lost."""
        return EventsStatus({}, {}, ())

    def fail(self, names: Sequence[str]) -> None:
        """Add a failure of a process of each name."""
        events = unknown(EVENT, len(names))
        events["event"], events["reason"], events["netns"] = FAIL, errno.ECONNREFUSED, OWN
        events["comm"], events["start_time"], events["pid"] = [name.encode() for name in names], 1, 1
        events["remote_port"], events["time"], events["direction"] = 443, range(len(names)), 2
        self.failures.add(events)


@pytest.fixture
def kernel() -> Kernel:
    """Return the kernel's tables."""
    return Kernel()


@pytest.fixture
def connections(host: Host, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    """Yield the probe of connections over these tables."""
    monkeypatch.setattr(
        socket_table,
        "Iterator",
        lambda name, _: SimpleNamespace(read=lambda: np.array(kernel.walks[name]), close=lambda: None),
    )
    monkeypatch.setattr(bpf_syscall, "set_element", lambda *_: None)
    monkeypatch.setattr(socket_table, "_PAUSE_PER_WALK", 0)
    program = SimpleNamespace(
        maps={"listed": 0}, functions={name: name for name in WALKS}, close=lambda: None
    )
    made = Connections(host)
    made._table = SocketTable(cast("Any", program), host)
    made._table.namespaces.threads = {OWN: cast("Any", Inline())}
    events = Ends()
    events.users = SimpleNamespace(read=lambda: NO_USERS, watch=lambda *_: None)  # type: ignore[attr-defined]
    made._events = cast("Any", events)
    made.configure(SourceOptions(frozenset({SOCKETS.name, FAILURES.name})))
    yield made
    made._events = None
    made.close()


def shown(frame: Frame, table: Table, *names: str) -> list[tuple[Any, ...]]:
    """Return these columns as every frontend shows them, ended rows included."""
    view = View(frame, replace(text_query(table), all_rows=True, closed=True))
    return list(zip(*(view.values(name, np.arange(view.size)) for name in names), strict=True))


def test_sockets(connections: Connections, kernel: Kernel) -> None:
    """Processes, units, orphans and sockets of the kernel keep their names, also in a recording, while fifteen thousand
    names come and go, and no reading changes an earlier one."""
    expected = {number: (f"daemon{number}", f"unit-{number}.service") for number in (*STAYING, ORPHANED)}
    writer, reader = ReadingWriter(), ReadingReader(LENS)
    before: Snapshot | None = None
    published: list[tuple[Rows, Mapping[str, list[str]]]] = []
    for reading in range(READINGS):
        jobs = kernel.advance(reading)
        now = connections.read(reading)
        reader.read(writer.write(now))
        for snapshot in (now, reader.snapshot()):
            seen = {
                number: names
                for number, *names in shown(Frame(snapshot, before), SOCKETS, "id", "process", "container")
            }
            of_jobs = {number: [f"job{number}", f"unit-{number}.service"] for number in jobs}
            assert {number: tuple(seen[number]) for number in expected} == expected, reading
            assert {number: seen[number] for number in jobs} == of_jobs, reading
            assert seen[KERNEL] == [KERNEL_OWNER, None], reading
        before = now
        rows = now.tables[SOCKETS.name]
        published.append((rows, {name: list(texts) for name, texts in rows.texts.items()}))
    assert max(len(rows.texts["process"]) for rows, _ in published) < 3000
    for rows, texts in published:
        assert {name: list(of) for name, of in rows.texts.items()} == texts


def test_owners_of_dropped_packets(connections: Connections, kernel: Kernel, host: Host) -> None:
    """A drop at a port names the process that listens there, in every reading."""
    drops, keys = Drops(host), np.zeros(len(STAYING), KIND)
    keys["port"], keys["netns"], keys["protocol"], keys["has_owner"] = STAYING, OWN, 6, 1
    for reading in range(READINGS):
        kernel.advance(reading)
        drops.join({LENS.id: Frame(connections.read(reading))})
        pids, names, texts = drops._owners(keys)
        assert pids.tolist() == list(STAYING)
        assert [texts[code] for code in names] == [f"daemon{number}" for number in STAYING], reading


def test_evicted_failures(connections: Connections, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of failures that is evicted is shown with its process and namespace, like those that stay."""
    monkeypatch.setattr(failures, "GROUPS_MAX", JOBS)
    events = cast("Ends", connections._events)
    before: Snapshot | None = None
    for reading in range(READINGS):
        jobs = [f"job{number}" for number in kernel.advance(reading)]
        events.fail([*jobs, "daemon"])
        now = connections.read(reading)
        seen = shown(Frame(now, before), FAILURES, "process", "namespace")
        assert ("daemon", str(OWN)) in seen
        if before is not None:
            assert {(name, str(OWN)) for name in jobs} <= set(seen), reading
            assert (ENDED, None) in seen
        before = now
    assert len(now.tables[FAILURES.name].texts["process"]) <= 3 * JOBS


def test_services(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services keep their names, and lend them to connections that nobody has accepted yet. A process whose control
    group nobody could read is counted, once."""
    monkeypatch.setattr(services_module, "skipped_runs", lambda _: 0)
    source = Services(host)
    source._share_namespaces()
    source._program, source._hooks = cast("Any", True), (HookStatus("calls", "any"),)
    source._whole = cast("Any", bytes(TOTALS.itemsize))
    daemons = [owner(number, "daemon") for number in STAYING]
    for reading in range(READINGS):
        jobs = [owner(number, "job") for number in range(1000 + reading * JOBS, 1000 + (reading + 1) * JOBS)]
        clients = [
            owner(number + 10**6, "curl") | {"id": number, "side": USED, "has_owner": 1}
            for number in range(JOBS)
        ]
        queued = [
            {"id": 10**6 + at, "service": FIRST_SLOT + at, "side": SERVED, "open_since": 1}
            for at, _ in enumerate(daemons)
        ]
        here = counted(*daemons, *jobs, connections=[*clients, *queued])
        monkeypatch.setattr(source, "_read_counts", lambda here=here: here)
        frame = Frame(source.read(0))
        expected = [(f"daemon{number}", f"unit-{number}.service") for number in STAYING]
        assert shown(frame, SERVICES, "process", "container")[1 : 1 + len(expected)] == expected, reading
        assert shown(frame, CONNECTIONS, "process", "container")[-len(expected) :] == expected, reading
        assert frame.now.lost["processes"] == 0
    monkeypatch.setattr(Host, "cgroup", lambda *_: None)
    gone = counted(owner(7, "curl"))
    monkeypatch.setattr(source, "_read_counts", lambda: gone)
    assert [source.read(0).lost["processes"] for _ in range(3)] == [1, 1, 1]
    source.close()


def owner(number: int, name: str) -> dict[str, Any]:
    """Return the columns of the process with this number, called by it."""
    identity = dict.fromkeys(("pid", "css_set", "start_time"), number)
    return {**identity, "comm": f"{name}{number}".encode()}


def test_events(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are drained between readings keep the names of their events; a frame holds few batches, and no more
    texts than its events have."""
    events, bus = ConnectionEvents.__new__(ConnectionEvents), Bus()
    events._processes, events._next_id, events._gap = Processes(host), 1, 0
    monkeypatch.setattr(events, "collect", lambda: None)
    bus.publish(Snapshot(LENS.id, 1, 1, {}))
    namespaces = Namespaces()
    for drain in range(3000):
        batch = unknown(EVENT, 2)
        for at, row in enumerate((owner(7, "daemon"), owner(1000 + drain, "job"))):
            for name, value in row.items():
                batch[name][at] = value
        batch["time"], batch["event"], batch["netns"] = drain, CLOSE, OWN
        events._ready = [batch]
        drained = events.drain(drain)
        assert drained is not None
        bus.append(LENS.id, (namespaces.with_names(drained),))
    bus.publish(Snapshot(LENS.id, 2, 2, {}))
    frame = bus.frame(LENS.id)
    assert frame is not None
    kept = frame.batches[EVENTS.name]
    assert len(kept) <= 20
    assert sum(len(batch.texts["process"]) for batch in kept) <= 3000 + len(kept)
    view = View(frame, text_query(EVENTS))
    names = view.values("process", np.arange(view.size))
    assert (
        names == [name for drain in range(3000) for name in ("daemon7", f"job{1000 + drain}")][-view.size :]
    )


def test_namespaces_and_devices() -> None:
    """A namespace and a device keep their names while thousands of others are seen once."""
    namespaces = Namespaces()
    namespaces._names = {7: "web"}
    namespaces._devices = {(7, 3): "eth7"}
    for reading in range(READINGS):
        others = 10**6 + np.arange(JOBS) + reading * JOBS
        rows = unknown(ROW, 1 + len(others))
        rows["netns"], rows[DEVICE_INDEX] = [7, *others], [3, *others]
        named = namespaces.with_names(Rows(SOCKETS, rows, {}, 0))
        assert named.texts["namespace"][named.array["namespace"][0]] == "web"
        assert named.texts["device"][named.array["device"][0]] == "eth7"
        assert len(named.texts["namespace"]) < 1200


def test_cpu_time_by_process(host: Host) -> None:
    """A process that uses CPU time all along keeps its name."""
    times = ProcessTimes(host)
    for reading in range(READINGS):
        sampled = np.zeros(1 + JOBS, SAMPLED_NS)
        sampled["started"], sampled["entry"], sampled["ns"] = 10**9, TX_SYSCALLS, 1
        sampled["pid"] = [os.getpid(), *(4_000_000 + reading * JOBS + at for at in range(JOBS))]
        sampled["comm"] = [b"daemon", *(b"job%d" % (reading * JOBS + at) for at in range(JOBS))]
        times.begin()
        times.add_calls(sampled)
        rows = times.rows(reading)
        names = dict(zip(rows.array["pid"].tolist(), rows.array["process"].tolist(), strict=True))
        assert rows.texts["process"][names[os.getpid()]] == "daemon"
        ended = times.ended(reading).rows[-1]
        assert {ended.texts["process"][code][:3] for code in ended.array["process"]} <= {"job"}
    assert len(rows.texts["process"]) < 1300


def test_owners_of_flows() -> None:
    """A flow keeps its owner while the texts of sockets and flows are others in each reading."""
    flow = {
        "id": 1,
        "local_address": "10.0.0.1",
        "local_port": 5,
        "remote_address": "10.0.0.9",
        "remote_port": 9,
    }
    flows = make_rows([flow], FLOWS)
    last, owners = replace(flows, texts={"process": ()}), no_owners(1)
    for reading in range(READINGS):
        texts = TextTable()
        others = [
            flow | {"process": f"job{reading}-{at}", "local_port": 100 + at, "netns": OWN}
            for at in range(JOBS)
        ]
        here = [flow | {"process": "daemon", "netns": OWN}] if reading == 0 else []
        found = find_owners(flows.array, np.array([6], np.uint8), make_rows([*others, *here]), OWN, texts)
        owners["process"] = texts.adopted(owners["process"], last.texts["process"])
        owners = merge_owners(found, owners, texts)
        last = replace(flows, texts={"process": texts.frozen()})
        assert texts.frozen()[owners["process"][0]] == "daemon"
        assert len(texts.frozen()) < 2 * JOBS
