# SPDX-License-Identifier: Apache-2.0
"""Problem documents (RFC 9457): every error response says what happened and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nettop.errors import NettopError, UsageError
from nettop.snapshots.safe_text import safe_text

MEDIA_TYPE = "application/problem+json"
RETRY_SOON = MappingProxyType({"Retry-After": "1"})
"""Header of responses to requests that are worth retrying soon."""
_LONGEST = 500
"""Maximum characters of a detail or a remedy, which may quote the request."""


class Problem(NettopError):
    """An error with an HTTP status; `parameter` names the invalid query parameter."""

    def __init__(
        self,
        status: int,
        what: str,
        remedy: str = "",
        *,
        parameter: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what, remedy)
        self.status = status
        self.parameter = parameter
        self.headers = headers


def as_problem(error: NettopError, parameter: str = "") -> Problem:
    """Convert an error to a problem: 400 for a bad request, 503 if it cannot be answered now."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, UsageError):
        return Problem(400, error.what, error.remedy, parameter=parameter)
    return Problem(503, error.what, error.remedy, headers=RETRY_SOON)


def problem_document(
    status: int, detail: str, *, remedy: str = "", parameter: str = "", path: str = ""
) -> dict[str, object]:
    """Return the members of a problem document, with texts safe to display. `path` is decoded, as in an ASGI scope."""
    words = {
        "detail": _safe(detail),
        "remedy": _safe(remedy),
        "parameter": _safe(parameter),
        "instance": quote(path, errors="replace"),
    }
    status = HTTPStatus(status)
    members = {"type": "about:blank", "title": status.phrase, "status": int(status)}
    return members | {name: text for name, text in words.items() if text}


def problem_response(
    status: int,
    detail: str,
    *,
    remedy: str = "",
    parameter: str = "",
    path: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response to a failed request."""
    document = problem_document(status, detail, remedy=remedy, parameter=parameter, path=path)
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Response(body, status, headers, MEDIA_TYPE)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, NettopError)
    problem = as_problem(error)
    return problem_response(
        problem.status,
        problem.what,
        remedy=problem.remedy,
        parameter=problem.parameter,
        path=request.scope["path"],
        headers=problem.headers,
    )


async def _on_status(request: Request, error: Exception) -> Response:
    """Answer requests that the router rejects: unknown paths, and methods that a path does not support."""
    assert isinstance(error, HTTPException)
    detail, remedy = error.detail, ""
    if error.status_code == 404:
        detail, remedy = "there is nothing at this path", "/api/openapi.json lists all paths"
    elif error.status_code == 405:
        detail, remedy = f"the method {request.method} is not allowed here", "use GET"
    return problem_response(
        error.status_code, detail, remedy=remedy, path=request.scope["path"], headers=error.headers
    )


async def _on_bug(request: Request, _error: Exception) -> Response:
    """Answer an unexpected exception without details. Starlette re-raises it, and the server logs it."""
    detail, remedy = "the server failed to answer", "its log says why; please report this as a bug"
    return problem_response(500, detail, remedy=remedy, path=request.scope["path"])


HANDLERS: Mapping[Any, Any] = {
    NettopError: _on_error,
    HTTPException: _on_status,
    Exception: _on_bug,
}
"""Starlette exception handlers by exception class."""


def _safe(text: str) -> str:
    text = safe_text(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
