# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 server, until shutdown is requested."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import uvloop

from nettop.errors import NettopError
from nettop.process import service_manager
from nettop.serve.http.acceptor import Acceptor
from nettop.serve.http.limits import Server, nothing

_REPORTS = 100
"""Maximum different errors that are reported."""


def serve(server: Server) -> None:
    """Serve until shutdown is requested, then finish pending responses and close the listening sockets.

    A request to reopen files reloads the token and the certificate. A second, later signal raises KeyboardInterrupt,
    as `Requests` does. Raise whatever `make_app` and `until_ready` raise.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(server))


async def _serve(server: Server) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_reporter(server.report))
    requested = asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(requested.set)

    server.requests.wake = wake
    try:
        acceptor = Acceptor(server, server.make_app())
        ready = loop.create_task(_become_ready(server))
        ready.add_done_callback(lambda _: requested.set())
        try:
            await _wait_for_end(server, requested, ready)
            service_manager.stopping()
            await acceptor.close()
            server.on_ending()
            await acceptor.wait_closed(server.limits.drain_s)
        finally:
            ready.cancel()
            await acceptor.close()
            await acceptor.abort()
    finally:
        server.requests.wake = nothing


async def _become_ready(server: Server) -> None:
    await server.until_ready()
    server.on_ready()
    service_manager.ready(server.status)


async def _wait_for_end(server: Server, requested: asyncio.Event, ready: asyncio.Task[None]) -> None:
    """Wait until shutdown is requested; reload files on request. Raise what `ready` raises."""
    while not server.requests.ending:
        if ready.done():
            ready.result()
        if server.requests.take_reopening():
            service_manager.reloading()
            token = server.credentials.token
            try:
                server.report(server.credentials.reload())
            except NettopError as error:
                server.report(f"{error.what}; the previous files stay in use")
            if server.credentials.token != token:
                server.on_new_token()
            if ready.done():
                service_manager.ready(server.status)
        await requested.wait()
        requested.clear()


def _reporter(report: Callable[[str], None]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return a handler that reports errors in the loop, each once, with traceback: they are bugs."""
    reported: set[str] = set()

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = "" if error is None else "".join(traceback.format_exception(error))
        message = f"{context['message']}\n{text}".strip()
        if message not in reported and len(reported) < _REPORTS:
            reported.add(message)
            report(message)

    return handle
