# SPDX-License-Identifier: Apache-2.0
"""A client connection: its requests are parsed by h11, within limits, and answered one after the other.

No ASGI server limits both the time and the size of a whole request, its body included, and answers malformed, late or
too large ones with a problem document; h11 leaves reading, deadlines and errors to its caller.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import unquote

import h11

from nettop.serve.http.guard import common_headers
from nettop.serve.http.limits import Server
from nettop.serve.problems import Problem, problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

_MALFORMED = "not a valid HTTP/1.1 request"


@dataclass(eq=False)
class OpenConnections:
    """State that the connections of a server share with their acceptor."""

    server: Server
    app: ASGIApp
    idle: dict[Connection, None] = field(default_factory=dict)
    """Connections between two requests, longest idle first."""
    receiving: dict[Connection, float] = field(default_factory=dict)
    """Connections whose request is incomplete, oldest first, with their start by the loop's clock."""
    held: int = 0
    """Accepted connections for which there is no room yet, at most one for each listener."""
    ending: bool = False

    def leave(self, connection: Connection) -> None:
        """Note that a connection no longer waits for a request."""
        self.idle.pop(connection, None)
        self.receiving.pop(connection, None)


class _Request(NamedTuple):
    head: h11.Request
    body: bytes


class Connection(asyncio.Protocol):
    """A connection that is receiving or idle, as `others` know, or answering or closing."""

    def __init__(self, others: OpenConnections) -> None:
        self._others = others
        self._limits, self._counts = others.server.limits, others.server.counts
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)
        self._transport: asyncio.Transport | None = None
        self._is_head = False
        """Whether the most recent request wants no body."""
        self._received = bytearray()
        """Bytes not given to the parser yet."""
        self._is_reading = True
        self._is_refused = False
        """Whether what is received is discarded, so that the client's close is seen."""
        self._news = asyncio.Event()
        """Set when something is received, and when the connection is lost."""
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()

    # Called by the loop and the acceptor.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note that the connection is open and its handshake done."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - nobody is told why
        """Wake everything that waits for the client."""
        for event in (self._lost, self._news, self._writable):
            event.set()

    def data_received(self, data: bytes) -> None:
        """Keep received data; stop reading while more is kept than a head may have."""
        if self._is_refused:
            return
        self._received += data
        self._news.set()
        self._others.idle.pop(self, None)
        if len(self._received) > self._limits.head_bytes and self._is_reading:
            self._is_reading = False
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """Note that the client reads more slowly than the server sends."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Note that the client has read most of the data."""
        self._writable.set()

    @property
    def is_open(self) -> bool:
        """Whether the connection was opened, which includes any TLS handshake."""
        return self._transport is not None

    @property
    def transport(self) -> asyncio.Transport:
        """Transport of a connection that is or was open."""
        assert self._transport is not None
        return self._transport

    def evict(self) -> None:
        """Close the connection to make room for another."""
        self._counts.evicted += 1
        self._others.leave(self)
        if self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            self.transport.abort()  # skip the TLS closing handshake

    def abort(self) -> None:
        """Close the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def shutdown(self) -> None:
        """Close the connection unless a request is being answered."""
        if self in self._others.idle or self in self._others.receiving:
            self.transport.close()

    async def run(self) -> None:
        """Answer requests until the client or the server closes the connection."""
        try:
            while not (self._others.ending or self._lost.is_set()):
                request = await self._receive_in_time()
                if request is None:
                    break
                await self._answer(request)
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    break
                self._http.start_next_cycle()
                if not await self._has_next():
                    break
        except Problem as refused:
            await self._refuse(refused)
        except ConnectionError:
            pass
        finally:
            self._others.leave(self)
        self.transport.close()
        await self._wait_until_written(self._lost)

    # A request.

    async def _has_next(self) -> bool:
        """Return whether another request begins before the connection is idle for too long or must make room."""
        if self._has_begun():
            return True
        if self._others.held:
            self._counts.evicted += 1
            return False
        self._others.idle[self] = None
        try:
            async with asyncio.timeout(self._limits.idle_s):
                await self._wait_for_data()
        except TimeoutError:
            return False
        return True

    def _has_begun(self) -> bool:
        """Return whether a part of the next request has arrived."""
        return bool(self._received or self._http.trailing_data[0]) or self._http.their_state is not h11.IDLE

    async def _receive_in_time(self) -> _Request | None:
        """Return the next request; None if none begins. Raise Problem for a request to refuse."""
        self._others.leave(self)
        self._others.receiving[self] = self._loop.time()
        try:
            async with asyncio.timeout(self._limits.request_s):
                await asyncio.sleep(0)  # let other connections have their turn
                return await self._receive()
        except TimeoutError:
            self._counts.timeouts += 1
            if self._has_begun():
                raise Problem(408, "the request took too long to arrive") from None
            return None
        except h11.RemoteProtocolError:
            raise Problem(400, _MALFORMED) from None
        finally:
            self._others.leave(self)

    async def _receive(self) -> _Request:
        head, body = None, bytearray()
        size, limit = len(self._http.trailing_data[0]), self._limits.head_bytes
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if size >= limit:
                    raise self._too_large(head)
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
                data = await self._take(limit - size)
                size += len(data)
                self._http.receive_data(data)
            elif isinstance(event, h11.Request):
                self._is_head = event.method == b"HEAD"
                head = self._checked(event)
                size, limit = len(self._http.trailing_data[0]), self._limits.body_bytes
            elif isinstance(event, h11.Data):
                body += event.data if self._limits.takes_bodies else b""
            else:
                # The end of the message: its trailers could contradict the checked headers.
                assert head is not None
                return _Request(head, bytes(body))

    async def _take(self, most: int) -> bytes:
        """Return the next bytes that were received. Raise ConnectionError if the connection is lost."""
        await self._wait_for_data()
        data = bytes(self._received[:most])
        del self._received[:most]
        self._resume_reading()
        return data

    def _resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self.transport.resume_reading()

    async def _wait_for_data(self) -> None:
        while not self._received and not self._lost.is_set():
            self._news.clear()
            await self._news.wait()
        if self._lost.is_set():
            raise ConnectionResetError

    def _checked(self, head: h11.Request) -> h11.Request:
        """Raise Problem for a head with too many headers, an unclear or large body, or no path."""
        if len(head.headers) > self._limits.headers:
            raise Problem(431, f"the request has more than {self._limits.headers} headers")
        sizes = [int(value) for name, value in head.headers if name == b"content-length"]
        is_chunked = any(name == b"transfer-encoding" for name, _ in head.headers)
        if not head.target.startswith(b"/") or (sizes and is_chunked):
            raise Problem(400, _MALFORMED)
        if any(size > self._limits.body_bytes for size in sizes):
            raise self._too_large(head)
        return head

    def _too_large(self, head: h11.Request | None) -> Problem:
        if head is None:
            return Problem(431, f"the URL and the headers have more than {self._limits.head_bytes} bytes")
        remedy = "send less at once" if self._limits.takes_bodies else "no path accepts a body: use GET"
        return Problem(413, f"the body has more than {self._limits.body_bytes} bytes", remedy)

    # Its response.

    async def _answer(self, request: _Request) -> None:
        """Have the application answer. Raise Problem if it fails before it does."""
        scope, began, status, is_received = self._scope(request.head), self._loop.time(), 0, False

        async def receive() -> Message:
            nonlocal is_received
            if is_received:
                await self._lost.wait()
                return {"type": "http.disconnect"}
            is_received = True
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if self.transport.is_closing():
                return
            if message["type"] == "http.response.start":
                status = message["status"]
                self._counts.count_response(status)
                is_last = self._others.ending or self._others.held > 0
                self._send_head(status, message["headers"], is_last=is_last)
            else:
                self._send_body(message.get("body", b""), is_last=not message.get("more_body", False))
            await self._wait_until_written(self._writable)

        try:
            await self._others.app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - a bug, which is reported
            context = {"message": "cannot answer a request", "exception": error}
            self._loop.call_exception_handler(context)
            if not status:
                raise Problem(500, "the server failed to answer", "its log says why") from None
        finally:
            took_ms = (self._loop.time() - began) * 1e3
            self._log(f'"{scope["method"]} {request.head.target.decode()}" {status} {took_ms:.1f} ms')

    def _scope(self, head: h11.Request) -> Scope:
        path, _, query = head.target.partition(b"?")
        address, client = (self.transport.get_extra_info(name) for name in ("sockname", "peername"))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.http_version.decode(),
            "method": head.method.decode(),
            "scheme": "http" if self._others.server.credentials.tls is None else "https",
            "path": unquote(path.decode()),
            "raw_path": path,
            "root_path": "",
            "query_string": query,
            "headers": list(head.headers),
            "server": (address, None) if isinstance(address, str) else address[:2],
            "client": client[:2] if isinstance(client, tuple) else None,
        }

    def _send_head(self, status: int, headers: list[tuple[bytes, bytes]], *, is_last: bool) -> None:
        close = [(b"connection", b"close")] if is_last else []
        reason = HTTPStatus(status).phrase.encode()
        self._send(h11.Response(status_code=status, headers=[*headers, *close], reason=reason))

    def _send_body(self, piece: bytes, *, is_last: bool) -> None:
        if piece and not self._is_head:
            self._send(h11.Data(data=piece))
        if is_last:
            self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> None:
        self.transport.write(self._http.send(event) or b"")

    async def _wait_until_written(self, is_so: asyncio.Event) -> None:
        """Wait for an event that follows once the client has read what was sent; disconnect it if it does not."""
        try:
            async with asyncio.timeout(self._limits.write_s):
                await is_so.wait()
        except TimeoutError:
            self._counts.timeouts += 1
            self.transport.abort()

    async def _refuse(self, refused: Problem) -> None:
        """Send the error instead of a response, and read no further requests."""
        self._is_refused = True
        self._resume_reading()
        self._counts.too_large += refused.status in {413, 431}
        self._counts.count_response(refused.status)
        self._log(f'"-" {refused.status}')
        response = problem_response(refused)
        self._send_head(refused.status, common_headers(response.raw_headers), is_last=True)
        self._send_body(bytes(response.body), is_last=True)
        # Closing immediately would reset the connection if the client is still sending, and so lose the response.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger_s):
                await self._lost.wait()
        self.transport.abort()

    def _log(self, line: str) -> None:
        """Write an access log line; a client on a Unix socket has no address."""
        if self._others.server.log is not None:
            client = self.transport.get_extra_info("peername")
            self._others.server.log(f"{client[0] if isinstance(client, tuple) else '-'} {line}")
