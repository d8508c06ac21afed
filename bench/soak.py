# SPDX-License-Identifier: Apache-2.0
"""Run every frontend beside names that come and go: `sudo .venv/bin/python bench/soak.py [--minutes 60] [--quick]`.

Five times a second a process with a new name, in a new control group named like a container's, sends 40,007 bytes and
exits. Meanwhile 40 processes keep 2,000 sockets, services are asked, names are looked up, datagrams are dropped and
connects are refused; in the middle third of the run, 20 loops keep the CPUs busy. Screens (each lens in turn), text,
log, record and serve with a Prometheus run all the time, check once a minute. The exit code is 1 if a name was wrong,
a source was dead, check said that nothing was wrong without having watched, memory grew, or a counter differs.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from measure import QUICK, Figure, Report, arguments, at_least, judge
from programs import (
    READY_WITHIN_S,
    Process,
    Screens,
    for_seconds,
    readable_folder,
    resident_mb,
    running,
)
from sockets import own_namespace

from tests.kernel.command import NETTOP
from tests.kernel.lab import settle_child

HOST, KEPT, SINK, ECHO, CLOSED, WEB = "127.0.0.1", 7000, 7001, 7100, 4321, 9471
KEEPERS, KEPT_EACH = 20, 50
JOB_BYTES = 40_007
GROUPS = (
    Path("/sys/fs/cgroup/unified" if Path("/sys/fs/cgroup/unified").is_dir() else "/sys/fs/cgroup")
    / "nettop-soak"
)
"""With both versions of control groups, systemd mounts the second one there."""
KEPT_ROWS = ("--filter", f"local_port={KEPT}", "--columns", "process,local_address,local_port")
LENSES = b"1234570o"
GROWTH_MB = 10.0
WARM_UP_S = 600.0
"""Memory is compared with that after so long: caches have filled."""


# --- what goes on -----------------------------------------------------------------------------------------------


def child(name: str, work: Callable[[], object]) -> int:
    """Fork a process with a name of its own, which works until it is killed."""
    pid = os.fork()
    if pid == 0:
        settle_child(name)
        work()
        os._exit(0)
    return pid


def sink() -> None:
    """Accept connections on SINK and discard what they send."""
    listener = socket.create_server((HOST, SINK), backlog=1000)
    while True:
        with listener.accept()[0] as connection:
            while connection.recv(65536):
                pass


def echo() -> None:
    """Answer each request on ECHO after 2 ms."""
    listener = socket.create_server((HOST, ECHO))
    connection = listener.accept()[0]
    while request := connection.recv(4096):
        time.sleep(0.002)
        connection.sendall(request)


def ask() -> None:
    """Send requests, DNS queries, datagrams to a closed port and connects that are refused."""
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04name\x04test\x00\x00\x01\x00\x01"
    service = socket.create_connection((HOST, ECHO))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while True:
        service.sendall(b"q" * 100)
        service.recv(4096)
        with contextlib.suppress(OSError):
            datagrams.sendto(b"x", (HOST, CLOSED))
        with contextlib.suppress(OSError):
            datagrams.sendto(query, (HOST, 53))
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, CLOSED), timeout=1).close()
        time.sleep(0.1)


def keep(number: int) -> None:
    """Keep connections to the process itself open, and some traffic on them."""
    listener = socket.create_server((f"127.0.1.{number + 1}", KEPT), backlog=KEPT_EACH)
    held = []
    for _ in range(KEPT_EACH):
        caller = socket.create_connection(listener.getsockname())
        held.append((caller, listener.accept()[0]))
    while True:
        for caller, answerer in held[:5]:
            caller.sendall(b"k")
            answerer.recv(1)
        time.sleep(0.5)


def job(number: int) -> None:
    """Send JOB_BYTES as a process and a container that nobody has seen before."""
    group = GROUPS / f"docker-{number:064x}.scope"
    group.mkdir()
    pid = os.fork()
    if pid == 0:
        settle_child(f"job{number}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        with socket.create_connection((HOST, SINK)) as connection:
            connection.sendall(bytes(JOB_BYTES))
        os._exit(0)
    os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        group.rmdir()


def jobs(made: Path) -> None:
    """Run five jobs a second; write their number to a file."""
    number = 0
    while True:
        begun = time.monotonic()
        job(number)
        number += 1
        made.write_text(str(number))
        time.sleep(max(0.0, 0.2 - (time.monotonic() - begun)))


def spin() -> None:
    """Keep a CPU busy."""
    while True:
        pass


# --- who watches ------------------------------------------------------------------------------------------------


def get(path: str) -> tuple[int, bytes]:
    """Return the status and body of what serve answers; 0 if it does not."""
    connection = http.client.HTTPConnection(HOST, WEB, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def wrong_names(rows: list[dict[str, Any]]) -> list[str]:
    """Return names of rows of KEPT connections that are not their keepers', by the address of each."""
    wrong = []
    for row in rows:
        address = str(row.get("local_address"))
        if row.get("local_port") == KEPT and address.startswith("127.0.1."):
            expected = f"keeper{int(address.rsplit('.', 1)[1]) - 1}"
            if row.get("process") not in (expected, None):
                wrong.append(f"{row.get('process')} for {expected}")
    return wrong


