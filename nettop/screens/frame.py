# SPDX-License-Identifier: Apache-2.0
"""The program around the screens: lenses, leases, what arrives from the sampler, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from textual.actions import SkipAction
from textual.app import App
from textual.binding import BindingType
from textual.filter import NoColor
from textual.message import Message
from textual.theme import BUILTIN_THEMES, Theme

from nettop.engine.session import Lease
from nettop.errors import NettopError, PermissionMissing, Unsupported, UsageError
from nettop.screens.actions import BY_ID, everywhere
from nettop.screens.context import Place, ScreenContext
from nettop.screens.lens import LensScreen, screen_of
from nettop.screens.terminal import Terminal
from nettop.settings import ViewSettings
from nettop.snapshots import find_table
from nettop.snapshots.own_cost import SELF
from nettop.widgets.bar import Bar
from nettop.widgets.glyphs import needed_signs
from nettop.widgets.themes import DARK, PALETTES, Palette, css_variables, first_theme


class Published(Message, bubble=False):
    """The bus has something new. At most one waits at a time."""


class NettopApp(App[None], inherit_bindings=False):
    """nettop in a terminal.

    Where this host or user cannot have even the first lens, or not in the way that was asked for, there is nothing
    to stay for: the app ends, and `hopeless` says why.
    """

    TITLE = "nettop"
    CSS_PATH = "frame.tcss"
    BINDINGS: ClassVar[list[BindingType]] = everywhere()
    ENABLE_COMMAND_PALETTE = False
    NOTIFICATION_TIMEOUT = 5

    def __init__(self, context: ScreenContext, theme: str | None = None) -> None:
        super().__init__(driver_class=Terminal)
        self.context = context
        self._shown = find_place(context, context.settings.view.view)
        self._screens = {self._shown.word: screen_of(context, self._shown, context.settings.view)}
        self._last = {lens.id: Place(lens, lens.main) for lens in context.lenses}
        self._last[self._shown.lens.id] = self._shown
        self._before_overhead = Place(context.lenses[0], context.lenses[0].main)
        for place in (Place(lens, table) for lens in (*context.lenses, SELF) for table in lens.tables):
            self.add_mode(place.word, partial(self._screen_for, place))
        # A table is a mode of Textual's, with its own stack of dialogs; the program begins in the one asked for.
        self._screen_stacks = {self._shown.word: []}
        self._current_mode = self._shown.word
        self._leases: dict[str, Lease] = {}
        self._waiting = False
        self._has_shown = False
        self.hopeless: NettopError | None = None
        self._unsubscribe: Callable[[], None] | None = None
        for palette in PALETTES.values():
            self.register_theme(_theme(palette))
        self.theme = theme or first_theme()
        self._fit_terminal()

    def _fit_terminal(self) -> None:
        """No colour at all where none is wanted, and no sign that the terminal lacks."""
        if self.no_color:
            # Textual chose a filter for its own default theme, which turns colours into greys.
            self._filters[1:] = [NoColor()]
        signs = needed_signs()
        if signs is not None:
            self._filters.append(signs)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """The palette's variables, for the moment before a theme of ours is chosen."""
        return css_variables(DARK)

    # --- what arrives ---------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Listen to the sampler, and to those who want the program to end."""
        self._unsubscribe = self.context.session.bus.subscribe(self._wake)
        self._attach_shown()
        self.app_resume_signal.subscribe(self, self._resumed)
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    loop.add_signal_handler(number, self.exit)

    def _resumed(self, _: object) -> None:
        """Back from the shell, whose lines stand where ours were: draw everything, changed or not."""
        self.screen.refresh(layout=True)

    def on_unmount(self) -> None:
        """Nothing may call a program that is over."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        for lease in self._leases.values():
            lease.release()

    def _wake(self) -> None:
        """Called in the sampler's thread: a message without a payload, unless one is on its way already."""
        if not self._waiting:
            self._waiting = True
            self.post_message(Published())

    def on_published(self) -> None:
        """Let the screen in sight show what is newest; hidden ones draw nothing."""
        self._waiting = False
        bus = self.context.session.bus
        failure = bus.failure(self._shown.lens.id)
        if isinstance(failure, PermissionMissing | Unsupported | UsageError) and not self._has_shown:
            self.hopeless = failure
            self.exit()
            return
        self._has_shown = self._has_shown or bus.frame(self._shown.lens.id) is not None
        if self.lens_screen.is_mounted:
            self.lens_screen.take()

    @property
    def lens_screen(self) -> LensScreen:
        """The screen in sight, also while a dialog stands over it."""
        return next(reversed(self._screens_of(self._shown)), self._screen_for(self._shown))

    def _screens_of(self, place: Place) -> list[LensScreen]:
        """The screens of a place that are mounted: its own, and what was opened from that by →."""
        stack = self._screen_stacks.get(place.word, ())
        return [screen for screen in stack if isinstance(screen, LensScreen)]

    # --- keys -----------------------------------------------------------------------------------------------

    def action_refresh_now(self) -> None:
        """Refresh at once; whatever has the focus then does its own thing with the key."""
        lens = self._shown.lens.id
        if self.context.session.bus.failure(lens) is not None:
            self._leases.pop(lens).release()
            self._attach_shown()
        self.lens_screen.refresh_now()
        self.context.session.sample_now()
        raise SkipAction

    def action_lens(self, digit: int) -> None:
        """Show the lens with this digit."""
        for lens in self.context.lenses:
            if lens.digit == str(digit):
                self.show(self._last[lens.id])

    def action_next_lens(self, step: int = 1) -> None:
        """Show the lens behind this one, as it was left; from what nettop costs, the one behind where one was."""
        here = self._before_overhead if self._shown.lens is SELF else self._shown
        ids = [lens.id for lens in self.context.lenses]
        self.show(self._last[ids[(ids.index(here.lens.id) + step) % len(ids)]])

    def action_overhead(self) -> None:
        """Show what nettop costs, or go back to where one was."""
        if self._shown.lens is SELF:
            self.show(self._before_overhead)
        else:
            self._before_overhead = self._shown
            self.show(Place(SELF, SELF.main))

    def action_previous_lens(self) -> None:
        """Show the lens before this one."""
        self.action_next_lens(-1)

    def action_next_table(self) -> None:
        """Show the table behind this one."""
        self.show(self._shown.beside(1))

    def action_previous_table(self) -> None:
        """Show the table before this one."""
        self.show(self._shown.beside(-1))

    def action_table(self, name: str) -> None:
        """Show a table of this lens; the one in sight without what was opened from it."""
        for table in self._shown.lens.tables:
            if table.name == name and self.lens_screen.works(BY_ID["next_table"]):
                self.show(Place(self._shown.lens, table))

    def show(self, place: Place) -> None:
        """Show a table. Its lens attaches when it is first shown, and the one before goes a little later."""
        left, self._shown = self._shown, place
        if place.word == left.word:
            if self.lens_screen.within is not None:
                self.lens_screen.dismiss()
            return
        self._last[place.lens.id] = place
        if place.lens.id != left.lens.id:
            self._attach_shown()  # first: what nettop costs is measured on what is attached
            self._leases.pop(left.lens.id).release()
        else:
            self.context.session.set(place.lens.id, "table", place.table.name)
        self._hasten()
        if self.lens_screen.is_mounted:
            self.lens_screen.take()  # first, so that nothing old is seen
        self.switch_mode(place.word)
        for screen in self._screens_of(left):
            screen.put_away()

    def _attach_shown(self) -> None:
        """Hold the lens in sight, and have its source give what its screens ask for."""
        lens, table = self._shown
        screens = [self._screen_for(self._shown), *self._screens.values()]
        all_rows = any(screen.state.query.all_rows for screen in screens if screen.lens.id == lens.id)
        asked = self.context.settings
        options = {
            "all_rows": all_rows,
            "table": table.name,
            "mechanisms": asked.mechanisms,
            **self.context.options,
        }
        self._leases[lens.id] = self.context.session.enable(lens.id, **options)

    def _hasten(self) -> None:
        """Have a table that nobody looked at before read now, not with the next refresh."""
        frame = self.context.session.bus.frame(self._shown.lens.id)
        if frame is not None and not self.lens_screen.is_in(frame):
            self.context.session.sample_now()

    def _screen_for(self, place: Place) -> LensScreen:
        if place.word not in self._screens:
            self._screens[place.word] = screen_of(self.context, place)
        return self._screens[place.word]

    def on_lens_screen_opened(self, message: LensScreen.Opened) -> None:
        """Show the rows behind a row, over the table that it stands in."""
        if self.lens_screen.stands_for is message.table:  # not when → was pressed twice, or `p` behind it
            place = Place(self._shown.lens, message.table)
            asked = ViewSettings(filters=(message.filter_text,))
            self.push_screen(screen_of(self.context, place, asked, within=self._shown.table))

    def action_theme(self) -> None:
        """The next theme."""
        names = list(PALETTES)
        self.theme = names[(names.index(self.theme) + 1) % len(names)]

    def action_help(self) -> None:
        """Show the help."""
        from nettop.screens.dialogs import HelpDialog, help_lines  # not needed for the first picture

        lines = help_lines(self.lens_screen, min(78, self.size.width - 6))
        self.push_screen(HelpDialog(self.lens_screen, lines))

    def action_palette(self) -> None:
        """Show the palette, and do what is chosen there."""
        from nettop.screens.dialogs import PaletteDialog, offers  # not needed for the first picture

        self.push_screen(PaletteDialog(self.lens_screen, offers(self.lens_screen)), self._chosen)

    async def _chosen(self, run: str | None) -> None:
        if run is None:
            return
        kind, _, name = run.partition(":")
        if kind == "sort":
            self.lens_screen.sort_by(name)
        elif kind == "table":
            self.action_table(name)
        else:
            await self.run_action(run, self.lens_screen)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """No key does anything that makes no sense now."""
        known = BY_ID.get(action)
        return known is None or known.everywhere or self.lens_screen.works(known)

    async def on_bar_pressed(self, message: Bar.Pressed) -> None:
        """A part of a bar was clicked."""
        await self.run_action(message.action, self.lens_screen)

    def action_suspend(self) -> None:
        """Back to the shell."""
        self.action_suspend_process()

    async def action_quit(self) -> None:
        """End."""
        self.exit()

    async def action_interrupt(self) -> None:
        """End, from anywhere."""
        self.exit()


def find_place(context: ScreenContext, view: str) -> Place:
    """The lens and the table that `view` names."""
    for lens in context.lenses:
        if lens.id == view:
            return Place(lens, lens.main)
    return Place(*find_table(view))


def _theme(palette: Palette) -> Theme:
    base = BUILTIN_THEMES["ansi-dark"] if palette.ansi else None
    return Theme(
        name=palette.name,
        dark=palette.dark,
        ansi=palette.ansi,
        primary=palette.received,
        warning=palette.warn,
        error=palette.bad,
        foreground=palette.text,
        background=palette.screen,
        surface=palette.screen,
        panel=palette.panel,
        # Textual's own style sheet wants variables that only its own themes of terminal colours have.
        variables=(base.variables if base else {}) | css_variables(palette),
    )
