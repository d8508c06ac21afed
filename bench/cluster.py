# SPDX-License-Identifier: Apache-2.0
"""Flows on a ClickHouse cluster, servers of which are killed: `.venv/bin/python bench/cluster.py [--only PART]`.

The servers are those in the shared library of chdb 3.7.2, a complete ClickHouse 25.8, which pip downloads; ZooKeeper is
Debian's package zookeeper. Sixteen exporters send at a steady rate to nettop collect, which stores on two shards.
`steady`: nothing else. `shard`: a shard is killed by SIGKILL after a third of the time, and started again after two
thirds. `all`: all servers are. `replica`: a shard has two replicas, one of which is. `kills`: again and again a server
is killed at a random moment, and started. `limit`: while all servers are away the spool is filled, and then emptied as
fast as they take it.

Nothing may be missing or there twice then: in flows_raw, in the sums and in the ledger, by the answers of each server
and of the collector, and on both replicas.
"""

import argparse
import csv
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from flows import traffic
from measure import NETTOP, Figure, cpu_seconds, family, report, resident_mb

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.flows.spool import DROPPED  # noqa: E402 - the checkout comes first
from tests.collecting import Running, until  # noqa: E402

WHEEL = "chdb==3.7.2"
ENTRY = "_Z25mainEntryClickHouseServeriPPc"
EXPORTERS, RECORDS = 16, 30
"""How many exporters there are, and flows in each of their datagrams."""
NAME = "two"
PATIENCE_S = 540.0
"""For what was kept while servers were away."""
HTTP, TCP, INTERSERVER, ZOOKEEPER = 18120, 19120, 19220, 19281
"""Ports; those of a server are by its number above these."""
SUMS = ("flows_1m", "flows_5m", "flows_1h", "talkers_1m")
CONFIGURATION = """<clickhouse>
<logger><level>warning</level><log>{folder}/log</log><errorlog>{folder}/errors</errorlog></logger>
<listen_host>127.0.0.1</listen_host><http_port>{http}</http_port><tcp_port>{tcp}</tcp_port>
<interserver_http_port>{interserver}</interserver_http_port>
<interserver_http_host>127.0.0.1</interserver_http_host>
<path>{folder}/data/</path><tmp_path>{folder}/tmp/</tmp_path><user_files_path>{folder}/files/</user_files_path>
<mark_cache_size>67108864</mark_cache_size><max_server_memory_usage>3000000000</max_server_memory_usage>
<mlock_executable>false</mlock_executable>
<macros><shard>{shard}</shard><replica>{number}</replica></macros>
<remote_servers><{name}>{shards}</{name}></remote_servers>
<zookeeper><node><host>127.0.0.1</host><port>{zookeeper}</port></node></zookeeper>
<distributed_ddl><path>/clickhouse/ddl</path></distributed_ddl>
<users><default><password></password><networks><ip>127.0.0.1</ip></networks>
<profile>default</profile><quota>default</quota><access_management>1</access_management></default></users>
<profiles><default/></profiles><quotas><default/></quotas>
</clickhouse>
"""
SHARD = "<shard><internal_replication>true</internal_replication>{}</shard>"
REPLICA = "<replica><host>127.0.0.1</host><port>{}</port></replica>"

Topology = Sequence[Sequence[int]]
"""The numbers of the servers of each shard."""


# --- servers ----------------------------------------------------------------------------------------------------


