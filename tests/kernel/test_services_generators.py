# SPDX-License-Identifier: Apache-2.0
"""The services lens's counts equal those of load generators and servers, and its times agree with theirs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from .lab import Namespace
from .services import ERROR, SERVED, USED, Watched, quantile, running, tool

pytestmark = pytest.mark.kernel

PLAIN, CLOSING, TLS, REDIS, POSTGRES = 8081, 8082, 8443, 7777, 7778
CONFIGURATION = """
worker_processes 2; pid {folder}/pid; error_log {folder}/errors; daemon off; user root;
events {{ worker_connections 1024; }}
http {{
  access_log {folder}/log; sendfile on; keepalive_requests 1000000; root {folder};
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen {plain} backlog=4096; listen [::]:{plain} backlog=4096; }}
  server {{ listen {closing} backlog=4096; keepalive_timeout 0; }}
  server {{ listen {tls} ssl; ssl_certificate {folder}/certificate; ssl_certificate_key {folder}/key; }}
}}
"""
SMALL, BIG = "small", "big"
SIZES = {SMALL: 612, BIG: 3 << 20}
NS = {"us": 1e3, "ms": 1e6, "s": 1e9}


# --- nginx and wrk --------------------------------------------------------------------------------------------


@contextmanager
def nginx(home: Namespace, folder: Path) -> Iterator[None]:
    """Run nginx with small and big files, on ports that keep connections, close them, and speak TLS."""
    program, openssl = tool("nginx"), tool("openssl")
    for name, size in SIZES.items():
        (folder / name).write_bytes(b"n" * size)
    certificate = ["-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-keyout", folder / "key", "-out", folder / "certificate", "-subj", "/CN=localhost"]
    subprocess.run([openssl, "req", *certificate, *files], check=True, capture_output=True)
    ports = {"plain": PLAIN, "closing": CLOSING, "tls": TLS}
    (folder / "conf").write_text(CONFIGURATION.format(folder=folder, **ports))
    command = [program, "-e", str(folder / "errors"), "-c", str(folder / "conf")]
    with running(home, *command, port=TLS, log=folder / "output"):
        yield


def wrk(home: Namespace, url: str, connections: int, *options: str) -> tuple[int, dict[str, float]]:
    """Run wrk and return its answered requests and the quantiles of their times in ns."""
    generator = tool("wrk")
    text = home.run(generator, "-t1", f"-c{connections}", "-d1s", "--latency", *options, url)
    match = re.search(r"(\d+) requests in", text)
    assert match, text
    assert "Non-2xx" not in text, text
    quantiles = re.findall(r"^ +(50|99)% +([\d.]+)(us|ms|s)$", text, re.MULTILINE)
    return int(match[1]), {share: float(number) * NS[unit] for share, number, unit in quantiles}


@pytest.mark.parametrize(
    ("url", "connections"),
    [
        (f"http://127.0.0.1:{PLAIN}/{SMALL}", 20),
        (f"http://[::1]:{PLAIN}/{BIG}", 3),
        (f"http://127.0.0.1:{CLOSING}/{SMALL}", 20),
    ],
    ids=["kept", "sendfile", "not kept"],
)
def test_nginx(home: Namespace, watched: Watched, tmp_path: Path, url: str, connections: int) -> None:
    """The lens counts the responses that nginx logged and wrk received, except those in flight when wrk ended."""
    port = int(re.findall(r":(\d+)/", url)[0])
    with nginx(home, tmp_path):
        requests, times = wrk(home, url, connections)
        responses = watched.until(home, port, USED, connections=0)["responses"]
        assert requests <= responses <= requests + connections
        served = watched.until(home, port, SERVED, connections=0)
        logged = (tmp_path / "log").read_bytes().count(b"\n")
        assert served["responses"] == logged
        assert served["pattern"] == "alternating"
        assert quantile(watched.service(home, port, USED), "response", 0.5) <= times["50"] * (1 + ERROR)
        mean = served["response_bytes"] / served["responses"]
        assert mean > SIZES[url.rpartition("/")[2]] * (1 - connections / requests)


def test_tls(home: Namespace, watched: Watched, tmp_path: Path) -> None:
    """Encryption hides no turns; a handshake adds one or two per connection."""
    connections = 20
    with nginx(home, tmp_path):
        requests, _ = wrk(home, f"https://127.0.0.1:{TLS}/{SMALL}", connections)
        for side in (SERVED, USED):
            row = watched.until(home, TLS, side, connections=0)
            assert requests + connections <= row["responses"] <= requests + 3 * connections
            assert row["pattern"] == "alternating"


# --- Redis ----------------------------------------------------------------------------------------------------


@contextmanager
def redis(home: Namespace, folder: Path) -> Iterator[None]:
    """Run a Redis that stores nothing on disk."""
    options = ["--port", str(REDIS), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running(home, tool("redis-server"), *options, port=REDIS, log=folder / "output", cwd=folder):
        yield


def benchmark(home: Namespace, *options: str) -> dict[str, float]:
    """Run redis-benchmark and return its quantiles in ms."""
    words = ["-p", str(REDIS), "-t", "set", "--csv", *options]
    text = home.run(tool("redis-benchmark"), *words)
    names, values = (line.strip('"').split('","') for line in text.splitlines()[-2:])
    return dict(zip(names[1:], map(float, values[1:]), strict=True))


@pytest.mark.parametrize("clients", [5, 50])
def test_redis(home: Namespace, watched: Watched, tmp_path: Path, clients: int) -> None:
    """The lens counts exactly the generator's requests, and the one that reads the configuration."""
    requests = 30_000
    with redis(home, tmp_path):
        own = benchmark(home, "-c", str(clients), "-n", str(requests))
        for side in (SERVED, USED):
            row = watched.until(home, REDIS, side, responses=requests + 1, connections=0, unanswered=0)
            assert row["pattern"] == "alternating"
        assert quantile(row, "response", 0.5) <= own["p50_latency_ms"] * 1e6 * (1 + ERROR)


