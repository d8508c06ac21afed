# SPDX-License-Identifier: Apache-2.0
"""Many connections to measure with: child processes on loopback in a network namespace of their own."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import NoReturn

CLONE_NEWNET, PR_SET_PDEATHSIG, PR_SET_NAME = 0x40000000, 1, 15
A_PROCESS = 8_800  # connections with both ends, well below 20,000 descriptors
NAME = "benchholder"
libc = ctypes.CDLL(None, use_errno=True)


def own_namespace() -> None:
    """Moves this process into a new network namespace with loopback up, so that ss sees nothing but the bench."""
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare (are you root?)")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@contextlib.contextmanager
def connections(rows: int, waiting: int = 8) -> Iterator[None]:
    """That many sockets (two a connection), each with its own amount of traffic, and `waiting` not yet accepted.

    The waiting ones are unattributed: nettop has to walk the hash tables for them.
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
    """Forks a process that holds that many connections; its PID, and a pipe that says when they are open."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        hold(count, f"127.0.{number}.1", waiting, done)
    os.close(done)
    return pid, ready


def hold(count: int, address: str, waiting: int, done: int) -> NoReturn:
    """Opens the connections, reports, and waits to be killed."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NAME, NAME.encode(), 0, 0, 0)
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
