# SPDX-License-Identifier: Apache-2.0
"""Rows, groups and the row for the rest sum up to the bytes that programs sent and received."""

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.query.query import Query, text_query
from nettop.query.view import View
from nettop.snapshots.arrays import Index
from nettop.snapshots.connections import GROUPINGS, GROUPS, SOCKETS
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import Frame, Snapshot

from . import ss, traffic
from .command import HOUR, JSON, Row, Running, in_namespaces
from .lab import Lab, Namespace, NotInTimeError, Worker, until
from .socket_sharing import send_by_children, serve_by_workers
from .test_bytes_exact import KINDS, Talk, connected
from .test_events import ALL_ENDINGS, MOVED, TINY_RING, Watch, close_from_each_side, decoded, in_full, part
from .traffic import Call, Errand, Memory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since("5.12", "a program at a tracepoint may not ask for a socket's cookie"),
]

QUIET_TRIES = 10
UP, DOWN = 20_000_003, 10_000_019
SUMMED = [
    field.name for field in GROUPS.fields if field.kind is Kind.COUNTER and field.name in SOCKETS.by_name
]
"""The counters that groups and rows have in common."""
AT_REST = {"LISTEN", "ESTABLISHED", "TIME_WAIT"}
Moved = tuple[int, ...]
"""Bytes sent and bytes received."""


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """Return a probe that the tests share; it counts only TCP."""
    with Watch(udp="off") as watch:
        yield watch


# --- adding up ------------------------------------------------------------------------------------------------


def differences(table: Table) -> Query:
    """Return each row's deltas in an interval, as text and screens request them."""
    return replace(text_query(table), all_rows=True, closed=True, deltas=True)


def total(view: View, name: str, at: Index | None = None) -> int:
    """Return the sum of a column over these rows, or over all."""
    return int(view.total(name, np.arange(view.size) if at is None else at) or 0)


class Meter:
    """Readings of a probe, and the sums of their intervals."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._last = watch.read()
        self.frames: list[Frame] = []

    def read(self) -> None:
        """End an interval."""
        before, self._last = self._last, self._watch.read()
        self.frames.append(Frame(self._last, before))

    def read_while(self, workers: Iterable[Worker]) -> None:
        """Read repeatedly until all workers have finished."""
        for worker in workers:
            is_done = False
            while not is_done:
                self.read()
                with contextlib.suppress(NotInTimeError):
                    worker.result(0.01)
                    is_done = True

    def sums(self, namespace: Namespace | None, names: Sequence[str] = MOVED) -> tuple[int, ...]:
        """Return the sums of a namespace's rows; None is the row for the rest."""
        actual = Counter[str]()
        for frame in self.frames:
            view = View(frame, differences(SOCKETS))
            mine = view.raw("netns") == namespace.inode if namespace else view.rest
            actual.update({name: total(view, name, np.flatnonzero(mine)) for name in names})
        return part(actual, *names)


Order = tuple[Any, ...]
"""A function for a worker, and its arguments."""


@dataclass(frozen=True)
class Work:
    """Work for some workers, and the bytes that each namespace will have moved.

    The namespaces exist before: the kernel may reuse the number of a removed one that had traffic.
    """

    orders: dict[Worker, Order]
    moved: dict[Namespace, Moved]

    def start(self) -> None:
        """Start the workers."""
        for worker, order in self.orders.items():
            worker.start(*order)

    def settle(self) -> None:
        """Wait until each connection is either open or has ended and is in the ring."""
        for namespace in self.moved:
            until(
                lambda namespace=namespace: {row.state for row in ss.sockets(namespace).values()} <= AT_REST,
                "nothing is still closing",
            )


def measured(watch: Watch, work: Work) -> tuple[Work, Meter]:
    """Have the work done, with readings before, meanwhile and after."""
    meter = Meter(watch)
    work.start()
    meter.read_while(work.orders)
    work.settle()
    meter.read()
    return work, meter


# --- traffic --------------------------------------------------------------------------------------------------


