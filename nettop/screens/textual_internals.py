# SPDX-License-Identifier: Apache-2.0
"""All uses of Textual's private names, checked with 8.2. Look here first after an upgrade.

- `LinuxDriver.run_input_thread`, `_xterm_parser` (in `terminal_input`): Textual's own exits on a byte that is not
  UTF-8.
- `Driver._file`, `_size`, `_app`, `App._loop`, `WriterThread`: Textual's writer thread dies on the first error, after
  which all writers wait forever, as they do for a terminal that accepts nothing. A terminal may disappear (its window
  is closed, the line drops) or stall (its connection is frozen).
- `LinuxDriver._query_in_band_window_resize`: the kernel reports resizes; a terminal's own reports could claim any size.
- `LinuxDriver._sigtstp_application`, `_sigcont_application`: a hang-up also sends SIGCONT, on which Textual would
  restart the terminal.
- `App._exit`, `_dispatch_message`: after `exit` no screen counts as attached, so mounting a widget on a key, click or
  message is an error.
- `Screen._compositor_refresh`: the only place to measure drawing.
- `Screen._screen_resized`: a busy screen would resize itself forever if the terminal is resized twice.
- `App._screen_stacks`, `_current_mode`: an app with modes starts in Textual's default mode, which has no table.
- `App._check_bindings`: a key passed from widget to widget would run after the keys that follow it.
- `Console._color_system`: Rich recognizes few of the terminals with 256 colours.
- `App._filters`: Textual chooses the colour filter before nettop's themes exist.
"""

from __future__ import annotations

import os
import select
import sys
import time
from queue import Full
from typing import Any, Final, cast

from rich.color import ColorSystem
from textual import events
from textual.app import App
from textual.await_complete import AwaitComplete
from textual.drivers.linux_driver import LinuxDriver
from textual.filter import LineFilter, NoColor
from textual.geometry import Size
from textual.message import Message
from textual.messages import CloseMessages, ExitApp, InBandWindowResize
from textual.screen import Screen, ScreenResultType

from nettop.engine.own_cost import DRAW
from nettop.screens.context import ScreenContext
from nettop.screens.terminal_input import InputParser
from nettop.screens.terminal_output import RESTORING, TerminalOutput
from nettop.snapshots.schema import Lens
from nettop.widgets.themes import has_256_colours

_HANDLED_AFTER_EXIT = (CloseMessages, ExitApp, events.Unmount, events.Callback)
"""Messages still handled after `exit`: those that close the app, and deferred callbacks."""
_POLL_MS = 50
"""Milliseconds after which a lone Escape counts as a key; also the delay in noticing the exit."""
_READ_BYTES = 4096
_STALL_S = 0.1
"""Seconds after which, on exit, a terminal that accepts nothing counts as stalled."""
_RESTORE_S = 0.5
"""Seconds allowed for restoring the terminal."""
_KEYS_WITHOUT_LAYOUT: Final = "\x1b[>25u"
_KEYS_WITH_LAYOUT: Final = "\x1b[>29u"
"""Request for kitty's keyboard protocol as by Textual, plus each key's Latin equivalent."""


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
    """An app that drops messages after its exit was requested."""

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


class TerminalDriver(LinuxDriver):
    """A driver that copes with any terminal input and with stalled output, and exits when the terminal is gone."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        self._is_suspended = False
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        if size is None:
            # A serial console reports 0×0. Rich assumes 80×25 and the driver 80×24, and the two would resize each
            # other forever.
            self._size = self._get_terminal_size()
        # Of the standard streams, only this one is known to be a terminal.
        self._output = TerminalOutput(cast(Any, sys.__stdout__).fileno(), self._terminal_gone)
        self._file = cast(Any, self._output)

    def write(self, data: str) -> None:
        """Queue a text for the terminal, waiting for room; on exit, make room."""
        self._put(_KEYS_WITH_LAYOUT if data == _KEYS_WITHOUT_LAYOUT else data)

    def drop_output(self) -> None:
        """Drop all output until the terminal is restored. May be called from signal handlers."""
        self._output.drop()

    def stop_application_mode(self) -> None:
        """Restore the terminal, dropping queued output."""
        self._output.restoring.clear()
        self._output.drop()
        self.write(RESTORING)
        until = time.monotonic() + _RESTORE_S
        while not self._output.restoring.wait(_STALL_S) and time.monotonic() < until:
            self._unblock()
        super().stop_application_mode()

    def close(self) -> None:
        """Wait until the terminal is restored, unless it has stalled."""
        self._put(None)
        if self._writer_thread is not None:
            self._writer_thread.join(_RESTORE_S)

    def _put(self, text: str | None) -> None:
        thread = self._writer_thread
        while thread is not None and thread.is_alive():
            try:
                thread._queue.put(text, timeout=_STALL_S)
            except Full:
                if self._output.is_dropping:
                    self._unblock()
            else:
                return

    def _unblock(self) -> None:
        thread = self._writer_thread
        if thread is not None and thread.is_alive() and thread.ident is not None:
            self._output.unblock(thread.ident)

    def _sigtstp_application(self, *_: object) -> None:
        self._is_suspended = True
        super()._sigtstp_application()

    def _sigcont_application(self, *_: object) -> None:
        if self._is_suspended:
            self._is_suspended = False
            super()._sigcont_application()

    def run_input_thread(self) -> None:
        """Read input until exit, or until the terminal is gone."""
        parser = InputParser()
        ready = select.poll()
        ready.register(self.fileno, select.POLLIN)
        try:
            while not self.exit_event.is_set():
                if ready.poll(_POLL_MS):
                    data = os.read(self.fileno, _READ_BYTES)
                    if not data:
                        raise EOFError
                    for message in parser.feed(data):
                        self.process_message(message)
                for message in parser.tick():
                    self.process_message(message)
        except (OSError, EOFError):
            self._terminal_gone()

    def process_message(self, message: Message) -> None:
        """Forward the terminal's messages to the app, except for sizes, which the kernel reports."""
        if not isinstance(message, events.Resize | InBandWindowResize):
            super().process_message(message)

    def _query_in_band_window_resize(self) -> None:
        pass

    def _terminal_gone(self) -> None:
        loop = self._app._loop
        if loop is not None and not loop.is_closed():
            # Deferred: a screen being mounted would fail.
            loop.call_soon_threadsafe(self._app.call_later, self._app.exit)
