# SPDX-License-Identifier: Apache-2.0
"""What every application has: problem documents for errors, and compressed answers."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import BaseRoute

from nettop.serve.problems import HANDLERS

_LEAST_BYTES, _LEVEL = 1024, 1
"""What is shorter is sent as it is. Higher levels take several times as long for a tenth less."""


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an application that serves these routes."""
    compression = Middleware(GZipMiddleware, minimum_size=_LEAST_BYTES, compresslevel=_LEVEL)
    app = Starlette(routes=routes, middleware=[compression], exception_handlers=HANDLERS)
    # A path with one slash too many is a problem like any other.
    app.router.redirect_slashes = False
    return app
