# SPDX-License-Identifier: Apache-2.0
"""A WebSocket service and its client, for Debian's Python and its websockets.

`serve PORT SECONDS`: answers each message after so long; after the answer to "pings N" it pings so often, an eighth of
a second apart and each after the pong to the one before, then sends another message.
`ask PORT MESSAGES PINGS`: sends so many messages, each after the answer to the one before, the last one "pings PINGS".
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
    """Send messages, one after the other, and stay for so many pings."""
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
