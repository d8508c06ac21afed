# SPDX-License-Identifier: Apache-2.0
"""The table of keys. Bindings, footer, help and palette are all derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual.binding import Binding, BindingType

from nettop.snapshots import lenses


@dataclass(frozen=True, slots=True)
class Action:
    """A key's action, implemented by `action_<id>` (or `method`) of the app (`by_app`) or of the lens's screen.

    `keys` are Textual's names; the first one is shown. `other_keys` do the same, but no help shows them. `footer` is
    the importance in the footer (0: not shown), `palette` whether the palette lists it, `everywhere` whether it also
    works in dialogs and boxes.
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
    other_keys: tuple[str, ...] = ()


OPTIONS = {
    f"option_{option.name}": Action(
        f"option_{option.name}", (option.key,), option.name.replace("_", " "), f"{option.help}: next value",
        lens.title, footer=34, argument=repr(option.name), method="next_option_value",
    )
    for lens in lenses() for option in lens.options if option.key
}  # fmt: skip
"""Actions of the options that lenses declare."""

GRAPH = "Flame graph"
"""Group of the actions that only flame graphs have."""

RECORDING = "Recording"
"""Group of the actions that only replays have."""

ACTIONS: tuple[Action, ...] = (
    Action("refresh_now", ("enter",), "refresh", "Refresh now; in the filter box, also apply the filter",
           "Screen", footer=90, by_app=True, everywhere=True, other_keys=("ctrl+l",)),
    Action("filter", ("slash",), "filter", "Filter the rows by words, or by field op value", "Rows",
           footer=80),
    Action("sort_next", ("s",), "sort", "Sort by the next column", "Rows", footer=70),
    Action("sort_reverse", ("S",), "reverse", "Reverse the sort order", "Rows", footer=20),
    Action("sort_left", ("less_than_sign",), "sort left", "Sort by the column to the left", "Rows", palette=False,
           method="sort_right", argument="-1"),
    Action("sort_right", ("greater_than_sign",), "sort right", "Sort by the column to the right", "Rows",
           palette=False),
    Action("columns", ("C",), "columns", "Choose the columns and their order; the choice is saved", "Rows", footer=6,
           by_app=True),
    Action("keep_closed", ("x",), "keep closed", "Keep showing connections that close from now on, the newest 1,000; "
           "again: drop them", "Rows", footer=1),
    Action("next_finding", ("exclamation_mark",), "finding", "Open the rows that show the first finding, in their "
           "lens, or the selected one; again: the next; after the last: all rows", "Lenses", by_app=True),
    Action("freeze", ("space",), "freeze", "Freeze the screen; collection continues", "Screen", footer=60),
    Action("totals", ("t",), "totals", "Show rates, or totals since each row began", "Screen", footer=40),
    Action("all_rows", ("a",), "all", "Show all rows, or leave some out as by default", "Rows", footer=30),
    Action("details", ("right",), "details", "Open the selected row's details (again: scroll them), or the rows "
           "it groups", "Screen", footer=50),
    Action("explain", ("m",), "meanings", "In the details, show what each value means and how it is computed", "Screen",
           footer=45),
    Action("follow", ("f",), "follow", "Follow the selected row when the order changes, or stop; → and a click also "
           "follow, ↑ and ↓ stop", "Rows"),
    Action("copy", ("y",), "copy", "Copy the selected row to the terminal's clipboard (OSC 52), separated by "
           "tabs", "Rows", footer=3),
    Action("copy_command", ("Y",), "copy command", "Copy an ss command for the selected socket; again: "
           "a tcpdump command for its packets", "Rows"),
    Action("back", ("left",), "back", "Leave the details, then close them, then return to the table "
           "where → was pressed", "Screen", palette=False, footer=65),
    Action("clear", ("escape",), "clear", "Close the details and stop following, then clear the filter, then "
           "deselect the row", "Screen", footer=35),
    Action("frame_left", ("h", "shift+left"), "left", "Select the frame to the left in the same row", GRAPH,
           palette=False, method="move", argument="'frame_left'"),
    Action("frame_right", ("l", "shift+right"), "right", "Select the frame to the right in the same row", GRAPH,
           palette=False, method="move", argument="'frame_right'"),
    Action("next_entry", ("i",), "entry point", "Zoom into the next entry point that has samples; after the last, show "
           "all", GRAPH, footer=48),
    Action("next_cpu", ("u",), "CPU", "Show only the next CPU's stacks; after the last, all CPUs", GRAPH,
           footer=46),
    Action("previous_cpu", ("U",), "previous CPU", "Show only the previous CPU's stacks", GRAPH, palette=False,
           method="next_cpu", argument="-1"),
    Action("window", ("w",), "window", "Count samples of the last interval, of the last minute, or since the "
           "start", GRAPH, footer=47),
    Action("categories", ("c",), "categories", "Show the categories of the network stack: beside the graph, or "
           "instead of it on a narrow terminal", GRAPH, footer=49),
    Action("numbers", ("n",), "numbers", "Show the bars as a table of numbers, including other softirqs, or go "
           "back", GRAPH, footer=36),
    *OPTIONS.values(),
    Action("export", ("e",), "export", "Write the view to a new file in the working directory: CSV, JSON Lines "
           "or SVG", "Screen", footer=4, by_app=True),
    Action("bars", ("b",), "bars", "Show or hide a bar of each row's rate", "Screen", footer=5),
    Action("average", ("A",), "average", "Average rates over 2, 10 or 40 seconds, or not at all", "Screen",
           footer=33),
    Action("unit", ("B",), "bytes", "Show rates in bits or in bytes per second", "Screen", footer=7),
    Action("host_names", ("r",), "names", "Show host names once they are resolved, or addresses", "Screen",
           footer=2),
    Action("slower", ("plus",), "slower", "Lengthen the refresh interval", "Screen", footer=11),
    Action("faster", ("minus",), "faster", "Shorten the refresh interval", "Screen", footer=10,
           method="slower", argument="-1"),
    Action("jump", ("colon",), "jump", "Go to a moment of the recording: 14:32, -5m, +30s, end", RECORDING, footer=64),
    Action("step_forward", ("full_stop",), "step", "Pause, and show the next reading", RECORDING, footer=62),
    Action("step_back", ("comma",), "step back", "Pause, and show the reading before", RECORDING, footer=61,
           method="step_forward", argument="-1"),
    Action("play_faster", ("right_square_bracket",), "play faster", "Play faster, up to ×100", RECORDING, footer=59),
    Action("play_slower", ("left_square_bracket",), "play slower", "Play slower, down to ×0.1", RECORDING, footer=58,
           method="play_faster", argument="-1"),
    Action("next_match", ("M",), "next match", "Go to the next moment with a row that passes the filter; without one, "
           "to the next finding", RECORDING, footer=57),
    *(Action(id_, keys, label, help_, "Move", palette=False, method="move", argument=repr(id_))
      for id_, keys, label, help_ in (
          ("move_up", ("up", "k"), "up", "Select the row above"),
          ("move_down", ("down", "j"), "down", "Select the row below"),
          ("page_up", ("pageup",), "page up", "Move a page up"),
          ("page_down", ("pagedown",), "page down", "Move a page down"),
          ("first", ("home",), "first", "Select the first row"),
          ("last", ("end",), "last", "Select the last row"),
      )),
    Action("next_lens", ("tab",), "next lens", "Show the next lens that works here; the others are dim, but their "
           "digits open them", "Lenses", palette=False, by_app=True),
    Action("previous_lens", ("shift+tab",), "previous lens", "Show the previous lens", "Lenses", palette=False,
           by_app=True, method="next_lens", argument="-1"),
    Action("next_table", ("p",), "next table", "Show the next table of this lens", "Lenses", palette=False, footer=42,
           by_app=True),
    Action("previous_table", ("P",), "previous table", "Show the previous table", "Lenses", palette=False, by_app=True,
           method="next_table", argument="-1"),
    *(Action("lens", (str(digit),), f"lens {digit}", f"Show lens {digit}", "Lenses", palette=False, by_app=True,
             argument=str(digit))
      for digit in range(10)),
    Action("overhead", ("o",), "overhead", "Show what nettop itself costs, or go back", "nettop", footer=8,
           by_app=True),
    Action("theme", ("T",), "light or dark", "Show the next theme: dark, light, the terminal's own colours", "nettop",
           by_app=True),
    Action("help", ("question_mark",), "help", "Show all keys, signs and columns", "nettop", footer=75, by_app=True),
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
    "question_mark": "?", "colon": ":", "full_stop": ".", "comma": ",", "left_square_bracket": "[",
    "right_square_bracket": "]", "right": "→", "left": "←", "up": "↑", "down": "↓", "escape": "Esc", "enter": "Enter",
    "space": "Space", "tab": "Tab", "shift+tab": "Shift-Tab", "pageup": "PgUp", "pagedown": "PgDn", "home": "Home",
    "end": "End", "shift+left": "Shift-←", "shift+right": "Shift-→",
}  # fmt: skip


