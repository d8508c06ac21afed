# SPDX-License-Identifier: Apache-2.0
"""Problem documents (RFC 9457): every answer that is an error says what happened and what to do about it."""

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
"""The header of what will soon be possible."""
_LONGEST = 500
"""Characters of a detail or a remedy: they may repeat the request."""


class Problem(NettopError):
    """An error that is answered with this status; `parameter` names the query parameter that is wrong."""

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
    """The error as a problem: the request is wrong (400), or cannot be answered now (503)."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, UsageError):
        return Problem(400, error.what, error.remedy, parameter=parameter)
    return Problem(503, error.what, error.remedy, headers=RETRY_SOON)


def problem_document(
    status: int, detail: str, *, remedy: str = "", parameter: str = "", path: str = ""
) -> dict[str, object]:
    """The members of a problem document; texts are safe to show. `path` is decoded, as in an ASGI scope."""
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
    """The answer to a request that failed."""
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
    """What the router refuses: a path that does not exist, a method that a path does not have."""
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
    """What nobody expected: the answer says nothing of it. It is raised once more, and the server logs it."""
    detail, remedy = "the server failed to answer", "its log says why; please report this as a bug"
    return problem_response(500, detail, remedy=remedy, path=request.scope["path"])


HANDLERS: Mapping[Any, Any] = {
    NettopError: _on_error,
    HTTPException: _on_status,
    Exception: _on_bug,
}
"""Starlette's handlers of exceptions, by their class."""


def _safe(text: str) -> str:
    text = safe_text(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
