# SPDX-License-Identifier: Apache-2.0
"""POST /ingest/flows: flows from other producers, in the format of docs/reference/flows.proto."""

from __future__ import annotations

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop.flows.worker import ProducedFlows
from nettop.serve.problems import Problem


def ingest_routes(produced: ProducedFlows) -> list[Route]:
    """Return the route. A 200 response means that the flows are on disk."""

    async def ingest(request: Request) -> Response:
        # Any website could make a browser on this host post here. Only browsers send Origin.
        if "origin" in request.headers:
            raise Problem(403, "web pages may not send flows", "omit the Origin header")
        accepted = await run_sync(produced.take, await request.body())
        return JSONResponse({"accepted": accepted})

    return [Route("/ingest/flows", ingest, methods=["POST"])]
