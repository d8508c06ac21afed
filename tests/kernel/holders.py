# SPDX-License-Identifier: Apache-2.0
"""Ways in which processes come to hold sockets; each function runs in a worker, whose memory is its first argument."""

import ctypes
import os
import socket
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from .lab import libc, set_name, settle_child
from .traffic import Memory, ready

PREFORKED = 5
SYS_IO_URING_SETUP, SYS_IO_URING_REGISTER, IORING_REGISTER_FILES = 425, 427, 2


def prefork(memory: Memory, connections: int) -> int:
    """Forks five workers that accept an equal share of so many connections; returns the listener's port."""
    memory["listener"] = socket.create_server(("127.0.0.1", 0), backlog=4096)
    memory["pipes"] = []
    for number in range(PREFORKED):
        mine, theirs = Pipe(duplex=False)
        if os.fork() == 0:
            settle_child(f"prefork-{number}")
            accept_share(memory["listener"], connections // PREFORKED, theirs)
        theirs.close()
        memory["pipes"].append(mine)
    return int(memory["listener"].getsockname()[1])


def accepted_by(memory: Memory) -> dict[int, int]:
    """Peer's port → pid of the pre-forked worker that accepted it, once all have accepted their share."""
    return {port: pid for pipe in memory["pipes"] for port, pid in pipe.recv().items()}


def accept_share(listener: socket.socket, count: int, report: Connection) -> None:
    """A pre-forked worker's life: accepts its share, says what it got, and holds it."""
    held = [listener.accept() for _ in range(count)]
    report.send({peer[1]: os.getpid() for _, peer in held})
    threading.Event().wait()


def fork_and_end(memory: Memory, count: int) -> None:
    """Forks that many short-lived children, each of which holds all sockets of its parent for a moment."""
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)


def serve_by_fork(memory: Memory, listener: str, count: int) -> dict[int, int]:
    """Accepts so many connections and hands each to a child of its own; peer's port → child."""
    served = {}
    for number in range(count):
        ready([memory[listener]])
        accepted, peer = memory[listener].accept()
        served[peer[1]] = fork_named(f"session-{number}")
        accepted.close()
    return served


def fork_named(name: str, outlive: bool = False) -> int:
    """Forks a child that holds what this process holds, and waits until it has its name."""
    mine, theirs = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        if outlive:
            set_name(name.encode())
        else:
            settle_child(name)
        theirs.send(True)
        threading.Event().wait()
    mine.recv()
    return child


def fork_holder(memory: Memory, outlive: bool = False) -> int:
    """Forks a child that holds every socket of this worker; it may outlive the worker."""
    return fork_named("holder", outlive)


def give(memory: Memory, path: str, name: object) -> None:
    """Passes a socket over a Unix socket to whoever listens there, and closes it here."""
    held = memory.pop(name)
    with socket.socket(socket.AF_UNIX) as way:
        way.connect(path)
        socket.send_fds(way, [b"here"], [held.fileno()])
        held.close()
        way.recv(1)


def wait_for_gift(memory: Memory, path: str) -> None:
    """Listens on a Unix socket for what `give` passes."""
    memory["door"] = socket.create_server(path, family=socket.AF_UNIX)


def take(memory: Memory, name: object) -> None:
    """Receives one socket over the Unix socket."""
    with memory.pop("door") as listener:
        way = listener.accept()[0]
        descriptors = socket.recv_fds(way, 16, 1)[1]
        memory[name] = socket.socket(fileno=descriptors[0])
        way.send(b"!")
        way.close()


def keep_in_flight(memory: Memory, name: object) -> None:
    """Leaves a socket in an unread message, held by no descriptor."""
    held = memory.pop(name)
    memory["way"] = socket.socketpair()
    socket.send_fds(memory["way"][0], [b"here"], [held.fileno()])
    held.close()


def keep_in_ring(memory: Memory, name: object) -> bool:
    """Leaves a socket to io_uring alone, as a direct descriptor; False where this kernel or user may not."""
    held = memory.pop(name)
    ring = libc.syscall(SYS_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))
    if ring < 0:
        return False
    memory["ring"] = ring
    files = (ctypes.c_int * 1)(held.fileno())
    registered = libc.syscall(SYS_IO_URING_REGISTER, ring, IORING_REGISTER_FILES, files, 1)
    held.close()
    return bool(registered == 0)


def rename(memory: Memory, name: bytes) -> None:
    """Gives the thread group's leader a new name."""
    set_name(name)


def rename_other_thread(memory: Memory, name: bytes) -> None:
    """Starts a thread, gives that one a name, and keeps it."""
    named = threading.Event()

    def live() -> None:
        set_name(name)
        named.set()
        threading.Event().wait()

    memory["thread"] = threading.Thread(target=live, daemon=True)
    memory["thread"].start()
    named.wait()
