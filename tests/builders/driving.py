# SPDX-License-Identifier: Apache-2.0
"""Drive the app by pilot: start it over a script, press keys, let the sampler read, read the table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from textual import events
from textual.pilot import Pilot

from nettop.screens.lens import LensScreen
from nettop.settings import Settings, ViewSettings
from nettop.widgets.lines import Lines
from nettop.widgets.table import LiveTable
from tests.builders.example_events import eventful_host
from tests.builders.harness import Batches, Harness, Step, harness_of

Running = tuple[Pilot[None], LensScreen, Harness]


@asynccontextmanager
async def running(
    steps: list[Step],
    size: tuple[int, int] = (120, 30),
    *,
    batches: Batches | None = None,
    view: str = "",
    ticks: int = 2,
    silent: Collection[str] = (),
    **app_kwargs: Any,
) -> AsyncIterator[Running]:
    """Yield the app over a script, in the view that is named, after some turns of the sampler."""
    harness = harness_of(steps, {"command": "nginx -g daemon off;"}, batches, silent)
    if view:
        app_kwargs["settings"] = Settings(view=ViewSettings(view=view))
    app = harness.app(**app_kwargs)
    async with app.run_test(size=size) as pilot:
        for _ in range(ticks):
            harness.tick()
            await pilot.pause()
        yield pilot, app.lens_screen, harness


def on_eventful_host(size: tuple[int, int] = (120, 30), **how: Any) -> AbstractAsyncContextManager[Running]:
    """Run the app over a host on which connections open, close and fail."""
    steps, batches = eventful_host()
    return running(steps, size, batches=batches, **how)


def shown(run: Running) -> LensScreen:
    """Return the screen in sight now."""
    app = run[0].app
    return app.lens_screen


async def press(run: Running, *keys: str) -> None:
    """Press keys, each with its consequences."""
    pilot, _, harness = run
    for key in keys:
        await pilot.press(key)
        await pilot.pause()
        harness.run_tasks()
        await pilot.pause()


async def type_at_once(run: Running, *keys: str) -> None:
    """Send all keys before the first is handled."""
    for key in keys:
        run[0].app.post_message(events.Key("space" if key == " " else key, key if len(key) == 1 else None))
    all_are_read = asyncio.Event()
    run[0].app.call_later(all_are_read.set)
    await all_are_read.wait()
    await run[0].pause()  # what was opened is there …
    await run[0].pause()  # … and has its place on the screen


async def tick(run: Running) -> None:
    """Run the sampler's next turn, and draw it."""
    run[2].tick()
    await run[0].pause()


def text_of(table: LiveTable) -> list[str]:
    """Return the text of each line of the table."""
    return [table.render_line(y).text for y in range(table.size.height)]


def lines(widget: Lines) -> list[str]:
    """Return the lines of a widget, without blanks at their ends."""
    return [widget.render_line(y).text.rstrip() for y in range(widget.size.height)]


def values_of(screen: LensScreen, name: str) -> list[Any]:
    """Return the values of a column, from the top."""
    return screen.view.values(name, screen.view.order)


def notes(run: Running) -> list[str]:
    """Return the notices so far."""
    return [note.message for note in run[0].app._notifications]


def screen_text(run: Running) -> str:
    """Return all lines of the screen in sight, as they are drawn."""
    strips = run[0].app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)
