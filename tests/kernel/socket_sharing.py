# SPDX-License-Identifier: Apache-2.0
"""Sockets that processes share, inherit, pass on and serve together: functions for workers, whose first argument is
their own memory."""

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
from .traffic import Memory, accept_errand, begin_reports, ready, receive, serve_and_report

PREFORKED = 5
SYS_IO_URING_SETUP, SYS_IO_URING_REGISTER, IORING_REGISTER_FILES = 425, 427, 2


def prefork(memory: Memory, connections: int) -> int:
    """Fork five workers that each accept a fifth of the `connections`; return the listener's port."""
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
    """Map client ports to the PIDs of the pre-forked workers that accepted them, once all have accepted."""
    return {port: pid for pipe in memory["pipes"] for port, pid in pipe.recv().items()}


def accept_share(listener: socket.socket, count: int, report: Connection) -> None:
    """Accept a pre-forked worker's share, report the peers' ports, and keep the sockets open."""
    accepted = [listener.accept() for _ in range(count)]
    report.send({peer[1]: os.getpid() for _, peer in accepted})
    threading.Event().wait()


def serve_by_fork(memory: Memory, listener: str, count: int) -> dict[int, int]:
    """Accept `count` connections and leave each to a new child; return PIDs of the children by the peer's port."""
    served = {}
    for number in range(count):
        ready([memory[listener]])
        accepted, peer = memory[listener].accept()
        served[peer[1]] = fork_named(f"session-{number}")
        accepted.close()
    return served


def fork_named(name: str, outlive: bool = False) -> int:
    """Fork a child that inherits every descriptor of this process, and wait until it has its name."""
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


def fork_with_sockets(memory: Memory, outlive: bool = False) -> int:
    """Fork a child that inherits every socket of this worker; it may outlive the worker."""
    return fork_named("heir", outlive)


def fork_sender(memory: Memory, name: object) -> int:
    """Fork a child that inherits every socket, and uses one of them when `send_by_child` or `receive_by_child` is
    called."""
    mine, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        settle_child("sender")
        while wanted := theirs.recv(1):
            if wanted == b"r":
                receive(memory[name], 101)
            else:
                memory[name].send(b"n" * 101)
            theirs.send(b"done")
        os._exit(0)
    memory["sender"] = mine
    return child


def send_by_child(memory: Memory) -> None:
    """Have the child of `fork_sender` send a message."""
    memory["sender"].send(b"n")
    memory["sender"].recv(4)


def receive_by_child(memory: Memory) -> None:
    """Have the child of `fork_sender` receive a message."""
    memory["sender"].send(b"r")
    memory["sender"].recv(4)


def pass_on(memory: Memory, path: str, name: object) -> None:
    """Pass a socket over a Unix socket to the process that listens there, and close it here."""
    held = memory.pop(name)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        socket.send_fds(channel, [b"fd"], [held.fileno()])
        held.close()
        channel.recv(1)


def listen_for_socket(memory: Memory, path: str) -> None:
    """Listen on a Unix socket for what `pass_on` sends."""
    memory["listener"] = socket.create_server(path, family=socket.AF_UNIX)


def receive_socket(memory: Memory, name: object) -> None:
    """Receive one socket over the Unix socket."""
    with memory.pop("listener") as listener:
        channel = listener.accept()[0]
        descriptors = socket.recv_fds(channel, 16, 1)[1]
        memory[name] = socket.socket(fileno=descriptors[0])
        channel.send(b"!")
        channel.close()


def keep_in_flight(memory: Memory, name: object) -> None:
    """Leave a socket in an unread message, so that no descriptor refers to it."""
    held = memory.pop(name)
    memory["channel"] = socket.socketpair()
    socket.send_fds(memory["channel"][0], [b"fd"], [held.fileno()])
    held.close()


def keep_in_ring(memory: Memory, name: object) -> bool:
    """Leave a socket to io_uring alone, as a direct descriptor; return False if the kernel refuses."""
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
    """Rename the thread group's leader."""
    set_name(name)