GRAPH_TEXTS: Mapping[str, tuple[str, str]] = {
    "details": ("zoom", "Zoom into the selected frame: it takes the whole width"),
    "back": ("out", "Undo the last zoom"),
    "clear": ("clear", "Clear the search, then the zoom, then the selection, then the filter"),
    "filter": (
        "search",
        "Highlight functions whose names contain any of the words, and count their samples",
    ),
    "sort_next": ("sort", "Sort frames and categories by width or by name"),
    "sort_reverse": ("sort CPUs", "Sort CPUs by number, or the busiest first"),
    "move_up": ("up", "Select the caller"),
    "move_down": ("down", "Select the widest function it calls"),
    "page_up": ("page up", "Move a page up, along the callers"),
    "page_down": ("page down", "Move a page down, along the widest frames"),
    "first": ("first", "Select the widest frame of the first row"),
    "last": ("last", "Move down along the widest frames to the last one"),
}
"""Labels and help of keys whose actions on a flame graph are similar to those on tables."""

BY_ID = {action.id: action for action in ACTIONS}
"""Actions by id; the last one if several share an id and differ only in their argument."""


def key_name(key: str) -> str:
    """Return a key as printed on keyboards: `/`, `Esc`, `Ctrl-P`."""
    if key.startswith("ctrl+"):
        return f"Ctrl-{key.removeprefix('ctrl+').upper()}"
    return _SIGNS.get(key, key)


def call(action: Action) -> str:
    """Return the action in Textual's notation."""
    method = action.method or action.id
    name = f"app.{method}" if action.by_app else method
    return f"{name}({action.argument})" if action.argument else name


def bindings(*, everywhere: bool) -> list[BindingType]:
    """Return Textual's bindings of the app (`everywhere`, taking priority over a box's own) or of a lens's screen."""
    actions = [action for action in ACTIONS if action.everywhere == everywhere]
    return [
        Binding(",".join(a.keys + a.other_keys), call(a), a.label, show=False, priority=a.everywhere)
        for a in actions
    ]


MOVES: list[BindingType] = [
    Binding("up,k", "move(-1)", show=False),
    Binding("down,j", "move(1)", show=False),
    Binding("pageup", "move(-10)", show=False),
    Binding("pagedown", "move(10)", show=False),
    Binding("home", "move(-10000)", show=False),
    Binding("end", "move(10000)", show=False),
]
"""The keys that scroll texts and select in lists, by the action `move`."""
