# SPDX-License-Identifier: Apache-2.0
"""The dialogs: help and palette, both derived from the table of keys, columns, and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from nettop.query.findings import threshold
from nettop.query.units import example_amounts, unit_of
from nettop.screens import headline
from nettop.screens.actions import ACTIONS, BY_ID, MOVES, call, key_name
from nettop.screens.context import TableRef
from nettop.screens.export import FORMATS
from nettop.screens.lens import LensScreen, screen_class
from nettop.screens.textual_internals import MeasuredScreen
from nettop.snapshots import view_name
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Kind, Lens, Table
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.bar import Bar, item
from nettop.widgets.columns import as_rates, declared, plan
from nettop.widgets.page import Page
from nettop.widgets.text import Line, TextSpan, fit, wrapped
from nettop.widgets.themes import Background, Role

_KEY_CELLS = 16
_TITLE_CELLS = 17
_NUMBERS = frozenset({Kind.COUNTER, Kind.SUM, Kind.GAUGE, Kind.RATIO, Kind.QUANTILE})

SIGNS = (
    ("▾ ▴", "the column rows are sorted by, descending or ascending"),
    ("▸", "the selected line; when the order changes, another row takes its place"),
    ("◆", "the followed row; it stays selected and visible when the order changes"),
    ("×", "a row that is gone (closed, ended); it disappears at the next refresh"),
    ("× curl: 340 closed", "closed rows of one process, more than a dozen, and their sums; → lists its rows"),
    ("▲ 3.1%  ▲ fail", "a value above its threshold; a failure"),
    ("RATE █", "what a row sends, then what it receives; the largest row's bar is full"),
    ("peak ↑ ▁▅█", "the totals of the last two minutes; the highest column is the amount after them"),
    ("–", "not known, or not yet; 0 is a measured zero"),
    ("n/a", "not available here; the column's help and the details say why"),
    ("(unattributed)", "a socket without an owner process"),
    ("(hidden)", "a socket of another user's process, which only root may inspect"),
    ("(outside)", "a process outside nettop's PID namespace, such as that of its container"),
    ("@name", "the container of the process"),
    ("dim", "idle: nothing happened to this row in the last interval"),
    (
        "n n/a  !n gaps",
        "columns that are not available; parts of the host that could not be read, listed under HOOKS",
    ),
    (
        "n partly seen",
        (
            "network namespaces created after nettop started: sockets without a process, interfaces and drop counters "
            "are missing; --follow-namespaces includes them"
        ),
    ),
    ("n missed", "lost events, samples and so on, listed under LOST; other numbers may be too low"),
    ("no process", "sockets that no process holds; (4 s ago): when they were last listed, which is costly"),
    (
        "not shown",
        "sockets that the kernel counts and no table lists: they opened or closed meanwhile, or have no file",
    ),
)

PaletteEntry = tuple[str, str, str]
"""A label, the effect, and the action in Textual's notation."""


class Dialog(MeasuredScreen[str | None], ModalScreen[str | None], inherit_bindings=False):
    """A dialog over a lens's screen, which keeps refreshing. `keys` are those in its footer, with their effects."""

    AUTO_FOCUS = "#page"
    keys: ClassVar[Mapping[str, str]] = {"Esc": "close"}

    def __init__(self, below: LensScreen) -> None:
        super().__init__(below.context, below.lens)
        self.page = Page(id="page")

    def compose(self) -> ComposeResult:
        """Yield the widgets, then the footer, if it has keys."""
        footer = Bar(Background.PANEL)
        footer.show([item((key, Role.KEY), (f" {effect}", Role.DIM)) for key, effect in self.keys.items()])
        with Vertical(id="dialog"):
            yield from self.body()
            if self.keys:
                yield footer

    def body(self) -> ComposeResult:
        """Yield the widgets above the footer."""
        yield self.page

    def on_mount(self) -> None:
        """Draw once the layout is known."""
        self.call_after_refresh(self.draw)

    def draw(self) -> None:
        """Fill the page."""
        raise NotImplementedError

    def action_leave(self) -> None:
        """Close without running an action."""
        self.dismiss(None)


