# SPDX-License-Identifier: Apache-2.0
"""`nettop export` on the running kernel: samples taken during a transfer, in a file owned by the sudo caller."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from .command import NOBODY, SUDO, home_of_nobody, nettop

pytestmark = pytest.mark.kernel


@contextlib.contextmanager
def transfer() -> Iterator[None]:
    """Transfer bytes over loopback at full speed."""
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    block = b"n" * 65536

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                near.sendall(block)

    def receive() -> None:
        while far.recv(65536):
            pass

    threads = [threading.Thread(target=work, daemon=True) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        near.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(20)
        for end in (near, far, listener):
            end.close()


def test_a_transfer() -> None:
    """Under sudo the file is the user's; its stacks lead from each entry point into TCP."""
    with home_of_nobody() as home, transfer():
        file = home / "cpu.folded"
        done = nettop("export", "cpu.stacks", "--duration", "1", str(file), env=SUDO)
        assert done.returncode == 0, done.stderr
        reported = re.search(r"nettop: (\d+) samples in ", done.stderr)
        assert reported, done.stderr
        owner, lines = file.stat(), file.read_text().splitlines()
        assert list(home.iterdir()) == [file]
    assert (owner.st_uid, owner.st_gid) == (NOBODY, NOBODY)
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == int(reported[1])
    first = {"TX syscalls": "tcp_sendmsg", "RX syscalls": "tcp_recvmsg", "RX softirq": "tcp_v4_rcv"}
    for entry, inner in first.items():
        actual = [line for line in lines if line.startswith(f"{entry};")]
        assert any(f";{inner}" in line for line in actual), (entry, actual)
