# SPDX-License-Identifier: Apache-2.0
"""Trouble gives a clear message or a visible counter and the documented exit code, and leaves nothing behind."""

import contextlib
import os
import random
import signal
import socket
import subprocess
from typing import Any

import pytest

from . import bpf_objects, traffic
from .command import (
    AS_NOBODY,
    JSON,
    Running,
    bcc_folder,
    by_cookie,
    in_namespaces,
    mounted,
    nettop,
    rows,
    rows_in,
)
from .lab import Lab, until
from .traffic import Call

pytestmark = pytest.mark.kernel

DONE, SOURCE_FAILED = 0, 5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
BURST = 40_000


def no_traceback(text: str) -> None:
    """Assert that no output has a Python traceback."""
    assert "Traceback" not in text, text
    assert "Exception" not in text, text


def test_not_root() -> None:
    """Without privileges nettop shows what the kernel shows to anyone, and says what root would add."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = nettop(*JSON, "--once", "--all", around=AS_NOBODY)
        port = listener.getsockname()[1]
    assert done.returncode == DONE
    listed = rows_in(done.stdout)
    ours = [row for row in listed if row["local_port"] == port and row["state"] == "LISTEN"]
    assert [(row["process"], row["pid"], row["uid"]) for row in ours] == [("(hidden)", None, 0)]
    assert "sudo nettop" in done.stderr
    no_traceback(done.stderr)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signal_while_it_runs(left_clean: None, number: signal.Signals) -> None:
    """A signal ends a running nettop at once, with nothing left behind in the kernel."""
    with Running(*JSON, "--all", "--interval", "0.1") as running:
        running.first_rows()
        held = bpf_objects.held(running.pid)
        assert {kind for kind, _ in held} >= {"prog", "link"}
        assert running.end(number) == (-number if number == signal.SIGKILL else DONE)
        until(running.gone, "every process of nettop has ended")
        no_traceback(running.errors())
        until(lambda: not held & bpf_objects.existing(), "its own programs, maps and links are gone", 10)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("seed", range(2))
def test_signal_at_a_random_moment(
    nothing_cached: None, left_clean: None, number: signal.Signals, seed: int
) -> None:
    """A signal at any moment of the first second leaves neither a process nor an object in the kernel.

    The test waits for nettop's first own code before SIGINT, which would otherwise interrupt Python's start-up.
    """
    moment = random.Random(f"{number}{seed}").uniform(0, 0.8)
    with Running(*JSON, "--all", "--interval", "0.1") as running:
        if number == signal.SIGINT:
            until(lambda: running.compilers() or running.text(), "nettop begins")
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(moment)
        status = running.end(number)
        until(running.gone, "every process of nettop has ended")
        no_traceback(running.errors())
        assert status in ((-number,) if number == signal.SIGKILL else (DONE, -number))


def test_compiler_killed(nothing_cached: None, left_clean: None) -> None:
    """If the compiling child dies, nettop says so, exits with a failure, and leaves nothing.

    The test's bcc never finishes importing, so the child dies before it compiles.
    """
    folder = bcc_folder()
    waits = f"mount -t tmpfs none {folder} && echo 'import signal; signal.pause()' > {folder}/__init__.py"
    with Running(*JSON, "--once", "--all", around=mounted(waits)) as running:
        child = until(running.compilers, "the compiler starts")[0]
        os.kill(child, signal.SIGKILL)
        assert running.wait() == SOURCE_FAILED
        until(running.gone, "every process of nettop has ended")
        assert "nettop: " in running.errors()
        no_traceback(running.errors())


def test_burst_of_connections(lab: Lab, left_clean: None) -> None:
    """nettop keeps running while 40,000 connections open and close; afterwards it shows exactly the remaining ones."""
    home = lab.namespace()
    workers = [lab.worker(home, "burst") for _ in range(2)]
    server = lab.worker(home, "server")
    port = server.call(traffic.listen, "listener", "127.0.0.1")
    server.call(traffic.connect_at_once, [Call(("127.0.0.1", port))])
    with Running(*JSON, "--all", "--interval", "0.1", "--filter", "server") as running:
        running.first_rows()
        for number, worker in enumerate(workers):
            worker.start(burst, f"127.0.0.{10 + number}", BURST // len(workers))
        assert [worker.result(120) for worker in workers] == [BURST // 2, BURST // 2]
        before = len(running.refreshes())
        until(lambda: len(running.refreshes()) > before, "nettop still refreshes")
        assert running.end() == DONE
        assert running.complaints() == ""
        cookie = server.call(traffic.cookie, 0)
        assert all(by_cookie(refresh)[cookie]["pid"] == server.pid for refresh in running.refreshes())
    left = in_namespaces(rows(), home.inode)
    assert sorted(row["state"] for row in left) == ["ESTABLISHED", "ESTABLISHED", "LISTEN"]


def burst(memory: dict[Any, Any], host: str, count: int) -> int:
    """Open and reset `count` connections, one after the other."""
    reset = b"\1\0\0\0\0\0\0\0"
    with socket.create_server((host, 0), backlog=100) as listener:
        target = listener.getsockname()
        for _ in range(count):
            with socket.socket() as caller:
                caller.connect(target)
                listener.accept()[0].close()
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    return count
