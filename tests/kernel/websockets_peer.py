# SPDX-License-Identifier: Apache-2.0
"""A WebSocket service and its client, for Debian's Python and its websockets.

`serve PORT SECONDS` answers each message after this delay; after its response to "pings N" it sends N pings, each an
eighth of a second after the previous pong, then another message. `ask PORT MESSAGES PINGS` sends MESSAGES messages,
each after the previous response, the last one "pings PINGS".
"""

import asyncio
import sys

import websockets

APART_S = 0.125


async def serve(port: int, seconds: float) -> None:
    """Answer messages until the process is killed."""

    async def answer(connection: websockets.WebSocketServerProtocol, path: str = "") -> None:
        async for message in connection:
            await asyncio.sleep(seconds)
            await connection.send("answer")
            if pings := int(message.partition(" ")[2] or 0):
                for _ in range(pings):
                    await asyncio.sleep(APART_S)
                    await (await connection.ping())
                await connection.send("done")

    async with websockets.serve(answer, "127.0.0.1", port, ping_interval=None):
        await asyncio.Future()


async def ask(port: int, messages: int, pings: int) -> None:
    """Send messages one by one, and stay connected for `pings` pings."""
    async with websockets.connect(f"ws://127.0.0.1:{port}", ping_interval=None) as connection:
        for _ in range(messages - 1):
            await connection.send("question")
            await connection.recv()
        await connection.send(f"pings {pings}")
        await connection.recv()
        await connection.recv()


if sys.argv[1] == "serve":
    asyncio.run(serve(int(sys.argv[2]), float(sys.argv[3])))
else:
    asyncio.run(ask(*map(int, sys.argv[2:])))