class Watch:
    """What was seen of each frontend."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.dead: Counter[str] = Counter()
        self.checks: Counter[int] = Counter()
        self.silent = 0
        """Checks that said that nothing was found although connects were refused all the time."""
        self.readings = 0
        self.scraped = 0
        self.series: set[str] = set()
        self.memory: dict[str, list[tuple[float, float]]] = {}

    def scrape(self) -> None:
        """Ask serve for rows, health and metrics."""
        status, body = get(
            f"/api/v1/connections?filter=local_port%3D{KEPT}&columns=process,local_address,local_port"
        )
        if status == HTTPStatus.OK:
            self.readings += 1
            self.wrong += wrong_names(json.loads(body)["rows"])
        status, body = get("/health")
        lenses = json.loads(body)["lenses"] if body else {"serve": {"state": "no answer"}}
        self.dead.update(name for name, lens in lenses.items() if lens["state"] not in ("ok", "unavailable"))
        _, body = get("/metrics")
        self.scraped = max(self.scraped, len(body))
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        self.series.update(line.rpartition(" ")[0] for line in lines)

    def check(self) -> None:
        """Run check once."""
        done = subprocess.run([NETTOP, "check", "--for", "5s"], capture_output=True, text=True, check=False)
        self.checks[done.returncode] += 1
        self.silent += done.returncode == 0

    def weigh(self, processes: dict[str, int], at_s: float) -> None:
        """Note the memory of each frontend."""
        for name, pid in processes.items():
            with contextlib.suppress(OSError):
                self.memory.setdefault(name, []).append((at_s, resident_mb(pid)))


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines file; the last line may be unfinished."""
    with path.open() as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def grown(memory: list[tuple[float, float]], warm_up_s: float) -> float:
    """Return by how many MB memory has grown since the warm-up."""
    after = [size for at_s, size in memory if at_s >= warm_up_s]
    return max(after[len(after) // 2 :]) - max(after[: len(after) // 2 + 1]) if len(after) > 1 else 0.0


@contextlib.contextmanager
def traffic() -> Iterator[None]:
    """Keep sockets and ask services; remove the control groups of jobs at the end."""
    GROUPS.mkdir(exist_ok=True)
    pids = [child("sink", sink), child("echo", echo)]
    time.sleep(0.5)
    pids += [child(f"keeper{number}", partial(keep, number)) for number in range(KEEPERS)]
    pids.append(child("asker", ask))
    try:
        yield
    finally:
        end(pids)
        for group in (*GROUPS.glob("*.scope"), GROUPS):
            with contextlib.suppress(OSError):
                group.rmdir()


def end(pids: list[int]) -> None:
    """Kill children."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    pids.clear()


@contextlib.contextmanager
def frontends(folder: Path) -> Iterator[dict[str, Process]]:
    """Run each frontend but the screens, with its output in a file of its name, and a Prometheus that scrapes serve."""
    config = folder / "prometheus.yml"
    scraped = (
        f"- job_name: nettop\n  scrape_interval: 15s\n  static_configs:\n  - targets: ['{HOST}:{WEB}']\n"
    )
    config.write_text(f"scrape_configs:\n{scraped}")
    commands = {
        "text": (NETTOP, "-d", "--format", "jsonl", "-t", "5", *KEPT_ROWS),
        "log": (NETTOP, "log", "--format", "jsonl"),
        "record": (NETTOP, "record", str(folder / "soak.nettop")),
        "serve": (NETTOP, "serve", "--listen", f"{HOST}:{WEB}"),
        "prometheus": (
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address={HOST}:9090",
        ),
    }
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(running(*words, out=stack.enter_context((folder / name).open("w"))))
            for name, words in commands.items()
        }


def follow(watch: Watch, live: dict[str, Process], screens: Screens, total_s: float) -> None:
    """Open lens after lens and look at each frontend, until the time is up."""
    loops: list[int] = []
    for turn, left in enumerate(for_seconds(total_s)):
        at_s = total_s - left
        is_busy = total_s / 3 < at_s < total_s * 2 / 3
        if is_busy and not loops:
            loops = [child("spin", spin) for _ in range(20)]
        elif not is_busy:
            end(loops)
        screens.type(LENSES[turn % len(LENSES) :][:1])
        screens.read_for(min(5.0, left))
        watch.scrape()
        pids = {name: process.pid for name, process in live.items() if name != "prometheus"}
        watch.weigh(pids | {"screens": screens.pid}, at_s)
        watch.dead.update(name for name, process in live.items() if process.poll() is not None)
        if turn % 5 == 0:
            watch.check()
        screens.read_for(min(5.0, left))
        sizes = ", ".join(f"{name} {sizes[-1][1]:.0f} MB" for name, sizes in watch.memory.items())
        print(f"{at_s:6.0f} s: wrong {len(watch.wrong)}, dead {dict(watch.dead)}, {sizes}", flush=True)
    end(loops)


def soak(minutes: float) -> Iterator[Report]:
    """Run everything, and report."""
    total_s, watch = minutes * 60, Watch()
    with readable_folder("soak") as folder, traffic(), frontends(folder) as live, Screens() as screens:
        for _ in for_seconds(READY_WITHIN_S):
            screens.read_for(1.0)
            if get("/metrics")[0] == HTTPStatus.OK and (folder / "log").stat().st_size:
                break
        base, made = job_bytes(), folder / "made"
        worker = [child("jobs", partial(jobs, made))]
        follow(watch, live, screens, total_s)
        end(worker)
        screens.read_for(5.0)
        count, counted = int(made.read_text()), job_bytes() - base
        for name in ("log", "record"):
            live[name].send_signal(signal.SIGINT)
            live[name].wait(READY_WITHIN_S)
        sent = Counter(row.get("bytes_sent") for row in rows_of(folder / "log") if is_close_to_sink(row))
        replay = (NETTOP, "replay", str(folder / "soak.nettop"), "-d", "--format", "jsonl", *KEPT_ROWS)
        with (folder / "replayed").open("w") as replayed:
            subprocess.run(replay, stdout=replayed, check=False)
        for name in ("text", "replayed"):
            watch.wrong += wrong_names(list(rows_of(folder / name)))
        print((folder / "record").read_text(), Counter(watch.wrong).most_common(5), dict(watch.checks))
        print("bytes of closes to the sink:", sent.most_common(5))
    yield from reports(watch, count, counted, sent[JOB_BYTES], min(WARM_UP_S, total_s / 6))


def is_close_to_sink(row: dict[str, Any]) -> bool:
    """Return whether this line of the log is the close of a job's end of its connection."""
    return {"event": "close", "remote_port": SINK}.items() <= row.items()


def reports(watch: Watch, count: int, counted: float, closed: int, warm_up_s: float) -> Iterator[Report]:
    """Compare what was seen with what went on: `count` jobs."""
    yield (
        "names, sources, checks",
        [
            Figure("wrong names", len(watch.wrong), "", 0),
            at_least("readings of serve", watch.readings, "", 1),
            Figure("dead sources", sum(watch.dead.values()), "", 0),
            Figure("checks that found nothing", watch.silent, "", 0),
            at_least("checks", sum(watch.checks.values()), "", 1),
        ],
    )
    yield (
        f"counters, beside {count} jobs",
        [
            Figure("bytes missing in serve", count * JOB_BYTES - counted, "B", 0),
            at_least("the same", count * JOB_BYTES - counted, "B", 0),
            Figure("closes missing in the log", count - closed, "", 0),
            at_least("the same", count - closed, "", 0),
        ],
    )
    yield (
        "metrics",
        [
            Figure("largest scrape", watch.scraped / 1000, "kB", 200),
            Figure("series", len(watch.series), "", 20_000),
        ],
    )
    yield (
        "memory since the warm-up",
        [
            Figure(f"{name}, now {sizes[-1][1]:.0f} MB", grown(sizes, warm_up_s), "MB", GROWTH_MB)
            for name, sizes in watch.memory.items()
        ],
    )


def job_bytes() -> float:
    """Return the bytes that jobs have sent to the sink, as serve's metrics by port say."""
    pattern = rf'nettop_connections_by_port_bytes_total\{{direction="received",port="{SINK}/tcp"\}} (\S+)'
    found = re.search(pattern, get("/metrics")[1].decode())
    return float(found[1]) if found else 0.0


def main() -> int:
    """Run the bench."""
    chosen = arguments(__doc__, minutes=(60.0, "how long, in minutes"), quick=QUICK)
    own_namespace()
    return judge(soak(2 if chosen.quick else chosen.minutes))


if __name__ == "__main__":
    sys.exit(main())
