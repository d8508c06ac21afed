# SPDX-License-Identifier: Apache-2.0
"""Columns show exactly the prime numbers of bytes that were sent, on both ends and in every state of closing."""

import time
from dataclasses import dataclass

import pytest

from . import traffic
from .command import Row, by_cookie, rows
from .lab import Dropper, End, Lab, Worker, until
from .traffic import Call

pytestmark = pytest.mark.kernel

TICK_S, APART_S = 0.02, 0.2
UP, DOWN, MORE, REST = 1_000_003, 700_001, 4_099, 1_000_033
LOSSY_UP, LOSSY_DOWN = 200_003, 100_003
KINDS = ("IPv4", "IPv6", "v4-mapped")
OPEN, FIN_WAIT1, FIN_WAIT2, ANSWERED, LAST_ACK, CLOSING = range(6)
STATES = {
    OPEN: ("ESTABLISHED", "ESTABLISHED"),
    FIN_WAIT1: ("FIN_WAIT1", "ESTABLISHED"),
    FIN_WAIT2: ("FIN_WAIT2", "CLOSE_WAIT"),
    ANSWERED: ("FIN_WAIT2", "CLOSE_WAIT"),
    LAST_ACK: ("FIN_WAIT2", "LAST_ACK"),
    CLOSING: ("CLOSING", "FIN_WAIT1"),
}


@dataclass
class Talk:
    """Connections between two workers, by number, and nettop's rows of either end."""

    ends: tuple[End, End]
    client: Worker
    server: Worker
    ports: list[int]

    @property
    def numbers(self) -> list[int]:
        """The names of the connections in both workers."""
        return list(range(len(self.ports)))

    def exchange(self, up: int, down: int, numbers: list[int] | None = None) -> None:
        """Move `up` bytes to the server and `down` bytes to the client on each; wait until they are read and
        acknowledged."""
        chosen = self.numbers if numbers is None else numbers
        self.client.start(traffic.exchange, dict.fromkeys(chosen, up), dict.fromkeys(chosen, down))
        self.server.start(traffic.exchange, dict.fromkeys(chosen, down), dict.fromkeys(chosen, up))
        self.client.result()
        self.server.result()
        self.client.call(traffic.acknowledged, chosen)
        self.server.call(traffic.acknowledged, chosen)

    def shown(self) -> list[tuple[Row, Row]]:
        """Return the client's and the server's row of each connection, taken while both processes stand still."""
        near = self.client.call(traffic.cookies, self.numbers)
        far = self.server.call(traffic.cookies, self.numbers)
        self.client.stop()
        self.server.stop()
        by_id = by_cookie(rows())
        self.client.go_on()
        self.server.go_on()
        return [(by_id[near[number]], by_id[far[number]]) for number in self.numbers]


def connected(lab: Lab, kind: str, count: int) -> Talk:
    """Open `count` connections over a veth pair."""
    near, far = lab.pair()
    client, server = lab.worker(near.namespace), lab.worker(far.namespace)
    port = server.call(traffic.listen, "listener", {"IPv4": "", "IPv6": far.v6, "v4-mapped": "::"}[kind])
    call = Call((far.v6 if kind == "IPv6" else far.v4, port), mapped=kind == "v4-mapped")
    ports = client.call(traffic.connect_at_once, [call] * count)
    server.call(traffic.accept_ports, "listener", {port: number for number, port in enumerate(ports)})
    return Talk((near, far), client, server, ports)


def lossy(lab: Lab, talk: Talk, every: int) -> tuple[Dropper, Dropper]:
    """Have every Nth data segment lost on arrival, at either end (0: none)."""
    droppers = lab.dropper(talk.ends[0]), lab.dropper(talk.ends[1])
    for dropper in droppers:
        dropper.rule(every=every, data=True)
    return droppers


def payload(row: Row) -> tuple[int, int, int]:
    """Return the bytes sent, acknowledged and received."""
    return row["bytes_sent"], row["bytes_acked"], row["bytes_received"]