def run_server(library: str, configuration: str) -> None:
    """Become a ClickHouse server: the library has the program's own entry."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    words = [b"clickhouse-server", f"--config-file={configuration}".encode()]
    entry = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)[ENTRY]
    os._exit(entry(len(words), (ctypes.c_char_p * 3)(*words, None)) & 0xFF)


def library_in(folder: Path) -> Path:
    """The shared library of the wheel, which is downloaded if it is not there."""
    library = folder / "chdb" / "_chdb.abi3.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), WHEEL)
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
        shutil.unpack_archive(next(folder.glob("chdb-*.whl")), folder, "zip")
    return library


class Server:
    """A server, which can be killed and started again."""

    def __init__(self, number: int, topology: Topology, library: Path, folder: Path) -> None:
        self.number = number
        self.shard = next(shard for shard, numbers in enumerate(topology, 1) if number in numbers)
        self.url = f"http://127.0.0.1:{HTTP + number}"
        self._library = library
        self._folder = folder / f"{number}"
        self._folder.mkdir()
        shards = "".join(
            SHARD.format("".join(REPLICA.format(TCP + each) for each in shard)) for shard in topology
        )
        (self._folder / "config.xml").write_text(
            CONFIGURATION.format(
                folder=self._folder, http=HTTP + number, tcp=TCP + number, interserver=INTERSERVER + number,
                name=NAME, shard=self.shard, number=number, shards=shards, zookeeper=ZOOKEEPER,
            )
        )  # fmt: skip
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, __file__, "--server", str(self._library), str(self._folder / "config.xml")]
        with (self._folder / "output").open("ab") as output:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"CLICKHOUSE_WATCHDOG_ENABLE": "0"},
            )

    def start(self) -> None:
        """Again, after it was killed."""
        self.process = self._started()

    def wait(self) -> None:
        """Until it answers."""
        until(self._answers, f"server {self.number} answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self._folder / "output").read_text()[-2000:]
        with suppress(OSError):
            return self.rows("SELECT 1") == [[1]]
        return False

    def rows(self, sql: str) -> list[list[Any]]:
        """The answer to a query."""
        settings = {"default_format": "JSONCompactEachRow", "output_format_json_quote_64bit_integers": 0}
        url = f"{self.url}/?{urllib.parse.urlencode(settings)}"
        with urllib.request.urlopen(urllib.request.Request(url, sql.encode()), timeout=60) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def kill(self) -> None:
        """As a host that fails."""
        self.process.kill()
        self.process.wait()


@contextmanager
def zookeeper(folder: Path) -> Iterator[None]:
    """Debian's ZooKeeper, with its data in a folder."""
    (folder / "zoo.cfg").write_text(f"dataDir={folder}\nclientPort={ZOOKEEPER}\nadmin.enableServer=false\n")
    words = ["java", "-Xmx256m", "-cp", "/etc/zookeeper/conf:/usr/share/java/*"]
    with subprocess.Popen(
        [*words, "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(folder / "zoo.cfg")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            until(_zookeeper_answers, "ZooKeeper answers")
            yield
        finally:
            process.kill()


def _zookeeper_answers() -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", ZOOKEEPER)):
        return True
    return False


class Cluster:
    """Servers, and a collector that stores on them."""

    def __init__(self, servers: Sequence[Server], running: Running) -> None:
        self.servers, self.running = servers, running
        self.sender = Sender(running.port)

    def kill(self, numbers: Sequence[int]) -> None:
        """The servers of these numbers."""
        for server in self.servers:
            if server.number in numbers:
                server.kill()

    def start(self, numbers: Sequence[int]) -> None:
        """The servers of these numbers; returns when all answer."""
        for action in (Server.start, Server.wait):
            for server in self.servers:
                if server.number in numbers:
                    action(server)

    def waiting(self) -> int:
        """How many flows wait in the spool."""
        count: int = self.running.state()["flows"]["waiting"]
        return count

    def catch_up(self) -> float:
        """Waits until all that was sent is stored; returns how many seconds that took."""
        begin = time.monotonic()
        while (flows := self.running.state()["flows"])["stored"] < self.sender.flows:
            assert time.monotonic() < begin + PATIENCE_S, (self.running.state(), self.running.errors())
            assert flows["received"] == self.sender.flows or time.monotonic() < begin + 60, flows
            time.sleep(0.1)
        return time.monotonic() - begin

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of the collector and of the servers."""
        return cpu_seconds(self.running.process.pid), sum(
            cpu_seconds(server.process.pid) for server in self.servers
        )


@contextmanager
def cluster(topology: Topology, library: Path, *options: str) -> Iterator[Cluster]:
    """A new cluster, at work."""
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="nettop-cluster")))
        folder.chmod(0o755)
        assert not _zookeeper_answers(), "another run of this program uses the ports"
        ends.enter_context(zookeeper(folder))
        servers = []
        for number in sorted(number for shard in topology for number in shard):
            servers.append(Server(number, topology, library, folder))
            ends.callback(servers[-1].kill)
        for server in servers:
            server.wait()
        words = [word for server in servers for word in ("--clickhouse", server.url)]
        running = ends.enter_context(Running(folder / "flows", "--cluster", NAME, *words, *options))
        yield Cluster(servers, running)


# --- traffic ----------------------------------------------------------------------------------------------------


class Sender:
    """Exporters that send NetFlow 5 in turn, each from an address of its own."""

    def __init__(self, port: int) -> None:
        self._to = "127.0.0.1", port
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(EXPORTERS)]
        for number, each in enumerate(self._sockets):
            each.bind((f"127.77.0.{number + 1}", 0))
        kind = next(each for each in traffic() if each.name == "NetFlow 5")
        self._place = kind.place
        self._datagrams = [bytearray(each) for each in kind.datagrams]
        self._sums = [_bytes_and_packets(each) for each in kind.datagrams]
        self.sent = self.bytes = self.packets = 0
        """`sent` are datagrams."""

    @property
    def flows(self) -> int:
        """How many were sent."""
        return self.sent * RECORDS

    def send(self, flows_per_second: float, seconds: float) -> None:
        """At a steady rate for so long."""
        begin, before = time.monotonic(), self.sent
        while (now := time.monotonic()) < begin + seconds:
            due = before + int((now - begin) * flows_per_second / RECORDS)
            while self.sent < due:
                self._send_next()
            time.sleep(0.005)

    def _send_next(self) -> None:
        turn, number = divmod(self.sent, EXPORTERS)
        # Not a multiple of the exporters, so that each sends them all.
        index = self.sent % (len(self._datagrams) - 1)
        datagram = self._datagrams[index]
        struct.pack_into("!I", datagram, self._place, turn * RECORDS & 0xFFFFFFFF)
        self._sockets[number].sendto(datagram, self._to)
        self.sent += 1
        self.bytes += self._sums[index][0]
        self.packets += self._sums[index][1]

    def expected(self) -> list[int]:
        """Flows, bytes and packets of what was sent."""
        return [self.flows, self.bytes, self.packets]


def _bytes_and_packets(datagram: bytes) -> tuple[int, int]:
    records = [struct.unpack_from("!II", datagram, begin) for begin in range(24 + 16, len(datagram), 48)]
    return sum(size for _, size in records), sum(packets for packets, _ in records)


# --- comparing --------------------------------------------------------------------------------------------------


def differences(cluster: Cluster) -> int:
    """How many answers of servers and of the collector are not what was sent; says which."""
    expected = cluster.sender.expected()
    sources: dict[str, Callable[[str], list[list[Any]]]] = {
        **{server.url: server.rows for server in cluster.servers},
        "the collector": cluster.running.rows,
    }
    count = 0
    for name, rows in sources.items():
        for what, sql, right in _questions(expected, cluster.sender.sent):
            answer = rows(sql)
            if answer != [right]:
                print(f"{name}: {what} {answer}, not {[right]}", flush=True)
                count += 1
    return count


def _questions(expected: list[int], datagrams: int) -> Iterator[tuple[str, str, list[int]]]:
    totals = "sum(bytes), sum(packets)"
    yield "flows_raw has", f"SELECT count(), {totals} FROM nettop.flows_raw", expected
    for table in SUMS:
        yield f"{table} has", f"SELECT sum(flows), {totals} FROM nettop.{table}", expected
    by_datagram = "SELECT exporter, sequence, count() AS flows FROM nettop.flows_raw GROUP BY 1, 2"
    yield (
        "datagrams are",
        f"SELECT count(), min(flows), max(flows) FROM ({by_datagram})",
        [*(datagrams, RECORDS, RECORDS)],
    )
    counters = f"sum(counters['rows']), sum(counters['flows_raw{DROPPED}'])"
    yield "the ledger has", f"SELECT {counters} FROM nettop.ledger", [expected[0], 0]


def command_differences(cluster: Cluster) -> int:
    """How many answers of `nettop flows` are not what was sent; says which."""
    flows = _flows(cluster, "--top", "exporter", "--since", "1d", "--limit", "100", "--format", "csv")
    rows = list(csv.DictReader(flows.stdout.splitlines()))
    sql = _flows(cluster, "sql", "SELECT count() AS flows FROM flows_raw", "--format", "csv")
    counts = [
        (len(rows), sum(int(row["flows"]) for row in rows)),
        (EXPORTERS, int(next(csv.DictReader(sql.stdout.splitlines()))["flows"])),
    ]
    wrong = [each for each in counts if each != (EXPORTERS, cluster.sender.flows)]
    if wrong:
        print(f"nettop flows has {counts}", flush=True)
    return len(wrong)


def _flows(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    directory = str(cluster.running.directory)
    command = [NETTOP, "flows", "--data-dir", directory, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shard_figures(cluster: Cluster) -> list[Figure]:
    """What each shard has for itself, and whether its replicas have the same."""
    figures = []
    for shard, servers in groupby(sorted(cluster.servers, key=_shard), key=_shard):
        first, *others = [_local(server) for server in servers]
        figures += [
            Figure(f"shard {shard}: flows", first[0], ""),
            Figure(f"shard {shard}: exporters", first[1], "", 1, at_least=True),
            *(Figure("replicas: different (1: yes)", float(each != first), "", 0) for each in others),
        ]
    exporters = sum(figure.value for figure in figures if figure.what.endswith("exporters"))
    return [*figures, Figure("exporters on more than one shard", exporters - EXPORTERS, "", 0)]


def _shard(server: Server) -> int:
    return server.shard


def _local(server: Server) -> list[Any]:
    """Of the server's own tables: flows, exporters, hash of all, and the same of sums."""
    answers = server.rows(
        "SELECT count(), uniqExact(exporter), sum(cityHash64(*)) FROM nettop.flows_raw_local"
    )[0]
    for table in (*SUMS, "ledger"):
        columns = "token" if table == "ledger" else "exporter, time, flows, bytes"
        final = "" if table == "ledger" else " FINAL"
        answers += server.rows(
            f"SELECT count(), sum(cityHash64({columns})) FROM nettop.{table}_local{final}"
        )[0]
    return answers


def store_figures(cluster: Cluster) -> list[Figure]:
    """Space and memory."""
    sql = (
        "SELECT table, sum(data_compressed_bytes), sum(rows) FROM system.parts"
        " WHERE database = 'nettop' AND active GROUP BY table"
    )
    size: dict[str, int] = {}
    rows: dict[str, int] = {}
    for server in {server.shard: server for server in reversed(cluster.servers)}.values():
        for table, its_bytes, its_rows in server.rows(sql):
            size[table] = size.get(table, 0) + its_bytes
            rows[table] = rows.get(table, 0) + its_rows
    raw = size["flows_raw_local"]
    return [
        Figure("flows_raw: bytes a flow", raw / rows["flows_raw_local"], "", 30),
        Figure("all other tables: bytes a flow", (sum(size.values()) - raw) / cluster.sender.flows, ""),
        Figure("collector: resident", sum(map(resident_mb, family(cluster.running.process.pid))), "MB"),
        *(
            Figure(f"server {server.number}: resident", resident_mb(server.process.pid), "MB")
            for server in cluster.servers
        ),
    ]


# --- parts ------------------------------------------------------------------------------------------------------


def steady(cluster: Cluster, options: argparse.Namespace) -> list[Figure]:
    """All servers are there all the time."""
    cluster.sender.send(options.rate, 5)
    cluster.catch_up()
    before, rows = cluster.cpu_s(), cluster.sender.flows
    cluster.sender.send(options.rate, options.seconds)
    waiting = cluster.waiting()
    caught_up_s = cluster.catch_up()
    after, rows = cluster.cpu_s(), cluster.sender.flows - rows
    return [
        Figure("flows that waited at the end", waiting, ""),
        Figure("all stored, after the last was sent", caught_up_s, "s"),
        *_cpu_figures(before, after, rows),
    ]


def outage(cluster: Cluster, options: argparse.Namespace, victims: Sequence[int]) -> list[Figure]:
    """Servers are away for a third of the time."""
    third = options.seconds / 3
    cluster.sender.send(options.rate, third)
    cluster.kill(victims)
    cluster.sender.send(options.rate, third)
    waiting, waiting_bytes = cluster.waiting(), spool_bytes(cluster)
    refused = _flows(cluster, "sql", "SELECT count() FROM flows_raw")
    print(f"a query meanwhile: {refused.returncode} {(refused.stdout + refused.stderr).strip()!r}")
    cluster.start(victims)
    back = time.monotonic()
    cluster.sender.send(options.rate, third)
    still_waiting = cluster.waiting()
    cluster.catch_up()
    return [
        Figure("flows that waited when it came back", waiting, ""),
        Figure("in the spool, a flow", waiting_bytes / waiting if waiting else 0.0, "bytes"),
        Figure("flows that waited a third of the time later", still_waiting, ""),
        Figure("all stored, after it came back", time.monotonic() - back, "s"),
    ]


def kills(cluster: Cluster, options: argparse.Namespace) -> list[Figure]:
    """A server is killed at random moments."""
    seed, end, count = random.Random(7), time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        cluster.sender.send(options.rate, seed.uniform(1, 4))
        victims = [seed.choice(cluster.servers).number]
        cluster.kill(victims)
        cluster.sender.send(options.rate, seed.uniform(0, 1))
        cluster.start(victims)
        count += 1
    return [Figure("servers killed", count, ""), Figure("then all stored after", cluster.catch_up(), "s")]


def limit(cluster: Cluster, options: argparse.Namespace) -> list[Figure]:
    """The spool is filled, and then emptied."""
    numbers = [server.number for server in cluster.servers]
    cluster.sender.send(options.rate, 5)
    cluster.catch_up()
    cluster.kill(numbers)
    began, rows = cpu_seconds(cluster.running.process.pid), cluster.sender.flows
    cluster.sender.send(options.fill, options.flows / options.fill)
    until(lambda: cluster.running.state()["flows"]["received"] == cluster.sender.flows, "all is received")
    filled, rows = cpu_seconds(cluster.running.process.pid), cluster.sender.flows - rows
    size = spool_bytes(cluster)
    cluster.start(numbers)
    until(lambda: cluster.waiting() < rows, "the first block is stored")
    before, first, begin = cluster.cpu_s(), cluster.waiting(), time.monotonic()
    cluster.catch_up()
    took, after = time.monotonic() - begin, cluster.cpu_s()
    return [
        Figure("into the spool: CPU a million flows, collector", (filled - began) / rows * 1e6, "s"),
        Figure("in the spool, a flow", size / rows, "bytes"),
        Figure("flows taken out of the spool", first, ""),
        Figure("flows taken by the cluster a second", first / took, ""),
        *_cpu_figures(before, after, first),
    ]


def spool_bytes(cluster: Cluster) -> int:
    """How long the files in the spool are."""
    total = 0
    for path in (cluster.running.directory / "spool").iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _cpu_figures(before: tuple[float, float], after: tuple[float, float], rows: int) -> list[Figure]:
    collector, servers = ((end - begin) / rows * 1e6 for begin, end in zip(before, after, strict=True))
    return [
        Figure("CPU a million flows: collector", collector, "s"),
        Figure("CPU a million flows: servers", servers, "s"),
    ]


Part = Callable[[Cluster, argparse.Namespace], list[Figure]]
PARTS: dict[str, tuple[Topology, Part]] = {
    "steady": ([[1], [2]], steady),
    "shard": ([[1], [2]], lambda cluster, options: outage(cluster, options, [2])),
    "all": ([[1], [2]], lambda cluster, options: outage(cluster, options, [1, 2])),
    "replica": ([[1, 3], [2]], lambda cluster, options: outage(cluster, options, [3])),
    "kills": ([[1, 3], [2]], kills),
    "limit": ([[1], [2]], limit),
}


def run_part(name: str, library: Path, options: argparse.Namespace) -> bool:
    """Runs and prints it; returns whether nothing is missing or there twice."""
    topology, part = PARTS[name]
    with cluster(topology, library, "--workers", str(options.workers)) as running:
        figures = part(running, options)
        figures = [
            Figure("flows sent", running.sender.flows, ""),
            *figures,
            *shard_figures(running),
            *store_figures(running),
            Figure("answers that differ from what was sent", differences(running), "", 0),
            Figure("answers of nettop flows that differ", command_differences(running), "", 0),
        ]
        report(f"{name}: {options.rate:,.0f} flows a second, {options.seconds:.0f} s", figures)
        return all(figure.kept for figure in figures)


def main() -> int:
    """All parts; returns 1 if something is missing or there twice."""
    if sys.argv[1:2] == ["--server"]:
        run_server(*sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="a part")
    parser.add_argument("--seconds", type=float, default=60, help="of each part but `limit`")
    parser.add_argument("--rate", type=float, default=60_000, help="flows a second")
    parser.add_argument("--fill", type=float, default=150_000, help="the same while `limit` fills the spool")
    parser.add_argument("--flows", type=float, default=9_000_000, help="that `limit` fills the spool with")
    parser.add_argument("--workers", type=int, default=1, help="of nettop collect")
    cache = Path(tempfile.gettempdir()) / "nettop-clickhouse"
    parser.add_argument("--cache", type=Path, default=cache, help="where the download is kept")
    options = parser.parse_args()
    library = library_in(options.cache)
    names = [options.only] if options.only else list(PARTS)
    results = [run_part(name, library, options) for name in names]
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
