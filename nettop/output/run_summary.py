# SPDX-License-Identifier: Apache-2.0
"""Sums over the events of some processes' connections, by reason and by remote."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from nettop.query.address import address_text, endpoint_text
from nettop.snapshots.arrays import Array, concatenate_rows
from nettop.snapshots.connections import DIRECTIONS, EVENT_KINDS, GRACEFUL, REASONS
from nettop.snapshots.snapshot import Rows, known

REMOTES_MAX = 4096
"""Most remotes to count separately; the others are counted together."""
SLOWEST = 5
"""Number of slowest handshakes to keep."""

_CONNECT, _, _CLOSE, _FAIL = EVENT_KINDS
_INBOUND = next(iter(DIRECTIONS))
_MOVED = ("bytes_sent", "bytes_received", "retransmits")
_SERVICE = np.dtype([("address", ">u8", 2), ("port", "u4"), ("is_inbound", "u4")])
_OTHERS = bytes(_SERVICE.itemsize)


class RunSummary:
    """Sums over the added events.

    `accepted` connections are known only once they close, and are not included in `opened`. `failed` ones never opened;
    `broken` ones did not close gracefully. Both are counted by reason.
    """

    def __init__(self) -> None:
        self.opened = 0
        self.accepted = 0
        self.failed: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.moved: Counter[str] = Counter(dict.fromkeys(_MOVED, 0))
        self.slowest: list[dict[str, Any]] = []
        """The slowest handshakes: duration, remote end and owner."""
        self.remotes: dict[bytes, dict[str, Any]] = {}
        """Counts and traffic of each service that processes connected to; for accepted connections, of the clients at
        one address of a local port."""
        self._open_ids: Array = np.zeros(0, np.uint64)

    @property
    def still_open(self) -> int:
        """Number of connections that have opened and not closed."""
        return len(self._open_ids)

    def add(self, events: Rows) -> None:
        """Add rows of the table of events."""
        array = events.array
        opened, ended = array[array["event"] == _CONNECT], array[array["event"] >= _CLOSE]
        failed, closed = ended[ended["event"] == _FAIL], ended[ended["event"] == _CLOSE]
        # Accepted connections, and those whose open event the ring lost, are known only from their close.
        ids = np.append(self._open_ids, opened["id"])
        unseen = closed[np.isin(closed["id"], ids, invert=True)]
        self._open_ids = ids[np.isin(ids, closed["id"], invert=True)]
        is_inbound = unseen["direction"] == _INBOUND
        self.opened += len(opened) + int(np.count_nonzero(~is_inbound))
        self.accepted += int(np.count_nonzero(is_inbound))
        self.failed.update(_reasons(failed["reason"]))
        self.broken.update(_reasons(closed["reason"][~np.isin(closed["reason"], tuple(GRACEFUL))]))
        self._add_to_remotes("opened", concatenate_rows(opened, unseen))
        self._add_to_remotes("failed", failed)
        self._add_moved(ended)
        self._add_slowest(events, opened)

    def add_open(self, sockets: Rows) -> None:
        """Add the traffic so far of connections that are still open; `sockets` is the table of sockets."""
        self._add_moved(sockets.array[np.isin(sockets.array["id"], self._open_ids)])

    def by_bytes(self) -> list[dict[str, Any]]:
        """Return the remotes, those with the most traffic first."""
        return sorted(
            self.remotes.values(),
            key=lambda remote: (-remote["bytes_sent"] - remote["bytes_received"], remote["name"]),
        )

    def _add_moved(self, rows: Array) -> None:
        for name in _MOVED:
            self.moved[name] += int(_amounts(rows, name).sum())
            self._add_to_remotes(name, rows)

    def _add_to_remotes(self, name: str, rows: Array) -> None:
        """Add each row's value of `name`, or 1 if it is not a column, to its remote."""
        if not len(rows):
            return
        distinct, place = np.unique(_services(rows).view(f"V{_SERVICE.itemsize}"), return_inverse=True)
        weights = _amounts(rows, name) if name in _MOVED else np.ones(len(rows), np.uint64)
        sums = np.zeros(len(distinct), np.uint64)
        np.add.at(sums, place, weights)
        for key, amount in zip(distinct.tolist(), sums.tolist(), strict=True):
            has_own = key in self.remotes or len(self.remotes) < REMOTES_MAX
            service = key if has_own else _OTHERS
            if service not in self.remotes:
                called = _name(key) if has_own else "(others)"
                self.remotes[service] = {"name": called, "opened": 0, "failed": 0, **dict.fromkeys(_MOVED, 0)}
            self.remotes[service][name] += amount

    def _add_slowest(self, events: Rows, opened: Array) -> None:
        measured = opened[known(opened["handshake_us"])]
        slow = measured[np.argsort(measured["handshake_us"], kind="stable")[-SLOWEST:]]
        names = events.texts["process"]
        for row, is_owned in zip(slow, known(slow["pid"]), strict=True):
            code = int(row["process"])
            remote = endpoint_text(address_text(row["remote_address"].tobytes()), int(row["remote_port"]))
            self.slowest.append(
                {
                    "handshake_us": int(row["handshake_us"]),
                    "remote": remote,
                    "process": names[code] if code < len(names) else None,
                    "pid": int(row["pid"]) if is_owned else None,
                }
            )
        self.slowest = sorted(self.slowest, key=lambda handshake: -handshake["handshake_us"])[:SLOWEST]


def _reasons(numbers: Array) -> list[str]:
    return [REASONS.get(number, str(number)) for number in numbers.tolist()]


def _amounts(rows: Array, name: str) -> Array:
    """Return a column with unknown values as 0."""
    column = rows[name]
    amounts: Array = np.where(known(column), column, 0).astype(np.uint64)
    return amounts


def _services(rows: Array) -> Array:
    """Return the service of each row: the peer's address with its port, or with the local port if inbound."""
    services = np.zeros(len(rows), _SERVICE)
    inbound = rows["direction"] == _INBOUND
    services["address"] = rows["remote_address"]
    services["port"] = np.where(inbound, rows["local_port"], rows["remote_port"])
    services["is_inbound"] = inbound
    return services


def _name(key: bytes) -> str:
    service = np.frombuffer(key, _SERVICE)[0]
    address = address_text(key[:16])
    if service["is_inbound"]:
        return f"{address} → :{service['port']}"
    return endpoint_text(address, int(service["port"]))
