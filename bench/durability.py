# SPDX-License-Identifier: Apache-2.0
"""Check the durability of stored flows: `sudo .venv/bin/python bench/durability.py [--kills N]`.

While an exporter sends numbered flows, nettop collect, its worker or both are killed (SIGKILL) at random moments and
restarted. Afterwards no flow may be stored twice, and the tables must match the ledger. Flows may be missing only
around kills: those of the last second, which were in memory and not yet counted, and those that arrived while nobody
received.
"""

import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

from collecting import SUMS, all_stored
from measure import Figure, arguments, judge
from programs import free_udp_port, readable_folder

from nettop.flows.spool import DROPPED
from tests.collecting import Running, until

RECORDS, RATE = 30, 400
"""Flows per NetFlow 5 datagram, and datagrams per second."""


class Exporter(threading.Thread):
    """An exporter that sends NetFlow 5 at a steady rate; the bytes of a flow are its number."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.sent = 0
        """Datagrams sent."""
        self._ending = threading.Event()

    def run(self) -> None:
        """Send until `end`."""
        began = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not self._ending.wait(0.005):
                while self.sent < (time.monotonic() - began) * RATE:
                    sender.sendto(self._datagram(), ("127.0.0.1", self.port))
                    self.sent += 1

    def _datagram(self) -> bytes:
        first = self.sent * RECORDS
        head = struct.pack("!HHIIIIBBH", 5, RECORDS, 1000, int(time.time()), 0, first & 0xFFFFFFFF, 0, 0, 0)
        return head + b"".join(
            struct.pack(
                "!4s4s4sHHIIIIHHxBBBHHBBxx",
                *(b"\x0a\0\0\1", b"\xc6\x12\0\1", bytes(4), 1, 2, 1, first + each, 0, 1, 40_000, 443),
                *(0x1B, 6, 0, 0, 0, 24, 24),
            )
            for each in range(RECORDS)
        )

    def end(self) -> None:
        """Stop sending."""
        self._ending.set()
        self.join()


def kill(running: Running, seed: random.Random) -> None:
    """Kill the collector, its worker, or both."""
    path = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    workers = [int(pid) for pid in path.read_text().split()]
    victims = seed.choice(([running.process.pid], workers, [running.process.pid, *workers]))
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    running.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers have ended")


def compare(running: Running, exporter: Exporter, gaps_most: int) -> list[Figure]:
    """Compare the stored flows with the sent ones and with the ledger."""
    all_stored(running)
    ((rows, distinct),) = running.rows("SELECT count(), uniqExact(bytes) FROM flows_raw")
    ((counted, dropped),) = running.rows(
        f"SELECT sum(counters['rows']), sum(counters['flows_raw{DROPPED}']) FROM ledger"
    )
    sums = [running.rows(f"SELECT sum(flows) FROM {table}")[0][0] for table in SUMS]
    numbers = [number for (number,) in running.rows("SELECT bytes FROM flows_raw ORDER BY bytes")]
    gaps = sum(later != earlier + 1 for earlier, later in pairwise(numbers))
    return [
        Figure("flows sent", exporter.sent * RECORDS, ""),
        Figure("flows stored", rows, ""),
        Figure("stored twice", rows - distinct, "", 0),
        Figure("in the ledger but neither stored nor dropped", counted - dropped - rows, "", 0),
        Figure("differences between sums and flows_raw", sum(abs(each - rows) for each in sums), "", 0),
        Figure("gaps", gaps, "", gaps_most),
    ]


def killed(kills: int) -> list[Figure]:
    """Kill the collector `kills` times."""
    seed = random.Random(7)
    with readable_folder("durability") as parent:
        directory, port = parent / "flows", free_udp_port()
        exporter = Exporter(port)
        exporter.start()
        for _ in range(kills):
            with Running(directory, "--listen", f"127.0.0.1:{port}") as running:
                time.sleep(seed.uniform(0, 3))
                kill(running, seed)
        with Running(directory, "--listen", f"127.0.0.1:{port}") as running:
            before = exporter.sent
            until(lambda: exporter.sent > before + RATE, "a second is over")
            exporter.end()
            return compare(running, exporter, kills)


def main() -> int:
    """Kill the collector again and again; return 1 if a bound is missed."""
    kills = arguments(__doc__, kills=(50, "number of kills")).kills
    return judge([(f"{kills} kills", killed(kills))])


if __name__ == "__main__":
    sys.exit(main())
