# SPDX-License-Identifier: Apache-2.0
"""Each mechanism that this kernel offers is forced, and reports the same for the same traffic.

The report has each mechanism in use, and the reason for each refusal, as properties (hook, mechanism, verdict, why).
docs/reference/kernels.md is made from them.
"""

import contextlib
import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.mechanisms import NOT_CHOSEN, Fallbacks, Mechanism
from nettop.kernel.net.hook_check import HookCheck
from nettop.probes.connections.hooks import CHANGES, FALLBACKS
from nettop.probes.connections.probe import TABLES
from nettop.probes.connections.udp import UDP_FALLBACKS
from nettop.probes.drops.probe import PACKETS_FALLBACKS, Drops
from nettop.snapshots.connections import HOOK_ACCEPTS, HOOK_ROUTES, HOOK_UDP
from nettop.snapshots.drops import HOOK_PACKETS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Snapshot
from tests.options import source_options

from . import oracle, test_events, test_udp, traffic
from .command import NETTOP, Row
from .lab import Lab, Namespace, Worker, until
from .socket_sharing import accepted_by, prefork, serve_by_children, serve_by_workers
from .test_diag_table import MOVING
from .test_drops import counter, nstat, send, take
from .test_events import (
    CLOSED_NET6,
    ENDED,
    FIRST_PORT,
    MOVED,
    NO_NET,
    NO_NET6,
    SUMMED,
    Watch,
    decoded,
    detach,
    drained_until,
    in_full,
    joined,
    move,
    part,
    processes,
    try_to_connect,
)
from .test_udp import Moved, listed, make_each_call
from .traffic import Call, Errand

pytestmark = pytest.mark.kernel
EVENTS_AVAILABLE = test_events.pytestmark[1]
"""Marks what takes a kernel that reports events at all."""

PREFORKED, CHILDREN, LOSSY = 240, 12, 3
LOST_EVERY = 7
(ACCEPTING,) = (fallbacks for fallbacks in FALLBACKS if fallbacks.hook == HOOK_ACCEPTS)
OPEN, ACCEPTED, DROPPED = 10, 500, 499
ALL_FALLBACKS = (TABLES, *FALLBACKS)
MECHANISMS = [(fallbacks, mechanism) for fallbacks in ALL_FALLBACKS for mechanism in fallbacks.mechanisms]
OWN = ("event_id", "owner_source", "time", "opened_at", "duration_us", "handshake_us", "namespace", *MOVING)
"""Each probe's own: numbers, readings of the clock, times that reach to the tick of the reading, how the owner came to
be known, and the names of namespaces that it had found when it read."""
OF_OWNERS = ("pid", "process", "cgroup", "container")
"""What hangs on who is known to use an accepted connection."""


# --- the traffic ----------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """One watch's reports: of the namespaces with traffic, and of the idle one."""

    hooks: tuple[HookStatus, ...]
    refused: dict[str, str]
    gaps: dict[str, str]
    events: list[Row]
    table: list[Row]
    totals: Row


@dataclass
class Traffic:
    """Traffic, and the reports of each watch, the best first."""

    errands: dict[int, Errand]
    served: dict[tuple[int, int], int]
    client: int
    lost: dict[int, dict[str, int]]
    open_at: int
    seen: list[Seen]


@pytest.fixture(scope="module")
def watches() -> Iterator[list[Watch]]:
    """Yield the watches: the first with the best mechanisms, each further one with the next fallback of every hook.

    The last one has the best mechanisms again, but only the nested program. Mechanisms with a program that cannot be
    loaded are left out. The last watches include those for UDP: with sock_diag, the first fallback, more columns than
    those of UDP are missing.
    """
    with contextlib.ExitStack() as stack:
        best = stack.enter_context(Watch())
        hooks = best.read().hooks
        lower = {
            fallbacks.hook.name: [
                mechanism.name
                for mechanism in below(fallbacks, hook_of(hooks, fallbacks.hook.name))
                if not refused_programs(best, mechanism)
            ]
            for fallbacks in ALL_FALLBACKS
        }
        choices = [
            {hook: names[level] for hook, names in lower.items() if level < len(names)}
            for level in range(max(map(len, lower.values())))
        ]
        choices.append({})
        of_udp = hook_of(hooks, HOOK_UDP.name).mechanism
        others_of_udp = [item.name for item in UDP_FALLBACKS.mechanisms if item.name != of_udp]
        for chosen, name in zip(reversed(choices), others_of_udp, strict=False):
            chosen[HOOK_UDP.name] = name
        watches = [best, *(stack.enter_context(Watch(mechanisms=chosen)) for chosen in choices)]
        leave_to_nested(watches[-1])
        yield watches


