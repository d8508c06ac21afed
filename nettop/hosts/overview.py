# SPDX-License-Identifier: Apache-2.0
"""The lens of the hosts themselves: a line for each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from nettop.hosts.hosts import HostRecording, Hosts
from nettop.hosts.merging import Moment, earlier
from nettop.hosts.source import RemoteSource
from nettop.query.found import listed
from nettop.recording.reader import Reading
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS, STATES
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.hosts import HOSTS, HOSTS_LENS, LIVE, LOST, LOST_HOST
from nettop.snapshots.hosts import STATES as HOST_STATES
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.snapshot import Frame, Snapshot, rows_from

_ESTABLISHED = next(number for number, name in STATES.items() if name == "ESTABLISHED")
_COUNTS = ("bytes_sent", "bytes_received", "connected", "accepted", "failed", "time_wait")


class OverviewSource(RemoteSource):
    """The source of the lens of hosts, from the readings of connections and findings."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(hosts, CONNECTIONS)

    def read(self, taken_ns: int) -> Snapshot:
        """Return a row for each host, with its newest findings. Its rates are those of its own interval."""
        readings, lost = self._hosts.newest(CONNECTIONS.id), self._hosts.lost(CONNECTIONS.id)
        findings = self._hosts.newest(FINDINGS.id)
        moment = Moment(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), taken_ns)
        self._pairing.renew(readings)
        pairs = self._pairing.pairs
        then = {host: pair.before for host, pair in pairs.items() if pair.before is not None}
        self._before = _snapshot(then, {}, {}, earlier(moment, pairs)) if then else None
        return _snapshot({host: pair.now for host, pair in pairs.items()}, findings, lost, moment)


def _snapshot(
    readings: Mapping[str, Snapshot],
    findings: Mapping[str, Reading],
    lost: Mapping[str, HostRecording],
    moment: Moment,
) -> Snapshot:
    without = {host: link for host, link in lost.items() if host not in readings}
    rows = [_live(host, now, findings.get(host)) for host, now in readings.items()]
    rows += [_lost(host, link) for host, link in without.items()]
    return Snapshot(
        lens=HOSTS_LENS.id,
        wall_ns=moment.wall_ns,
        boot_ns=moment.boot_ns,
        tables={HOSTS.name: rows_from(HOSTS, rows, moment.taken_ns)},
        gaps={host: f"{LOST_HOST}{link.cause}" for host, link in without.items()},
        hosts={host: now.boot_ns for host, now in readings.items()},
    )


def _live(host: str, now: Snapshot, findings: Reading | None) -> dict[str, Any]:
    found = [] if findings is None else listed(Frame(findings.now))
    sockets = now.tables.get(SOCKETS.name)
    conns = None if sockets is None else int(np.count_nonzero(sockets.array["state"] == _ESTABLISHED))
    return {
        "host": host,
        "id": row_id(host),
        "state": HOST_STATES[LIVE],
        "findings": None if findings is None else len(found),
        "worst": found[0]["finding"] if found else None,
        "connections": conns,
        **{name: now.counts.get(name) for name in _COUNTS},
        "read": now.wall_ns,
    }


def _lost(host: str, link: HostRecording) -> dict[str, Any]:
    return {
        "host": host,
        "id": row_id(host),
        "state": HOST_STATES[LOST],
        "findings": 1,  # that it is lost
        "worst": link.cause,
    }
