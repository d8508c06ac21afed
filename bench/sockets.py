# SPDX-License-Identifier: Apache-2.0
"""Hold many connections to measure: child processes on loopback in a separate network namespace."""

import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import NoReturn

from programs import run

from tests.kernel.lab import CLONE_NEWNET, libc, settle_child

A_PROCESS = 8_800  # connections with both ends, well below 20,000 descriptors
NAME = "benchholder"


def own_namespace() -> None:
    """Move this process into a new network namespace with loopback up, so that ss sees only the bench."""
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare (are you root?)")
    run("ip", "link", "set", "lo", "up")


@contextlib.contextmanager
def connections(rows: int, waiting: int = 8) -> Iterator[None]:
    """Hold `rows` sockets (two per connection), each with its own amount of traffic, and `waiting` not yet accepted.

    The waiting ones have no owner: nettop must walk the hash tables for them.
    """
    children = []
    try:
        left = rows // 2
        while left > 0:
            children.append(start(min(left, A_PROCESS), 10 + len(children), 0 if children else waiting))
            left -= A_PROCESS
        for _, ready in children:
            if os.read(ready, 1) != b"k":
                raise RuntimeError("a process that holds sockets failed")
        yield
    finally:
        for pid, ready in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(ready)


def start(count: int, number: int, waiting: int) -> tuple[int, int]:
    """Fork a process that holds connections; return its PID, and a pipe that becomes readable when they are open."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        hold(count, f"127.0.{number}.1", waiting, done)
    os.close(done)
    return pid, ready


def hold(count: int, address: str, waiting: int, done: int) -> NoReturn:
    """Open the connections, report, and wait to be killed."""
    settle_child(NAME)
    listener = socket.create_server((address, 0), backlog=100)
    held = []
    for number in range(count):
        caller = socket.create_connection(listener.getsockname())
        answerer = listener.accept()[0]
        caller.send(b"n" * (number % 900 + 1))
        answerer.recv(2000)
        held += [caller, answerer]
    held += [socket.create_connection(listener.getsockname()) for _ in range(waiting)]
    os.write(done, b"k")
    threading.Event().wait()
    os._exit(0)