def errands(lab: Lab, kind: str, times: int = 40) -> Work:
    """Make connections one after the other to five processes; they end in every manner."""
    near, far = lab.pair()
    client, server = lab.worker(near.namespace, "client"), lab.worker(far.namespace, "server")
    host = far.v6 if kind == "IPv6" else far.v4
    if kind == "MPTCP":
        port = server.call(traffic.listen_mptcp, "listener", host)
    else:
        port = server.call(traffic.listen, "listener", "::" if kind == "v4-mapped" else host)
    call = Call(
        (host, port), mapped=kind == "v4-mapped", protocol=socket.IPPROTO_MPTCP if kind == "MPTCP" else 0
    )
    endings = ALL_ENDINGS * times
    sizes = traffic.primes(2 * len(endings), 1000)
    ups, downs = sizes[::2], sizes[1::2]
    server.call(serve_by_workers, ["listener"])
    each = dict(enumerate(map(Errand, [call] * len(endings), ups, downs, endings)))
    orders = {client: (traffic.run_errands, each), server: (traffic.reports, len(endings))}
    moved = sum(ups), sum(downs)
    return Work(orders, {near.namespace: moved, far.namespace: moved[::-1]})


def short_processes(lab: Lab) -> Work:
    """Fork processes that each make one connection, send, and exit."""
    near, far = lab.pair()
    forker, sink = lab.worker(near.namespace, "forker"), lab.worker(far.namespace, "sink")
    port = sink.call(traffic.listen, "listener", far.v4)
    amounts = traffic.primes(300, 100)
    orders = {
        sink: (traffic.swallow, "listener", len(amounts)),
        forker: (send_by_children, (far.v4, port), amounts),
    }
    sent = sum(amounts)
    return Work(orders, {near.namespace: (sent, 0), far.namespace: (0, sent)})


def bulk(lab: Lab) -> Work:
    """Make connections that move much at once, and stay open."""
    return exchange(connected(lab, "IPv4", 3), UP, DOWN)


def exchange(talk: Talk, up: int, down: int) -> Work:
    """Exchange data on all connections at once."""
    ups, downs = (dict.fromkeys(talk.numbers, amount) for amount in (up, down))
    orders = {talk.client: (traffic.exchange, ups, downs), talk.server: (traffic.exchange, downs, ups)}
    near, far = (end.namespace for end in talk.ends)
    moved = sum(ups.values()), sum(downs.values())
    return Work(orders, {near: moved, far: moved[::-1]})


def mixed(lab: Lab) -> Work:
    """Return all of that work, each in its own namespaces."""
    return together(errands(lab, "IPv4"), errands(lab, "IPv6"), short_processes(lab), bulk(lab))


def together(*parts: Work) -> Work:
    """Return pieces of work as one that starts them all at once."""
    return Work(
        {worker: order for part in parts for worker, order in part.orders.items()},
        {namespace: moved for part in parts for namespace, moved in part.moved.items()},
    )


TRAFFIC: dict[str, Callable[[Lab], Work]] = {
    "v4-mapped": lambda lab: errands(lab, "v4-mapped"),
    "mixed": mixed,
}


# --- rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", TRAFFIC.values(), ids=TRAFFIC)
def test_rows_add_up(lab: Lab, watch: Watch, begin: Callable[[Lab], Work]) -> None:
    """Whenever readings are taken, the rows of all intervals sum up to the bytes sent and received, with no rest."""
    work, meter = in_full(lambda: measured(watch, begin(lab)), watch)
    assert {namespace: meter.sums(namespace) for namespace in work.moved} == work.moved
    assert meter.sums(None) == (0, 0)


@pytest.mark.skipif(not Path("/proc/sys/net/mptcp").exists(), reason="this kernel has no MPTCP")
def test_rows_of_subflows_add_up(lab: Lab, watch: Watch) -> None:
    """MPTCP's bytes count once, in the rows of its subflows."""
    test_rows_add_up(lab, watch, lambda lab: errands(lab, "MPTCP"))


def test_each_interval_adds_up(lab: Lab, watch: Watch) -> None:
    """Persistent connections add to an interval the bytes sent in it, and nothing when they end."""
    sizes = traffic.primes(4, 100_000)

    def intervals() -> list[tuple[Moved, Moved, Moved]]:
        talk = connected(lab, "IPv4", 4)
        near, far = (end.namespace for end in talk.ends)
        added = []
        for act in (
            *(partial(talk.exchange, size, size + 2) for size in sizes),
            partial(close_from_each_side, talk.client, talk.server),
        ):
            meter = Meter(watch)
            act()
            meter.read()
            added.append((meter.sums(near), meter.sums(far), meter.sums(None)))
        return added

    moved = [(4 * size, 4 * (size + 2)) for size in sizes]
    assert in_full(intervals, watch) == [
        *((pair, pair[::-1], (0, 0)) for pair in moved),
        ((0, 0), (0, 0), (0, 0)),
    ]


