# SPDX-License-Identifier: Apache-2.0
"""The dashboard: one page and its assets, read once at startup."""

from __future__ import annotations

import json
from importlib import resources
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nettop.snapshots.cpu import CATEGORIES
from nettop.stacks.colours import FRAMES
from nettop.stacks.flame_svg import GRAPH

INDEX = "index.html"
CATEGORIES_FILE = "categories.js"
"""JavaScript module with the flame graph's sizes and categories: parts of the network stack, and the kernel functions
in them."""
FLAME_GRAPH_FILE = "flame_graph.js"
"""JavaScript module that draws the flame graph, of exported files too."""

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


def page_routes() -> list[Route]:
    """Return the routes of the dashboard: `/`, and `/static/NAME` for each of its files."""
    files = _files()
    page = files.pop(INDEX)

    async def index(_request: Request) -> Response:
        return _response(INDEX, page)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise HTTPException(404, "the dashboard has no such file")
        return _response(name, files[name])

    return [Route("/", index), Route("/static/{name}", static)]


def _files() -> dict[str, bytes]:
    """Return the files of the dashboard by name."""
    contents = {
        entry.name: entry.read_bytes()
        for entry in resources.files("nettop.serve").joinpath("static").iterdir()
    }
    contents[FLAME_GRAPH_FILE] = resources.files("nettop.stacks").joinpath(FLAME_GRAPH_FILE).read_bytes()
    contents[CATEGORIES_FILE] = _categories()
    return contents


def _categories() -> bytes:
    """Return sizes and categories, in numeric order, as a JavaScript module."""
    rows = [
        {
            "label": category.label,
            "letter": category.letter,
            "help": category.help,
            "symbols": sorted(category.symbols),
            "background": "light-dark({1}, {0})".format(*FRAMES[category.letter]),
        }
        for category in CATEGORIES.values()
    ]
    values = {"CATEGORIES": rows, "GRAPH": GRAPH}
    return "".join(
        f"export const {name} = {json.dumps(value, ensure_ascii=False)};\n" for name, value in values.items()
    ).encode()


def _response(name: str, content: bytes) -> Response:
    return Response(content, media_type=_TYPES[name[name.rindex(".") :]], headers=_HEADERS)
