# SPDX-License-Identifier: Apache-2.0
"""The clients of local services, slowest first; → opens a client's waiting requests."""

from __future__ import annotations

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.lens import LensScreen
from nettop.snapshots.services import CLIENTS_EVICTED, WAITING
from nettop.widgets.bar import BarItem


class ClientsScreen(LensScreen):
    """A row for each service and client."""

    about = "clients by response time, slowest first; → opens a client's waiting requests"
    member_table = WAITING

    def headline(self, view: View) -> list[BarItem]:
        """Return the numbers of clients, answers, waiting requests, and evicted clients."""
        evicted = view.snapshot.counts.get(CLIENTS_EVICTED, 0)
        at = view.order[~view.gone[view.order]]
        return [
            headline.count("clients", len(at), 900),
            headline.count_of(view, "answers_per_s", "answers", at, 880),
            headline.count_of(view, "waiting", "waiting", at, 870),
            *([headline.count("evicted", evicted, 960, warn=True)] if evicted else []),
        ]

    def member_filter(self, view: View, key: int) -> str:
        """Return the filter for this client's requests to this service."""
        at = np.flatnonzero(view.raw(view.table.key) == key)
        service, client = (view.values(name, at)[0] for name in ("service", "client"))
        return f"service={service} remote_address={client}"


SCREEN = ClientsScreen
