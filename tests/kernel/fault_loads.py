# SPDX-License-Identifier: Apache-2.0
"""Healthy loads of well-known programs in network namespaces, beside which no finding has to appear."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .fault_oracles import listener
from .lab import Lab, Namespace, Worker, die_with_parent, missing, process_state, until
from .traffic import Memory

LOOPBACK = "127.0.0.1"
A_DAY = "86400"
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;
events {{}}
http {{
    access_log off; keepalive_requests 1000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:8080; location / {{ return 200 "ok"; }} }}
}}
"""


@dataclass(frozen=True)
class Running:
    """The server and the client of a load, the client's namespace, and the sentence that says what was made."""

    what: str
    namespace: Namespace
    server: Worker
    client: Worker

    def __str__(self) -> str:
        where = f"namespace: {self.namespace.name}; processes: {self.server.pid}, {self.client.pid}"
        return f"{self.what} ({where})"


@dataclass(frozen=True)
class Load:
    """A load that runs until its context ends."""

    help: str
    needs: tuple[str, ...]
    running: Callable[[Lab], AbstractContextManager[Running]]

    def lacks(self) -> str | None:
        """Return what this machine lacks to run the load; None if it has everything."""
        absent = [need for need in self.needs if not shutil.which(need)]
        return missing() or (f"there is no {absent[0]}" if absent else None)


def execute(memory: Memory, words: list[str], user: str | None = None) -> NoReturn:
    """Become another program, without output."""
    if user:
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        die_with_parent()  # the kernel forgets that when the user changes
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.execvp(words[0], words)


def start(lab: Lab, namespace: Namespace, *words: str, user: str | None = None) -> Worker:
    """Start a program in a namespace."""
    worker = lab.worker(namespace, words[0][:15])
    worker.start(execute, list(words), user)
    return worker


def listens(namespace: Namespace, port: int) -> None:
    """Wait until a program listens on this port."""

    def there() -> bool:
        try:
            return bool(listener(namespace, port))
        except ValueError:
            return False

    until(there, f"a program listens on port {port}")


@contextlib.contextmanager
def folder_for(user: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder that belongs to this user."""
    with tempfile.TemporaryDirectory(prefix="nettop-load", ignore_cleanup_errors=True) as name:
        if user:
            shutil.chown(name, user)
        yield Path(name)


@contextlib.contextmanager
def iperf3(lab: Lab) -> Iterator[Running]:
    """Run a bulk transfer between two namespaces."""
    near, far = lab.pair()
    server = start(lab, far.namespace, "iperf3", "-s", "-p", "5201")
    listens(far.namespace, 5201)
    words = ["iperf3", "-c", far.v4, "-p", "5201", "-t", A_DAY, "-b", "200M"]
    client = start(lab, near.namespace, *words)
    what = f"iperf3 sends 200 Mbit/s to iperf3 at {far.v4}:5201"
    yield Running(what, near.namespace, server, client)


@contextlib.contextmanager
def wrk(lab: Lab) -> Iterator[Running]:
    """Run wrk against nginx."""
    home = lab.namespace()
    with folder_for() as folder:
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
        server = start(lab, home, "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"))
        listens(home, 8080)
        client = start(lab, home, "wrk", "-t", "1", "-c", "10", "-d", A_DAY, f"http://{LOOPBACK}:8080/")
        yield Running("wrk asks nginx at 127.0.0.1:8080 over 10 connections", home, server, client)


@contextlib.contextmanager
def redis(lab: Lab) -> Iterator[Running]:
    """Run redis-benchmark against redis-server."""
    home = lab.namespace()
    with folder_for() as folder:
        where = ["--bind", LOOPBACK, "--port", "6379", "--dir", str(folder)]
        server = start(lab, home, "redis-server", *where, "--save", "")
        listens(home, 6379)
        client = start(lab, home, "redis-benchmark", "-l", "-q", "-c", "10", "-t", "get,set")
        yield Running("redis-benchmark asks redis-server at 127.0.0.1:6379", home, server, client)


@contextlib.contextmanager
def pgbench(lab: Lab) -> Iterator[Running]:
    """Run pgbench against PostgreSQL."""
    home, user = lab.namespace(), "postgres"
    with folder_for(user) as folder:
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        made = [*as_user, "initdb", "--no-sync", "--auth=trust", "-D", str(folder / "data")]
        subprocess.run(made, check=True, capture_output=True, cwd=folder)
        where = ["-h", LOOPBACK, "-p", "5432", "-U", user]
        words = ["postgres", "-D", str(folder / "data"), "-k", "", "-h", LOOPBACK, "-p", "5432", "-F"]
        server = start(lab, home, *words, user=user)
        try:
            listens(home, 5432)
            until(lambda: accepts(home, where), "PostgreSQL accepts connections")
            home.run("pgbench", *where, "-i", "-q", user)
            client = start(lab, home, "pgbench", *where, "-c", "4", "-R", "200", "-T", A_DAY, user)
            yield Running("pgbench asks postgres at 127.0.0.1:5432, 200 times/s", home, server, client)
        finally:
            shut_down(server)


def accepts(namespace: Namespace, where: list[str]) -> bool:
    """Return whether PostgreSQL accepts connections."""
    try:
        namespace.run("pg_isready", "-q", *where)
    except RuntimeError:
        return False
    return True


def shut_down(server: Worker) -> None:
    """Have PostgreSQL end by itself, so that it removes its shared memory."""
    os.kill(server.pid, signal.SIGINT)
    until(lambda: process_state(server.pid) in ("Z", ""), "PostgreSQL has ended")


LOADS = {
    "iperf3": Load("a bulk transfer of 200 Mbit/s", ("iperf3",), iperf3),
    "wrk": Load("wrk asks nginx as often as it can", ("wrk", "nginx"), wrk),
    "redis": Load(
        "redis-benchmark asks redis-server as often as it can", ("redis-server", "redis-benchmark"), redis
    ),
    "pgbench": Load(
        "pgbench asks PostgreSQL 200 times per second", ("pgbench", "initdb", "postgres", "setpriv"), pgbench
    ),
}
"""The loads by name."""
