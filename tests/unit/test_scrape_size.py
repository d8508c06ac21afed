# SPDX-License-Identifier: Apache-2.0
"""The size of a scrape of every lens, of a busy host with 26 services."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families as parse

from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.exposition import metrics_routes
from nettop.serve.metrics.families import series_sets
from nettop.serve.metrics.totals import Totals
from nettop.snapshots import view_name
from nettop.snapshots.source import SourceOptions
from tests.builders.busy_host import ROWS, reading
from tests.unit.serving import LENSES, ask, make_app, make_served

MOST_BYTES = 200_000


def test_a_scrape_is_small() -> None:
    """All lenses of a host with 26 services, all busy, and more processes and peers than are listed."""
    declared = [set_ for lens in LENSES for set_ in series_sets(lens)]
    assert {view_name(series.lens, series.table) for series in declared} == ROWS.keys()
    text = asyncio.run(scrape())
    listed = {family.name for family in parse(text)}
    assert {family.name for series in declared for family in series.all_families} <= listed
    assert len(text.encode()) <= MOST_BYTES


async def scrape() -> str:
    """Return the metrics after two readings of each lens."""
    served = make_served(*(reading(lens, 1) for lens in LENSES))
    totals = Totals(served, {}, SourceOptions())
    totals.catch_up()
    for lens in LENSES:
        served.session.bus.publish(reading(lens, 2))
    answer = await ask(make_app(metrics_routes(served, totals, ServerCounts())), "/metrics")
    assert answer.status == 200, answer.body
    return answer.body.decode()
