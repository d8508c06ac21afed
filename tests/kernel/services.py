# SPDX-License-Identifier: Apache-2.0
"""Known numbers of requests and responses for tests of the services lens, and the lens's counts of them."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from nettop.probes.services.probe import Services
from nettop.probes.services.programs import FALLBACKS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Kind
from nettop.snapshots.services import BUCKETS, CLIENTS, CONNECTIONS, HOOK_CALLS, SERVICES, SIDES, WAITING
from nettop.snapshots.snapshot import Snapshot
from tests.options import source_options

from .command import Row
from .lab import Lab, Namespace, NotInTimeError, Worker, die_with_parent, until
from .test_events import decoded
from .traffic import Memory, linger, listen, receive

SERVED, USED = SIDES.values()
REQUEST, ANSWER = SIZES = 101, 503
"""Bytes of a request and of its response, where nothing else is said."""
MECHANISMS = [mechanism.name for mechanism in FALLBACKS.mechanisms]
NOT_ALLOWED = 3
"""The status of answer.c where the kernel does not allow a kind of calls."""
PORTS = itertools.count(7000)
"""Use each once: the kernel gives the number of a removed namespace to a new one, and with it the service's counts."""
ERROR = 1 / 16
"""How far what stands for a bucket may be from a duration in it, as a share."""


class Watched:
    """A probe of the services lens, attached by one mechanism for calls, or the best, with those of other hooks.

    `udp_port` is the option's value.
    """

    def __init__(self, mechanism: str | None = None, udp_port: str = "", **others: str) -> None:
        self.probe = Services()
        mechanisms = others if mechanism is None else {**others, HOOK_CALLS.name: mechanism}
        self.probe.configure(source_options([CLIENTS.name], mechanisms, udp_port=udp_port))
        self.probe.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.probe.close()

    def read(self) -> Snapshot:
        """Return a reading."""
        return self.probe.read(time.monotonic_ns())

    @property
    def status(self) -> HookStatus:
        """Return the status of the hook for calls."""
        return self.read().hooks[0]

    def services(self, namespace: Namespace) -> dict[tuple[str, int], Row]:
        """Return the counts of services in a namespace, by side and port.

        Sum a port that is used at several addresses or by several processes.
        """
        together: dict[tuple[str, int], Row] = {}
        for row in decoded(self.read().tables[SERVICES.name], namespace.inode):
            key = row["side"], row["port"]
            together[key] = _sum(together[key], row) if key in together else row
        return together

    def service(self, namespace: Namespace, port: int, side: str = SERVED) -> Row:
        """Return the row of one service."""
        return self.services(namespace)[side, port]

    def rows(self, table: str, namespace: Namespace, port: int) -> list[Row]:
        """Return the connections or open requests of a service's port in a namespace."""
        assert table in (CONNECTIONS.name, WAITING.name)
        rows = decoded(self.read().tables[table], namespace.inode)
        return [row for row in rows if port in (row["local_port"], row["remote_port"])]

    def until(self, namespace: Namespace, port: int, side: str = SERVED, **values: Any) -> Row:
        """Wait until the row of a service has these values, and return it.

        Programs at the ends of calls run after the peer has received the data.
        """
        return self.until_row(lambda: self.services(namespace).get((side, port), {}), values, 5)

    def until_row(self, read: Callable[[], Row], values: Row, deadline_s: float) -> Row:
        """Wait until a row has these values, and return it. NotInTimeError reports the actual values."""
        last: Row = {}

        def has_them() -> bool:
            last.clear()
            last.update(read())
            return bool(last) and {name: last[name] for name in values} == values

        try:
            until(has_them, f"{values} are counted", deadline_s)
        except NotInTimeError as error:
            raise NotInTimeError(f"{error}, but { ({name: last.get(name) for name in values}) }") from error
        return last


