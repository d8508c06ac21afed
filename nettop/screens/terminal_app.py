# SPDX-License-Identifier: Apache-2.0
"""The base of the apps in the terminal: colours, signals, and keys in the order in which they are pressed."""

from __future__ import annotations

from textual import events
from textual.theme import BUILTIN_THEMES, Theme
from textual.widgets import Input

from nettop.process.interrupts import handle_signals
from nettop.screens.terminal import TerminalDriver, latin_key
from nettop.screens.textual_internals import EndingApp, run_key, set_filters, type_into, use_256_colours
from nettop.widgets.glyphs import needed_signs
from nettop.widgets.themes import PALETTES, Palette


class TerminalApp(EndingApp, inherit_bindings=False):
    """An app in one of nettop's themes. Ctrl-C or a signal ends it, and sets `was_interrupted`."""

    TITLE = "nettop"
    CSS_PATH = "nettop.tcss"
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, theme: str) -> None:
        super().__init__(driver_class=TerminalDriver)
        self.was_interrupted = False
        for palette in PALETTES.values():
            self.register_theme(_theme(palette))
        self.theme = theme
        use_256_colours(self)
        set_filters(self, signs=needed_signs())

    def run_until_ended(self) -> None:
        """Run until the user or a signal ends the app."""
        with handle_signals(self._end):
            self.run()

    def _end(self) -> None:
        """Exit now, or as soon as the app runs. Called by signal handlers: the app may be blocked on the terminal."""
        self.was_interrupted = True
        if isinstance(self._driver, TerminalDriver):
            self._driver.drop_output()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.call_later, self.exit)

    def on_mount(self) -> None:
        """Exit if a signal has arrived already."""
        if self.was_interrupted:
            self.call_later(self.exit)
        # After a suspend, the terminal shows the shell's lines.
        self.app_resume_signal.subscribe(self, lambda _: self.screen.refresh(layout=True))

    async def on_event(self, event: events.Event) -> None:
        """Finish a key's action before reading the next key, which may belong to a box that it opens or closes.

        After a signal, drop pending input: handling it could take longer than an exit may.
        """
        if self.was_interrupted and isinstance(event, events.InputEvent):
            return
        if not isinstance(event, events.Key | events.Paste) or event.is_forwarded:
            await super().on_event(event)
        elif isinstance(self.focused, Input) and (isinstance(event, events.Paste) or event.is_printable):
            await type_into(self.focused, event)
        elif isinstance(event, events.Key):
            await run_key(self, event.key if isinstance(self.focused, Input) else latin_key(event.key))

    async def action_interrupt(self) -> None:
        """Quit from anywhere."""
        self.was_interrupted = True
        self.exit()


def _theme(palette: Palette) -> Theme:
    # Textual's style sheet needs variables that only its own ANSI themes define.
    variables = BUILTIN_THEMES["ansi-dark"].variables if palette.ansi else {}
    return Theme(
        name=palette.name,
        dark=palette.dark,
        ansi=palette.ansi,
        primary=palette["received"],
        warning=palette["warn"],
        error=palette["bad"],
        foreground=palette["text"],
        background=palette["screen"],
        surface=palette["screen"],
        panel=palette["panel"],
        variables=variables | {"panel": palette["panel"]},
    )
