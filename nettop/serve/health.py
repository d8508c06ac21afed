# SPDX-License-Identifier: Apache-2.0
"""/health and /live: whether the service is healthy, and whether it works at all, or should be restarted. Without the
token no reasons are given: probes need no secret."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nettop import __version__
from nettop.serve.problems import RETRY_SOON

HEALTH_PATH, LIVE_PATH = "/health", "/live"
WITHOUT_TOKEN = "nettop.without_token"  # noqa: S105 - a name in the ASGI scope
"""Set in the scope of a request that may be answered only "ok" or "not ok"."""


def health_response(request: Request, reasons: Sequence[str], **details: Any) -> Response:
    """Return 200, or 503 if there are `reasons`, with reasons and details unless the request lacks the token."""
    status, headers = (503, RETRY_SOON) if reasons else (200, None)
    if request.scope.get(WITHOUT_TOKEN):
        return PlainTextResponse("not ok\n" if reasons else "ok\n", status, headers)
    document = {
        "status": "failing" if reasons else "ok",
        "reasons": list(reasons),
        **details,
        "version": __version__,
        "host": os.uname().nodename,
    }
    return JSONResponse(document, status, headers)
