# SPDX-License-Identifier: Apache-2.0
"""The two dialogs: help, and the palette. Both are read from the table of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from nettop.screens import headline
from nettop.screens.actions import ACTIONS, BY_ID, Action, call, key_name
from nettop.screens.context import Place
from nettop.screens.lens import LensScreen, screen_class
from nettop.screens.measured import MeasuredScreen
from nettop.snapshots.schema import RATE, Field, Kind, Lens, Table
from nettop.snapshots.snapshot import NOT_AVAILABLE, HookStatus, Snapshot
from nettop.widgets.bar import Bar, Piece, part
from nettop.widgets.cells import fit
from nettop.widgets.columns import declared
from nettop.widgets.page import Line, Page, wrapped
from nettop.widgets.themes import Ground, Role

_KEYS = 16
_TITLE = 17

SIGNS = (
    ("▼ ▲", "the column that sorts, falling or rising"),
    ("▸", "the chosen row, which stays chosen and in sight when the order changes"),
    ("×", "a row that has just closed; it goes with the next refresh"),
    ("▲ 3.1%  ▲ fail", "a value above its threshold; a connection that failed or was reset"),
    ("–", "not known (yet); 0 was measured"),
    ("n/a", "not on this kernel or host; the reason stands with the column below and in the details"),
    ("(unattributed)", "a socket that no process holds open"),
    ("(hidden)", "a socket of a process that may not be looked at: another user's"),
    ("@name", "the container of the process"),
    ("dim", "old: nothing was sent or received in the last interval"),
    ("lost n", "what nettop could not see in time, by name under LOST; the other numbers may be too low"),
)

Offer = tuple[str, str, str]
"""Label, what it does in a line, and what runs: an action, `table:NAME`, or `sort:COLUMN`."""


class Dialog(MeasuredScreen[str | None], ModalScreen[str | None], inherit_bindings=False):
    """Stands over the picture, which goes on."""

    def __init__(self, below: LensScreen) -> None:
        super().__init__(below.context, below.lens)
        self.page = Page()
        self.page.id = "page"


class HelpDialog(Dialog, inherit_bindings=False):
    """All keys that work, the signs, and every column with its meaning."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,left", "leave", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
        Binding("home", "scroll(-10000)", show=False),
        Binding("end", "scroll(10000)", show=False),
    ]

    def __init__(self, below: LensScreen, lines: Sequence[Line]) -> None:
        super().__init__(below)
        self._lines = lines

    def compose(self) -> ComposeResult:
        """The text, and how to leave it."""
        with Vertical(id="dialog"):
            yield self.page
            foot = Bar(Ground.PANEL)
            foot.show(
                [
                    part(("Esc", Role.KEY), (" closes", Role.DIM)),
                    part(("↑ ↓", Role.KEY), (" scroll", Role.DIM)),
                ]
            )
            yield foot

    def on_mount(self) -> None:
        """Show it from the top."""
        self.page.show(self._lines)
        self.page.focus()

    def action_leave(self) -> None:
        """Back to the picture."""
        self.dismiss(None)

    def action_scroll(self, step: int) -> None:
        """Move by some lines."""
        self.page.scroll_by(step)


class PaletteDialog(Dialog, inherit_bindings=False):
    """Actions and columns by name: type a part of it, Enter does it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+p", "leave", show=False),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
        Binding("pageup", "move(-10)", show=False, priority=True),
        Binding("pagedown", "move(10)", show=False, priority=True),
    ]

    def __init__(self, below: LensScreen, offers: Sequence[Offer]) -> None:
        super().__init__(below)
        self._offers = offers
        self._found = list(offers)
        self._at = 0
        self._input = Input(placeholder="an action or a column", compact=True)

    def compose(self) -> ComposeResult:
        """The box, and what fits what is typed."""
        with Vertical(id="dialog"):
            yield self._input
            yield self.page

    def on_mount(self) -> None:
        """Typing begins at once."""
        self._input.focus()
        self.call_after_refresh(self._draw)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Offers that hold every word, in the order of the table of keys."""
        words = event.value.casefold().split()
        self._found = [o for o in self._offers if all(word in f"{o[0]} {o[1]}".casefold() for word in words)]
        self._at = 0
        self._draw()

    def on_input_submitted(self) -> None:
        """Do what is chosen."""
        self.dismiss(self._found[self._at][2] if self._found else None)

    def action_leave(self) -> None:
        """Do nothing."""
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        """Choose another."""
        self._at = max(0, min(self._at + step, len(self._found) - 1))
        self._draw()

    def _draw(self) -> None:
        lines = [
            (Piece(fit(label, 26, left=True), Role.BOLD), Piece(" " + explained, Role.DIM))
            for label, explained, _ in self._found
        ]
        self.page.show(lines or [(Piece("nothing has that name", Role.DIM),)], self._at if lines else None)


