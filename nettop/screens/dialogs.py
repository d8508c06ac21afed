# SPDX-License-Identifier: Apache-2.0
"""The dialogs: help and palette, both derived from the table of keys, and the table's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from nettop.query.trouble import threshold
from nettop.query.units import example_amounts, unit_of
from nettop.screens import headline
from nettop.screens.actions import ACTIONS, BY_ID, call, key_name
from nettop.screens.context import TableRef
from nettop.screens.export import FORMATS
from nettop.screens.lens import LensScreen, screen_class
from nettop.screens.textual_internals import MeasuredScreen
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Kind, Lens, Table
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.bar import Bar, Span, item
from nettop.widgets.cells import fit
from nettop.widgets.columns import as_rates, declared, plan
from nettop.widgets.page import Line, Page, wrapped
from nettop.widgets.themes import Ground, Role

_KEYS = 16
_TITLE = 17
_NUMBERS = frozenset({Kind.COUNTER, Kind.SUM, Kind.GAUGE, Kind.RATIO, Kind.QUANTILE})

SIGNS = (
    ("▼ ▲", "the column by which rows are sorted, descending or ascending"),
    ("▸", "the chosen line; when the order changes, another row takes its place"),
    ("◆", "the followed row; it stays chosen and visible when the order changes"),
    ("×", "a row that is gone (closed, ended); it disappears with the next refresh"),
    ("▲ 3.1%  ▲ fail", "a value above its threshold; a failure"),
    ("RATE █", "what a row sends, then what it receives; the bar of the largest row is full"),
    ("peak ↑ ▁▅█", "the totals of the last two minutes; the highest column is the amount behind them"),
    ("–", "unknown (yet), whereas 0 is a measured zero"),
    ("n/a", "not available here; the column's help and the details say why"),
    ("(unattributed)", "a socket without an owner process"),
    ("(hidden)", "a socket of another user's process, which only root may inspect"),
    ("(outside)", "a process outside of nettop's PID namespace, such as its container's"),
    ("@name", "the container of the process"),
    ("dim", "unchanged: nothing happened to this row in the last interval"),
    (
        "n n/a  !n gaps",
        "columns that are not available; parts of the host that could not be read, named under HOOKS",
    ),
    (
        "n partly seen",
        (
            "network namespaces made after nettop started: sockets without a process, interfaces and drop counters "
            "are missing; --follow-namespaces shows them too"
        ),
    ),
    ("n missed", "events, samples and so on, listed under LOST; other numbers may be too low"),
    ("no process", "sockets that no process holds; (4 s ago): when they were last listed, as that is costly"),
    (
        "not shown",
        "sockets that the kernel counts and no table lists: they came or went meanwhile, or have no file",
    ),
)

PaletteEntry = tuple[str, str, str]
"""A label, what it does, and the action in Textual's notation."""


class Dialog(MeasuredScreen[str | None], ModalScreen[str | None], inherit_bindings=False):
    """A dialog over a lens's screen, which goes on."""

    def __init__(self, below: LensScreen) -> None:
        super().__init__(below.context, below.lens)
        self.page = Page(id="page")

    def action_leave(self) -> None:
        """Close without running anything."""
        self.dismiss(None)


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
        """The text, and the keys to scroll and leave."""
        footer = Bar(Ground.PANEL)
        keys = {"Esc": " closes", "↑ ↓": " scroll"}
        footer.show([item((key, Role.KEY), (effect, Role.DIM)) for key, effect in keys.items()])
        with Vertical(id="dialog"):
            yield self.page
            yield footer

    def on_mount(self) -> None:
        """Show it from the top."""
        self.page.show(self._lines)
        self.page.focus()

    def action_scroll(self, step: int) -> None:
        """Scroll by some lines."""
        self.page.scroll_by(step)


