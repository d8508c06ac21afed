# SPDX-License-Identifier: Apache-2.0
"""Answers that are sent as they are made, no faster than the client takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SLICE: Final = 65_536
"""Bytes that are sent at once: no more is copied for a client that takes nothing, until the server cuts it off."""

Deliver = Callable[[bytes], Awaitable[None]]
"""Sends a piece as soon as the client has taken those before it, but for what is in buffers of a fixed size."""
Write = Callable[[Deliver], Awaitable[None]]
"""Makes the body of an answer, and delivers it."""


class Streamed(Response):
    """An answer whose body `write` makes. That is cancelled when the client goes, or when `ending` is set.

    The status is sent with the first piece: what is raised before it is answered like any other error.
    """

    def __init__(
        self,
        write: Write,
        media_type: str,
        *,
        headers: Mapping[str, str] | None = None,
        ending: asyncio.Event | None = None,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)
        self._write = write
        self._ending = ending
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the answer."""
        sending = asyncio.create_task(self._send_all(send))
        gone = asyncio.create_task(_disconnected(receive))
        others: list[asyncio.Task[Any]] = [gone]
        if self._ending is not None:
            others.append(asyncio.create_task(self._ending.wait()))
        try:
            await asyncio.wait([sending, *others], return_when=asyncio.FIRST_COMPLETED)
            await _cancel(sending)
            if not sending.cancelled():
                sending.result()
            elif not gone.done():
                await self._put(send, b"", more=False)
        finally:
            await _cancel(sending, *others)

    async def _send_all(self, send: Send) -> None:
        await self._write(lambda piece: self._put(send, piece, more=True))
        await self._put(send, b"", more=False)

    async def _put(self, send: Send, piece: bytes, *, more: bool) -> None:
        if not self._started:
            self._started = True
            start = {"type": "http.response.start", "status": self.status_code}
            await send(start | {"headers": self.raw_headers})
        for at in range(0, len(piece) or 1, SLICE):
            await send({"type": "http.response.body", "body": piece[at : at + SLICE], "more_body": more})


async def nothing(_deliver: Deliver) -> None:
    """The body of the answer to HEAD."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