def rename_other_thread(memory: Memory, name: bytes) -> None:
    """Start a thread with this name that keeps running."""
    named = threading.Event()

    def run() -> None:
        set_name(name)
        named.set()
        threading.Event().wait()

    threading.Thread(target=run, daemon=True).start()
    named.wait()


def fork_to(run: Callable[[], object], name: str) -> int:
    """Fork a child that calls `run` and exits, whatever happens; return its PID."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            settle_child(name)
            run()
            status = 0
        except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's code
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def serve_by_workers(memory: Memory, listeners: list[object]) -> list[int]:
    """Fork five workers that share the listeners and serve errands until they are killed; return their PIDs."""
    servers = begin_reports(memory, listeners)

    def work() -> None:
        while True:
            for server in select.select(servers, [], [])[0]:
                taken = accept_errand(server)
                if taken is not None:
                    serve_and_report(*taken, memory["report"])

    return [fork_to(work, f"prefork-{number}") for number in range(PREFORKED)]


def serve_by_children(memory: Memory, listener: object, count: int) -> None:
    """Serve `count` errands, each in a new child that alone holds the connection and exits when it ends."""
    begin_reports(memory, [listener])
    for number in range(count):
        ready([memory[listener]])
        taken = accept_errand(memory[listener])
        assert taken
        mine, theirs = os.pipe()

        def serve(
            taken: tuple[socket.socket, tuple[int, int]] = taken, mine: int = mine, theirs: int = theirs
        ) -> None:
            os.close(theirs)
            os.read(mine, 1)
            serve_and_report(*taken, memory["report"])

        child = fork_to(serve, f"session-{number}")
        taken[0].close()
        for end in (theirs, mine):  # the end of the pipe lets the child begin
            os.close(end)
        os.waitpid(child, 0)


def serve_by_threads(memory: Memory, listener: object, count: int) -> None:
    """Serve `count` errands, each in a new thread with its own name."""

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
"""A separate program, so small that a thousand of its children start and exit within a second."""


def send_by_children(memory: Memory, target: tuple[str, int], amounts: list[int]) -> dict[int, int]:
    """For each amount, have a child connect, send that many bytes and exit; return the bytes by PID."""
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
    """Open a connection and close it."""
    with socket.socket() as made:
        made.connect(target)


def connect_in_child(memory: Memory, target: tuple[str, int], *names: bytes) -> None:
    """Have a descendant connect: one generation for each name, each the parent of the next."""

    def connect(names: tuple[bytes, ...]) -> None:
        set_name(names[0])
        if names[1:]:
            assert os.waitpid(fork_to(partial(connect, names[1:]), "unnamed"), 0)[1] == 0
        else:
            connect_and_close(target)

    assert os.waitpid(fork_to(partial(connect, names), "unnamed"), 0)[1] == 0


def connect_in_daemon(memory: Memory, target: tuple[str, int], name: bytes) -> None:
    """Have a daemon connect, in its own session and after its parent has exited."""
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
    """Have another thread connect."""

    def connect() -> None:
        set_name(name)
        connect_and_close(target)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()


def fork_connector(memory: Memory, target: tuple[str, int], name: str) -> None:
    """Fork a child that connects when `let_connect` is called."""
    mine, memory["go"] = os.pipe()

    def connect() -> None:
        os.read(mine, 1)
        connect_and_close(target)

    memory["connector"] = fork_to(connect, name)


def let_connect(memory: Memory) -> None:
    """Have the child of `fork_connector` connect, and wait until it has exited."""
    os.write(memory["go"], b"!")
    assert os.waitpid(memory["connector"], 0)[1] == 0


def connect_and_leave(memory: Memory, target: tuple[str, int], name: str) -> None:
    """Have a child connect, then exit while its connection is open."""

    def connect() -> None:
        made = socket.socket()
        made.connect(target)
        made.send(b"n" * 101)

    assert os.waitpid(fork_to(connect, name), 0)[1] == 0
