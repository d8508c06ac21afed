# SPDX-License-Identifier: Apache-2.0
"""Ways in which processes come to hold sockets; each function runs in a worker, whose memory is its first argument."""

import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from .lab import die_with_parent, libc, set_name, settle_child
from .traffic import Memory, accept_errand, begin_reports, ready, serve_and_report

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
    """TrafficProcess's port → pid of the pre-forked worker that accepted it, once all have accepted their share."""
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
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        socket.send_fds(channel, [b"here"], [held.fileno()])
        held.close()
        channel.recv(1)


def wait_for_gift(memory: Memory, path: str) -> None:
    """Listens on a Unix socket for what `give` passes."""
    memory["listener"] = socket.create_server(path, family=socket.AF_UNIX)


def take(memory: Memory, name: object) -> None:
    """Receives one socket over the Unix socket."""
    with memory.pop("listener") as listener:
        channel = listener.accept()[0]
        descriptors = socket.recv_fds(channel, 16, 1)[1]
        memory[name] = socket.socket(fileno=descriptors[0])
        channel.send(b"!")
        channel.close()


def keep_in_flight(memory: Memory, name: object) -> None:
    """Leaves a socket in an unread message, held by no descriptor."""
    held = memory.pop(name)
    memory["mechanism"] = socket.socketpair()
    socket.send_fds(memory["mechanism"][0], [b"here"], [held.fileno()])
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


def fork_to(life: Callable[[], object], name: str) -> int:
    """Forks a child that does this and ends; whatever happens, it never comes back here."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            settle_child(name)
            life()
            status = 0
        except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's code
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def serve_by_workers(memory: Memory, listeners: list[object]) -> list[int]:
    """Forks five workers that share the listeners and serve errands for ever; returns their PIDs."""
    servers = begin_reports(memory, listeners)

    def work() -> None:
        while True:
            for server in select.select(servers, [], [])[0]:
                taken = accept_errand(server)
                if taken is not None:
                    serve_and_report(*taken, memory["report"])

    return [fork_to(work, f"prefork-{number}") for number in range(PREFORKED)]


def serve_by_children(memory: Memory, listener: object, count: int) -> None:
    """Serves so many errands, each by a child of its own, which has the connection to itself and ends with it."""
    begin_reports(memory, [listener])
    for number in range(count):
        ready([memory[listener]])
        taken = accept_errand(memory[listener])
        assert taken
        mine, theirs = os.pipe()

        def life(
            taken: tuple[socket.socket, tuple[int, int]] = taken, mine: int = mine, theirs: int = theirs
        ) -> None:
            os.close(theirs)
            os.read(mine, 1)
            serve_and_report(*taken, memory["report"])

        child = fork_to(life, f"session-{number}")
        taken[0].close()
        for end in (theirs, mine):  # the end of the pipe lets the child begin
            os.close(end)
        os.waitpid(child, 0)


def serve_by_threads(memory: Memory, listener: object, count: int) -> None:
    """Serves so many errands, each in a thread of its own, with a name of its own."""

    def serve(number: int, taken: tuple[socket.socket, tuple[int, int]]) -> None:
        set_name(f"thread-{number}".encode())
        serve_and_report(*taken, memory["report"])

    begin_reports(memory, [listener])
    for number in range(count):
        ready([memory[listener]])
        taken = accept_errand(memory[listener])
        assert taken
        thread = threading.Thread(target=serve, args=(number, taken))
        thread.start()
        thread.join()


SEND_BY_CHILDREN = """
import json, os, socket, sys
target, amounts = json.load(sys.stdin)
sent = {}
for amount in amounts:
    child = os.fork()
    if not child:
        made = socket.socket()
        made.connect(tuple(target))
        made.sendall(b"n" * amount)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and child not in sent
    sent[child] = amount
print(json.dumps(sent))
"""
"""A program of its own, so small that a thousand of its children begin and end within a second."""


def send_by_children(memory: Memory, target: tuple[str, int], amounts: list[int]) -> dict[int, int]:
    """Has a child for each amount connect, send so many bytes and end; returns who sent how much."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", SEND_BY_CHILDREN],
        input=json.dumps((target, amounts)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=die_with_parent,
    )
    return {int(child): amount for child, amount in json.loads(done.stdout).items()}


def connect_and_close(target: tuple[str, int]) -> None:
    """Makes one connection, and ends it."""
    with socket.socket() as made:
        made.connect(target)


def connect_in_child(memory: Memory, target: tuple[str, int], *names: bytes) -> None:
    """Has a child of a child … connect: one generation for each name, each the parent of the next."""

    def life(names: tuple[bytes, ...]) -> None:
        set_name(names[0])
        if names[1:]:
            assert os.waitpid(fork_to(partial(life, names[1:]), "unnamed"), 0)[1] == 0
        else:
            connect_and_close(target)

    assert os.waitpid(fork_to(partial(life, names), "unnamed"), 0)[1] == 0


def connect_in_daemon(memory: Memory, target: tuple[str, int], name: bytes) -> None:
    """Has a daemon connect: its parent has ended by then, and it is in a session of its own."""
    mine, theirs = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.setsid()
        parent = os.getpid()
        if os.fork() == 0:
            set_name(name)
            while os.getppid() == parent:
                select.select([], [], [], 0.001)
            connect_and_close(target)
            os.write(theirs, b"!")
        os._exit(0)
    os.waitpid(parent, 0)
    os.close(theirs)
    assert os.read(mine, 1) == b"!"
    os.close(mine)


def connect_in_thread(memory: Memory, target: tuple[str, int], name: bytes) -> None:
    """Has another thread connect."""

    def life() -> None:
        set_name(name)
        connect_and_close(target)

    thread = threading.Thread(target=life)
    thread.start()
    thread.join()


def fork_connector(memory: Memory, target: tuple[str, int], name: str) -> None:
    """Forks a child that connects when `let_connect` says so."""
    mine, memory["go"] = os.pipe()

    def life() -> None:
        os.read(mine, 1)
        connect_and_close(target)

    memory["connector"] = fork_to(life, name)


def let_connect(memory: Memory) -> None:
    """Lets the child of `fork_connector` connect, and waits for its end."""
    os.write(memory["go"], b"!")
    assert os.waitpid(memory["connector"], 0)[1] == 0


def connect_and_leave(memory: Memory, target: tuple[str, int], name: str) -> None:
    """Has a child connect, and end while its connection is open."""

    def life() -> None:
        made = socket.socket()
        made.connect(target)
        made.send(b"n" * 101)

    assert os.waitpid(fork_to(life, name), 0)[1] == 0
