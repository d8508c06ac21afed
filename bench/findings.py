# SPDX-License-Identifier: Apache-2.0
"""Measure what the findings cost beside the connections: `sudo .venv/bin/python bench/findings.py [--seconds 30]`.

A session reads both lenses once a second, as the first screen does, over more and more sockets on an otherwise idle
host. The time of the step `read` is that of the thread that reads them.
"""

import sys
import threading

from measure import Figure, Report, arguments, judge
from sockets import connections, own_namespace

from nettop.engine.own_cost import READ
from nettop.engine.session import Session
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.findings import LENS as FINDINGS

SOCKETS = (100, 1_000, 10_000)
BOUND_PERCENT = 0.5
BEFORE_S = 5
"""Until both lenses are attached and have been read twice."""


def measured(sockets: int, seconds: int) -> Report:
    """Return the share of one CPU that reading each lens takes."""
    with connections(sockets), Session(1.0) as session:
        leases = [session.enable(lens.id) for lens in (CONNECTIONS, FINDINGS)]
        threading.Event().wait(BEFORE_S)
        before = read_ns(session)
        threading.Event().wait(seconds)
        after = read_ns(session)
        for lease in leases:
            lease.release()
    share = {lens: (after[lens] - before[lens]) / seconds / 1e7 for lens in after}
    return f"{sockets:,} sockets, {seconds} s", [
        Figure("share of one CPU that reads the connections", share[CONNECTIONS.id], "%"),
        Figure("share of one CPU that finds what is wrong", share[FINDINGS.id], "%", BOUND_PERCENT),
    ]


def read_ns(session: Session) -> dict[str, int]:
    """Return the time that the thread has spent on reading each lens."""
    return {lens: step.time_ns for (lens, name), step in session.steps.all().items() if name == READ}


def main() -> int:
    """Measure each number of sockets."""
    options = arguments(__doc__, seconds=(30, "duration of each"))
    own_namespace()
    return judge(measured(sockets, options.seconds) for sockets in SOCKETS)


if __name__ == "__main__":
    sys.exit(main())
