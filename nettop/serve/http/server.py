# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 server: uvicorn within limits, until shutdown is requested."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from nettop.errors import NettopError
from nettop.process import service_manager
from nettop.serve.http.acceptor import Acceptor
from nettop.serve.http.connection import Connection
from nettop.serve.http.limits import Server, nothing

_ABORT_S = 1.0
"""Maximum seconds for aborted connections and cancelled tasks to end."""


def serve(server: Server) -> None:
    """Serve until shutdown is requested, then finish pending responses and close the listening sockets.

    A request to reopen files reloads the token and the certificate. A second, later signal raises KeyboardInterrupt,
    as `Requests` does. Raise whatever `make_app` and `until_ready` raise.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, _errors_reported(server.report):
        runner.run(_serve(server))


async def _serve(server: Server) -> None:
    loop = asyncio.get_running_loop()
    requested = asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(requested.set)

    server.requests.wake = wake
    try:
        app = server.make_app()
        config = Config(
            app, ws="none", lifespan="off", log_config=None, proxy_headers=False, server_header=False
        )
        config.load()
        state = ServerState()
        acceptor = Acceptor(server, partial(Connection, config=config, state=state))
        ready = loop.create_task(_become_ready(server))
        ready.add_done_callback(lambda _: requested.set())
        try:
            acceptor.resume()
            await _wait_for_end(server, requested, ready)
            service_manager.stopping()
            acceptor.close()
            server.on_ending()
            with suppress(TimeoutError):
                async with asyncio.timeout(server.limits.drain_s):
                    await acceptor.wait_closed()
                    await _end_of(state.tasks)
        finally:
            ready.cancel()
            acceptor.close()
            await _abort(acceptor, state)
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


async def _abort(acceptor: Acceptor, state: ServerState) -> None:
    """Abort open connections. Applications see a disconnect. Cancel tasks that do not end."""
    acceptor.abort()
    with suppress(TimeoutError):
        async with asyncio.timeout(_ABORT_S):
            await acceptor.wait_closed()
    for task in state.tasks:
        task.cancel()
    with suppress(TimeoutError):
        async with asyncio.timeout(_ABORT_S):
            await _end_of(state.tasks)


async def _end_of(tasks: set[asyncio.Task[None]]) -> None:
    while tasks:
        await asyncio.wait(tasks)


@contextmanager
def _errors_reported(report: Callable[[str], None]) -> Iterator[None]:
    """Report errors logged by uvicorn and asyncio, each once, with traceback: they are bugs."""
    handler = _Errors(report)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _Errors(logging.Handler):
    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._report = report
        self._reported: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Report the record unless it was reported before."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return  # cancelled at shutdown
        text = "".join(traceback.format_exception(error)) if error is not None else ""
        message = f"{record.getMessage().strip()}\n{text}".strip()
        if message not in self._reported and len(self._reported) < 100:
            self._reported.add(message)
            self._report(message)
