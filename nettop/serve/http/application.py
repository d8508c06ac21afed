# SPDX-License-Identifier: Apache-2.0
"""Base of all applications: problem documents for errors, and compressed responses."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import BaseRoute

from nettop.serve.problems import HANDLERS

_LEAST_BYTES, _LEVEL = 1024, 1
"""Shorter responses are not compressed. Higher levels take several times as long and save a tenth."""


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an application that serves these routes."""
    compression = Middleware(GZipMiddleware, minimum_size=_LEAST_BYTES, compresslevel=_LEVEL)
    app = Starlette(routes=routes, middleware=[compression], exception_handlers=HANDLERS)
    # A path with a superfluous slash gets a problem document, not a redirect.
    app.router.redirect_slashes = False
    return app
