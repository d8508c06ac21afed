# SPDX-License-Identifier: Apache-2.0
"""Problem documents (RFC 9457): every error response of an application says what happened and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from nettop.errors import NettopError, UsageError
from nettop.snapshots.safe_text import safe_text

MEDIA_TYPE = "application/problem+json"
RETRY_SOON = MappingProxyType({"Retry-After": "1"})
"""Header of responses to requests that are worth retrying soon."""
_LONGEST = 500
"""Maximum characters of a detail or a remedy, which may quote the request."""
_LEAST_BYTES, _LEVEL = 1024, 1
"""Shorter responses are not compressed. Higher levels take several times as long and save a tenth."""


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


def problem_document(problem: Problem, path: str = "") -> dict[str, object]:
    """Return the members of a problem document, with texts safe to display. `path` is decoded, as in an ASGI scope."""
    words = {
        "detail": _safe(problem.what),
        "remedy": _safe(problem.remedy),
        "parameter": _safe(problem.parameter),
        "instance": quote(path, errors="replace"),
    }
    status = HTTPStatus(problem.status)
    members = {"type": "about:blank", "title": status.phrase, "status": int(status)}
    return members | {name: text for name, text in words.items() if text}


def problem_response(problem: Problem, path: str = "") -> Response:
    """Return the response to a failed request."""
    body = json.dumps(problem_document(problem, path), ensure_ascii=False, separators=(",", ":"))
    return Response(body, problem.status, problem.headers, MEDIA_TYPE)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, NettopError)
    return problem_response(as_problem(error), request.scope["path"])


async def _on_status(request: Request, error: Exception) -> Response:
    """Answer requests that the router rejects: unknown paths, and methods that a path does not support."""
    assert isinstance(error, HTTPException)
    detail, remedy = error.detail, ""
    if error.status_code == 404:
        detail, remedy = "there is nothing at this path", "/api/openapi.json lists all paths"
    elif error.status_code == 405:
        detail, remedy = f"the method {request.method} is not allowed here", "use GET"
    problem = Problem(error.status_code, detail, remedy, headers=error.headers)
    return problem_response(problem, request.scope["path"])


async def _on_bug(request: Request, _error: Exception) -> Response:
    """Answer an unexpected exception without details. Starlette re-raises it, and the server logs it."""
    problem = Problem(500, "the server failed to answer", "its log says why; please report this as a bug")
    return problem_response(problem, request.scope["path"])


_HANDLERS: Mapping[Any, Any] = {NettopError: _on_error, HTTPException: _on_status, Exception: _on_bug}


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an application that serves these routes."""
    compression = Middleware(GZipMiddleware, minimum_size=_LEAST_BYTES, compresslevel=_LEVEL)
    app = Starlette(routes=routes, middleware=[compression], exception_handlers=_HANDLERS)
    # A path with a superfluous slash gets a problem document, not a redirect.
    app.router.redirect_slashes = False
    return app


def _safe(text: str) -> str:
    text = safe_text(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
