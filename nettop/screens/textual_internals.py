# SPDX-License-Identifier: Apache-2.0
"""Everything that relies on private names of Textual, checked with 8.2: look here first after an upgrade.

- `LinuxDriver.run_input_thread`, `_xterm_parser` (in `terminal_input`): Textual's own ends the program at a byte that
  is not UTF-8.
- `Driver._file`, `_size`, `_app`, `App._loop`, `WriterThread`: Textual writes in a thread that dies of the first error,
  after which every writer waits for ever, as every one does for a terminal that takes nothing. A terminal may vanish:
  its window is closed, the line drops; or stop: the connection to it is frozen.
- `LinuxDriver._query_in_band_window_resize`: the kernel says when a terminal changes its size; what terminals send
  themselves could be any size.
- `LinuxDriver._sigtstp_application`, `_sigcont_application`: a hang-up sends SIGCONT too, for which Textual would
  start the terminal anew.
- `App._exit`, `_dispatch_message`: after `exit` no screen counts as attached, so that what a key, a click or a message
  would mount then is an error.
- `Screen._compositor_refresh`: the only place where drawing can be measured.
- `Screen._screen_resized`: a busy screen of a terminal that is resized twice would resize itself for ever.
- `App._screen_stacks`, `_current_mode`: an app with modes starts in one of its own that no table has.
- `App._check_bindings`: a key passed on from widget to widget would be run after those that follow it.
- `Console._color_system`: Rich knows few of the terminals that have 256 colours.
- `App._filters`: Textual picks the colour filter before our themes exist.
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

_AT_THE_END = (CloseMessages, ExitApp, events.Unmount, events.Callback)
"""What an app still has to do after `exit`: what closes it, and what was put off until other messages were handled."""
_LOOK_AGAIN_MS = 50
"""Time after which a lone Escape is a key, and the end is noticed."""
_READ_BYTES = 4096
_PATIENCE_S = 0.1
"""At the end a terminal that takes nothing for so long is frozen."""
_RESTORE_S = 0.5
"""A terminal that does not take within this time what restores it stays as it is."""
_KEYS_WITHOUT_LAYOUT: Final = "\x1b[>25u"
_KEYS_WITH_LAYOUT: Final = "\x1b[>29u"
"""Asks for kitty's keyboard protocol as Textual does, and for what a key is on a Latin keyboard."""


class MeasuredScreen(Screen[ScreenResultType], inherit_bindings=False):
    """A screen whose drawing is measured, as a step of the lens that it shows or covers."""

    def __init__(self, context: ScreenContext, lens: Lens) -> None:
        super().__init__()
        self.context = context
        self.lens = lens

    def _compositor_refresh(self) -> None:
        """Render and write what has changed; below a dialog Textual only passes this on to the dialog."""
        if not self.is_active:
            super()._compositor_refresh()
            return
        with self.context.session.steps.time(self.lens.id, DRAW):
            super()._compositor_refresh()

    def _screen_resized(self, size: Size) -> None:  # noqa: ARG002 - its place is in Textual's signature
        """Lay out for the size that the terminal has by now: a screen posts to itself each size that it takes, and
        two sizes that wait together would take turns for ever."""
        super()._screen_resized(self.app.size)

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Close, unless it is closed or covered: the key that closes may have come twice."""
        return super().dismiss(result) if self.is_active else AwaitComplete()


class EndingApp(App[None], inherit_bindings=False):
    """An app that drops what comes after its end was requested."""

    async def _dispatch_message(self, message: Message) -> None:
        if not self._exit or isinstance(message, _AT_THE_END):
            await super()._dispatch_message(message)


def start_in_mode(app: App[None], mode: str) -> None:
    """Have an app that does not run yet start in one of its modes."""
    app._screen_stacks = {mode: []}
    app._current_mode = mode


def screens_in_mode(app: App[None], mode: str) -> list[Screen[Any]]:
    """The screens of a mode, the top one last; none before it was first shown."""
    return app._screen_stacks.get(mode, [])


async def run_key(app: App[None], key: str) -> None:
    """Do what a key does on the screen in sight, the keys that work everywhere first, until it is done."""
    if not await app._check_bindings(key, priority=True):
        await app._check_bindings(key)


def use_256_colours(app: App[None]) -> None:
    """Use 256 colours where TERM says that the terminal has them and Rich, which knows fewer, assumes 16."""
    if app.console.color_system == "standard" and has_256_colours(os.environ.get("TERM", "")):
        app.console._color_system = ColorSystem.EIGHT_BIT


def set_filters(app: App[None], *, signs: LineFilter | None) -> None:
    """Drop every colour where none is wanted, and replace signs that the terminal lacks."""
    if app.no_color:
        app._filters[1:] = [NoColor()]  # Textual's own choice turns colours into greys
    if signs is not None:
        app._filters.append(signs)


class TerminalDriver(LinuxDriver):
    """A driver that ends the program when its terminal is gone, and whatever the terminal sends or does not take."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        self._is_suspended = False
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        if size is None:
            # A serial console reports 0×0. Rich takes that for 80×25 and the driver for 80×24, and the two would
            # resize each other for ever.
            self._size = self._get_terminal_size()
        # Of the standard streams, this one is known to be a terminal.
        self._output = TerminalOutput(cast(Any, sys.__stdout__).fileno(), self._terminal_gone)
        self._file = cast(Any, self._output)

    def write(self, data: str) -> None:
        """Queue a text for the terminal, once there is room; at the end, room is made."""
        self._put(_KEYS_WITH_LAYOUT if data == _KEYS_WITHOUT_LAYOUT else data)

    def drop_output(self) -> None:
        """Write nothing more until the terminal is restored. May be called by signal handlers."""
        self._output.drop()

    def stop_application_mode(self) -> None:
        """Restore the terminal, without what is queued."""
        self._output.restoring.clear()
        self._output.drop()
        self.write(RESTORING)
        until = time.monotonic() + _RESTORE_S
        while not self._output.restoring.wait(_PATIENCE_S) and time.monotonic() < until:
            self._unblock()
        super().stop_application_mode()

    def close(self) -> None:
        """Wait until the terminal is restored, unless it takes nothing."""
        self._put(None)
        if self._writer_thread is not None:
            self._writer_thread.join(_RESTORE_S)

    def _put(self, text: str | None) -> None:
        thread = self._writer_thread
        while thread is not None and thread.is_alive():
            try:
                thread._queue.put(text, timeout=_PATIENCE_S)
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
        """Read keys until the end, or until the terminal is gone."""
        parser = InputParser()
        ready = select.poll()
        ready.register(self.fileno, select.POLLIN)
        try:
            while not self.exit_event.is_set():
                if ready.poll(_LOOK_AGAIN_MS):
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
        """Send what the terminal sent to the app; the kernel says what its size is."""
        if not isinstance(message, events.Resize | InBandWindowResize):
            super().process_message(message)

    def _query_in_band_window_resize(self) -> None:
        pass

    def _terminal_gone(self) -> None:
        loop = self._app._loop
        if loop is not None and not loop.is_closed():
            # Not at once: a screen that is being made would fail.
            loop.call_soon_threadsafe(self._app.call_later, self._app.exit)
