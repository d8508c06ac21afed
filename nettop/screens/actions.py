# SPDX-License-Identifier: Apache-2.0
"""The table of keys: bindings, footer, help and palette are derived from it, and nothing else names a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual.binding import Binding, BindingType

from nettop.snapshots import lenses


@dataclass(frozen=True, slots=True)
class Action:
    """What a key does, by the method `action_<id>` (or `method`) of the app (`by_app`) or of the lens's screen.

    `keys` are Textual's names; the first one is shown. `footer` is the importance there (0: not shown), `palette`
    says whether the palette offers it. `everywhere`: works in dialogs and boxes too.
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
        lens.title, footer=34, argument=repr(option.name), method="next_option_value",
    )
    for lens in lenses() for option in lens.options if option.key
}  # fmt: skip
"""The keys of the options that lenses declare."""

GRAPH = "Flame graph"
"""The group of the actions that only a flame graph has."""

ACTIONS: tuple[Action, ...] = (
    Action("refresh_now", ("enter",), "refresh", "Refresh now; in the filter box, also apply the filter",
           "Screen", footer=90, by_app=True, everywhere=True),
    Action("filter", ("slash",), "filter", "Only the rows that pass a filter: words, or field op value", "Rows",
           footer=80),
    Action("sort_next", ("s",), "sort", "Sort by the next column", "Rows", footer=70),
    Action("sort_reverse", ("S",), "reverse", "Reverse the order", "Rows", footer=20),
    Action("sort_left", ("less_than_sign",), "sort left", "Sort by the column to the left", "Rows", palette=False,
           method="sort_right", argument="-1"),
    Action("sort_right", ("greater_than_sign",), "sort right", "Sort by the column to the right", "Rows",
           palette=False),
    Action("columns", ("C",), "columns", "Choose the columns and their order; they are remembered", "Rows", footer=6,
           by_app=True),
    Action("keep_closed", ("x",), "keep closed", "Keep connections that close from now on in sight, the newest 1,000; "
           "again: drop them", "Rows", footer=1),
    Action("next_trouble", ("exclamation_mark",), "trouble", "Only the rows of the first trouble that the headline "
           "names; again: of the next one; after the last: all rows", "Rows", by_app=True),
    Action("freeze", ("space",), "freeze", "Freeze the screen; collecting goes on", "Screen", footer=60),
    Action("totals", ("t",), "totals", "Rates, or totals since each row began", "Screen", footer=40),
    Action("all_rows", ("a",), "all", "All rows, also those that the table leaves out by default", "Rows", footer=30),
    Action("details", ("right",), "details", "Open the chosen row: its details (again: scroll in them), or the rows "
           "that it stands for", "Screen", footer=50),
    Action("explain", ("m",), "meanings", "In the details, what each fact means and how it is worked out", "Screen",
           footer=45),
    Action("follow", ("f",), "follow", "Follow the chosen row when the order changes, as → and a click do, and end "
           "that; ↑ and ↓ go line by line", "Rows"),
    Action("copy", ("y",), "copy", "Copy the chosen row to the terminal's clipboard (OSC 52), with tabs between "
           "columns", "Rows", footer=3),
    Action("copy_command", ("Y",), "copy command", "Copy the command that shows the chosen socket in ss; again: "
           "the one that shows its packets in tcpdump", "Rows"),
    Action("back", ("left",), "back", "From the details back to the table, then close them, then return to the table "
           "where → was pressed", "Screen", palette=False, footer=65),
    Action("clear", ("escape",), "clear", "Close the details and end following their row, then remove the filter, then "
           "unselect the row", "Screen", footer=35),
    Action("frame_left", ("h", "shift+left"), "left", "The frame to the left in the same row", GRAPH, palette=False,
           method="move", argument="'frame_left'"),
    Action("frame_right", ("l", "shift+right"), "right", "The frame to the right in the same row", GRAPH,
           palette=False, method="move", argument="'frame_right'"),
    Action("next_entry", ("i",), "entry point", "The next entry point that has samples; after the last, all of them",
           GRAPH, footer=48),
    Action("next_cpu", ("u",), "CPU", "Only the next CPU's stacks; after the last, those of all CPUs", GRAPH,
           footer=46),
    Action("previous_cpu", ("U",), "previous CPU", "The previous CPU", GRAPH, palette=False, method="next_cpu",
           argument="-1"),
    Action("window", ("w",), "window", "Count the samples of the last interval, of the last minute, or all since the "
           "start", GRAPH, footer=47),
    Action("categories", ("c",), "categories", "The categories of the network stack: beside the graph, or in its "
           "place where it is not wide enough", GRAPH, footer=49),
    Action("numbers", ("n",), "numbers", "The bars as a table of numbers, other softirqs included, and back", GRAPH,
           footer=36),
    *OPTIONS.values(),
    Action("export", ("e",), "export", "Write the view into a new file in the working directory: CSV, JSON Lines "
           "or SVG", "Screen", footer=4, by_app=True),
    Action("bars", ("b",), "bars", "A bar of each row's rate", "Screen", footer=5),
    Action("average", ("A",), "average", "Rates of each interval, or their averages over 2, 10 or 40 seconds", "Screen",
           footer=33),
    Action("unit", ("B",), "bytes", "Rates in bits or in bytes per second", "Screen", footer=7),
    Action("host_names", ("r",), "names", "Names of hosts, as they are resolved, or their addresses", "Screen",
           footer=2),
    Action("slower", ("plus",), "slower", "A longer interval between refreshes", "Screen", footer=11),
    Action("faster", ("minus",), "faster", "A shorter interval between refreshes", "Screen", footer=10,
           method="slower", argument="-1"),
    *(Action(id_, keys, label, help_, "Move", palette=False, method="move", argument=repr(id_))
      for id_, keys, label, help_ in (
          ("move_up", ("up", "k"), "up", "The row above"),
          ("move_down", ("down", "j"), "down", "The row below"),
          ("page_up", ("pageup",), "page up", "A page up"),
          ("page_down", ("pagedown",), "page down", "A page down"),
          ("first", ("home",), "first", "The first row"),
          ("last", ("end",), "last", "The last row"),
      )),
    Action("next_lens", ("tab",), "next lens", "The next lens that works here; the others are dim, and their digits "
           "open them", "Lenses", palette=False, by_app=True),
    Action("previous_lens", ("shift+tab",), "previous lens", "The previous lens", "Lenses", palette=False,
           by_app=True, method="next_lens", argument="-1"),
    Action("next_table", ("p",), "next table", "The next table of this lens", "Lenses", palette=False, footer=42,
           by_app=True),
    Action("previous_table", ("P",), "previous table", "The previous table", "Lenses", palette=False, by_app=True,
           method="next_table", argument="-1"),
    *(Action("lens", (str(digit),), f"lens {digit}", f"Lens {digit}", "Lenses", palette=False, by_app=True,
             argument=str(digit))
      for digit in range(1, 10)),
    Action("overhead", ("o",), "overhead", "What nettop itself costs, and back", "nettop", footer=8, by_app=True),
    Action("theme", ("T",), "light or dark", "The next theme: dark, light, the terminal's own colours", "nettop",
           by_app=True),
    Action("help", ("question_mark",), "help", "All keys, signs and columns", "nettop", footer=75, by_app=True),
    Action("palette", ("ctrl+p",), "palette", "Find an action or a column by name", "nettop", palette=False,
           footer=9, by_app=True),
    Action("suspend", ("ctrl+z",), "suspend", "Suspend nettop and return to the shell; fg resumes it", "nettop",
           by_app=True, everywhere=True, method="suspend_process"),
    Action("quit", ("q",), "quit", "Quit nettop", "nettop", footer=85, by_app=True),
    Action("interrupt", ("ctrl+c",), "quit", "Quit nettop, from anywhere", "nettop", palette=False, by_app=True,
           everywhere=True),
)  # fmt: skip