def test_earlier_totals_are_no_burst(lab: Lab) -> None:
    """Bytes from before nettop's start are in no interval, whether their connections are listed or end."""
    talk = connected(lab, "IPv4", 4)
    talk.exchange(UP, DOWN)
    near, far = (end.namespace for end in talk.ends)
    with Watch() as watch:
        meter = Meter(watch)
        meter.read()
        assert meter.sums(near) == (0, 0)
        talk.exchange(1009, 1013)
        meter.read()
        close_from_each_side(talk.client, talk.server)
        meter.read()
        assert (meter.sums(near), meter.sums(far)) == ((4 * 1009, 4 * 1013), (4 * 1013, 4 * 1009))
        assert meter.sums(None) == (0, 0) or watch.has_lost()


def make_socket(memory: Memory, name: object) -> None:
    """Make an unconnected socket."""
    memory[name] = socket.socket()


def connect_and_send(memory: Memory, name: object, target: tuple[str, int], amount: int) -> None:
    """Connect that socket, and send `size` bytes."""
    memory[name].connect(target)
    memory[name].sendall(b"n" * amount)


@pytest.mark.walks
def test_a_socket_is_listed_before_it_is_open(lab: Lab) -> None:
    """A socket listed before it connected, or while its SYN was unanswered, counts its first packets."""
    near, far = lab.pair()
    client, server, port = traffic.client_and_server(lab, near.namespace, far.namespace, far.v4)
    dropper = lab.dropper(far)
    with Watch() as watch:
        meter = Meter(watch)
        client.call(make_socket, 0)
        meter.read()
        dropper.rule(every=1)
        client.start(connect_and_send, 0, (far.v4, port), 1009)
        until(lambda: dropper.dropped() > 0, "a SYN is lost")
        meter.read()
        dropper.nothing()
        client.result()
        server.call(traffic.accept, "listener", 0)
        client.call(traffic.acknowledged, [0])
        meter.read()
        (row,) = decoded(watch.read().tables["sockets"], near.namespace.inode)
        assert meter.sums(near.namespace, SUMMED) == part(row, *SUMMED)


@pytest.mark.walks
def test_the_rest_holds_what_a_small_ring_has_no_room_for(lab: Lab) -> None:
    """Through a ring for a few events, rows and rest together are still the bytes sent and received.

    A second probe checks that nothing else on the host ended meanwhile, which would be in the rest too.
    """
    with Watch(udp="off") as watch, Watch(ring_bytes=TINY_RING, udp="off") as tiny:
        for _ in range(QUIET_TRIES):
            before = watch.read(), tiny.read()
            work, meter = measured(tiny, errands(lab, "IPv4"))
            after = watch.read(), tiny.read()
            expected = tuple(map(sum, zip(*work.moved.values(), strict=True)))
            if ended(after[0], before[0]) == expected and not uncounted(after[1], before[1]):
                break
        else:
            raise AssertionError(f"other processes had connections each of {QUIET_TRIES} times")
    listed = [meter.sums(namespace) for namespace in work.moved]
    assert meter.sums(None) > (0, 0)
    assert tuple(map(sum, zip(meter.sums(None), *listed, strict=True))) == expected


def ended(now: Snapshot, before: Snapshot) -> Moved:
    """Return the bytes of all the host's connections that ended between two readings."""
    sums = [snapshot.ended[SOCKETS.name].total.array for snapshot in (now, before)]
    sent, received = (int(sums[0][name][0] - sums[1][name][0]) for name in MOVED)
    return sent, received


def uncounted(now: Snapshot, before: Snapshot) -> int:
    """Return the number of ends that the kernel skipped between two readings."""
    return now.counts["uncounted"] - before.counts["uncounted"]


# --- groups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_add_up(live: Talk, lab: Lab, watch: Watch, by: str) -> None:
    """With any grouping, groups sum up to the rows at their start, and in each later interval."""
    for grouping in (*(other for other in GROUPINGS if other != by), by):  # begins anew
        watch.configure(group=grouping)
    assert_same_sums(Frame(watch.read()), deltas=False)
    work, meter = in_full(
        lambda: measured(watch, together(exchange(live, 10_007, 20_011), errands(lab, "IPv4"))), watch
    )
    assert {namespace: meter.sums(namespace) for namespace in work.moved} == work.moved
    for frame in meter.frames:
        assert_same_sums(frame, deltas=True)


