# SPDX-License-Identifier: Apache-2.0
"""Every socket of the kernel has a row, even if no process holds it."""

import socket
from typing import Any

import pytest

from . import ss, traffic
from .command import JSON, Row, Running, by_cookie, in_namespaces, rows
from .lab import Dropper, End, Lab, Namespace, Worker, until
from .traffic import Call

pytestmark = pytest.mark.kernel


def states(listed: list[Row], namespace: Namespace) -> list[str]:
    """Return the TCP states of the rows in a namespace, sorted."""
    return sorted(row["state"] for row in in_namespaces(listed, namespace.inode) if row["protocol"] == "tcp")


def two_ends(lab: Lab) -> tuple[End, End, Worker, Worker, int]:
    """Return a veth pair with a client on one end, a server on the other, and the server's listening port."""
    near, far = lab.pair()
    client, server = lab.worker(near.namespace, "client"), lab.worker(far.namespace, "server")
    return near, far, client, server, server.call(traffic.listen, "listener", "", 0, 7)


def only(listed: list[Row], **wanted: Any) -> Row:
    """Return the only row with these values."""
    fitting = [row for row in listed if all(row[name] == value for name, value in wanted.items())]
    assert len(fitting) == 1, f"{len(fitting)} rows with {wanted}"
    return fitting[0]


def test_listener_and_connections_not_yet_accepted(lab: Lab) -> None:
    """A listener shows its backlog and the limit; connections in it have rows with bytes and no owner."""
    _, far, client, server, port = two_ends(lab)
    client.call(traffic.connect_at_once, [Call((far.v4, port))] * 3)
    client.call(traffic.send, {0: 101, 1: 103, 2: 107})
    client.call(traffic.acknowledged, [0, 1, 2])
    listed = in_namespaces(rows(), far.namespace.inode)
    listener = only(listed, state="LISTEN")
    assert (listener["accept_queue"], listener["backlog"], listener["pid"]) == (3, 7, server.pid)
    assert (listener["receive_queue"], listener["send_queue"]) == (None, None)  # which are bytes
    assert (listener["direction"], listener["local_port"], listener["remote_port"]) == (None, port, None)
    waiting = [row for row in listed if row["state"] == "ESTABLISHED"]
    assert sorted((row["bytes_received"], row["pid"], row["process"]) for row in waiting) == [
        (101, None, None),
        (103, None, None),
        (107, None, None),
    ]
    assert {row["direction"] for row in waiting} == {"inbound?"}


def test_half_open_connection(lab: Lab) -> None:
    """A connection whose last acknowledgement was lost is SYN_RECV on the server, without an owner."""
    near, far, client, _, port = two_ends(lab)
    lab.dropper(far).rule(every=1, with_flags=Dropper.ACK, without_flags=Dropper.SYN)
    client.call(traffic.connect_at_once, [Call((far.v4, port))])
    listed = rows()
    assert states(listed, far.namespace) == ["LISTEN", "SYN_RECV"]
    half_open = only(listed, netns=far.namespace.inode, state="SYN_RECV")
    assert (half_open["pid"], half_open["local_port"], half_open["remote_address"]) == (None, port, near.v4)
    assert half_open["id"] in ss.sockets(far.namespace)


def test_connection_in_progress(lab: Lab) -> None:
    """An unanswered connection is SYN_SENT, belongs to the process that called connect, and has sent no payload."""
    near, far, client, _, port = two_ends(lab)
    lab.dropper(far).rule(every=1)
    client.call(traffic.connect_without_answer, 0, Call((far.v4, port)))
    row = only(rows(), netns=near.namespace.inode, protocol="tcp")
    assert (row["state"], row["pid"]) == ("SYN_SENT", client.pid)
    assert (row["bytes_sent"], row["bytes_acked"], row["bytes_received"], row["rtt_us"]) == (0, 0, 0, None)


def test_orphans(lab: Lab) -> None:
    """Connections that the kernel is still closing have rows without an owner."""
    near, far, client, server, port = two_ends(lab)
    client.call(traffic.connect_at_once, [Call((far.v4, port))] * 2)
    for number in range(2):
        server.call(traffic.accept, "listener", number)
    client.call(traffic.close, [0])
    until(lambda: "CLOSE_WAIT" in states(rows(), far.namespace), "the first FIN arrives")
    lab.dropper(far).rule(every=1)
    client.call(traffic.send, {1: 1009})
    client.call(traffic.close, [1])
    listed = in_namespaces(rows(), near.namespace.inode)
    assert states(listed, near.namespace) == ["FIN_WAIT1", "FIN_WAIT2"]
    assert {row["pid"] for row in listed} == {None}
    orphan = only(listed, state="FIN_WAIT1")
    assert (orphan["bytes_sent"], orphan["bytes_acked"], orphan["id"] in ss.sockets(near.namespace)) == (
        1009,
        0,
        True,
    )


def test_time_wait_on_request(lab: Lab) -> None:
    """With --all TIME_WAIT has a row with ss's key, without owner or bytes; otherwise it has none."""
    near, far, client, server, port = two_ends(lab)
    client.call(traffic.connect_at_once, [Call((far.v4, port))])
    server.call(traffic.accept, "listener", 0)
    client.call(traffic.close, [0])
    server.call(traffic.close, [0])
    until(
        lambda: "TIME_WAIT" in {row.state for row in ss.sockets(near.namespace).values()}, "TIME_WAIT begins"
    )
    row = only(rows(), netns=near.namespace.inode)
    assert (row["state"], row["pid"], row["bytes_sent"]) == ("TIME_WAIT", None, None)
    assert row["id"] in ss.sockets(near.namespace)
    assert not in_namespaces(rows(everything=False), near.namespace.inode)


