# SPDX-License-Identifier: Apache-2.0
"""What a collector has received, and what became of it, as documents of JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop.flows.collector import CollectorState
from nettop.flows.decode.numbering import Counting
from nettop.flows.exporters import EXPORTER
from nettop.flows.reader import EXPORTERS_PATH, STATE_PATH
from nettop.flows.spool import DROPPED
from nettop.query.address import address_text
from nettop.serve.health import HEALTH_PATH, health_response
from nettop.snapshots.flows import PROTOCOLS
from nettop.snapshots.snapshot import Array


def state_routes(state: Callable[[], CollectorState]) -> list[Route]:
    """The routes."""

    async def exporters(_request: Request) -> Response:
        return JSONResponse({"exporters": exporter_documents(state().received.exporters)})

    async def collector(_request: Request) -> Response:
        return JSONResponse(state_document(state()))

    async def health(request: Request) -> Response:
        failure = state().failure
        return health_response(request, [failure.what] if failure else [])

    return [
        Route(EXPORTERS_PATH, exporters, methods=["GET"]),
        Route(STATE_PATH, collector, methods=["GET"]),
        Route(HEALTH_PATH, health, methods=["GET"]),
    ]


def exporter_documents(exporters: Array) -> list[dict[str, Any]]:
    """Exporters (e,), EXPORTER, each with its fields by name, and the word for its protocol's version.

    Where nobody knows what its numbers count that is null, and so is what was lost.
    """
    names = [name for name in EXPORTER.names or () if name != "exporter"]
    addresses = [address_text(exporter.tobytes()) for exporter in exporters["exporter"]]
    protocols = [PROTOCOLS[version] for version in exporters["protocol_version"].tolist()]
    columns = [exporters[name].tolist() for name in names]
    documents = [
        {"exporter": address, "protocol": protocol, **dict(zip(names, values, strict=True))}
        for address, protocol, values in zip(addresses, protocols, zip(*columns, strict=True), strict=True)
    ]
    for document in documents:
        counting = Counting(document["counting"])
        is_known = counting != Counting.UNKNOWN
        document["counting"] = counting.name.lower() if is_known else None
        # What is late is counted as lost before it comes.
        document["lost"] = max(0, document["lost"]) if is_known else None
    return documents


def state_document(state: CollectorState) -> dict[str, Any]:
    """What was received and what became of it.

    `flows.received` is always the sum of the other counts of `flows`; `datagrams` and `sets` add up likewise. What had
    waited in the spool when it began is not among them: `stored_from_before` counts those flows.
    """
    received, ledger = state.received, state.received.ledger
    spooled, stored = received.spooled["flows_raw"], state.stored["flows_raw"]
    unreadable = state.stored[f"flows_raw{DROPPED}"]
    dropped = received.spooled[f"flows_raw{DROPPED}"] + unreadable
    return {
        "datagrams": {
            "arrived": ledger["datagrams"] + received.queued + ledger["kernel_drops"],
            "decoded": ledger["decoded"],
            "malformed": ledger["unknown_version"] + ledger["bad_header"],
            "queued": received.queued,
            "dropped_by_kernel": ledger["kernel_drops"],
        },
        "sets_without_template": {
            "held": ledger["held"],
            "released": ledger["released"],
            "forgotten": ledger["forgotten"],
            "waiting": received.waiting,
        },
        "flows": {
            "received": ledger["rows"],
            "filtered": ledger["filtered"],
            "pending": received.pending,
            "waiting": spooled - stored - unreadable,
            "stored": stored,
            "dropped_by_spool": dropped,
        },
        "stored_from_before": state.stored_earlier["flows_raw"],
        "spool": {"blocks": state.waiting_blocks, "bytes": state.waiting_bytes},
        "failure": None if state.failure is None else state.failure.what,
        "ledger": dict(ledger),
        "sockets": [asdict(counts) | {"endpoint": str(counts.endpoint)} for counts in received.sockets],
        "exporters": {
            "known": len(received.exporters),
            "evicted": received.evicted,
            "evicted_unrecognized": received.evicted_unrecognized,
        },
        "forgotten": dict(received.forgotten),
    }
