# SPDX-License-Identifier: Apache-2.0
"""An application to put behind the server, whose answers a test controls."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import PlainTextResponse, StreamingResponse


@dataclass(eq=False)
class Application:
    """An application that answers `/wait` when allowed, fails on `/bug` and `/half`, and answers all else at once."""

    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released by each request for `/wait`."""
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        match scope["path"]:
            case "/wait":
                self.waiting.release()
                await self.may_answer.wait()
                answer = "at last"
            case "/large":
                answer = "x" * (64 << 20)
            case "/bug":
                raise ZeroDivisionError("by nought")
            case "/half":
                start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]}
                await send(start)
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
                raise ZeroDivisionError("half of it")
            case "/pieces":
                await StreamingResponse(f"piece {at};" for at in range(1000))(scope, receive, send)
                return
            case "/method":
                answer = scope["method"]
            case "/body":
                answer = repr(await receive())
            case path:
                answer = f"hello {path}"
        await PlainTextResponse(answer)(scope, receive, send)