_SIGNS = {
    "slash": "/", "exclamation_mark": "!", "less_than_sign": "<", "greater_than_sign": ">", "plus": "+", "minus": "−",
    "question_mark": "?", "right": "→", "left": "←", "up": "↑", "down": "↓", "escape": "Esc", "enter": "Enter",
    "space": "Space", "tab": "Tab", "shift+tab": "Shift-Tab", "pageup": "PgUp", "pagedown": "PgDn", "home": "Home",
    "end": "End", "shift+left": "Shift-←", "shift+right": "Shift-→",
}  # fmt: skip


ON_A_GRAPH: Mapping[str, tuple[str, str]] = {
    "details": ("zoom", "Zoom into the chosen frame: it takes the whole width"),
    "back": ("out", "Zoom out, to where → was pressed before"),
    "clear": ("clear", "Clear the search, then the zoom, then the chosen frame, then the filter"),
    "filter": (
        "search",
        "Highlight the functions whose names contain one of some words, and count their samples",
    ),
    "sort_next": ("sort", "Sort frames and categories by width or by name"),
    "sort_reverse": ("sort CPUs", "CPUs by number, or the busiest first"),
    "move_up": ("up", "The caller"),
    "move_down": ("down", "The widest of the functions that it calls"),
    "page_up": ("page up", "A page up, along the callers"),
    "page_down": ("page down", "A page down, along the widest frames"),
    "first": ("first", "The widest frame of the first row"),
    "last": ("last", "Down along the widest frames to the last one"),
}
"""Label and help of keys that do in a flame graph something like what they do in tables."""

BY_ID = {action.id: action for action in ACTIONS}
"""Actions by their ids; of those that differ only by their argument, one."""


def key_name(key: str) -> str:
    """A key as it is written on keyboards: `/`, `Esc`, `Ctrl-P`."""
    if key.startswith("ctrl+"):
        return f"Ctrl-{key.removeprefix('ctrl+').upper()}"
    return _SIGNS.get(key, key)


def call(action: Action) -> str:
    """The action in Textual's notation."""
    method = action.method or action.id
    name = f"app.{method}" if action.by_app else method
    return f"{name}({action.argument})" if action.argument else name


def bindings(*, everywhere: bool) -> list[BindingType]:
    """Textual's bindings of the app, whose keys work everywhere and precede a box's own, or of a lens's screen."""
    actions = [action for action in ACTIONS if action.everywhere == everywhere]
    return [Binding(",".join(a.keys), call(a), a.label, show=False, priority=a.everywhere) for a in actions]
