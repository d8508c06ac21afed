# SPDX-License-Identifier: Apache-2.0
"""What flows survive: `sudo .venv/bin/python bench/durability.py [--kills N]`.

`killed`: while an exporter sends numbered flows, nettop collect, its worker or both are killed by SIGKILL at random
moments and started again. `full`: the disk is full for a while. Afterwards no flow may be there twice, and the tables
must have what the ledger says. Flows may be missing only where something was killed: those of the second before, which
were in memory and in no count, and those that came while nobody received.
"""

import argparse
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from measure import Figure, report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.flows.spool import DROPPED  # noqa: E402 - the checkout comes first
from tests.collecting import Running, until  # noqa: E402

RECORDS, RATE = 30, 400
"""Flows in a datagram of NetFlow 5, and datagrams a second."""
DISK_BYTES = 96 << 20
SUMS = ("flows_1m", "flows_5m", "flows_1h", "talkers_1m")


class Exporter(threading.Thread):
    """Sends NetFlow 5 at a steady rate; the source ports and bytes of flows have their number."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.sent = 0
        """Datagrams."""
        self._ending = threading.Event()

    def run(self) -> None:
        """Until the end."""
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
        """Send no more."""
        self._ending.set()
        self.join()


def free_port() -> int:
    """A UDP port that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def kill(running: Running, seed: random.Random) -> None:
    """The collector, its worker, or both."""
    path = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    workers = [int(pid) for pid in path.read_text().split()]
    victims = seed.choice(([running.process.pid], workers, [running.process.pid, *workers]))
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    running.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers have ended")


def compare(running: Running, exporter: Exporter, gaps_most: int | None = None) -> list[Figure]:
    """What is stored, beside what was sent and what the ledger says."""
    until(lambda: not sum(running.state()["flows"][name] for name in ("pending", "waiting")), "all is stored")
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
        Figure("in the ledger and not stored or dropped", counted - dropped - rows, "", 0),
        Figure("in the sums and not in flows_raw", sum(abs(each - rows) for each in sums), "", 0),
        Figure("gaps", gaps, "", gaps_most),
    ]


def killed(kills: int) -> list[Figure]:
    """The collector is killed so many times."""
    seed = random.Random(7)
    with tempfile.TemporaryDirectory(prefix="nettop-durability") as parent:
        os.chmod(parent, 0o755)
        directory, port = Path(parent) / "flows", free_port()
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


@contextmanager
def small_disk() -> Iterator[Path]:
    """A directory on a file system of its own."""
    with tempfile.TemporaryDirectory(prefix="nettop-durability") as parent:
        mount = ("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "none", parent)
        subprocess.run(mount, check=True)
        try:
            yield Path(parent)
        finally:
            subprocess.run(("umount", "--lazy", parent), check=True)


def full() -> list[Figure]:
    """The disk is full for ten seconds."""
    port = free_port()
    with small_disk() as disk:
        exporter = Exporter(port)
        with Running(disk / "flows", "--listen", f"127.0.0.1:{port}") as running:
            exporter.start()
            running.stored_at_least(RATE * RECORDS)
            ballast = disk / "ballast"
            with ballast.open("wb") as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError:
                    pass
            time.sleep(10)
            ballast.unlink()
            before = running.state()["flows"]["stored"]
            running.stored_at_least(before + 5 * RATE * RECORDS)
            exporter.end()
            until(lambda: running.state()["flows"]["received"] == exporter.sent * RECORDS, "all is received")
            figures = compare(running, exporter)
            dropped = running.state()["flows"]["dropped_by_spool"]
            reported = "flows are dropped" in running.errors()
            missing = exporter.sent * RECORDS - figures[1].value - dropped
        return [
            *figures,
            Figure("dropped, and counted", dropped, ""),
            Figure("neither stored nor dropped", missing, "", 0),
            Figure("reported (1: yes)", float(reported or not dropped), "", 1, at_least=True),
        ]


def main() -> int:
    """Both; returns 1 if a figure is over its bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    parts = {f"{options.kills} times killed": killed(options.kills), "a full disk": full()}
    for title, figures in parts.items():
        report(title, figures)
    return int(not all(figure.kept for figures in parts.values() for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