class HelpDialog(Dialog, inherit_bindings=False):
    """The available keys, the signs, and the meaning of every column."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,left", "leave", show=False),
        Binding("space", "move(10)", show=False),
        *MOVES,
    ]
    keys: ClassVar[Mapping[str, str]] = {"Esc": "close", "↑ ↓": "scroll"}

    def __init__(self, below: LensScreen, lines: Sequence[Line]) -> None:
        super().__init__(below)
        self._lines = lines

    def draw(self) -> None:
        """Show the text from the top."""
        self.page.show(self._lines)

    def action_move(self, step: int) -> None:
        """Scroll by `step` lines."""
        self.page.scroll_by(step)


class ListDialog(Dialog, inherit_bindings=False):
    """A dialog with a list, one line of which is selected."""

    _at = 0

    def action_move(self, step: int) -> None:
        """Move the selection by `step`."""
        self._at = max(0, min(self._at + step, self.page.row_count - 1))
        self.draw()


class PaletteDialog(ListDialog, inherit_bindings=False):
    """A search for actions and columns by name; Enter runs the selected one."""

    AUTO_FOCUS = "Input"
    keys: ClassVar[Mapping[str, str]] = {}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+p", "leave", show=False),
        Binding("enter", "run", show=False, priority=True),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
        Binding("pageup", "move(-10)", show=False, priority=True),
        Binding("pagedown", "move(10)", show=False, priority=True),
    ]

    def __init__(self, below: LensScreen, entries: Sequence[PaletteEntry]) -> None:
        super().__init__(below)
        self._entries = entries
        self._matches = list(entries)
        self.input = Input(placeholder="an action or a column", compact=True)

    def body(self) -> ComposeResult:
        """Yield the search box and the matches."""
        yield self.input
        yield self.page

    def on_input_changed(self) -> None:
        """Show the entries that match."""
        self._match()
        self.draw()

    def _match(self) -> None:
        """Find the entries that contain every word, those with all of them in the label first, as whole words before
        parts of words; select the first unless they are the same as before."""
        words = self.input.value.casefold().split()
        texts = [(entry, entry[0].casefold(), entry[1].casefold()) for entry in self._entries]
        whole = [entry for entry, label, _ in texts if set(words) <= set(label.split())]
        in_label = [entry for entry, label, _ in texts if all(word in label for word in words)]
        anywhere = [entry for entry, *parts in texts if all(word in " ".join(parts) for word in words)]
        matches = list(dict.fromkeys(whole + in_label + anywhere))
        if matches != self._matches:
            self._matches, self._at = matches, 0

    def action_run(self) -> None:
        """Close, returning the selected action."""
        self._match()  # what was typed just before Enter may not have been shown yet
        self.dismiss(self._matches[self._at][2] if self._matches else None)

    def draw(self) -> None:
        """Show the matches."""
        lines = [
            (TextSpan(fit(label, 26, left=True), Role.BOLD), TextSpan(" " + effect, Role.DIM))
            for label, effect, _ in self._matches
        ]
        self.page.show(lines or [(TextSpan("no match", Role.DIM),)], self._at if lines else None)


class ColumnsDialog(ListDialog, inherit_bindings=False):
    """The columns of a table, the visible ones first. Space adds and removes them, < and > change their order.

    Changes are shown at once, and saved when the dialog closes.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,C,q,left", "leave", show=False),
        *MOVES,
        Binding("space", "toggle_column", show=False),
        Binding("less_than_sign,shift+up", "place(-1)", show=False),
        Binding("greater_than_sign,shift+down", "place(1)", show=False),
        Binding("r", "reset", show=False),
    ]
    keys: ClassVar[Mapping[str, str]] = {
        "Space": "show or hide",
        "< >": "reorder",
        "r": "defaults",
        "Esc": "close",
    }

    def __init__(self, below: LensScreen) -> None:
        super().__init__(below)
        self._below = below
        self._about = Page(id="about")
        self._before = self.context.columns.get(below.view_name)
        self._list(below.state.names)

    def _list(self, chosen: Sequence[str]) -> None:
        """List the chosen columns, then the others in the table's order, each counter before its rate."""
        table = self._below.table
        names = [name for field in table.fields for name in (field.name, as_rates(table, field.name))]
        self._names = list(dict.fromkeys((*chosen, *names)))
        self._chosen = set(chosen)

    def body(self) -> ComposeResult:
        """Yield the columns, and the meaning of one."""
        yield self.page
        yield self._about

    def on_unmount(self) -> None:
        """Save the choice when the dialog or nettop is closed."""
        chosen = self.context.columns.get(self._below.view_name)
        if chosen != self._before:
            self._below.remember("columns", {self._below.view_name: chosen})

    def action_toggle_column(self) -> None:
        """Show the column after the others, or hide it unless it is the only one."""
        name = self._names[self._at]
        if self._chosen == {name}:
            return
        self._chosen ^= {name}
        self._apply()

    def action_place(self, step: int) -> None:
        """Swap the column with the previous (`step` −1) or the next (1) visible one."""
        places = [at for at, name in enumerate(self._names) if name in self._chosen]
        to = places.index(self._at) + step if self._at in places else -1
        if 0 <= to < len(places):
            self._names.insert(places[to], self._names.pop(self._at))
            self._at = places[to]
            self._apply()

    def action_reset(self) -> None:
        """Restore the table's default columns."""
        self._below.choose_columns(None)
        self._list(self._below.state.names)
        self.draw()

    def _apply(self) -> None:
        chosen = tuple(name for name in self._names if name in self._chosen)
        self._below.choose_columns(None if chosen == self._below.table.screen else chosen)
        self.draw()

    def draw(self) -> None:
        """Show the columns, and the meaning of the selected one."""
        table, rows = self._below.table, self._below.rows
        chosen = [name for name in self._names if name in self._chosen]
        # The dialog may be wider than the table if details are open beside it.
        columns = plan(table, chosen, rows.size.width, extra=False, bars=rows.bars)
        fitting = {column.sort for column in columns}
        lines = []
        for name in self._names:
            title = fit(table.title_of(name), _TITLE_CELLS, left=True)
            mark, role = ("[x] ", Role.BOLD) if name in self._chosen else ("[ ] ", Role.DIM)
            crowded = (TextSpan("no room  ", Role.WARN),) if name in self._chosen - fitting else ()
            lines.append(
                (
                    TextSpan(mark, Role.KEY),
                    TextSpan(title, role),
                    *crowded,
                    TextSpan(_meaning(table, name), Role.DIM),
                )
            )
        self.page.show(lines, self._at)
        name = self._names[self._at]
        missing = {} if self._below.view is None else self._below.view.missing
        text = f"{name}: {_meaning(table, name)}{_why(missing, name)}"
        self._about.show(wrapped(text, self._about.size.width - 2, Role.TEXT))


