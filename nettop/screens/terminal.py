# SPDX-License-Identifier: Apache-2.0
"""Textual's driver for a terminal that may vanish: the window is closed, the line drops, the master dies.

Textual 8.2 writes in a thread that dies of the first error, and whoever writes then waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from textual.app import App


class Terminal(LinuxDriver):
    """Ends the program when its terminal is gone."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        self._is_suspended = False
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        if size is None:
            # A serial console says that it is 0×0. Rich takes that for 80×25 and the driver for 80×24, and
            # the two would resize each other for ever.
            self._size = self._get_terminal_size()
        self._file = cast(Any, _Patient(cast(Any, self._file), self._vanished))

    def _sigtstp_application(self, *_: object) -> None:
        self._is_suspended = True
        super()._sigtstp_application()

    def _sigcont_application(self, *_: object) -> None:
        """Come back, if we were away: a hang-up sends SIGCONT too, and then Textual would start all anew."""
        if self._is_suspended:
            self._is_suspended = False
            super()._sigcont_application()

    def run_input_thread(self) -> None:
        """Read keys until the end, or until there is nothing to read from."""
        try:
            super().run_input_thread()
        except OSError:
            self._vanished()

    def _vanished(self) -> None:
        loop = self._app._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._app.exit)


class _Patient:
    """A file that takes everything, and says once that nothing arrives any more."""

    def __init__(self, file: IO[str], lost: Callable[[], None]) -> None:
        self._file = file
        self._lost = lost
        self._is_lost = False

    def fileno(self) -> int:
        """The descriptor behind it."""
        return self._file.fileno()

    def write(self, text: str) -> None:
        """Write, if there is somebody to read."""
        self._try(lambda: self._file.write(text))

    def flush(self) -> None:
        """Flush, if there is somebody to read."""
        self._try(self._file.flush)

    def _try(self, step: Callable[[], object]) -> None:
        if self._is_lost:
            return
        try:
            step()
        except OSError:
            self._is_lost = True
            self._lost()
