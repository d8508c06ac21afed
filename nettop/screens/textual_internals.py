# SPDX-License-Identifier: Apache-2.0
"""Everything that relies on private names of Textual, checked with 8.2: look here first after an upgrade.

- `Driver._file`, `_size`, `_app`, `App._loop`: Textual writes in a thread that dies of the first error, after which
  every writer waits for ever. A terminal may vanish: its window is closed, the line drops.
- `LinuxDriver._sigtstp_application`, `_sigcont_application`: a hang-up sends SIGCONT too, for which Textual would
  start the terminal anew.
- `Screen._compositor_refresh`: the only place where drawing can be measured.
- `App._screen_stacks`, `_current_mode`: an app with modes starts in one of its own that no table has.
- `App._check_bindings`: a key passed on from widget to widget would be run after those that follow it.
- `App._filters`: Textual picks the colour filter before our themes exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, cast

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.filter import LineFilter, NoColor
from textual.screen import Screen, ScreenResultType

from nettop.engine.own_cost import DRAW
from nettop.screens.context import ScreenContext
from nettop.snapshots.schema import Lens


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


def set_filters(app: App[None], *, signs: LineFilter | None) -> None:
    """Drop every colour where none is wanted, and replace signs that the terminal lacks."""
    if app.no_color:
        app._filters[1:] = [NoColor()]  # Textual's own choice turns colours into greys
    if signs is not None:
        app._filters.append(signs)


class TerminalDriver(LinuxDriver):
    """A driver that ends the program when its terminal is gone."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        self._is_suspended = False
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        if size is None:
            # A serial console reports 0×0. Rich takes that for 80×25 and the driver for 80×24, and the two would
            # resize each other for ever.
            self._size = self._get_terminal_size()
        self._file = cast(Any, _TerminalFile(cast(Any, self._file), self._terminal_gone))

    def _sigtstp_application(self, *_: object) -> None:
        self._is_suspended = True
        super()._sigtstp_application()

    def _sigcont_application(self, *_: object) -> None:
        if self._is_suspended:
            self._is_suspended = False
            super()._sigcont_application()

    def run_input_thread(self) -> None:
        """Read keys until the end, or until the terminal is gone."""
        try:
            super().run_input_thread()
        except OSError:
            self._terminal_gone()

    def _terminal_gone(self) -> None:
        loop = self._app._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._app.exit)


class _TerminalFile:
    """A file that never fails: the first error is reported, and everything after it dropped."""

    def __init__(self, file: IO[str], on_error: Callable[[], None]) -> None:
        self._file = file
        self._on_error = on_error
        self._has_failed = False
        self.fileno = file.fileno

    def write(self, text: str) -> None:
        """Write, while there is a terminal."""
        self._try(lambda: self._file.write(text))

    def flush(self) -> None:
        """Flush, while there is a terminal."""
        self._try(self._file.flush)

    def _try(self, step: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            step()
        except OSError:
            self._has_failed = True
            self._on_error()