class ExportDialog(Dialog, inherit_bindings=False):
    """The export formats, each with a key of its own: Enter would refresh a frozen view."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,e,q,left", "leave", show=False),
        *(Binding(suffix[0], f"write('{suffix}')", show=False) for suffix in FORMATS),
    ]

    def draw(self) -> None:
        """Show the formats."""
        self.page.show(
            [(TextSpan(f"{suffix[0]}  ", Role.KEY), TextSpan(about)) for suffix, about in FORMATS.items()]
        )

    def action_write(self, suffix: str) -> None:
        """Close, returning the format."""
        self.dismiss(suffix)


def _meaning(table: Table, name: str) -> str:
    """Return the meaning of a column."""
    field = declared(table, name)
    formula = f" = {field.formula}" if field.formula else ""
    return f"{field.help}{formula}{'' if name in table.by_name else ', per second'}"


def _why(missing: Mapping[str, str], name: str) -> str:
    return f" {NOT_AVAILABLE}: {missing[name]}" if name in missing else ""


def palette_entries(screen: LensScreen) -> list[PaletteEntry]:
    """Return a screen's palette: available actions, the tables of its lens and of the others, then sorting by any
    column."""
    actions = [
        (
            screen.keys.label_of(a).capitalize(),
            f"{screen.keys.help_of(a)}  [{key_name(a.keys[0])}]",
            call(a),
        )
        for a in ACTIONS
        if a.palette and screen.keys.is_available(a)
    ]
    tables = [(f"Show {t.name}", about, f"app.table('{t.name}')") for t, about in _tables(screen)]
    elsewhere = [
        (f"Show {name}", lens.question, f"app.view('{name}')")
        for lens in screen.context.lenses
        if lens.id != screen.lens.id
        for name in (view_name(lens, table) for table in lens.tables)
    ]
    columns = []
    for name in screen.table.sortable if screen.has_rows else ():
        field = declared(screen.table, name)
        total = " (total)" if field.has_rate else ""
        title = field.title + (total if name in screen.table.by_name else "/s")
        columns.append((f"Sort by {name}", f"{title}  {field.help}", f"sort_by('{name}')"))
    return [*actions, *tables, *elsewhere, *columns]


def help_lines(screen: LensScreen, width: int = 80) -> list[Line]:
    """Return the help of a screen."""
    lines: list[Line] = [*wrapped(screen.lens.question, width, Role.BOLD), ()]
    if screen.view is not None:
        lines += _section("LOST", headline.losses(screen.lens, screen.view.snapshot), width, _TITLE_CELLS)
    for group in dict.fromkeys(a.group for a in ACTIONS):
        actions = [
            (" ".join(map(key_name, action.keys)), help_)
            for action in ACTIONS
            if action.group == group and (screen.keys.is_available(action) or action.id in ("back", "clear"))
            if (help_ := screen.keys.help_of(action))
        ]
        lines += _section(group.upper(), actions, width)
    lines += _section("TABLES", [(t.name, about) for t, about in _tables(screen)], width)
    if screen.has_rows:
        lines += _section("FILTER", filter_help(screen.table), width)
    rules = [
        (rule.name, f"{rule.help}. Shown {threshold(rule)}: {rule.filter}") for rule in screen.table.rules
    ]
    lines += _section("FINDINGS", rules, width)
    lines += _section("SIGNS", SIGNS, width)
    for heading, facts in screen.more_help().items():
        lines += _section(heading, facts, width)
    missing = {} if screen.view is None else screen.view.missing
    columns = [
        (field.title, f"{_meaning(screen.table, field.name)} [{field.name}]{_why(missing, field.name)}")
        for field in screen.table.fields
    ]
    lines += _section("COLUMNS", columns, width, _TITLE_CELLS)
    if screen.view is not None:
        lines += _hook_lines(screen.lens, screen.view.snapshot, width)
    return lines[:-1]


def filter_help(table: Table) -> list[tuple[str, str]]:
    """Return the filter syntax as examples valid for the table, each with the rows that pass it."""
    kinds = {field.kind for field in table.fields}
    shown = {name: declared(table, name) for name in (*table.screen, *table.names)}
    of_kind = {kind: [name for name, field in shown.items() if field.kind is kind] for kind in Kind}
    texts = of_kind[Kind.TEXT] + of_kind[Kind.ENUM]
    numbers = [name for name, field in shown.items() if field.kind in _NUMBERS]
    amounts = (example_amounts(unit_of(table, name)).split()[0].strip(",") for name in numbers)
    more = [f"{table.title_of(name)}>{amount}" for name, amount in zip(numbers, amounts, strict=True)]
    facts = []
    if texts:
        example = f"{texts[0]}~abc"
        facts += [
            ("abc", "text in any column, or a number such as a PID; quotes make every character literal"),
            (example, "the field contains this; !~: does not; = and != compare the whole text"),
        ]
    if Kind.ADDRESS in kinds:
        facts.append(("10.0.0.0/8", "any address in this network; 10.0.0.7: only this address"))
    if Kind.ENDPOINT in kinds:
        facts.append((":443", "this port at either end, like port=443; port!=443: at neither end"))
    if more:
        facts.append((more[0], "the number is greater; also >= < <= = !="))
    if of_kind[Kind.LABEL]:
        facts.append((f"{of_kind[Kind.LABEL][0]}=–", "the value is unknown"))
    first, other = facts[0][0], (more[1:] or facts[-1])[0]
    return [
        *facts,
        (f"{first} {other}", "both match; the same with `and` between them"),
        (f"{first} or {other}", "at least one of them matches"),
        (f"not ({first} {other})", "all rows that do not match, including those with unknown values"),
        ("", "Fields are the names in [ ] below, or titles in any case. Unknown values match no comparison."),
    ]


def _tables(screen: LensScreen) -> list[tuple[Table, str]]:
    """Return the tables of the lens, if it has several, with their descriptions."""
    if not screen.keys.is_available(BY_ID["next_table"]):
        return []
    tables = []
    for table in screen.lens.tables:
        columns = dict.fromkeys(declared(table, name).title for name in table.screen)
        about = screen_class(TableRef(screen.lens, table)).about
        tables.append((table, about or ", ".join(columns)))
    return tables


def _section(title: str, facts: Sequence[tuple[str, str]], width: int, indent: int = 0) -> list[Line]:
    """Return a heading, the facts, and an empty line; nothing if there are no facts."""
    indent = indent or max([_KEY_CELLS, *(len(term) + 2 for term, _ in facts)])
    lines = [line for term, text in facts for line in _term_lines(term, indent, text, width)]
    return [(TextSpan(title, Role.HEAD),), *lines, ()] if lines else []


def _hook_lines(lens: Lens, snapshot: Snapshot, width: int) -> list[Line]:
    """Return the mechanism of each hook, its meaning, and why better mechanisms were rejected; then the gaps."""
    helps = {hook.name: hook.help for hook in lens.hooks}
    hooks = {hook.hook: hook for hook in snapshot.hooks}
    lines: list[Line] = [(TextSpan("HOOKS", Role.HEAD),)]
    for name in dict.fromkeys((*helps, *hooks)):
        hook = hooks.get(name)
        mechanism = "not known yet" if hook is None else hook.mechanism or NOT_AVAILABLE
        role = Role.TEXT if hook is not None and hook.mechanism else Role.WARN
        lines += _term_lines(name, _TITLE_CELLS, mechanism, width, role)
        lines += wrapped(helps.get(name, ""), width, Role.DIM, _TITLE_CELLS)
        for refused, why in () if hook is None else hook.refused:
            lines += wrapped(f"{refused} refused: {why}", width, Role.FAINT, _TITLE_CELLS)
    for name, why in snapshot.gaps.items():
        lines += _term_lines(name, _TITLE_CELLS, why, width)
    return [*lines, ()] if len(lines) > 1 else []


def _term_lines(term: str, indent: int, text: str, width: int, role: Role = Role.DIM) -> list[Line]:
    lines = wrapped(text, width, role, indent)
    if not lines or len(term) >= indent:
        return [(TextSpan(term, Role.KEY),), *lines]
    first = (TextSpan(fit(term, indent, left=True), Role.KEY), TextSpan(lines[0][0].text[indent:], role))
    return [first, *lines[1:]]