def leave_to_nested(watch: Watch) -> None:
    """Detach the first program, so that the nested one handles every change of state."""
    events = watch.probe._events
    if events is None or CHANGES not in events.hooks._attached:
        return
    detach(watch.probe, CHANGES)
    running = (1).to_bytes(8, sys.byteorder) * maps.possible_cpus()
    bpf.set_element(events._program.maps["running"], bytes(4), running)


def below(fallbacks: Fallbacks, hook: HookStatus) -> tuple[Mechanism, ...]:
    """Return the mechanisms below the one in use."""
    names = [mechanism.name for mechanism in fallbacks.mechanisms]
    return fallbacks.mechanisms[names.index(hook.mechanism) + 1 :] if hook.mechanism else ()


def hook_of(hooks: tuple[HookStatus, ...], name: str) -> HookStatus:
    """Return the status of the hook of this name."""
    return next(hook for hook in hooks if hook.hook == name)


def refused_programs(watch: Watch, mechanism: Mechanism) -> list[str]:
    """Return the programs of a mechanism that could not be loaded."""
    assert watch.probe._events is not None
    return [name for name in mechanism.programs if name in watch.probe._events._program.refused]


@pytest.fixture(scope="module")
def done(watches: list[Watch]) -> Iterator[Traffic]:
    """Return the reports of all watches on the same traffic."""
    with Lab() as lab:
        traffic, look_at = in_full(lambda: act(lab, watches), *watches)
        for watch in watches:
            watch.freeze()
        yield replace(traffic, seen=look_at())


def act(lab: Lab, watches: list[Watch]) -> tuple[Traffic, Callable[[], list[Seen]]]:
    """Generate traffic; return it, and a function that reads a watch's reports."""
    home, still = lab.namespace(), lab.namespace()
    home.sysctl("net.ipv4.tcp_early_retrans", 0)  # a busy machine answers late, which is no loss
    near, far = lab.pair()
    client = lab.worker(home, "client")
    served, errands = run_errands(lab, home, client, watches)
    fail(client)
    lost = lose(lab, near, far)
    open_at, tables = hold_open(lab, still, watches)

    def look_at() -> list[Seen]:
        return [
            look(watch, table, client, home, near.namespace)
            for watch, table in zip(watches, tables, strict=True)
        ]

    return Traffic(errands, served, client.pid, lost, open_at, []), look_at


def look(watch: Watch, table: list[Row], client: Worker, *namespaces: Namespace) -> Seen:
    """Return a watch's reports."""
    snapshot = watch.read()
    events = watch.probe._events
    assert events is not None
    return Seen(
        snapshot.hooks,
        events._program.refused,
        dict(snapshot.gaps),
        watch.events(*namespaces),
        table,
        processes(snapshot, client.pid)[client.pid],
    )


