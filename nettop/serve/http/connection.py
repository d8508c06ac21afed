# SPDX-License-Identifier: Apache-2.0
"""A client connection: uvicorn's HTTP/1.1 protocol with the limits that it lacks.

It calls the application once a request is complete, with a body only if the limits allow bodies. granian bounds
requests but not connections; hypercorn limits a single read but not a whole request. Neither limits bodies, nor answers
malformed, late or too large requests with a problem document. So this subclasses uvicorn's protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from nettop.serve.http.acceptor import Accepted, Acceptor
from nettop.serve.http.guard import common_headers
from nettop.serve.problems import Problem, problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState


class Connection(HttpToolsProtocol, Accepted):
    """A connection that is receiving (`acceptor.receiving`), answering, idle (`acceptor.idle`), or closing."""

    def __init__(self, acceptor: Acceptor, config: Config, state: ServerState) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self._acceptor = acceptor
        self._limits, self._counts = acceptor.server.limits, acceptor.server.counts
        self._log = acceptor.server.log
        self._answered: RequestResponseCycle | None = None
        """Request being answered, or answered most recently; `cycle` is the most recent one to arrive."""
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._size = 0
        """Bytes received of the current head or body."""
        self._parts = 0
        """Number of complete heads and bodies."""
        self._begun = False
        """Whether part of a request has arrived."""
        self._in_body = False
        self._body = bytearray()
        self._ending = False
        """Whether the connection has stopped reading requests."""

    # Called by the acceptor and the loop.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for a request once the connection is open and its handshake done."""
        super().connection_made(transport)
        if self._acceptor.ending:
            self._close()
        else:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines and queued requests of a closed connection."""
        super().connection_lost(exc)
        if self._answered is not None:
            # uvicorn notifies only the last of several requests.
            self._answered.disconnected = True
            self._answered.message_event.set()
        self._limit(None)
        self.resume_writing()
        self.pipeline.clear()
        self._acceptor.remove(self)

    def evict(self) -> None:
        """Close the connection to make room for another."""
        self._counts.evicted += 1
        if self.transport.get_write_buffer_size():
            self._close()
        else:
            self.transport.abort()  # skip the TLS closing handshake

    def shutdown(self) -> None:
        """Close the connection once the received requests are answered."""
        if self.transport is None:
            return
        self._ending = True
        if self._is_answering():
            self.cycle.keep_alive = False
        else:
            self._close()

    def abort(self) -> None:
        """Close the connection now."""
        if self.transport is not None:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Start the write deadline: the client reads more slowly than the server sends."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(self._limits.write_s, self._time_out_writing)

    def resume_writing(self) -> None:
        """Cancel the write deadline: the client has read most of the data."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse received data in pieces as large as the limits allow."""
        if self in self._acceptor.idle:
            self._await_request()
        rest = memoryview(data)
        while rest and not self._ending:
            limit = self._limits.body_bytes if self._in_body else self._limits.head_bytes
            in_body, parts = self._in_body, self._parts
            taken = self._parse(rest[: limit - self._size])
            rest = rest[taken:]
            # Bytes after the end may belong to the next part, so they are not counted.
            self._size = self._size + taken if parts == self._parts else 0
            if self._size >= limit and not self._ending:
                self._refuse(
                    self._too_large_body()
                    if in_body
                    else Problem(431, f"the URL and the headers have more than {limit} bytes")
                )

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        super().on_message_begin()
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Ignore trailers: they could contradict the checked headers."""
        if self._in_body:
            return
        super().on_header(name, value)
        if len(self.headers) > self._limits.headers:
            raise Problem(431, f"the request has more than {self._limits.headers} headers")

    def on_headers_complete(self) -> None:
        """Check that the announced body is within the limits, once the head is complete."""
        self._parts += 1
        self._in_body = True
        # The parser has verified that they are numbers.
        sizes = [int(value) for name, value in self.headers if name == b"content-length"]
        if any(size > self._limits.body_bytes for size in sizes):
            raise self._too_large_body()
        if self.expect_100_continue and not self._is_answering():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.expect_100_continue = False

    def on_body(self, body: bytes) -> None:
        """Append a part of the body."""
        if self._limits.takes_bodies:
            self._body += body

    def on_message_complete(self) -> None:
        """Queue the complete request to be answered."""
        if len(self.pipeline) >= self._limits.pipelined:
            raise Problem(429, f"more than {self._limits.pipelined} requests were sent at once")
        self._parts += 1
        self._in_body = self._begun = False
        self._acceptor.leave(self)
        self._limit(None)
        super().on_headers_complete()
        self.cycle.body, self._body = self._body, bytearray()
        if self._acceptor.crowded:
            self.cycle.keep_alive = False
        # The end of the connection ends the response to HTTP/1.0.
        self._ending = self._ending or self.scope["http_version"] == "1.0"
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue with the next request once the response has been written."""
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self._settle()

    # State changes.

    def _await_request(self) -> None:
        self._acceptor.leave(self)
        self._acceptor.receiving[self] = self.loop.time()
        self._limit(self._limits.request_s, self._time_out)

    def _settle(self) -> None:
        """Choose the next state after a response."""
        if self.transport.is_closing():
            self._limit(self._limits.write_s, self._time_out_writing)
        elif self._is_answering() or self._ending:
            pass
        elif self._begun:
            self._await_request()
        elif self._acceptor.crowded:
            self._counts.evicted += 1
            self._close()
        else:
            self._acceptor.idle[self] = None
            self._limit(self._limits.idle_s, self._close)

    def _is_answering(self) -> bool:
        # The cycle is that of the last complete request; earlier ones are answered first.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, partial(self._answer, cycle, app))

    async def _answer(
        self, cycle: RequestResponseCycle, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        status, has_length = 0, False
        began = self.loop.time()

        async def count(message: Message) -> None:
            nonlocal status, has_length
            if message["type"] == "http.response.start":
                status = message["status"]
                has_length = any(name == b"content-length" for name, _ in message["headers"])
                self._counts.count_answer(status)
            if scope["http_version"] == "1.0" and not has_length:
                # HTTP/1.0 has no chunks. uvicorn checks lengths instead, so declare each piece's own length.
                cycle.chunked_encoding = False
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive, count)
        except Exception:
            if not status:
                # uvicorn answers 500.
                status = 500
                self._counts.count_answer(status)
            raise
        finally:
            if self._log is not None:
                self._log(_line(scope, status, self.loop.time() - began))
            # Runs after uvicorn has closed a response that the application left unfinished.
            self.loop.call_soon(self._limit_closing)

    def _limit_closing(self) -> None:
        if self.transport.is_closing() and self.parser is not None:
            self._settle()

    def _parse(self, data: memoryview) -> int:
        """Parse data; return how many bytes were parsed."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Upgrades are ignored: the request is answered as it is, and others may follow.
            return int(upgrade.args[0])
        except httptools.HttpParserError as error:
            refused = error.__context__  # raised by a callback
            if not isinstance(refused, Problem):
                refused = Problem(400, "not a valid HTTP/1.1 request")
            self._refuse(refused)
        return len(data)

    def _too_large_body(self) -> Problem:
        remedy = "send less at once" if self._limits.takes_bodies else "no path accepts a body: use GET"
        return Problem(413, f"the body has more than {self._limits.body_bytes} bytes", remedy)

    def _refuse(self, refused: Problem) -> None:
        """Stop reading. Let earlier requests be answered; if there are none, send the error."""
        self._ending = True
        self._acceptor.leave(self)
        self._counts.too_large += refused.status in {413, 431}
        if self._is_answering():
            self._limit(None)
            self.cycle.keep_alive = False
            return
        self._counts.count_answer(refused.status)
        if self._log is not None:
            self._log(f'{_host(self.client)} "-" {refused.status}')
        response = problem_response(refused)
        headers = common_headers([*response.raw_headers, (b"connection", b"close")])
        lines = [STATUS_LINE[refused.status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n"]
        self.transport.write(b"".join(lines) + bytes(response.body))
        # Closing immediately would reset the connection if the client is still sending, and so lose the response.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._limit(self._limits.linger_s, self.transport.abort)

    def _close(self) -> None:
        self._acceptor.leave(self)
        self.transport.close()
        self._limit(self._limits.write_s, self._time_out_writing)

    def _time_out(self) -> None:
        self._counts.timeouts += 1
        if self._begun:
            self._refuse(Problem(408, "the request took too long to arrive"))
        else:
            self._close()

    def _time_out_writing(self) -> None:
        self._counts.timeouts += 1
        self.transport.abort()

    def _limit(self, seconds: float | None, then: Callable[[], Any] | None = None) -> None:
        """Replace the deadline: call `then` after `seconds`; None cancels it."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None or then is None else self.loop.call_later(seconds, then)


def _line(scope: Scope, status: int, took_s: float) -> str:
    """Return the access log line of a response; the status is 0 if the client left before it began."""
    query = scope["query_string"].decode("latin-1")
    path = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    return f'{_host(scope["client"])} "{scope["method"]} {path}" {status} {took_s * 1e3:.1f} ms'


def _host(client: tuple[str, int] | None) -> str:
    """Return the address of a client; "-" on a Unix socket."""
    return client[0] if client else "-"
