# SPDX-License-Identifier: Apache-2.0
"""nettop.open on the running kernel: real bytes as records and arrays, and nothing left behind."""

from __future__ import annotations

import os
import socket

import pytest

import nettop

pytestmark = [pytest.mark.kernel, pytest.mark.core]

SENT = 12_345


def test_a_connection() -> None:
    """Both ends of a connection of this process are rows, with the bytes sent between two frames."""
    with (
        nettop.open("connections", interval=60, columns=("pid", "bytes_received", "bytes_sent")) as lens,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as accepted,
    ):
        lens.read()
        client.sendall(bytes(SENT))
        assert len(accepted.recv(SENT, socket.MSG_WAITALL)) == SENT
        port = client.getsockname()[1]
        rows = lens.read().rows(
            filter=f"established local_port={port} or established remote_port={port}", deltas=True
        )
        assert sorted((row["pid"], row["bytes_received"], row["bytes_sent"]) for row in rows) == [
            (os.getpid(), 0, SENT),
            (os.getpid(), SENT, 0),
        ]
        assert sorted(rows.to_numpy()["bytes_received"].tolist()) == [0, SENT]


def test_an_unknown_lens_leaves_nothing() -> None:
    """nettop.open refuses an unknown lens before it starts a thread."""
    with pytest.raises(nettop.NettopError, match="unknown view"):
        nettop.open("sockets")
