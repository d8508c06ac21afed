# SPDX-License-Identifier: Apache-2.0
"""The Textual app around the screens: current screen, leases, the sampler's frames, and exit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from textual.actions import SkipAction
from textual.binding import BindingType
from textual.message import Message

from nettop.engine.session import Lease
from nettop.errors import NettopError, PermissionMissing, Unsupported, UsageError
from nettop.query.finding_tracker import GONE_AFTER_NS
from nettop.query.found import listed
from nettop.screens.actions import BY_ID, bindings
from nettop.screens.context import ScreenContext, TableRef
from nettop.screens.finding_strip import place_after
from nettop.screens.lens import LensScreen, make_screen
from nettop.screens.terminal_app import TerminalApp
from nettop.screens.textual_internals import screens_in_mode, start_in_mode
from nettop.settings import ViewSettings
from nettop.snapshots import find_table
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.source import SourceOptions
from nettop.widgets.lines import Lines
from nettop.widgets.themes import PALETTES, THEME_PREFIX, first_theme

_FINDINGS_OPTIONS = SourceOptions(frozenset({FINDINGS.main.name}))
_PROBLEM_S = 20.0
"""Seconds that a problem in the user's preferences is shown: it may be long, and is shown only once."""


class Published(Message, bubble=False):
    """A new frame or failure on the bus. At most one such message is queued."""