@pytest.mark.parametrize("mechanism", ["iter", "sock_diag"])
def test_when_data_last_moved(lab: Lab, mechanism: str) -> None:
    """Each end knows how long ago it sent and received data; of an idle connection, when it opened."""
    talk = connected(lab, "IPv4", 2)
    opened_at = time.monotonic()
    times = []
    for up, down in ((UP, 0), (0, DOWN)):
        until(lambda: time.monotonic() - (times or [(0, opened_at)])[-1][1] > APART_S, "some time passes")
        began = time.monotonic()
        talk.exchange(up, down, [0])
        times.append((began, time.monotonic()))
    began = time.monotonic()
    options = ("--mechanism", "sockets=sock_diag") if mechanism == "sock_diag" else ()
    by_id = by_cookie(rows(*options))
    ended = time.monotonic()
    for worker, moved in ((talk.client, times), (talk.server, times[::-1])):
        busy, idle = (by_id[cookie] for cookie in worker.call(traffic.cookies, [0, 1]).values())
        for name, (first, last) in zip(("last_sent_ms", "last_received_ms"), moved, strict=True):
            assert began - last - TICK_S <= busy[name] / 1000 <= ended - first + TICK_S
            assert began - opened_at - TICK_S <= idle[name] / 1000


def test_bytes_before_the_acknowledgement(lab: Lab) -> None:
    """Bytes in flight count as sent and queued, but not yet as acknowledged."""
    talk = connected(lab, "IPv4", 1)
    lossy(lab, talk, 0)[1].rule(every=1)
    talk.client.call(traffic.send, {0: MORE})
    ((near, far),) = talk.shown()
    assert (payload(near), payload(far)) == ((MORE, 0, 0), (0, 0, 0))
    assert (near["bytes_in_flight"], near["send_queue"]) == (MORE, MORE)


@pytest.mark.parametrize(("kind", "loss"), [("IPv4", 0), ("IPv6", 7), ("v4-mapped", 0), ("v4-mapped", 7)])
def test_primes_in_every_half_closed_state(lab: Lab, kind: str, loss: int) -> None:
    """Both ends see a prime number of bytes in each direction; lost segments do not count twice. A FIN is never
    payload: not when sent, received or acknowledged, in no state of closing. v4-mapped addresses are shown as IPv4."""
    talk = connected(lab, kind, len(STATES))
    droppers = lossy(lab, talk, loss)
    up, down = (LOSSY_UP, LOSSY_DOWN) if loss else (UP, DOWN)
    talk.exchange(up, down)
    talk.client.call(traffic.shut, [FIN_WAIT2, ANSWERED, LAST_ACK])
    for number in (FIN_WAIT2, ANSWERED, LAST_ACK):
        talk.client.call(traffic.in_state, number, 5)
    talk.exchange(0, MORE, [ANSWERED])
    lose_fins(talk, *droppers)
    expected = [((up, up, down), (down, down, up))] * len(STATES)
    expected[ANSWERED] = (up, up, down + MORE), (down + MORE, down + MORE, up)
    shown = talk.shown()
    near, far = shown[OPEN]
    assert {near["family"], far["family"]} == {"IPv6" if kind == "IPv6" else "IPv4"}
    assert (near["local_address"], near["remote_address"]) == (far["remote_address"], far["local_address"])
    assert "ffff" not in near["local_address"] + far["local_address"]
    assert not loss or (near["retransmits"] and far["retransmits"])
    assert [(near["state"], far["state"]) for near, far in shown] == list(STATES.values())
    assert [(payload(near), payload(far)) for near, far in shown] == expected


def lose_fins(talk: Talk, at_client: Dropper, at_server: Dropper) -> None:
    """Produce the states in which a FIN has not arrived or was not acknowledged."""
    at_client.rule(every=1, with_flags=Dropper.FIN, port=talk.ports[LAST_ACK])
    talk.server.call(traffic.shut, [LAST_ACK])
    at_server.rule(every=1)
    talk.client.call(traffic.shut, [FIN_WAIT1, CLOSING])
    talk.server.call(traffic.shut, [CLOSING])
    talk.client.call(traffic.in_state, CLOSING, 11)