def run_errands(
    lab: Lab, home: Namespace, client: Worker, watches: list[Watch]
) -> tuple[dict[tuple[int, int], int], dict[int, Errand]]:
    """Make connections of every ending to pre-forked workers and to a forking daemon.

    Return the servers of the connections, and the errands by the client's port.
    """
    server, daemon = lab.worker(home, "master"), lab.worker(home, "daemon")
    ports_by_host = {host: server.call(traffic.listen, host, host) for host in ("127.0.0.1", "::1")}
    server.call(serve_by_workers, list(ports_by_host))
    sizes, errands = traffic.primes(2 * (PREFORKED + CHILDREN), 100), {}
    port = daemon.call(traffic.listen, "listener", "127.0.0.1")
    daemon.start(serve_by_children, "listener", CHILDREN)
    for number in range(PREFORKED + CHILDREN):
        host = "::1" if number % 3 == 0 and number < PREFORKED else "127.0.0.1"
        target = (host, ports_by_host[host] if number < PREFORKED else port)
        call = Call(target, (host, FIRST_PORT + number))
        errands[number] = Errand(call, sizes[number], sizes[-1 - number], number // 3 % len(ENDED))
    client.start(traffic.run_errands, errands)
    ports: dict[int, int] = {}
    for watch in watches:
        ports = ports or drained_until(watch, client)
    daemon.result()
    served = server.call(traffic.served, PREFORKED) | daemon.call(traffic.served, CHILDREN)
    return served, {ports[number]: errand for number, errand in errands.items()}


def fail(client: Worker) -> None:
    """Fail to connect without a route, in every way, and to a closed port."""
    for target, mapped in ((NO_NET, False), (NO_NET6, False), (CLOSED_NET6, False), (NO_NET, True)):
        assert client.call(try_to_connect, Call((target, 5), mapped=mapped))[2] == errno.ENETUNREACH
    assert client.call(try_to_connect, Call(("127.0.0.1", 1)))[2] == errno.ECONNREFUSED


def lose(lab: Lab, near: Any, far: Any) -> dict[int, dict[str, int]]:
    """Transfer while every seventh data packet is lost; return the kernel's data on the sender's end, by port."""
    client, server = lab.worker(near.namespace, "sender"), lab.worker(far.namespace, "receiver")
    port = server.call(traffic.listen, "listener", "")
    ports = client.call(traffic.connect_at_once, [Call((far.v4, port))] * LOSSY)
    server.call(traffic.accept_ports, "listener", {port: number for number, port in enumerate(ports)})
    dropper = lab.dropper(far)
    dropper.rule(every=LOST_EVERY, data=True)
    amounts = dict(enumerate(traffic.primes(LOSSY, 300_000)))
    client.start(traffic.exchange, amounts, {})
    server.call(traffic.exchange, {}, amounts)
    client.result()
    client.call(traffic.acknowledged, list(amounts))
    dropper.nothing()
    said = client.call(ends, list(amounts))
    assert sum(item["total_retrans"] for item in said.values()) >= dropper.dropped() > 0
    client.call(traffic.linger, list(amounts))
    client.call(traffic.close, list(amounts))
    server.call(traffic.close, list(amounts))
    return {ports[number]: info | {"sent": amounts[number]} for number, info in said.items()}


def hold_open(lab: Lab, home: Namespace, watches: list[Watch]) -> tuple[int, list[list[Row]]]:
    """Hold connections open that have moved some bytes, with their processes stopped.

    Return their server's port, and each watch's rows of them.
    """
    for watch in watches:
        watch.lose_sight_of_gone()  # other watches' hook checks
    client, server, port = joined(lab, home, OPEN)
    for number, amount in enumerate(traffic.primes(OPEN, 1000)):
        move(client, server, number, amount, 2 * amount)
    for worker in (client, server):
        worker.stop()
    return port, [decoded(watch.read().tables["sockets"], home.inode) for watch in watches]


def ends(memory: dict[Any, Any], names: list[Any]) -> dict[Any, dict[str, int]]:
    """Return TCP_INFO of these sockets."""
    return {name: oracle.tcp_info(memory[name]) for name in names}


# --- each mechanism -------------------------------------------------------------------------------------------------


def name_of(parameter: object) -> str:
    """Return a hook or a mechanism as a test's name."""
    return (
        parameter.hook.name
        if isinstance(parameter, Fallbacks)
        else str(getattr(parameter, "name", parameter))
    )


@EVENTS_AVAILABLE
@pytest.mark.core
@pytest.mark.parametrize(("fallbacks", "mechanism"), MECHANISMS, ids=name_of)
def test_each_mechanism_reports_the_same(
    fallbacks: Fallbacks, mechanism: Mechanism, done: Traffic, record: Callable[..., None]
) -> None:
    """Bytes, packets, retransmits, reasons and owners are true, and equal to the best mechanism's."""
    hook = fallbacks.hook.name
    record(hook=hook, mechanism=mechanism.name)
    best = done.seen[0]
    seen = next((item for item in done.seen if hook_of(item.hooks, hook).mechanism == mechanism.name), None)
    if seen is None:
        why = why_refused(done, hook, mechanism)
        record(verdict="refused", why=why)
        pytest.skip(f"{mechanism.name}: {why}")
    check_truth(seen.events, done, knows_users=knows_users(seen))
    check_no_routes(seen)
    check_open(seen.table, done.open_at)
    assert by_id(seen.table) == by_id(best.table)
    check_same(seen.events, best.events, with_owners=knows_users(seen))
    totals = ("closed", *MOVED, *SUMMED)
    assert part(seen.totals, *totals) == part(best.totals, *totals)
    assert seen.totals["failed"] == sum(row["event"] == "fail" for row in seen.events)
    record(verdict="same")


@EVENTS_AVAILABLE
@pytest.mark.core
def test_the_nested_program_reports_the_same(done: Traffic) -> None:
    """Changes of state that find the first program running are reported by the nested one, with the same result."""
    best, nested = done.seen[0], done.seen[-1]
    check_truth(nested.events, done, knows_users=knows_users(best))
    check_same(nested.events, best.events, with_owners=knows_users(best))
    totals = ("closed", "failed", *MOVED, *SUMMED)
    assert part(nested.totals, *totals) == part(best.totals, *totals)


def why_refused(done: Traffic, hook: str, mechanism: Mechanism) -> str:
    """Return the reason why no watch uses this mechanism: a refusal, or a program that cannot be loaded."""
    reasons = [
        why for item in done.seen for name, why in hook_of(item.hooks, hook).refused if name == mechanism.name
    ]
    reasons += [done.seen[0].refused[name] for name in mechanism.programs if name in done.seen[0].refused]
    return next(why for why in reasons if why != NOT_CHOSEN)


def knows_users(seen: Seen) -> bool:
    """Return whether a hook reports the owner of an accepted connection."""
    accepts = hook_of(seen.hooks, HOOK_ACCEPTS.name)
    return any(
        mechanism.programs for mechanism in ACCEPTING.mechanisms if mechanism.name == accepts.mechanism
    )


def check_truth(rows: list[Row], done: Traffic, *, knows_users: bool) -> None:
    """Check that every connection opened and closed once at each end, with its processes' bytes."""
    reported = {(row["event"], *part(row, "local_port", "remote_port")): row for row in rows}
    for port, errand in done.errands.items():
        target = errand.call.target[1]
        server = done.served[target, port]
        assert {("connect", port, target), ("accept", target, port)} <= reported.keys()
        mine, theirs = reported["close", port, target], reported["close", target, port]
        assert part(mine, "pid", *MOVED, "retransmits") == (done.client, errand.up, errand.down, 0)
        assert part(theirs, *MOVED, "retransmits") == (errand.down, errand.up, 0)
        assert part(mine, "reason") + part(theirs, "reason") == ENDED[errand.ending]
        owners = {row["pid"] for row in (theirs, reported["accept", target, port])}
        assert owners == {server} or (not knows_users and owners <= {server, None})
    for port, said in done.lost.items():
        sent = ("close", port, "sender")  # in the other namespace a port may be the same
        (row,) = [item for item in rows if part(item, "event", "local_port", "process") == sent]
        assert part(row, "bytes_sent", "bytes_acked") == (said["sent"], said["sent"])
        assert part(row, "retransmits", "data_packets_sent") == (said["total_retrans"], said["data_segs_out"])
        assert row["packets_received"] == said["segs_in"]


def check_open(rows: list[Row], port: int) -> None:
    """Check that the open connections and their listener have their processes and bytes."""
    amounts = traffic.primes(OPEN, 1000)
    for process, moved in (
        ("client", [(amount, 2 * amount) for amount in amounts]),
        ("server", [(2 * amount, amount) for amount in amounts]),
    ):
        theirs = [row for row in rows if part(row, "process", "state") == (process, "ESTABLISHED")]
        assert sorted(part(row, *MOVED) for row in theirs) == sorted(moved)
    (listener,) = [row for row in rows if row["state"] == "LISTEN"]
    assert part(listener, "local_port", "process") == (port, "server")


def by_id(rows: list[Row]) -> dict[int, tuple[Any, ...]]:
    """Return the columns that every mechanism of the table must report of these sockets, by ID."""
    names = (
        "protocol",
        "state",
        "pid",
        "process",
        "local_address",
        "local_port",
        "remote_address",
        "remote_port",
    )
    return {row["id"]: part(row, *names, *MOVED, "bytes_acked", *SUMMED, "rtt_us", "uid") for row in rows}


def check_no_routes(seen: Seen) -> None:
    """Check that each connect() without a route is reported once, if a hook reports it."""
    routes = hook_of(seen.hooks, HOOK_ROUTES.name)
    failed = [
        part(row, "reason", "remote_address", "family") for row in seen.events if row["event"] == "fail"
    ]
    unreachable = [
        ("network unreachable", NO_NET, "IPv4"),
        ("network unreachable", NO_NET6, "IPv6"),
        ("network unreachable", CLOSED_NET6, "IPv6"),
        ("network unreachable", NO_NET, "IPv4"),
    ]
    assert failed == [*(unreachable if routes.mechanism else []), ("refused", "127.0.0.1", "IPv4")]


def check_same(rows: list[Row], best: list[Row], *, with_owners: bool) -> None:
    """Check that every column of every event is the same."""
    unlike = OWN if with_owners else OWN + OF_OWNERS

    def of(reported: list[Row]) -> dict[tuple[Any, ...], Row]:
        events = [row for row in reported if not (row["event"] == "fail" and row["reason"] != "refused")]
        return {
            part(row, "event", "id"): {name: value for name, value in row.items() if name not in unlike}
            for row in events
        }

    shown, expected = of(rows), of(best)
    assert shown.keys() == expected.keys()
    unequal = {
        key: {name: (row[name], value) for name, value in expected[key].items() if row[name] != value}
        for key, row in shown.items()
    }
    assert {key: columns for key, columns in unequal.items() if columns} == {}


@EVENTS_AVAILABLE
@pytest.mark.core
def test_hooks_are_tried_out_here(done: Traffic) -> None:
    """The hook check works: each mechanism in use was called during it."""
    assert all("hooks" not in seen.gaps for seen in done.seen)


@pytest.fixture(scope="module")
def kept() -> Iterator[Lab]:
    """Yield namespaces that exist as long as the watches.

    A frozen watch does not see connections end, so they stay in its table with their namespace's number, which must not
    be reused.
    """
    with Lab() as lab:
        yield lab


@EVENTS_AVAILABLE
@pytest.mark.core
def test_each_table_knows_who_has_accepted(lab: Lab, kept: Lab, watches: list[Watch]) -> None:
    """Each of 500 connections accepted over five pre-forked workers belongs to the worker that accepted it."""
    home = kept.namespace()
    server, client = lab.worker(home, "master"), lab.worker(home)
    port = server.call(prefork, ACCEPTED)
    client.call(traffic.connect_at_once, [Call(("127.0.0.1", port))] * ACCEPTED)
    accepted: dict[int, int] = server.call(accepted_by)
    assert (len(accepted), len(set(accepted.values()))) == (ACCEPTED, 5)
    expected = {peer: test_events.process(pid) for peer, pid in accepted.items()}
    for watch in watches:
        sockets = decoded(watch.read().tables["sockets"], home.inode)
        shown = {
            row["remote_port"]: part(row, "pid", "process")
            for row in sockets
            if part(row, "local_port", "state") == (port, "ESTABLISHED")
        }
        assert shown == expected


@dataclass
class Messages:
    """A process's sockets with the bytes of each and the calls used, and each watch's reports and rows of them."""

    pid: int
    expected: dict[int, tuple[str, Moved]]
    seen: list[tuple[Snapshot, dict[int, Row]]]


@pytest.fixture(scope="module")
def messages(watches: list[Watch]) -> Iterator[Messages]:
    """Return the messages of every call that sends or receives by UDP, as all watches report them."""
    with Lab() as lab:
        home = lab.namespace()
        worker = lab.worker(home)
        for watch in watches:
            watch.lose_sight_of_gone()
        expected = worker.call(make_each_call)
        snapshots = [watch.read() for watch in watches]
        yield Messages(worker.pid, expected, [(snapshot, listed(snapshot, home)) for snapshot in snapshots])


@pytest.mark.walks
@EVENTS_AVAILABLE
@pytest.mark.core
@pytest.mark.parametrize("mechanism", UDP_FALLBACKS.mechanisms, ids=name_of)
def test_each_mechanism_counts_the_same_messages(
    mechanism: Mechanism, messages: Messages, record: Callable[..., None]
) -> None:
    """Every mechanism counts a message once, with every call; calls that move nothing do not count."""
    record(hook=HOOK_UDP.name, mechanism=mechanism.name)
    snapshot, here = next(seen for seen in messages.seen if has_tried(seen[0], mechanism))
    status = hook_of(snapshot.hooks, HOOK_UDP.name)
    if status.mechanism is None:
        assert snapshot.missing.keys() == {"messages_sent", "messages_received"}
        assert {test_udp.moved(row) for row in here.values()} == {(None, None, None, None)}
        why = dict(status.refused)[mechanism.name]
        record(verdict="refused", why=why)
        pytest.skip(f"{mechanism.name}: {why}")
    expected = messages.expected
    assert {cookie: (expected[cookie][0], test_udp.moved(row)) for cookie, row in here.items()} == expected
    assert {row["pid"] for row in here.values()} == {messages.pid}
    record(verdict="same")


def has_tried(snapshot: Snapshot, mechanism: Mechanism) -> bool:
    """Return whether a probe counts UDP by this mechanism, or not at all because it was refused."""
    status = hook_of(snapshot.hooks, HOOK_UDP.name)
    if status.mechanism is None:
        return dict(status.refused)[mechanism.name] != NOT_CHOSEN
    return status.mechanism == mechanism.name


@pytest.mark.core
@pytest.mark.parametrize("mechanism", PACKETS_FALLBACKS.mechanisms, ids=name_of)
def test_each_mechanism_counts_the_same_drops(
    mechanism: Mechanism, lab: Lab, record: Callable[..., None]
) -> None:
    """Datagrams to a closed port are drops, as many as were sent and as the namespace counts."""
    record(hook=HOOK_PACKETS.name, mechanism=mechanism.name)
    source = Drops()
    source.configure(source_options(mechanisms={HOOK_PACKETS.name: mechanism.name}))
    source.start()
    try:
        hook = hook_of(take(source).hooks, HOOK_PACKETS.name)
        if hook.mechanism != mechanism.name:
            record(verdict="refused", why=hook.why)
            pytest.skip(f"{mechanism.name}: {hook.why}")
        home = lab.namespace()
        lab.worker(home).call(send, ("127.0.0.1", 9), DROPPED)
        until(lambda: nstat(home, "UdpNoPorts") == DROPPED, "every datagram finds the port closed")
        snapshot = take(source)
        rows = decoded(snapshot.tables["packets"], home.inode)
        assert sum(row["packets"] for row in rows if row["protocol"] == "udp") == DROPPED
        assert counter(snapshot, home, "UdpNoPorts") == DROPPED
    finally:
        source.close()
    record(verdict="same")


# --- hooks that are missing, or never called ----------------------------------------------------------------


def test_the_hook_check_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check's own traffic causes no event, total or connection record."""
    namespaces: set[int] = set()
    inode = HookCheck.inode

    def noted(check: HookCheck) -> int:
        namespaces.add(inode(check))
        return inode(check)

    monkeypatch.setattr(HookCheck, "inode", noted)
    with Watch() as watch:
        for _ in range(2):
            snapshot = watch.read()
        reported = {row["netns"] for row in watch.events()}
    assert len(namespaces) == 1
    assert not namespaces & (reported | set(snapshot.tables["sockets"].array["netns"].tolist()))


def test_hooks_that_cannot_be_checked_are_attached_unchecked() -> None:
    """Without the right to make a namespace hooks are attached unchecked, and a gap says so."""
    dropped = "-sys_admin"
    command = ["setpriv", "--bounding-set", dropped, "--inh-caps", dropped, NETTOP]
    options = ["--table", "--once", "--view", "connections.events"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "hooks not checked: creating a network namespace needs CAP_SYS_ADMIN" in done.stderr
    assert "events tp_btf/inet_sock_set_state" in done.stderr
