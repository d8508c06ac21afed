# SPDX-License-Identifier: Apache-2.0
"""Hosts with a leak, with other problems, with all of them and with none."""

from __future__ import annotations

from tests.builders.harness import Step, steps_of
from tests.unit.build import Row, make_frame

LEAKING = {"state": "CLOSE_WAIT", "process": "leaker", "pid": 1, "send_queue": 0}

LISTENER = {
    "id": 20_001,
    "process": "payapi",
    "pid": 2,
    "state": "LISTEN",
    "accept_queue": 128,
    "backlog": 128,
}

STUCK_BEFORE = {"id": 20_002, "process": "stuck", "pid": 3, "send_queue": 900, "bytes_acked": 5, "busy_us": 0,
                "remote_port": 7000}  # fmt: skip

PROXY = {
    "id": 20_003,
    "process": "proxyd",
    "pid": 4,
    "descriptor": 60,
    "descriptors_max": 64,
    "remote_port": 7001,
}

WELL = {"id": 20_004, "process": "fine", "bytes_sent": 100, "bytes_received": 0}

STUCK_NOW = STUCK_BEFORE | {"busy_us": 1_000_000}


def readings(before: list[Row], now: list[Row]) -> list[Step]:
    """Return a second between them."""
    return steps_of(make_frame(now, before))


LEAK = readings(
    [*({"id": n + 1, **LEAKING} for n in range(9_880)), WELL],
    [*({"id": n + 1, **LEAKING} for n in range(10_000)), WELL],
)

ALL_BUT_LEAK = readings([LISTENER, STUCK_BEFORE, PROXY, WELL], [LISTENER, STUCK_NOW, PROXY, WELL])

FOUR = readings(
    [{"id": n + 1, **LEAKING} for n in range(100)] + [LISTENER, STUCK_BEFORE, PROXY, WELL],
    [{"id": n + 1, **LEAKING} for n in range(100)] + [LISTENER, STUCK_NOW, PROXY, WELL],
)

CALM = readings([WELL], [WELL | {"bytes_sent": 200}])
