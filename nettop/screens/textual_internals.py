# SPDX-License-Identifier: Apache-2.0
"""Uses of Textual's private names, checked with 8.2; `terminal` has the others. Look here first after an upgrade.

- `App._exit`, `_dispatch_message`: after `exit` no screen counts as attached, so mounting a widget on a key, click or
  message is an error.
- `App._display`, and the updates of `_compositor` (in `changed_cells`): Textual writes changed lines whole.
- `Screen._compositor_refresh`: the only place to measure drawing.
- `Screen._screen_resized`: a busy screen would resize itself forever if the terminal is resized twice.
- `App._screen_stacks`, `_current_mode`: an app with modes starts in Textual's default mode, which has no table.
- `App._check_bindings`, `Input._dispatch_message`: a key passed from widget to widget would run after the keys that
  follow it.
- `Console._color_system`: Rich recognizes few of the terminals with 256 colours.
- `App._filters`: Textual chooses the colour filter before nettop's themes exist.
"""

from __future__ import annotations

import os
from typing import Any

from rich.color import ColorSystem
from rich.console import RenderableType
from textual import events
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.app import App
from textual.await_complete import AwaitComplete
from textual.driver import Driver
from textual.filter import LineFilter, NoColor
from textual.geometry import Size
from textual.message import Message
from textual.messages import CloseMessages, ExitApp
from textual.screen import Screen, ScreenResultType
from textual.widgets import Input

from nettop.engine.own_cost import DRAW
from nettop.screens.changed_cells import ChangedCells, TerminalCells
from nettop.screens.context import ScreenContext
from nettop.snapshots.schema import Lens
from nettop.widgets.themes import has_256_colours

_HANDLED_AFTER_EXIT = (CloseMessages, ExitApp, events.Unmount, events.Callback)
"""Messages still handled after `exit`: those that close the app, and deferred callbacks."""


class MeasuredScreen(Screen[ScreenResultType], inherit_bindings=False):
    """A screen whose drawing time is measured as a step of the lens it shows or covers."""

    def __init__(self, context: ScreenContext, lens: Lens) -> None:
        super().__init__()
        self.context = context
        self.lens = lens

    def _compositor_refresh(self) -> None:
        """Render and write the changes. Below a dialog Textual only forwards this call to the dialog."""
        if not self.is_active:
            super()._compositor_refresh()
            return
        with self.context.session.steps.time(self.lens.id, DRAW):
            super()._compositor_refresh()

    def _screen_resized(self, size: Size) -> None:  # noqa: ARG002 - part of Textual's signature
        """Lay out for the terminal's current size. A screen posts each size it takes to itself, and two queued sizes
        would alternate forever."""
        super()._screen_resized(self.app.size)

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Close the screen, unless it is closed or covered: the closing key may have been pressed twice."""
        return super().dismiss(result) if self.is_active else AwaitComplete()


class EndingApp(App[None], inherit_bindings=False):
    """An app that writes only changed cells, and drops messages after its exit was requested."""

    def __init__(self, driver_class: type[Driver]) -> None:
        super().__init__(driver_class=driver_class)
        self._terminal_cells = TerminalCells()

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        shown: Any = renderable
        if isinstance(renderable, LayoutUpdate | ChopsUpdate):
            shown = ChangedCells(self._terminal_cells, renderable)
        super()._display(screen, shown)

    async def _dispatch_message(self, message: Message) -> None:
        if not self._exit or isinstance(message, _HANDLED_AFTER_EXIT):
            await super()._dispatch_message(message)


def start_in_mode(app: App[None], mode: str) -> None:
    """Set the mode in which an app will start."""
    app._screen_stacks = {mode: []}
    app._current_mode = mode


def screens_in_mode(app: App[None], mode: str) -> list[Screen[Any]]:
    """Return the screens of a mode, the top one last; none before the mode was first shown."""
    return app._screen_stacks.get(mode, [])


async def run_key(app: App[None], key: str) -> None:
    """Run a key's action on the visible screen, bindings that work everywhere first, and wait until it is done."""
    if not await app._check_bindings(key, priority=True):
        await app._check_bindings(key)


async def type_into(box: Input, event: events.Key | events.Paste) -> None:
    """Take typed or pasted text at once, as `run_key` runs the keys around it."""
    await box._dispatch_message(event)


def use_256_colours(app: App[None]) -> None:
    """Use 256 colours if TERM implies them, but Rich, which recognizes fewer terminals, assumes 16."""
    if app.console.color_system == "standard" and has_256_colours(os.environ.get("TERM", "")):
        app.console._color_system = ColorSystem.EIGHT_BIT


def set_filters(app: App[None], *, signs: LineFilter | None) -> None:
    """Drop all colours if NO_COLOR is set, and replace glyphs that the terminal lacks."""
    if app.no_color:
        app._filters[1:] = [NoColor()]  # Textual's own filter would turn colours into greys
    if signs is not None:
        app._filters.append(signs)