def test_time_wait_while_its_process_keeps_the_descriptor(lab: Lab) -> None:
    """A connection in TIME_WAIT looks as in ss even while a process holds its dead descriptor."""
    near, far, client, server, port = two_ends(lab)
    client.call(traffic.connect_at_once, [Call((far.v4, port))])
    server.call(traffic.accept, "listener", 0)
    (cookie,) = ss.sockets(near.namespace)  # from now on the kernel has one: the minisocket inherits it
    client.call(traffic.shut, [0])
    server.call(traffic.close, [0])
    until(lambda: ss.sockets(near.namespace)[cookie].state == "TIME_WAIT", "TIME_WAIT begins")
    row, line = (
        by_cookie(in_namespaces(rows(), near.namespace.inode))[cookie],
        ss.sockets(near.namespace)[cookie],
    )
    assert (row["state"], row["pid"], row["bytes_sent"]) == ("TIME_WAIT", None, None)
    assert (row["local_address"], row["local_port"]) == line.local
    assert (row["remote_address"], row["remote_port"]) == line.remote


def test_default_rows(lab: Lab) -> None:
    """Without --all rows are TCP except listeners, and connected UDP."""
    home = lab.namespace()
    worker = lab.worker(home)
    port = worker.call(traffic.listen, "listener", "127.0.0.1")
    worker.call(traffic.connect_at_once, [Call(("127.0.0.1", port))])
    worker.call(traffic.udp, "unconnected", "127.0.0.1")
    worker.call(traffic.udp, "connected", "127.0.0.1", ("127.0.0.1", 9))

    def kinds(everything: bool) -> list[tuple[str, str]]:
        listed = in_namespaces(rows(everything=everything), home.inode)
        return sorted((row["protocol"], row["state"]) for row in listed)

    usual = [("tcp", "ESTABLISHED"), ("tcp", "ESTABLISHED"), ("udp", "ESTABLISHED")]
    assert kinds(everything=False) == usual
    assert kinds(everything=True) == sorted([*usual, ("tcp", "LISTEN"), ("udp", "UNCONN")])


@pytest.mark.walks
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_udp_queue_and_drops(lab: Lab, host: str) -> None:
    """UDP rows have ss's queue, drops, user and addresses, connected or not, dropping or not."""
    home = lab.namespace()
    worker = lab.worker(home)
    worker.call(overflow_udp, host, 4093)
    wanted = ss.sockets(home, "-u", "-p")
    listed = by_cookie(in_namespaces(rows(), home.inode))
    assert listed.keys() == wanted.keys()
    assert sum(line.drops > 0 for line in wanted.values()) == 1
    assert sum(line.receive_queue > 0 for line in wanted.values()) == 2
    for cookie, line in wanted.items():
        row = listed[cookie]
        assert (row["local_address"], row["local_port"]) == line.local
        assert (row["remote_port"] or 0, row["uid"], row["pid"]) == (line.remote[1], line.uid, worker.pid)
        assert (row["receive_queue"], row["send_queue"], row["drops"]) == (
            line.receive_queue,
            line.send_queue,
            line.drops,
        )
        assert row["state"] == {"CLOSE": "UNCONN"}.get(line.state, line.state)
        assert (row["bytes_sent"], row["retransmits"], row["direction"]) == (None, None, None)


def overflow_udp(memory: dict[Any, Any], host: str, datagrams: int) -> None:
    """Open two receivers that never read, one of which overflows, and a connected sender."""
    small, large = (traffic.udp(memory, name, host) for name in ("small", "large"))
    memory["small"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    traffic.udp(memory, "sender", host, (host, small))
    for _ in range(datagrams):
        memory["sender"].send(b"n" * 101)
    memory["sender"].sendto(b"n" * 997, (host, large))
    traffic.arrived(memory, {"large": 1})


def test_namespace_with_ownerless_sockets_only(lab: Lab) -> None:
    """A namespace without processes still shows the connections that the kernel is closing there."""
    near, far, client, _, port = two_ends(lab)
    client.call(traffic.connect_at_once, [Call((far.v4, port))] * 2)
    lab.dropper(far).rule(every=1)
    client.call(traffic.send, {0: 1009, 1: 1013})
    client.end()
    listed = in_namespaces(rows(), near.namespace.inode)
    assert sorted((row["state"], row["bytes_sent"], row["pid"]) for row in listed) == [
        ("FIN_WAIT1", 1009, None),
        ("FIN_WAIT1", 1013, None),
    ]


def test_namespace_that_vanishes(lab: Lab) -> None:
    """A namespace that vanishes while nettop runs only removes its rows: no error, no traceback."""
    witness_home, home = lab.namespace(), lab.namespace()
    witness, worker = lab.worker(witness_home), lab.worker(home)
    for process in (witness, worker):
        process.call(traffic.listen, "listener", "127.0.0.1")
    with Running(*JSON, "--all", "--interval", "3600") as running:
        running.first_rows()
        worker.end()
        home.remove()
        assert running.end() == 0  # after a last reading
        first, second = running.refreshes()
        assert (len(in_namespaces(first, home.inode)), len(in_namespaces(second, home.inode))) == (1, 0)
        assert len(in_namespaces(second, witness_home.inode)) == 1
        assert running.complaints() == ""


def test_namespaces_are_not_kept_alive(lab: Lab) -> None:
    """An unused namespace vanishes while nettop waits for its next refresh, an hour away."""
    here, there = lab.pair()
    worker = lab.worker(there.namespace)
    worker.call(traffic.listen, "listener", "127.0.0.1")
    with Running(*JSON, "--interval", "3600", "--all") as running:
        running.first_rows()
        worker.end()
        there.namespace.remove()
        # The other end of the pair goes with the namespace, not before.
        until(lambda: here.device not in here.namespace.ip("-o", "link"), "the namespace has ended")