class PaletteDialog(Dialog, inherit_bindings=False):
    """Actions and columns by name: type a part of it, Enter runs it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+p", "leave", show=False),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
        Binding("pageup", "move(-10)", show=False, priority=True),
        Binding("pagedown", "move(10)", show=False, priority=True),
    ]

    def __init__(self, below: LensScreen, entries: Sequence[PaletteEntry]) -> None:
        super().__init__(below)
        self._entries = entries
        self._matches = list(entries)
        self._at = 0
        self.input = Input(placeholder="an action or a column", compact=True)

    def compose(self) -> ComposeResult:
        """The box, and the entries that match."""
        with Vertical(id="dialog"):
            yield self.input
            yield self.page

    def on_mount(self) -> None:
        """Show all entries."""
        self.call_after_refresh(self._draw)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show the entries that contain every word."""
        words = event.value.casefold().split()
        texts = ((entry, f"{entry[0]} {entry[1]}".casefold()) for entry in self._entries)
        self._matches = [entry for entry, text in texts if all(word in text for word in words)]
        self._at = 0
        self._draw()

    def on_input_submitted(self) -> None:
        """Run what is chosen."""
        self.dismiss(self._matches[self._at][2] if self._matches else None)

    def action_move(self, step: int) -> None:
        """Choose another."""
        self._at = max(0, min(self._at + step, len(self._matches) - 1))
        self._draw()

    def _draw(self) -> None:
        lines = [
            (Span(fit(label, 26, left=True), Role.BOLD), Span(" " + effect, Role.DIM))
            for label, effect, _ in self._matches
        ]
        self.page.show(lines or [(Span("nothing has that name", Role.DIM),)], self._at if lines else None)


class ColumnsDialog(Dialog, inherit_bindings=False):
    """The columns of a table, those that are shown first: Space adds and removes, < and > change the order.

    What is chosen is shown at once, and remembered when the dialog closes.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,C,q,left", "leave", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "move(-10)", show=False),
        Binding("pagedown", "move(10)", show=False),
        Binding("home", "move(-10000)", show=False),
        Binding("end", "move(10000)", show=False),
        Binding("space", "toggle_column", show=False),
        Binding("less_than_sign,shift+up", "place(-1)", show=False),
        Binding("greater_than_sign,shift+down", "place(1)", show=False),
        Binding("r", "reset", show=False),
    ]

    def __init__(self, below: LensScreen) -> None:
        super().__init__(below)
        self._below = below
        self._at = 0
        self._about = Page(id="about")
        self._before = self.context.columns.get(below.view_name)
        self._list(below.state.names)

    def _list(self, chosen: Sequence[str]) -> None:
        """The chosen columns, then the others in the table's order, each counter before its rate."""
        names = [form for field in self._below.table.fields for form in _forms(self._below.table, field.name)]
        self._names = [*chosen, *(name for name in names if name not in chosen)]
        self._chosen = set(chosen)

    def compose(self) -> ComposeResult:
        """The columns, the meaning of one, and the keys."""
        footer = Bar(Ground.PANEL)
        keys = {"Space": " shows or hides", "< >": " order", "r": " the table's own", "Esc": " closes"}
        footer.show([item((key, Role.KEY), (effect, Role.DIM)) for key, effect in keys.items()])
        with Vertical(id="dialog"):
            yield self.page
            yield self._about
            yield footer

    def on_mount(self) -> None:
        """Show them once their room is known."""
        self.page.focus()
        self.call_after_refresh(self._draw)

    def on_unmount(self) -> None:
        """Closed, or nettop ends: remember what was chosen."""
        chosen = self.context.columns.get(self._below.view_name)
        if chosen != self._before:
            self._below.remember("columns", {self._below.view_name: chosen})

    def action_move(self, step: int) -> None:
        """Go to another column."""
        self._at = max(0, min(self._at + step, len(self._names) - 1))
        self._draw()

    def action_toggle_column(self) -> None:
        """Show the column behind the others, or hide it; the last one stays."""
        name = self._names[self._at]
        if self._chosen == {name}:
            return
        self._chosen ^= {name}
        self._apply()

    def action_place(self, step: int) -> None:
        """Move the column before or behind the next one that is shown."""
        places = [at for at, name in enumerate(self._names) if name in self._chosen]
        to = places.index(self._at) + step if self._at in places else -1
        if 0 <= to < len(places):
            self._names.insert(places[to], self._names.pop(self._at))
            self._at = places[to]
            self._apply()

    def action_reset(self) -> None:
        """Show the table's own columns."""
        self._below.choose_columns(None)
        self._list(self._below.state.names)
        self._draw()

    def _apply(self) -> None:
        chosen = tuple(name for name in self._names if name in self._chosen)
        self._below.choose_columns(None if chosen == self._below.table.screen else chosen)
        self._draw()

    def _draw(self) -> None:
        table, rows = self._below.table, self._below.rows
        chosen = [name for name in self._names if name in self._chosen]
        # The dialog may be wider than the table beside which details are open.
        columns = plan(table, chosen, rows.size.width, extra=False, bars=rows.bars)
        fitting = {column.sort for column in columns}
        lines = []
        for name in self._names:
            title = fit(table.title_of(name), _TITLE, left=True)
            mark, role = ("[x] ", Role.BOLD) if name in self._chosen else ("[ ] ", Role.DIM)
            crowded = (Span("no room  ", Role.WARN),) if name in self._chosen - fitting else ()
            lines.append(
                (Span(mark, Role.KEY), Span(title, role), *crowded, Span(_meaning(table, name), Role.DIM))
            )
        self.page.show(lines, self._at)
        name = self._names[self._at]
        missing = {} if self._below.view is None else self._below.view.missing
        why = f" {NOT_AVAILABLE}: {missing[name]}" if name in missing else ""
        text = f"{name}: {_meaning(table, name)}{why}"
        self._about.show(wrapped(text, self._about.size.width - 2, Role.TEXT))


