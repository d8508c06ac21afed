# SPDX-License-Identifier: Apache-2.0
"""/health: whether all is well. Whoever lacks the token learns that, and no reason: probes need no secret."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nettop import __version__
from nettop.serve.problems import RETRY_SOON

HEALTH_PATH = "/health"
_WITHOUT_TOKEN = "nettop.without_token"  # noqa: S105 - a name in the ASGI scope


def mark_without_token(scope: MutableMapping[str, Any]) -> None:
    """Have this request answered without anything but whether all is well."""
    scope[_WITHOUT_TOKEN] = True


def health_response(request: Request, reasons: Sequence[str], **details: Any) -> Response:
    """200 where there are no `reasons` why not, else 503; with them and the details, for whoever may know them."""
    status, headers = (503, RETRY_SOON) if reasons else (200, None)
    if request.scope.get(_WITHOUT_TOKEN):
        return PlainTextResponse("not ok\n" if reasons else "ok\n", status, headers)
    document = {
        "status": "failing" if reasons else "ok",
        "reasons": list(reasons),
        **details,
        "version": __version__,
        "host": os.uname().nodename,
    }
    return JSONResponse(document, status, headers)
