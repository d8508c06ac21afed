# SPDX-License-Identifier: Apache-2.0
"""Store flows on a ClickHouse cluster while servers are killed: `.venv/bin/python bench/cluster.py [--only PART]`.

The servers come from the shared library of chdb 3.7.2, a complete ClickHouse 25.8, which pip downloads; ZooKeeper is
Debian's package zookeeper. Sixteen exporters send at a steady rate to nettop collect, which stores on two shards.
`shard`: a shard is killed (SIGKILL) after a third of the time, and restarted after two thirds. `all`: the same with all
servers. `replica`: the same with one of two replicas of a shard. `kills`: servers are killed at random moments and
restarted, again and again. `limit`: the spool is filled while all servers are down, and then emptied as fast as they
accept it.

Afterwards nothing may be missing or duplicated: in flows_raw, the sums and the ledger, as seen by each server and by
the collector, and on both replicas.
"""

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from argparse import Namespace as Options
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from collecting import SUMS, Senders
from flows import traffic
from measure import Figure, Report, arguments, at_least, judge
from programs import NETTOP, Process, cpu_seconds, family, readable_folder, resident_mb, run, running

from nettop.collector.spool import DROPPED
from tests.collecting import Running, until

WHEEL = "chdb==3.7.2"
ENTRY = "_Z25mainEntryClickHouseServeriPPc"
EXPORTERS, RECORDS = 16, 30
"""The number of exporters, and of flows per datagram."""
NAME = "two"
PATIENCE_S = 540.0
"""Deadline for storing what was spooled while servers were down."""
HTTP, TCP, INTERSERVER, ZOOKEEPER = 18120, 19120, 19220, 19281
"""Base ports; a server adds its number."""
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
    """Become a ClickHouse server, by calling the program's entry point in the library."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    words = [b"clickhouse-server", f"--config-file={configuration}".encode()]
    entry = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)[ENTRY]
    os._exit(entry(len(words), (ctypes.c_char_p * 3)(*words, None)) & 0xFF)


def library_in(folder: Path) -> Path:
    """Return the wheel's shared library; download it if it is not there."""
    library = folder / "chdb" / "_chdb.abi3.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), WHEEL)
        run(sys.executable, "-m", "pip", *words)
        shutil.unpack_archive(next(folder.glob("chdb-*.whl")), folder, "zip")
    return library