class ExportDialog(Dialog, inherit_bindings=False):
    """The formats in which the view can be written, each with its key: Enter would refresh a view that is frozen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,e,q,left", "leave", show=False),
        *(Binding(suffix[0], f"write('{suffix}')", show=False) for suffix in FORMATS),
    ]

    def compose(self) -> ComposeResult:
        """The formats, and the key that closes."""
        footer = Bar(Ground.PANEL)
        footer.show([item(("Esc", Role.KEY), (" closes", Role.DIM))])
        with Vertical(id="dialog"):
            yield self.page
            yield footer

    def on_mount(self) -> None:
        """They have room for all."""
        self.page.focus()
        self.page.show([(Span(f"{suffix[0]}  ", Role.KEY), Span(about)) for suffix, about in FORMATS.items()])

    def action_write(self, suffix: str) -> None:
        """Write in this format."""
        self.dismiss(suffix)


def _forms(table: Table, name: str) -> tuple[str, ...]:
    """A field, and its rate if it has one."""
    return tuple(dict.fromkeys((name, as_rates(table, name))))


def _meaning(table: Table, name: str) -> str:
    """What a column shows."""
    field = declared(table, name)
    formula = f" = {field.formula}" if field.formula else ""
    return f"{field.help}{formula}{'' if name in table.by_name else ', per second'}"


def palette_entries(screen: LensScreen) -> list[PaletteEntry]:
    """The palette of a screen: actions that work now, the lens's tables, then sorting by any column."""
    working = [a for a in ACTIONS if a.palette and screen.is_available(a)]
    actions = [
        (screen.label_of(a).capitalize(), f"{screen.help_of(a)}  [{key_name(a.keys[0])}]", call(a))
        for a in working
    ]
    tables = [(f"Show {t.name}", about, f"app.table('{t.name}')") for t, about in _tables(screen)]
    columns = []
    for name in screen.sort_columns:
        field = declared(screen.table, name)
        total = " (total)" if field.has_rate else ""
        title = field.title + (total if name in screen.table.by_name else "/s")
        columns.append((f"Sort by {name}", f"{title}  {field.help}", f"sort_by('{name}')"))
    return [*actions, *tables, *columns]


def help_lines(screen: LensScreen, width: int = 80) -> list[Line]:
    """The help of a screen."""
    lines: list[Line] = [*wrapped(screen.lens.question, width, Role.BOLD), ()]
    if screen.view is not None:
        lines += _section("LOST", headline.losses(screen.lens, screen.view.snapshot), _TITLE, width)
    for group in dict.fromkeys(a.group for a in ACTIONS):
        actions = [
            action
            for action in ACTIONS
            if action.group == group and (screen.is_available(action) or action.id in ("back", "clear"))
            if screen.help_of(action)
        ]
        if actions:
            lines.append((Span(group.upper(), Role.HEAD),))
            for action in actions:
                lines += _beside(" ".join(map(key_name, action.keys)), _KEYS, screen.help_of(action), width)
            lines.append(())
    lines += _section("TABLES", [(t.name, about) for t, about in _tables(screen)], _KEYS, width)
    if screen.has_filter:
        examples = filter_help(screen.table)
        lines += _section("FILTER", examples, _longest(examples), width)
    troubles = [
        (trouble.name, f"{trouble.help}. {threshold(trouble)}: {trouble.filter}")
        for trouble in screen.table.troubles
    ]
    lines += _section("TROUBLE", troubles, _longest(troubles), width)
    lines += _section("SIGNS", SIGNS, _KEYS, width)
    for heading, facts in screen.more_help().items():
        lines += _section(heading, facts, _longest(facts), width)
    missing = {} if screen.view is None else screen.view.missing
    columns = []
    for field in screen.table.fields:
        formula = f" = {field.formula}" if field.formula else ""
        why = f" {NOT_AVAILABLE}: {missing[field.name]}" if field.name in missing else ""
        columns.append((field.title, f"{field.help}{formula} [{field.name}]{why}"))
    lines += _section("COLUMNS", columns, _TITLE, width)
    if screen.view is not None:
        lines += _read_by(screen.lens, screen.view.snapshot, width)
    return lines[:-1]


