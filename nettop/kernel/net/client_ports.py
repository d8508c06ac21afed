# SPDX-License-Identifier: Apache-2.0
"""The client (ephemeral) ports of a network namespace, and how many are in use toward one destination."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.kernel.host.proc_files import read_text
from nettop.kernel.net import sock_diag
from nettop.snapshots.arrays import Array, distinct_rows

_RANGE = "sys/net/ipv4/ip_local_port_range"
_DEFAULT_RANGE = 32768, 60999
_WITHOUT_PEER = 1 << 7 | 1 << 10
"""TCP_CLOSE and TCP_LISTEN, as bits."""
_ALL_STATES = 0xFFF


class PortUse(NamedTuple):
    """The client ports in use toward the destination that has most of them."""

    family: int
    address: bytes
    port: int
    used: int


def read_client_ports(proc: Path = Path("/proc")) -> tuple[int, int]:
    """Return the first and the last client (ephemeral) port; Linux's defaults if /proc does not show them."""
    first, last = map(int, read_text(proc / _RANGE).split() or _DEFAULT_RANGE)
    return first, last


def most_used() -> PortUse | None:
    """Return the destination with the most client ports in the calling thread's namespace; None without connections.

    Each connection to one address and port needs a local port of its own, also while it is in TIME_WAIT. The dump takes
    about 1 µs for each socket. Raises the errors of `sock_diag.dump`.
    """
    states = _ALL_STATES & ~_WITHOUT_PEER
    uses = map(_most_used_of, sock_diag.dump(socket.IPPROTO_TCP, states, info=False).sockets)
    return max((use for use in uses if use is not None), key=lambda use: use.used, default=None)


def _most_used_of(sockets: Array) -> PortUse | None:
    if not len(sockets):
        return None
    columns: Sequence[Array] = [sockets[name] for name in ("family", "remote_address", "remote_port")]
    firsts, places = distinct_rows(columns)
    counts = np.bincount(places)
    most = int(counts.argmax())
    row = sockets[firsts[most]]
    return PortUse(
        int(row["family"]), row["remote_address"].tobytes(), int(row["remote_port"]), int(counts[most])
    )
