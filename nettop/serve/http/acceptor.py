# SPDX-License-Identifier: Apache-2.0
"""Accept connections up to a limit; others wait in the kernel's backlog."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from nettop.errors import TOO_MANY_FILES
from nettop.serve.http.limits import Server

_BATCH = 32
"""Maximum connections accepted before the event loop gets its turn."""
_RETRY_S = 1.0
"""Seconds until accept() is retried after it ran out of file descriptors or memory."""
_NO_RESOURCES = (*TOO_MANY_FILES, errno.ENOBUFS, errno.ENOMEM)


class Accepted(asyncio.Protocol):
    """Interface of a connection to the acceptor."""

    def evict(self) -> None:
        """Close the connection to make room for another."""

    def shutdown(self) -> None:
        """Close the connection once no request is being answered."""

    def abort(self) -> None:
        """Close the connection now."""


class Acceptor:
    """Acceptor of connections, created inside the event loop. `connect` creates a connection's protocol."""

    def __init__(self, server: Server, connect: Callable[[Acceptor], Accepted]) -> None:
        self.server = server
        self._loop = asyncio.get_running_loop()
        self._limits, self._counts = server.limits, server.counts
        self._connect = connect
        self._open: set[Accepted] = set()
        self._joining: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._none_open = asyncio.Event()
        self.idle: dict[Accepted, None] = {}
        """Connections between two requests, longest idle first."""
        self.receiving: dict[Accepted, float] = {}
        """Connections whose request is incomplete, oldest first, with their start by the loop's clock."""
        self.crowded = False
        """Whether the limit is reached while connections wait."""
        self.ending = False

    def close(self) -> None:
        """Stop accepting, and close open connections once they have been answered."""
        if self.ending:
            return
        self.ending = True
        self._pause()
        for listener in self.server.listeners:
            listener.close()
        for connection in list(self._open):
            connection.shutdown()

    def abort(self) -> None:
        """Close all open connections immediately."""
        for task in self._joining:
            task.cancel()
        for connection in list(self._open):
            connection.abort()

    async def wait_closed(self) -> None:
        """Wait until no connection is open."""
        while self._open:
            self._none_open.clear()
            await self._none_open.wait()

    def remove(self, connection: Accepted) -> None:
        """Remove a closed connection; idempotent."""
        self._open.discard(connection)
        self._counts.open_connections = len(self._open)
        self.leave(connection)
        if not self._open:
            self._none_open.set()
        if self.crowded and not self._is_full() and not self.ending:
            self.resume()

    def leave(self, connection: Accepted) -> None:
        """Note that a connection no longer waits for a request."""
        self.idle.pop(connection, None)
        self.receiving.pop(connection, None)

    def resume(self) -> None:
        """Start accepting, or do so again."""
        self.crowded = False
        self._retry_after(None)
        for listener in self.server.listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _pause(self) -> None:
        self._retry_after(None)
        for listener in self.server.listeners:
            self._loop.remove_reader(listener)

    def _retry_after(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = None if seconds is None or then is None else self._loop.call_later(seconds, then)

    def _accept(self, listener: socket.socket) -> None:
        if self._is_full():
            self._pause()
            self.crowded = True
            self._make_room()
            return
        for _ in range(_BATCH):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    self._wait_for_resources(error)
                    return
                # Other errors of accept() concern only that connection, which is gone: accept(2).
                continue
            self._open_connection(client)
            if self._is_full():
                return  # the loop calls again if more are waiting

    def _is_full(self) -> bool:
        return len(self._open) >= self._limits.connections

    def _wait_for_resources(self, error: OSError) -> None:
        self.server.report(f"cannot accept connections for now: {error}")
        self._pause()
        for connection in list(self.idle):
            connection.evict()
        self._retry_after(_RETRY_S, self.resume)

    def _make_room(self) -> None:
        """Close the longest-idle connection, or if there is none, all whose request is overdue."""
        if self.idle:
            next(iter(self.idle)).evict()
        else:
            late = self._loop.time() - self._limits.crowded_s
            for connection in [each for each, since in self.receiving.items() if since <= late]:
                connection.evict()
        if self.crowded:
            self._retry_after(self._limits.crowded_s, self._make_room)

    def _open_connection(self, client: socket.socket) -> None:
        client.setblocking(False)
        connection = self._connect(self)
        self._open.add(connection)
        self._counts.open_connections = len(self._open)
        task = self._loop.create_task(self._join(client, connection))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, client: socket.socket, connection: Accepted) -> None:
        """Hand the connection to the loop, after any TLS handshake."""
        tls = self.server.credentials.tls
        began = self._loop.time()
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                client,
                ssl=tls,
                ssl_handshake_timeout=self._limits.request_s if tls else None,
                ssl_shutdown_timeout=self._limits.linger_s if tls else None,
            )
        except BaseException as error:
            client.close()
            self.remove(connection)
            if not isinstance(error, OSError):
                raise
            if tls is not None:
                self._counts.handshake_failures += 1
                self._counts.timeouts += self._loop.time() - began >= self._limits.request_s
