# SPDX-License-Identifier: Apache-2.0
"""Accept connections up to a limit; others wait in the kernel's backlog."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from nettop.errors import TOO_MANY_FILES
from nettop.serve.http.connection import Connection, OpenConnections
from nettop.serve.http.limits import Server

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_RETRY_S = 1.0
"""Seconds until accept() is retried after it ran out of file descriptors or memory."""
_ABORT_S = 1.0
"""Maximum seconds for aborted connections and cancelled tasks to end."""
_NO_RESOURCES = (*TOO_MANY_FILES, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Acceptor of connections whose requests `app` answers, created inside the event loop."""

    def __init__(self, server: Server, app: ASGIApp) -> None:
        self._connections = OpenConnections(server, app)
        self._report, self._credentials = server.report, server.credentials
        self._limits, self._counts = server.limits, server.counts
        self._loop = asyncio.get_running_loop()
        self._open: dict[asyncio.Task[None], Connection] = {}
        self._has_left = asyncio.Event()
        self._listeners = server.listeners
        self._accepting = [self._loop.create_task(self._accept(listener)) for listener in server.listeners]

    async def close(self) -> None:
        """Stop accepting, and close open connections once they have been answered; idempotent."""
        self._connections.ending = True
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        for task, connection in list(self._open.items()):
            if connection.is_open:
                connection.shutdown()
            else:
                task.cancel()

    async def wait_closed(self, seconds: float) -> None:
        """Wait until no connection is open, but no longer than this."""
        if self._open:
            await asyncio.wait(self._open, timeout=seconds)

    async def abort(self) -> None:
        """Close all open connections now. Applications see a disconnect; cancel those that do not end."""
        for connection in list(self._open.values()):
            connection.abort()
        await self.wait_closed(_ABORT_S)
        for task in self._open:
            task.cancel()
        await self.wait_closed(_ABORT_S)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                # Other errors of accept() concern only that connection, which is gone: accept(2).
                if error.errno in _NO_RESOURCES:
                    await self._wait_for_resources(error)
                continue
            await self._make_room(client)
            connection = Connection(self._connections)
            task = self._loop.create_task(self._serve(client, connection))
            self._open[task] = connection
            self._counts.open_connections = len(self._open)
            task.add_done_callback(self._remove)

    async def _wait_for_resources(self, error: OSError) -> None:
        self._report(f"cannot accept connections for now: {error}")
        for connection in list(self._connections.idle):
            connection.evict()
        await asyncio.sleep(_RETRY_S)

    async def _make_room(self, client: socket.socket) -> None:
        """Close the longest-idle connection, or all whose request is overdue, until one more fits."""
        self._connections.held += 1
        try:
            while len(self._open) >= self._limits.connections:
                self._evict()
                self._has_left.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.crowded_s):
                        await self._has_left.wait()
        except asyncio.CancelledError:
            client.close()
            raise
        finally:
            self._connections.held -= 1

    def _evict(self) -> None:
        if self._connections.idle:
            next(iter(self._connections.idle)).evict()
            return
        late = self._loop.time() - self._limits.crowded_s
        receiving = self._connections.receiving
        for connection in [connection for connection, since in receiving.items() if since <= late]:
            connection.evict()

    async def _serve(self, client: socket.socket, connection: Connection) -> None:
        try:
            if await self._open_transport(client, connection):
                await connection.run()
        finally:
            connection.abort()
            client.close()

    async def _open_transport(self, client: socket.socket, connection: Connection) -> bool:
        """Hand the connection to the loop, after any TLS handshake; return whether that worked."""
        tls = self._credentials.tls
        began = self._loop.time()
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                client,
                ssl=tls,
                ssl_handshake_timeout=self._limits.request_s if tls else None,
                ssl_shutdown_timeout=self._limits.linger_s if tls else None,
            )
        except OSError:
            if tls is not None:
                self._counts.handshake_failures += 1
                self._counts.timeouts += self._loop.time() - began >= self._limits.request_s
            return False
        return True

    def _remove(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        self._counts.open_connections = len(self._open)
        self._has_left.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "a connection failed", "exception": error})