class WatchedByEach:
    """A probe for each mechanism that the kernel allows, all attached at once."""

    def __init__(self) -> None:
        self._exits = ExitStack()
        self._watches: dict[str, tuple[Watched, HookStatus]] = {}

    def __enter__(self) -> Self:
        with self._exits as exits:
            for mechanism in FALLBACKS.mechanisms:
                watched = exits.enter_context(Watched(mechanism.name))
                self._watches[mechanism.name] = watched, watched.status
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @property
    def attached(self) -> list[Watched]:
        """Return the probes that the kernel allows."""
        return [watched for watched, status in self._watches.values() if status.mechanism]

    def by(self, mechanism: str, record: Callable[..., None]) -> Watched:
        """Return the probe of a mechanism, and record it in the report; skip if the kernel refuses it."""
        record(hook=FALLBACKS.hook.name, mechanism=mechanism)
        watched, status = self._watches[mechanism]
        if status.mechanism is None:
            why = dict(status.refused).get(mechanism, status.why)
            record(verdict="refused", why=why)
            pytest.skip(f"{mechanism}: {why}")
        return watched


def _sum(row: Row, other: Row) -> Row:
    """Add up the counters and histograms of two rows."""
    sums = {field.name for field in SERVICES.fields if field.kind in (Kind.COUNTER, Kind.GAUGE)} - {"oldest"}
    added = {
        name: row[name] + other[name] for name in sums if row[name] is not None and other[name] is not None
    }
    histograms = {
        field.name: [a + b for a, b in zip(row[field.name], other[field.name], strict=True)]
        for field in SERVICES.fields
        if field.kind is Kind.HISTOGRAM
    }
    return row | added | histograms


def quantile(row: Row, name: str, share: float) -> float:
    """Return a quantile of a histogram, in ns."""
    return float(BUCKETS.quantiles(np.array([row[name]], np.uint64), share)[0])


# --- requests and responses --------------------------------------------------------------------------------------


def request_each(memory: Memory, names: Sequence[object], count: int, sizes: tuple[int, int]) -> None:
    """Send `count` requests on each connection, each after the previous response.

    `sizes` are the sizes of requests and responses.
    """
    request, answer = sizes
    for _ in range(count):
        for name in names:
            memory[name].sendall(b"q" * request)
            receive(memory[name], answer)


def answer_each(memory: Memory, names: Sequence[object], count: int, sizes: tuple[int, int]) -> None:
    """Answer the requests of `request_each`."""
    request, answer = sizes
    for _ in range(count):
        for name in names:
            receive(memory[name], request)
            memory[name].sendall(b"a" * answer)


def send_each(memory: Memory, names: list[int], size: int) -> None:
    """Send a message on each of these connections."""
    for name in names:
        memory[name].sendall(b"n" * size)


def receive_each(memory: Memory, names: list[int], size: int) -> None:
    """Read `size` bytes from each of these connections."""
    for name in names:
        receive(memory[name], size)


def send_and_close(memory: Memory, names: list[int], size: int) -> None:
    """Send a message on each connection, and close it."""
    for name in names:
        memory[name].sendall(b"n" * size)
        memory.pop(name).close()


def send_and_wait(memory: Memory, names: list[int], size: int) -> None:
    """Send a message on each connection, and close it after the peer."""
    for name in names:
        memory[name].sendall(b"n" * size)
        with memory.pop(name) as held, suppress(ConnectionResetError):
            assert not held.recv(1)


def receive_and_close(memory: Memory, names: list[int], size: int, ending: str = "closed") -> None:
    """Read a message on each connection, and close it, by a reset if requested."""
    for name in names:
        receive(memory[name], size)
        if ending == "reset":
            linger(memory, [name])
        memory.pop(name).close()


def receive_to_end(memory: Memory, names: list[int]) -> None:
    """Read each connection to its end, and close it."""
    for name in names:
        while memory[name].recv(65536):
            pass
        memory.pop(name).close()


def echo_once(listener: socket.socket, address: str) -> None:
    """Exchange a request and a response over a connection to a listener of this process."""
    to = address, listener.getsockname()[1]
    with socket.create_connection(to) as made, listener.accept()[0] as accepted:
        for sender, receiver in ((made, accepted), (accepted, made)):
            sender.sendall(b"q")
            receiver.recv(1)