def offers(screen: LensScreen) -> list[Offer]:
    """What the palette offers on a screen: actions that work now, the lens's tables, then sorting by any column."""
    working = [a for a in ACTIONS if a.palette and screen.works(a)]
    actions = [
        (screen.label_of(a).capitalize(), f"{screen.help_of(a)}  [{key_name(a.keys[0])}]", call(a))
        for a in working
    ]
    tables = [(f"Show {t.name}", about, f"table:{t.name}") for t, about in _tables(screen)]
    columns = [(f"Sort by {name}", _help(screen.table, name), f"sort:{name}") for name in screen.sorts_by]
    return [*actions, *tables, *columns]


def help_lines(screen: LensScreen, width: int = 80) -> list[Line]:
    """The help of a screen."""
    lines: list[Line] = [*wrapped(screen.lens.question, width, Role.BOLD), ()]
    if screen.view is not None:
        lines += _section("LOST", headline.losses(screen.lens, screen.view.snapshot), _TITLE, width)
    for group in dict.fromkeys(a.group for a in ACTIONS):
        actions = [a for a in ACTIONS if a.group == group and (screen.works(a) or a.id in ("back", "clear"))]
        if actions:
            lines.append((Piece(group.upper(), Role.HEAD),))
            lines += [
                line for action in actions for line in _key_lines(action, screen.help_of(action), width)
            ]
            lines.append(())
    lines += _section("TABLES", [(t.name, about) for t, about in _tables(screen)], _KEYS, width)
    lines += _section("SIGNS", SIGNS, _KEYS, width)
    for heading, facts in screen.more_help().items():
        lines += _section(heading, facts, max(_KEYS, *(len(word) + 2 for word, _ in facts)), width)
    columns = [(field.title, _column_help(screen, field)) for field in screen.table.fields]
    lines += _section("COLUMNS", columns, _TITLE, width)
    if screen.view is not None:
        lines += _read_by(screen.lens, screen.view.snapshot, width)
    return lines[:-1]


def _tables(screen: LensScreen) -> list[tuple[Table, str]]:
    """The tables that one may go to, and what they show."""
    if not screen.works(BY_ID["next_table"]):
        return []
    about = [screen_class(Place(screen.lens, table)).about for table in screen.lens.tables]
    return [(t, text or _columns(t)) for t, text in zip(screen.lens.tables, about, strict=True)]


def _columns(table: Table) -> str:
    return ", ".join(dict.fromkeys(declared(table, name).title for name in table.screen))


def _section(title: str, facts: Sequence[tuple[str, str]], indent: int, width: int) -> list[Line]:
    """A heading, a line or more for each fact, and an empty one; nothing where there are no facts."""
    lines = [line for term, text in facts for line in _beside(term, indent, text, width)]
    return [(Piece(title, Role.HEAD),), *lines, ()] if lines else []


def _read_by(lens: Lens, snapshot: Snapshot, width: int) -> list[Line]:
    """How each point of the lens is had, below it what it is and the better ways that were refused; then the gaps."""
    helps = {point.name: point.help for point in lens.hooks}
    hooks = {hook.hook: hook for hook in snapshot.hooks}
    lines: list[Line] = [(Piece("READ BY", Role.HEAD),)]
    for name in dict.fromkeys((*helps, *hooks)):
        lines += _point_lines(name, helps.get(name, ""), hooks.get(name), width)
    for name, why in snapshot.gaps.items():
        lines += _beside(name, _TITLE, why, width)
    return [*lines, ()] if len(lines) > 1 else []


def _point_lines(name: str, about: str, hook: HookStatus | None, width: int) -> list[Line]:
    way = "not known yet" if hook is None else hook.mechanism or NOT_AVAILABLE
    role = Role.TEXT if hook is not None and hook.mechanism else Role.WARN
    first, *rest = wrapped(way, width, role, _TITLE)
    refused = () if hook is None else (f"{one} refused: {why}" for one, why in hook.refused)
    return [
        (Piece(fit(name, _TITLE, left=True), Role.KEY), Piece(first[0].text[_TITLE:], role)),
        *rest,
        *wrapped(about, width, Role.DIM, _TITLE),
        *(line for text in refused for line in wrapped(text, width, Role.FAINT, _TITLE)),
    ]


def _key_lines(action: Action, about: str, width: int) -> list[Line]:
    return _beside(" ".join(map(key_name, action.keys)), _KEYS, about, width)


def _beside(term: str, indent: int, text: str, width: int) -> list[Line]:
    lines = wrapped(text, width, Role.DIM, indent)
    if not lines:
        return [(Piece(term, Role.KEY),)]
    first = (Piece(fit(term, indent, left=True), Role.KEY), Piece(lines[0][0].text[indent:], Role.DIM))
    return [first, *lines[1:]]


def _column_help(screen: LensScreen, field: Field) -> str:
    missing = {} if screen.view is None else screen.view.missing
    formula = f" = {field.formula}" if field.formula else ""
    why = f" {NOT_AVAILABLE}: {missing[field.name]}" if field.name in missing else ""
    return f"{field.help}{formula} [{field.name}]{why}"


def _help(table: Table, name: str) -> str:
    field = table.by_name.get(name)
    if field is None:
        counter = table.by_name[name.removesuffix(RATE)]
        return f"{counter.title}/s  {counter.help}"
    return f"{field.title}{' (total)' if field.kind is Kind.COUNTER else ''}  {field.help}"