class NettopApp(TerminalApp, inherit_bindings=False):
    """nettop in a terminal.

    If the first lens cannot attach (missing permission, unsupported lens or mechanism), the app exits and `fatal_error`
    says why.
    """

    BINDINGS: ClassVar[list[BindingType]] = bindings(everywhere=True)
    NOTIFICATION_TIMEOUT = 5

    def __init__(self, context: ScreenContext, theme: str | None = None) -> None:
        super().__init__(theme or first_theme(remembered=context.loaded.preferences.theme))
        self.context = context
        view = context.settings.view.view
        main = next((lens for lens in context.lenses if lens.id == view), None)
        self._shown = TableRef(main, main.main) if main else TableRef(*find_table(view))
        self._screens = {self._shown.view_name: make_screen(context, self._shown, context.settings.view)}
        self._last_shown = {lens.id: TableRef(lens, lens.main) for lens in context.lenses}
        self._last_shown[self._shown.lens.id] = self._shown
        self._before_overhead = TableRef(context.lenses[0], context.lenses[0].main)
        for ref in (TableRef(lens, table) for lens in (*context.lenses, SELF) for table in lens.tables):
            self.add_mode(ref.view_name, partial(self._screen_for, ref))  # each has its own stack of dialogs
        start_in_mode(self, self._shown.view_name)
        self._leases: dict[str, Lease] = {}
        self._findings_lease: Lease | None = None
        self._is_queued = False
        self._has_shown = False
        self.fatal_error: NettopError | None = None
        self._unsubscribe: Callable[[], None] | None = None

    # --- frames ---------------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Subscribe to the bus, and attach the lens."""
        self._unsubscribe = self.context.session.bus.subscribe(self._queue_published)
        self._attach_shown()
        for problem in self.context.loaded.problems:
            self.notify(problem, title="nettop config", severity="warning", timeout=_PROBLEM_S, markup=False)
        self._queue_published()  # the lens was attached before this: a paused recording has been read for good

    def on_unmount(self) -> None:
        """Unsubscribe and detach."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        for lease in (*self._leases.values(), self._findings_lease):
            if lease is not None:
                lease.release()

    def _queue_published(self) -> None:
        """Queue a message, unless one is queued already. Called in the sampler's thread."""
        if not self._is_queued:
            self._is_queued = True
            self.post_message(Published())

    def on_published(self) -> None:
        """Let the visible screen show the newest frame; hidden screens draw nothing."""
        self._is_queued = False
        bus = self.context.session.bus
        failure = bus.failure(self._shown.lens.id)
        if isinstance(failure, PermissionMissing | Unsupported | UsageError) and not self._has_shown:
            self.fatal_error = failure
            self.exit()
            return
        if not self._has_shown and bus.frame(self._shown.lens.id) is not None:
            self._has_shown = True
            if self.context.has_findings:  # as long as the app runs; the first screen does not wait for them
                self._findings_lease = self.context.session.enable(FINDINGS.id, _FINDINGS_OPTIONS)
        if self.lens_screen.is_mounted:
            self.lens_screen.show_newest()

    @property
    def lens_screen(self) -> LensScreen:
        """The current screen, even while a dialog covers it."""
        return next(reversed(self._screens_of(self._shown)), self._screen_for(self._shown))

    def _screens_of(self, ref: TableRef) -> list[LensScreen]:
        """Return the mounted screens of a table: its own, and those opened from it by →."""
        return [screen for screen in screens_in_mode(self, ref.view_name) if isinstance(screen, LensScreen)]

    # --- keys -----------------------------------------------------------------------------------------------

    def action_refresh_now(self) -> None:
        """Read now, and write the whole screen again; the focused widget gets the key too."""
        self.screen.refresh()
        lens = self._shown.lens.id
        if self.context.session.bus.failure(lens) is not None:
            self._leases.pop(lens).release()
            self._attach_shown()
        self.lens_screen.refresh_now()
        self.context.session.sample_now()
        raise SkipAction

    async def action_lens(self, digit: int) -> None:
        """Show the lens with this digit."""
        for lens in self.context.lenses:
            if lens.digit == str(digit):
                await self.show(self._last_shown[lens.id])

    async def action_next_lens(self, step: int = 1) -> None:
        """Show the next lens that works, with its last table; from the overhead, continue after the previous lens."""
        shown = self._before_overhead if self._shown.lens is SELF else self._shown
        lenses = [
            lens for lens in self.context.lenses if lens.id == shown.lens.id or self.context.works(lens)
        ]
        at = next(at for at, lens in enumerate(lenses) if lens.id == shown.lens.id)
        await self.show(self._last_shown[lenses[(at + step) % len(lenses)].id])

    async def action_overhead(self) -> None:
        """Show nettop's own cost, or return to the previous table."""
        if self._shown.lens is SELF:
            await self.show(self._before_overhead)
        else:
            self._before_overhead = self._shown
            await self.show(TableRef(SELF, SELF.main))

    async def action_next_table(self, step: int = 1) -> None:
        """Show the next (`step` 1) or the previous (−1) table of the lens."""
        await self.show(self._shown.neighbour(step))

    async def action_table(self, name: str) -> None:
        """Show a table of this lens; if it is current already, close the screens opened from it."""
        for table in self._shown.lens.tables:
            if table.name == name and self.lens_screen.keys.is_available(BY_ID["next_table"]):
                await self.show(TableRef(self._shown.lens, table))

    async def action_view(self, name: str) -> None:
        """Show a table of any lens, by its name in --view."""
        refs = (TableRef(lens, table) for lens in self.context.lenses for table in lens.tables)
        await self.show(next(ref for ref in refs if ref.view_name == name))

    async def show(self, ref: TableRef) -> None:
        """Show a table, ready for the next key. Attach its lens before releasing the previous one."""
        before, self._shown = self._shown, ref
        if ref.view_name == before.view_name:
            if self.lens_screen.opened_from is not None:
                self.lens_screen.dismiss()
            return
        self._last_shown[ref.lens.id] = ref
        self._screen_for(before).share_choice()
        last_lease = self._leases.pop(before.lens.id)
        self._attach_shown()  # before the release: the overhead is measured on attached programs
        last_lease.release()
        frame = self.context.session.bus.frame(ref.lens.id)
        if frame is not None and not self.lens_screen.shown_frame.has_table(frame):
            self.context.session.sample_now()  # tables are read once shown: do not wait for the next refresh
        self._screen_for(ref).follow_lens()
        if self.lens_screen.is_mounted:
            self.lens_screen.show_newest()  # draw before it becomes visible
        await self.switch_mode(ref.view_name)
        for screen in self._screens_of(before):
            if screen.is_mounted and screen.shown_frame.frozen is None:
                screen.release_view()

    async def action_next_finding(self) -> None:
        """Open the rows that show the selected or the first finding, or else the one after that whose rows are shown;
        after the last, show all rows. A finding that has gone has no rows to show."""
        screen = self.lens_screen
        if screen.table.name == FINDINGS.main.name and screen.rows.key is not None:
            await self.action_finding(screen.rows.key)
            return
        frame = self.context.session.bus.frame(FINDINGS.id)
        start = place_after(frame, screen.view_name, screen.state.query.filter.text)
        following = (finding for finding in listed(frame)[start:] if finding["unseen"] < GONE_AFTER_NS)
        if (finding := next(following, None)) is not None:
            await self.action_finding(finding["id"])
        elif start:
            screen.set_filter("")
        else:
            self.notify("no findings; lens 0 shows what is watched")

    async def action_finding(self, key: int) -> None:
        """Open the rows that show a finding."""
        shown = {lens.id for lens in self.context.lenses}
        for finding in listed(self.context.session.bus.frame(FINDINGS.id)):
            if finding["id"] == key and find_table(finding["view"])[0].id in shown:
                await self.action_view(finding["view"])
                self.lens_screen.set_filter(finding["filter"])

    def _attach_shown(self) -> None:
        """Attach the current lens, with the options of its screens."""
        lens, table = self._shown
        shown = self._screen_for(self._shown)
        screens = [shown, *self._screens.values()]
        options = SourceOptions(
            frozenset({table.name}),
            self.context.settings.mechanisms,
            all_rows=any(screen.state.query.all_rows for screen in screens if screen.lens.id == lens.id),
            values=self.context.options,
        )
        columns = shown.state.declared_names if shown.state.chosen_by_user else ()
        self._leases[lens.id] = self.context.session.enable(lens.id, options, columns)

    def _screen_for(self, ref: TableRef) -> LensScreen:
        if ref.view_name not in self._screens:
            self._screens[ref.view_name] = make_screen(self.context, ref)
        return self._screens[ref.view_name]

    def on_lens_screen_members_opened(self, message: LensScreen.MembersOpened) -> None:
        """Show the members of a row, on top of its table."""
        if self.lens_screen.member_table is message.table:  # ignore a second →, or a → followed by `p`
            lens = self._shown.lens
            ref = TableRef(lens, lens.table(message.table.name) or message.table)
            settings = ViewSettings(filters=(message.filter_text,))
            self.push_screen(make_screen(self.context, ref, settings, opened_from=self._shown.table))

    def on_lens_screen_columns_chosen(self) -> None:
        """Attach again for the new columns, then release the previous lease."""
        last_lease = self._leases.pop(self._shown.lens.id)
        self._attach_shown()
        last_lease.release()

    def action_theme(self) -> None:
        """Switch to the next theme, and save the choice."""
        names = list(PALETTES)
        self.theme = names[(names.index(self.theme) + 1) % len(names)]
        self.lens_screen.remember("theme", self.theme.removeprefix(THEME_PREFIX))

    def action_columns(self) -> None:
        """Show the columns dialog."""
        from nettop.screens.dialogs import ColumnsDialog  # not needed for the first screen

        self.push_screen(ColumnsDialog(self.lens_screen))

    def action_export(self) -> None:
        """Show the export dialog, and write the visible view in the chosen format."""
        from nettop.screens.dialogs import ExportDialog  # not needed for the first screen

        def write(suffix: str | None) -> None:
            if suffix is not None:
                self.call_after_refresh(self._export, suffix)  # after the dialog is gone

        self.push_screen(ExportDialog(self.lens_screen), write)

    def _export(self, suffix: str) -> None:
        from nettop.screens.export import rows_text, tidy_svg, write_new

        screen = self.lens_screen
        if screen.view is None:
            return
        try:
            self.context.check_writing()
            if suffix == "svg":
                text = tidy_svg(self.export_screenshot(title=f"nettop {screen.view_name}"))
            else:
                names = tuple(column.sort for column in screen.rows.columns if not column.bar)
                text = rows_text(suffix, screen.view, names or screen.state.names)
            path = write_new(screen.view_name, screen.view.snapshot.wall_ns, suffix, text)
        except NettopError as error:
            self.notify(f"{error.what}; {error.remedy}", severity="warning", markup=False)
        else:
            self.notify(f"written to {safe_text(str(path))}", markup=False)

    def action_help(self) -> None:
        """Show the help."""
        from nettop.screens.dialogs import HelpDialog, help_lines  # not needed for the first screen

        lines = help_lines(self.lens_screen, min(78, self.size.width - 6))
        self.push_screen(HelpDialog(self.lens_screen, lines))

    async def action_palette(self) -> None:
        """Show the palette, and run the chosen action."""
        from nettop.screens.dialogs import PaletteDialog, palette_entries  # not needed for the first screen

        async def run(chosen: str | None) -> None:
            if chosen is not None:
                await self.run_action(chosen, self.lens_screen)

        dialog = PaletteDialog(self.lens_screen, palette_entries(self.lens_screen))
        await self.push_screen(dialog, run)
        dialog.set_focus(dialog.input)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Return whether a key works now; called by Textual."""
        known = BY_ID.get(action)
        return known is None or known.everywhere or self.lens_screen.keys.is_available(known)

    async def on_lines_pressed(self, message: Lines.Pressed) -> None:
        """Run the action of a clicked span."""
        await self.run_action(message.action, self.lens_screen)
