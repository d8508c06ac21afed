# SPDX-License-Identifier: Apache-2.0
"""The dashboard: one page and its assets, read once at startup."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nettop.snapshots.cpu import CATEGORIES

INDEX = "index.html"
CATEGORIES_FILE = "categories.js"
"""JavaScript module with the flame graph's categories: parts of the network stack, and the kernel functions in them."""
FLAME_GRAPH_FILE = "flame_graph.js"
"""JavaScript module shared with exported flame graphs."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}
_HEADERS = MappingProxyType(
    {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
)


@dataclass(frozen=True, slots=True)
class _Asset:
    """A file in the form in which it is served."""

    content: bytes
    media_type: str
    etag: str


def page_routes() -> list[Route]:
    """Return the routes of the dashboard: `/`, and `/static/NAME` for each of its files."""
    assets = _assets()
    page = assets.pop(INDEX)

    async def index(request: Request) -> Response:
        return _answer(request, page)

    async def static(request: Request) -> Response:
        asset = assets.get(request.path_params["name"])
        if asset is None:
            raise HTTPException(404, "the dashboard has no such file")
        return _answer(request, asset)

    return [Route("/", index), Route("/static/{name}", static)]


def _assets() -> dict[str, _Asset]:
    """Return the files of the dashboard by name."""
    contents = {
        entry.name: entry.read_bytes() for entry in files("nettop.serve").joinpath("static").iterdir()
    }
    contents[FLAME_GRAPH_FILE] = files("nettop.stacks").joinpath(FLAME_GRAPH_FILE).read_bytes()
    contents[CATEGORIES_FILE] = _categories()
    return {name: _asset(name, content) for name, content in contents.items()}


def _asset(name: str, content: bytes) -> _Asset:
    media_type = _TYPES[name[name.rindex(".") :]]
    return _Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _categories() -> bytes:
    """Return the categories as a JavaScript module, in numeric order."""
    rows = [
        {
            "label": category.label,
            "letter": category.letter,
            "help": category.help,
            "symbols": sorted(category.symbols),
        }
        for category in CATEGORIES.values()
    ]
    return f'"use strict";\nexport const CATEGORIES = {json.dumps(rows, ensure_ascii=False)};\n'.encode()


def _answer(request: Request, asset: _Asset) -> Response:
    """Return the file, or 304 if the client's copy is current."""
    headers: Mapping[str, str] = {**_HEADERS, "ETag": asset.etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if asset.etag in known or "*" in known:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