def test_a_batch_is_one_turn(home: Namespace, watched: Watched, tmp_path: Path) -> None:
    """Requests that a client sends by one call, and reads the responses of by one, are one turn."""
    requests, batch = 32_000, 16
    with redis(home, tmp_path):
        benchmark(home, "-c", "5", "-n", str(requests), "-P", str(batch))
        for side in (SERVED, USED):
            watched.until(home, REDIS, side, responses=requests // batch + 1, connections=0)


def as_postgres(*command: str) -> list[str]:
    """Return the command, run as PostgreSQL's user, never as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]


def folders_of_postgres() -> Sequence[str]:
    """List Debian's directories of PostgreSQL programs, newest first."""
    return [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def test_postgres(home: Namespace, watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The lens counts every statement that the server logged, and each connection's handshake."""
    folders = folders_of_postgres()
    make, serve, bench = (tool(name, *folders) for name in ("initdb", "postgres", "pgbench"))
    folder = tmp_path_factory.mktemp("postgres")
    folder.chmod(0o755)
    for above in (folder.parent, folder.parent.parent):
        above.chmod(above.stat().st_mode | 0o011)
    data = folder / "data"
    data.mkdir()
    subprocess.run(["chown", "postgres", data], check=True)
    subprocess.run(
        as_postgres(make, "-D", str(data), "-A", "trust", "-N"), check=True, capture_output=True, cwd="/"
    )
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "log_statement=all", "-c", "log_connections=on"]
    more = ["-p", str(POSTGRES), "-k", "", "-F"]
    clients, transactions = 4, 100
    to_server = ["-h", "127.0.0.1", "-p", str(POSTGRES), "-U", "postgres"]
    environment = ["env", "PGSSLMODE=disable", "PGGSSENCMODE=disable"]
    log = folder / "log"
    with running(
        home, *as_postgres(serve, "-D", str(data), *options, *more), port=POSTGRES, log=log, cwd="/"
    ):
        home.run(*environment, bench, *to_server, "-i", "-q", "postgres")
        home.run(*environment, bench, *to_server, f"-c{clients}", f"-t{transactions}", "postgres")
        text = log.read_text()
        # COPY is answered twice: that data may come, and after it.
        turns = sum(
            len(re.findall(pattern, text))
            for pattern in (r"LOG:  statement: ", r"LOG:  connection authorized: ", r"LOG:  statement: copy ")
        )
        assert turns > clients * transactions * 7
        for side in (SERVED, USED):
            watched.until(home, POSTGRES, side, responses=turns, connections=0, unanswered=0)