class Server:
    """A ClickHouse server that can be killed and restarted."""

    def __init__(self, number: int, topology: Topology, library: Path, folder: Path) -> None:
        self.number = number
        self.shard = next(shard for shard, numbers in enumerate(topology, 1) if number in numbers)
        self.url = f"http://127.0.0.1:{HTTP + number}"
        self._library = library
        self._folder = folder / f"{number}"
        self._folder.mkdir()
        shards = "".join(
            SHARD.format("".join(REPLICA.format(TCP + replica) for replica in shard)) for shard in topology
        )
        (self._folder / "config.xml").write_text(
            CONFIGURATION.format(
                folder=self._folder, http=HTTP + number, tcp=TCP + number, interserver=INTERSERVER + number,
                name=NAME, shard=self.shard, number=number, shards=shards, zookeeper=ZOOKEEPER,
            )
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start the server, for the first time or after a kill."""
        self._ends = ExitStack()
        output = self._ends.enter_context((self._folder / "output").open("ab"))
        words = (sys.executable, __file__, "--server", str(self._library), str(self._folder / "config.xml"))
        environment = os.environ | {"CLICKHOUSE_WATCHDOG_ENABLE": "0"}
        self.process: Process = self._ends.enter_context(
            running(*words, out=output, end_by=signal.SIGKILL, env=environment)
        )

    def wait(self) -> None:
        """Wait until the server answers."""
        until(self._answers, f"server {self.number} answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self._folder / "output").read_text()[-2000:]
        with suppress(OSError):
            return self.rows("SELECT 1") == [[1]]
        return False

    def rows(self, sql: str) -> list[list[Any]]:
        """Return the rows that a query yields."""
        settings = {"default_format": "JSONCompactEachRow", "output_format_json_quote_64bit_integers": 0}
        url = f"{self.url}/?{urllib.parse.urlencode(settings)}"
        with urllib.request.urlopen(urllib.request.Request(url, sql.encode()), timeout=60) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def kill(self) -> None:
        """Kill the server with SIGKILL, as if its host failed."""
        self._ends.close()


@contextmanager
def zookeeper(folder: Path) -> Iterator[None]:
    """Run Debian's ZooKeeper with its data in `folder`."""
    (folder / "zoo.cfg").write_text(f"dataDir={folder}\nclientPort={ZOOKEEPER}\nadmin.enableServer=false\n")
    words = ("java", "-Xmx256m", "-cp", "/etc/zookeeper/conf:/usr/share/java/*")
    with running(*words, "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(folder / "zoo.cfg")):
        until(_zookeeper_answers, "ZooKeeper answers")
        yield


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
        """Kill the servers with these numbers."""
        for server in self.servers:
            if server.number in numbers:
                server.kill()

    def start(self, numbers: Sequence[int]) -> None:
        """Start the servers with these numbers, and wait until all answer."""
        for action in (Server.start, Server.wait):
            for server in self.servers:
                if server.number in numbers:
                    action(server)

    def waiting(self) -> int:
        """Return the number of flows in the spool."""
        count: int = self.running.state()["flows"]["waiting"]
        return count

    def catch_up(self) -> float:
        """Wait until all sent flows are stored; return the seconds that took."""
        begin = time.monotonic()
        while (flows := self.running.state()["flows"])["stored"] < self.sender.flows:
            assert time.monotonic() < begin + PATIENCE_S, (self.running.state(), self.running.errors())
            assert flows["received"] == self.sender.flows or time.monotonic() < begin + 60, flows
            time.sleep(0.1)
        return time.monotonic() - begin

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of the collector and of the servers."""
        return cpu_seconds(self.running.process.pid), sum(
            cpu_seconds(server.process.pid) for server in self.servers
        )


@contextmanager
def cluster(topology: Topology, library: Path, *options: str) -> Iterator[Cluster]:
    """Yield a new, running cluster."""
    with ExitStack() as ends:
        folder = ends.enter_context(readable_folder("cluster"))
        assert not _zookeeper_answers(), "the ports are in use by another run of this program"
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
    """Exporters that take turns to send NetFlow 5, each from its own address."""

    def __init__(self, port: int) -> None:
        self._senders = Senders(port)
        kind = next(each for each in traffic() if each.name == "NetFlow 5")
        self._place = kind.place
        self._datagrams = [bytearray(sent) for sent in kind.datagrams]
        self._sums = [_bytes_and_packets(sent) for sent in kind.datagrams]
        self.sent = self.bytes = self.packets = 0
        """Totals sent; `sent` counts datagrams."""

    @property
    def flows(self) -> int:
        """Flows sent."""
        return self.sent * RECORDS

    def send(self, flows_per_second: float, seconds: float) -> None:
        """Send at a steady rate for `seconds`."""
        begin, before = time.monotonic(), self.sent
        while (now := time.monotonic()) < begin + seconds:
            due = before + int((now - begin) * flows_per_second / RECORDS)
            while self.sent < due:
                self._send_next()
            time.sleep(0.005)

    def _send_next(self) -> None:
        turn, number = divmod(self.sent, EXPORTERS)
        # Not a multiple of the number of exporters, so that each exporter sends all datagrams.
        index = self.sent % (len(self._datagrams) - 1)
        datagram = self._datagrams[index]
        struct.pack_into("!I", datagram, self._place, turn * RECORDS & 0xFFFFFFFF)
        self._senders.send(f"127.77.0.{number + 1}", bytes(datagram))
        self.sent += 1
        self.bytes += self._sums[index][0]
        self.packets += self._sums[index][1]

    def expected(self) -> list[int]:
        """Return the flows, bytes and packets sent."""
        return [self.flows, self.bytes, self.packets]


def _bytes_and_packets(datagram: bytes) -> tuple[int, int]:
    records = [struct.unpack_from("!II", datagram, begin) for begin in range(24 + 16, len(datagram), 48)]
    return sum(size for _, size in records), sum(packets for packets, _ in records)


# --- comparing --------------------------------------------------------------------------------------------------


def differences(cluster: Cluster) -> int:
    """Count and print wrong answers of the servers and the collector."""
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


def _flows(cluster: Cluster, *words: str) -> str:
    return run(NETTOP, "flows", "--data-dir", str(cluster.running.directory), *words)


def shard_figures(cluster: Cluster) -> list[Figure]:
    """Return figures on each shard's own data, and whether its replicas agree."""
    figures = []
    for shard, servers in groupby(sorted(cluster.servers, key=_shard), key=_shard):
        first, *others = [_local(server) for server in servers]
        figures += [
            Figure(f"shard {shard}: flows", first[0], ""),
            at_least(f"shard {shard}: exporters", first[1], "", 1),
            *(Figure("replicas differ (1: yes)", float(other != first), "", 0) for other in others),
        ]
    exporters = sum(figure.value for figure in figures if figure.what.endswith("exporters"))
    return [*figures, Figure("exporters on more than one shard", exporters - EXPORTERS, "", 0)]


def _shard(server: Server) -> int:
    return server.shard


def _local(server: Server) -> list[Any]:
    """Return counts and hashes of the server's own tables: flows, exporters, hash of all, then those of the sums."""
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
    """Return figures on disk space and memory."""
    sql = (
        "SELECT table, sum(data_compressed_bytes), sum(rows) FROM system.parts"
        " WHERE database = 'nettop' AND active GROUP BY table"
    )
    size, rows = Counter[str](), Counter[str]()
    for server in {server.shard: server for server in reversed(cluster.servers)}.values():
        for table, its_bytes, its_rows in server.rows(sql):
            size[table] += its_bytes
            rows[table] += its_rows
    raw = size["flows_raw_local"]
    return [
        Figure("flows_raw: bytes per flow", raw / rows["flows_raw_local"], "", 30),
        Figure("all other tables: bytes per flow", (sum(size.values()) - raw) / cluster.sender.flows, ""),
        Figure("collector: resident", sum(map(resident_mb, family(cluster.running.process.pid))), "MB"),
        *(
            Figure(f"server {server.number}: resident", resident_mb(server.process.pid), "MB")
            for server in cluster.servers
        ),
    ]


# --- parts ------------------------------------------------------------------------------------------------------


def outage(cluster: Cluster, options: Options, victims: Sequence[int]) -> list[Figure]:
    """Measure with servers down for a third of the time."""
    third = options.seconds / 3
    cluster.sender.send(options.rate, third)
    cluster.kill(victims)
    cluster.sender.send(options.rate, third)
    waiting, waiting_bytes = cluster.waiting(), spool_bytes(cluster)
    try:
        print(f"a query during the outage: {_flows(cluster, 'sql', 'SELECT count() FROM flows_raw')!r}")
    except SystemExit as refused:
        print(f"a query during the outage: {refused}")
    cluster.start(victims)
    back = time.monotonic()
    cluster.sender.send(options.rate, third)
    still_waiting = cluster.waiting()
    cluster.catch_up()
    return [
        Figure("flows in the spool at the restart", waiting, ""),
        Figure("spool size per flow", waiting_bytes / waiting if waiting else 0.0, "bytes"),
        Figure("flows in the spool a third of the time later", still_waiting, ""),
        Figure("time from the restart to all stored", time.monotonic() - back, "s"),
    ]


def kills(cluster: Cluster, options: Options) -> list[Figure]:
    """Kill servers at random moments."""
    seed, end, count = random.Random(7), time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        cluster.sender.send(options.rate, seed.uniform(1, 4))
        victims = [seed.choice(cluster.servers).number]
        cluster.kill(victims)
        cluster.sender.send(options.rate, seed.uniform(0, 1))
        cluster.start(victims)
        count += 1
    return [Figure("servers killed", count, ""), Figure("time to all stored", cluster.catch_up(), "s")]


def limit(cluster: Cluster, options: Options) -> list[Figure]:
    """Fill the spool, then empty it."""
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
        Figure("filling the spool: CPU per million flows, collector", (filled - began) / rows * 1e6, "s"),
        Figure("spool size per flow", size / rows, "bytes"),
        Figure("flows taken from the spool", first, ""),
        Figure("flows/s accepted by the cluster", first / took, ""),
        *_cpu_figures(before, after, first),
    ]


def spool_bytes(cluster: Cluster) -> int:
    """Return the total size of the files in the spool."""
    total = 0
    for path in (cluster.running.directory / "spool").iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _cpu_figures(before: tuple[float, float], after: tuple[float, float], rows: int) -> list[Figure]:
    collector, servers = ((end - begin) / rows * 1e6 for begin, end in zip(before, after, strict=True))
    return [
        Figure("CPU per million flows: collector", collector, "s"),
        Figure("CPU per million flows: servers", servers, "s"),
    ]


Part = Callable[[Cluster, Options], list[Figure]]
PARTS: dict[str, tuple[Topology, Part]] = {
    "shard": ([[1], [2]], lambda cluster, options: outage(cluster, options, [2])),
    "all": ([[1], [2]], lambda cluster, options: outage(cluster, options, [1, 2])),
    "replica": ([[1, 3], [2]], lambda cluster, options: outage(cluster, options, [3])),
    "kills": ([[1, 3], [2]], kills),
    "limit": ([[1], [2]], limit),
}


def run_part(name: str, library: Path, options: Options) -> Report:
    """Run a part; return its figures, and whether anything is missing or duplicated."""
    topology, part = PARTS[name]
    with cluster(topology, library, "--workers", str(options.workers)) as running:
        figures = part(running, options)
        return f"{name}: {options.rate:,.0f} flows/s, {options.seconds:.0f} s", [
            Figure("flows sent", running.sender.flows),
            *figures,
            *shard_figures(running),
            *store_figures(running),
            Figure("answers that differ from what was sent", differences(running), "", 0),
        ]


def main() -> int:
    """Run all parts, or the chosen one; return 1 if anything is missing or duplicated."""
    if sys.argv[1:2] == ["--server"]:
        run_server(*sys.argv[2:])
    options = arguments(
        __doc__,
        only=("", f"run this part only: {', '.join(PARTS)}"),
        seconds=(60.0, "duration of each part but `limit`"),
        rate=(60_000.0, "flows per second"),
        fill=(150_000.0, "flows per second while `limit` fills the spool"),
        flows=(9_000_000.0, "flows that `limit` puts into the spool"),
        workers=(1, "workers of nettop collect"),
        cache=(f"{tempfile.gettempdir()}/nettop-clickhouse", "directory of the download"),
    )
    library = library_in(Path(options.cache))
    return judge(run_part(name, library, options) for name in PARTS if options.only in ("", name))


if __name__ == "__main__":
    sys.exit(main())