def test_groups_lack_what_was_before_them(lab: Lab) -> None:
    """An earlier connection ends in a namespace that cannot be entered: only totals lack its bytes.

    Its row counts from its opening, but groups lack its bytes from before they began.
    """
    near, far = lab.pair()
    client, server, port = traffic.client_and_server(lab, near.namespace, far.namespace, far.v4)
    client.call(traffic.connect, 0, Call((far.v4, port)))
    server.call(traffic.accept, "listener", 0)
    dropper = lab.dropper(far)
    dropper.rule(every=1)
    client.call(traffic.send, {0: 1009})
    until(lambda: dropper.dropped() > 1, "the bytes are sent again")
    client.end()
    near.namespace.remove()
    with Watch(udp="off") as watch:
        watch.configure(udp="off", group="process")
        meter = Meter(watch)
        dropper.nothing()
        server.call(traffic.arrived, {0: 1009})
        server.call(traffic.close, [0])

        def lacking() -> Counter[str]:
            meter.read()
            frame = meter.frames[-1]
            return sums_of(frame, SOCKETS, deltas=False) - sums_of(frame, GROUPS, deltas=False)

        lacked = until(lacking, "the row of the connection is there")
    assert (lacked["bytes_sent"], lacked["retransmits"] > 0) == (1009, True)
    for frame in meter.frames:
        assert_same_sums(frame, deltas=True)


def assert_same_sums(frame: Frame, *, deltas: bool) -> None:
    """Assert that groups and rows have the same sums; in total too if groups have just begun."""
    assert sums_of(frame, GROUPS, deltas=deltas) == sums_of(frame, SOCKETS, deltas=deltas)


def sums_of(frame: Frame, table: Table, *, deltas: bool) -> Counter[str]:
    """Sum the rows of a table."""
    view = View(frame, replace(differences(table), deltas=deltas))
    return Counter({name: total(view, name) for name in SUMMED})


@pytest.fixture(scope="module")
def live() -> Iterator[Talk]:
    """Yield connections that stay open."""
    with Lab() as lab:
        yield connected(lab, "IPv4", 500)


# --- the program ----------------------------------------------------------------------------------------------


class Printing(Running):
    """nettop printing differences; `forget` discards earlier output."""

    def __init__(self, *options: str) -> None:
        super().__init__(*JSON, "--deltas", "--udp", "off", *HOUR, *options)
        self._before = self._errors_before = 0

    def begin(self) -> None:
        """Have nettop print its first interval."""
        until(lambda: self.refresh() or self.text(), "nettop prints its first interval")

    def read(self) -> None:
        """Have nettop print one more interval."""
        before = len(self.refreshes())
        self.refresh()
        until(lambda: len(self.refreshes()) > before, "nettop prints an interval")

    def rows(self) -> list[Row]:
        """Return the rows printed since `forget`."""
        return [row for refresh in self.refreshes()[self._before :] for row in refresh]

    def forget(self) -> None:
        """Discard earlier output, after a reading."""
        self.read()
        self._before, self._errors_before = len(self.refreshes()), len(self.errors())

    def has_lost(self) -> bool:
        """Return whether nettop has reported lost events since `forget`."""
        return " events (" in self.errors()[self._errors_before :]


def printed(printing: Printing, lab: Lab) -> tuple[Work, list[Row]]:
    """Return the work done, and nettop's output on it in a few intervals."""
    works = [together(errands(lab, kind), bulk(lab)) for kind in KINDS]
    printing.forget()
    for work in works:
        work.start()
        for worker in work.orders:
            worker.result()
        work.settle()
        printing.read()
    return together(*works), printing.rows()


def sums(listed: Iterable[Row]) -> Moved:
    """Sum these rows; unknown values count as 0."""
    chosen = list(listed)
    sent, received = (sum(row[name] or 0 for row in chosen) for name in MOVED)
    return sent, received


@pytest.mark.walks
def test_the_program_s_rows_add_up(lab: Lab) -> None:
    """`nettop --table --deltas` prints each byte in one row of one interval."""
    home = lab.namespace()
    stranger = lab.worker(home)
    with Printing() as printing:
        printing.begin()
        until(lambda: reports_ends(printing, stranger), "nettop reports what ends")
        work, listed = in_full(lambda: printed(printing, lab), printing)
        assert (printing.end(), printing.complaints()) == (0, "")
    assert {namespace: sums(in_namespaces(listed, namespace.inode)) for namespace in work.moved} == work.moved


def reports_ends(printing: Printing, stranger: Worker) -> bool:
    """Return whether a connection that opens and closes is printed."""
    stranger.call(traffic.storm, "127.0.0.1", 0.001)
    printing.read()
    return '"state":"CLOSE"' in printing.text()