@contextmanager
def opened(client: Worker, server: Worker, port: int, target: str, count: int = 1) -> Iterator[list[int]]:
    """Open connections to a server's listener named "listener", and close them at the end; yield their names at both
    ends.
    """
    names = list(range(count))
    client.call(connect_each, target, port, count)
    server.call(accept_each, count)
    yield names
    client.call(close_each, names)
    server.call(close_each, names)


def connect_each(memory: Memory, target: str, port: int, count: int) -> None:
    """Open `count` connections, named by number; an IPv6 socket connects to an IPv4 address in its mapped form."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    for name in range(count):
        memory[name] = socket.socket(family)
        memory[name].connect((target, port))
        memory[name].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def accept_each(memory: Memory, count: int) -> None:
    """Accept `count` connections, named by number."""
    for name in range(count):
        memory[name] = memory["listener"].accept()[0]
        memory[name].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def close_each(memory: Memory, names: Sequence[object]) -> None:
    """Close the open ones of these connections."""
    for name in names:
        held = memory.pop(name, None)
        if held is not None:
            held.close()


def answer_by(memory: Memory, program: Path, how: str, count: int, sizes: tuple[int, int]) -> bool:
    """Answer the requests of one connection by a kind of calls; return False if the kernel does not allow it."""
    command = [str(program), how, *map(str, (count, *sizes))]
    done = subprocess.run(command, stdin=memory[0].fileno(), check=False)
    assert done.returncode in (0, NOT_ALLOWED)
    return done.returncode == 0


class Host:
    """A namespace with a server, its client, and the server's port."""

    def __init__(self, lab: Lab, *, backlog: int = 4096) -> None:
        self.namespace = lab.namespace()
        self.server = lab.worker(self.namespace, "server")
        self.client = lab.worker(self.namespace, "client")
        self.port = int(self.server.call(listen, "listener", "::", next(PORTS), backlog))

    def exchange(self, names: list[int], count: int) -> None:
        """Send `count` requests on each of these connections, and answer all."""
        self.server.start(answer_each, names, count, SIZES)
        self.client.call(request_each, names, count, SIZES)
        self.server.result()


def ask(host: Host, names: list[int]) -> None:
    """Send a request and have the server read it."""
    host.client.call(send_each, names, REQUEST)
    host.server.call(receive_each, names, REQUEST)


def reply(host: Host, names: list[int]) -> None:
    """Answer the request."""
    host.server.call(send_each, names, ANSWER)
    host.client.call(receive_each, names, ANSWER)


def check_both(watches: Sequence[Watched], host: Host, **values: Any) -> None:
    """Check what both sides of a service have counted."""
    for watched in watches:
        for side in (SERVED, USED):
            watched.until(host.namespace, host.port, side, **values)


# --- servers ---------------------------------------------------------------------------------------------------


@contextmanager
def running(namespace: Namespace, *command: str, port: int, log: Path, **how: Any) -> Iterator[int]:
    """Run a server and yield its PID once it listens on a port; then kill it and its children."""
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace.name, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - nothing else runs in a test
            start_new_session=True,
            **how,
        )
        stack.callback(process.wait)
        stack.callback(end_group, process.pid)
        until(lambda: listens(namespace, port) or process.poll() is not None, f"{command[0]} listens")
        assert process.poll() is None, log.read_text(errors="replace")
        yield process.pid


def end_group(pid: int) -> None:
    """Kill a process and its children."""
    try:
        os.killpg(pid, 9)
    except ProcessLookupError:
        return


def listens(namespace: Namespace, port: int) -> bool:
    """Return whether a socket listens on a port."""
    return bool(namespace.run("ss", "-Hltn", f"sport = :{port}"))


def tool(name: str, *folders: str) -> str:
    """Return the path of a program; skip the test without it."""
    path = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", *folders]))
    if path is None:
        pytest.skip(f"{name} is not installed (scripts/install-deps.sh --kernels)")
    return path
