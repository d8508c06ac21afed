# SPDX-License-Identifier: Apache-2.0
"""The one table of keys: bindings, footer, help and palette are read from it, and nothing else names a key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from textual.binding import Binding, BindingType

from nettop.snapshots import lenses


@dataclass(frozen=True, slots=True)
class Action:
    """Something a key does: `id` is the method `action_<id>` that does it, unless `method` is another one.

    `keys` are Textual's names, the first is the one that is shown. `footer` is its importance there (0: not
    shown), `palette` offers it by name. The program does it where `by_app`, the lens's screen otherwise;
    `everywhere` makes it work in dialogs and boxes too.
    """

    id: str
    keys: tuple[str, ...]
    label: str
    help: str
    group: str
    palette: bool = True
    footer: int = 0
    by_app: bool = False
    everywhere: bool = False
    argument: str = ""
    method: str = ""


OPTIONS = {
    f"option_{option.name}": Action(
        f"option_{option.name}", (option.key,), option.name.replace("_", " "), f"{option.help}: the next value",
        lens.title, argument=repr(option.name), method="next_option_value",
    )
    for lens in lenses() for option in lens.options if option.key
}  # fmt: skip
"""The keys of the options that lenses declare."""

GRAPH = "Flame graph"
"""The group of what only a flame graph does."""

ACTIONS: tuple[Action, ...] = (
    Action("refresh_now", ("enter",), "refresh", "Refresh now, from anywhere; in the filter box it also applies",
           "Look", footer=90, by_app=True, everywhere=True),
    Action("filter", ("slash",), "filter", "Choose rows by words that match anywhere, or field op value", "Rows",
           footer=80),
    Action("sort_next", ("s",), "sort", "Sort by the next column", "Rows", footer=70),
    Action("sort_reverse", ("S",), "reverse", "Turn the order round", "Rows", footer=20),
    Action("sort_left", ("less_than_sign",), "sort left", "Sort by the column to the left", "Rows", palette=False),
    Action("sort_right", ("greater_than_sign",), "sort right", "Sort by the column to the right", "Rows",
           palette=False),
    Action("freeze", ("space",), "freeze", "Hold the picture still; data goes on being collected", "Look",
           footer=60),
    Action("totals", ("t",), "totals", "Rates, or totals since each row began", "Look", footer=40),
    Action("all_rows", ("a",), "all", "All rows, with listeners, TIME_WAIT and unconnected UDP", "Rows", footer=30),
    Action("details", ("right",), "details", "Open the chosen row: its details (again to scroll in them), or the "
           "rows that it stands for", "Look", footer=50),
    Action("back", ("left",), "back", "Back: from the details to the table, then close them, then to where → was "
           "pressed", "Look", palette=False, footer=65),
    Action("clear", ("escape",), "clear", "Close the details, then drop the filter, then the choice of a row",
           "Look", footer=35),
    Action("frame_left", ("h", "shift+left"), "left", "The frame to the left in the same row", GRAPH, palette=False),
    Action("frame_right", ("l", "shift+right"), "right", "The frame to the right in the same row", GRAPH,
           palette=False),
    Action("next_entry", ("i",), "entry point", "The next entry point that has samples, after the last all of them",
           GRAPH, footer=48),
    Action("next_cpu", ("u",), "CPU", "The next CPU's stacks alone, after the last those of all", GRAPH, footer=46),
    Action("previous_cpu", ("U",), "CPU before", "The CPU before", GRAPH, palette=False),
    Action("window", ("w",), "window", "Which samples count: the last interval's, the last minute's, all since the "
           "start", GRAPH, footer=47),
    Action("categories", ("c",), "categories", "The categories of the network stack: beside the graph, or in its "
           "place where it is not wide enough", GRAPH, footer=49),
    Action("numbers", ("n",), "numbers", "The bars as a table of all their numbers, other softirqs included, and "
           "back", GRAPH, footer=36),
    *OPTIONS.values(),
    Action("slower", ("plus",), "slower", "A longer interval between refreshes", "Look", footer=11),
    Action("faster", ("minus",), "faster", "A shorter interval between refreshes", "Look", footer=10),
    Action("move_up", ("up", "k"), "up", "The row above", "Move", palette=False),
    Action("move_down", ("down", "j"), "down", "The row below", "Move", palette=False),
    Action("page_up", ("pageup",), "page up", "A page up", "Move", palette=False),
    Action("page_down", ("pagedown",), "page down", "A page down", "Move", palette=False),
    Action("first", ("home",), "first", "The first row", "Move", palette=False),
    Action("last", ("end",), "last", "The last row", "Move", palette=False),
    Action("next_lens", ("tab",), "next view", "The next view", "Views", palette=False, by_app=True),
    Action("previous_lens", ("shift+tab",), "previous view", "The view before", "Views", palette=False,
           by_app=True),
    Action("next_table", ("p",), "next table", "The next table of this view", "Views", palette=False, footer=42,
           by_app=True),
    Action("previous_table", ("P",), "previous table", "The table before", "Views", palette=False, by_app=True),
    *(Action("lens", (str(digit),), f"view {digit}", f"View {digit}", "Views", palette=False, by_app=True,
             argument=str(digit))
      for digit in range(1, 10)),
    Action("overhead", ("o",), "overhead", "What nettop itself costs, and back", "nettop", footer=8, by_app=True),
    Action("theme", ("T",), "light or dark", "The next theme: dark, light, the terminal's own colours", "nettop",
           by_app=True),
    Action("help", ("question_mark",), "help", "All keys, signs and columns", "nettop", footer=75, by_app=True),
    Action("palette", ("ctrl+p",), "palette", "Find an action or a column by name", "nettop", palette=False,
           footer=9, by_app=True),
    Action("suspend", ("ctrl+z",), "suspend", "Back to the shell; fg returns", "nettop", by_app=True, everywhere=True),
    Action("quit", ("q",), "quit", "End nettop", "nettop", footer=85, by_app=True),
    Action("interrupt", ("ctrl+c",), "quit", "End nettop, from anywhere", "nettop", palette=False,
           by_app=True, everywhere=True),
)  # fmt: skip

_SIGNS = {
    "slash": "/", "less_than_sign": "<", "greater_than_sign": ">", "plus": "+", "minus": "−",
    "question_mark": "?", "right": "→", "left": "←", "up": "↑", "down": "↓", "escape": "Esc", "enter": "Enter",
    "space": "Space", "tab": "Tab", "shift+tab": "Shift-Tab", "pageup": "PgUp", "pagedown": "PgDn", "home": "Home",
    "end": "End", "shift+left": "Shift-←", "shift+right": "Shift-→",
}  # fmt: skip


ON_A_GRAPH: Mapping[str, tuple[str, str]] = {
    "details": ("zoom", "Zoom into the chosen frame: it takes the whole width"),
    "back": ("out", "Back to what was zoomed into before"),
    "clear": ("clear", "Drop the search, then the zoom, then the choice of a frame, then the filter"),
    "filter": (
        "search",
        "Let the functions stand out whose names hold one of some words, and say what they come to",
    ),
    "sort_next": ("sort", "Frames and categories by their width, or by name"),
    "sort_reverse": ("sort CPUs", "CPUs by number, or the busiest first"),
    "move_up": ("up", "The caller"),
    "move_down": ("down", "The widest of the functions that it calls"),
    "page_up": ("page up", "Up by as many rows as are in sight"),
    "page_down": ("page down", "Down the widest way by as many rows as are in sight"),
    "first": ("first", "The widest frame of the first row"),
    "last": ("last", "Down to where the widest way ends"),
}
"""Label and help of what keys do, in a flame graph, that do something like it in tables."""

BY_ID = {action.id: action for action in ACTIONS}
"""Actions by their ids; of those that differ by their argument alone, any one."""


def key_name(key: str) -> str:
    """A key as it is written on keyboards: `/`, `Esc`, `Ctrl-P`."""
    if key.startswith("ctrl+"):
        return f"Ctrl-{key.removeprefix('ctrl+').upper()}"
    return _SIGNS.get(key, key)


def call(action: Action) -> str:
    """What Textual is asked to run."""
    method = action.method or action.id
    name = f"app.{method}" if action.by_app else method
    return f"{name}({action.argument})" if action.argument else name


def bindings(actions: Iterable[Action]) -> list[BindingType]:
    """Textual's bindings for these actions. Those that work everywhere come before any box's own keys."""
    return [Binding(",".join(a.keys), call(a), a.label, show=False, priority=a.everywhere) for a in actions]


def everywhere() -> list[BindingType]:
    """The bindings that the frame has, whatever has the focus."""
    return bindings(a for a in ACTIONS if a.everywhere)


def of_lens() -> list[BindingType]:
    """The bindings of a lens's screen."""
    return bindings(a for a in ACTIONS if not a.everywhere)