def filter_help(table: Table) -> list[tuple[str, str]]:
    """The language of filters by examples, all of which the table understands, and the rows that they pass."""
    kinds = {field.kind for field in table.fields}
    shown = {name: declared(table, name) for name in (*table.screen, *table.names)}
    of_kind = {kind: [name for name, field in shown.items() if field.kind is kind] for kind in Kind}
    texts = of_kind[Kind.TEXT] + of_kind[Kind.ENUM]
    numbers = [name for name, field in shown.items() if field.kind in _NUMBERS]
    more = [f"{table.title_of(name)}>{_amount(table, name)}" for name in numbers]
    facts = []
    if texts:
        facts.append(("abc", "a text in any column, or a number such as a PID; in quotes every sign is text"))
        facts.append((f"{texts[0]}~abc", "a field contains it, with !~ does not; = and != compare all of it"))
    if Kind.ADDRESS in kinds:
        facts.append(("10.0.0.0/8", "an address of this network; 10.0.0.7 this address"))
    if Kind.ENDPOINT in kinds:
        facts.append((":443", "a port at either end, like port=443; port!=443 at none"))
    if more:
        facts.append((more[0], "a number is more; also >= < <= = !="))
    if of_kind[Kind.LABEL]:
        facts.append((f"{of_kind[Kind.LABEL][0]}=–", "nothing is known of it"))
    first, other = facts[0][0], (more[1:] or facts[-1])[0]
    return [
        *facts,
        (f"{first} {other}", "both hold; and may stand between them"),
        (f"{first} or {other}", "one of them holds"),
        (f"not ({first} {other})", "all rows that the parentheses do not pass, unknown values too"),
        (
            "",
            "Fields are names, in [ ] below, or titles, in capitals or not. Unknown values pass no comparison.",
        ),
    ]


def _amount(table: Table, name: str) -> str:
    return example_amounts(unit_of(table, name)).split()[0].strip(",")


def _tables(screen: LensScreen) -> list[tuple[Table, str]]:
    """The tables of the lens, where there are several, and what they show."""
    if not screen.is_available(BY_ID["next_table"]):
        return []
    tables = []
    for table in screen.lens.tables:
        columns = dict.fromkeys(declared(table, name).title for name in table.screen)
        about = screen_class(TableRef(screen.lens, table)).about
        tables.append((table, about or ", ".join(columns)))
    return tables


def _longest(facts: Sequence[tuple[str, str]]) -> int:
    """The indent that has room for all terms."""
    return max([_KEYS, *(len(term) + 2 for term, _ in facts)])


def _section(title: str, facts: Sequence[tuple[str, str]], indent: int, width: int) -> list[Line]:
    """A heading, the facts, and an empty line; nothing where there are no facts."""
    lines = [line for term, text in facts for line in _beside(term, indent, text, width)]
    return [(Span(title, Role.HEAD),), *lines, ()] if lines else []


def _read_by(lens: Lens, snapshot: Snapshot, width: int) -> list[Line]:
    """The mechanism of each hook, its meaning, and why better mechanisms were refused; then the gaps."""
    helps = {hook.name: hook.help for hook in lens.hooks}
    hooks = {hook.hook: hook for hook in snapshot.hooks}
    lines: list[Line] = [(Span("HOOKS", Role.HEAD),)]
    for name in dict.fromkeys((*helps, *hooks)):
        hook = hooks.get(name)
        mechanism = "not known yet" if hook is None else hook.mechanism or NOT_AVAILABLE
        role = Role.TEXT if hook is not None and hook.mechanism else Role.WARN
        lines += _beside(name, _TITLE, mechanism, width, role)
        lines += wrapped(helps.get(name, ""), width, Role.DIM, _TITLE)
        for refused, why in () if hook is None else hook.refused:
            lines += wrapped(f"{refused} refused: {why}", width, Role.FAINT, _TITLE)
    for name, why in snapshot.gaps.items():
        lines += _beside(name, _TITLE, why, width)
    return [*lines, ()] if len(lines) > 1 else []


def _beside(term: str, indent: int, text: str, width: int, role: Role = Role.DIM) -> list[Line]:
    lines = wrapped(text, width, role, indent)
    if not lines or len(term) >= indent:
        return [(Span(term, Role.KEY),), *lines]
    first = (Span(fit(term, indent, left=True), Role.KEY), Span(lines[0][0].text[indent:], role))
    return [first, *lines[1:]]
