# SPDX-License-Identifier: Apache-2.0
"""The table of keys. Bindings, footer, help and palette are all derived from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from textual.binding import Binding, BindingType

from nettop.snapshots import lenses
from nettop.snapshots.schema import Kind
from nettop.widgets.bar import BarItem, item
from nettop.widgets.themes import Role

Condition = Callable[[Any], object]
"""Function that returns something true if a key does something on a LensScreen now."""

Text = str | Callable[[Any], str]
"""A text, or a function that returns it for a LensScreen in its current state."""


@dataclass(frozen=True, slots=True)
class Action:
    """A key's action, implemented by `action_<id>` (or `method`) of the app (`by_app`) or of the lens's screen.

    `keys` are Textual's names; the first one is shown. `other_keys` do the same, but no help shows them. The action is
    `available` by the condition of its group unless it has its own; one without a `help` is in no help. `footer` is
    the importance in the footer (0: not shown), `palette` whether the palette lists it, `everywhere` whether it also
    works in dialogs and boxes.
    """

    id: str
    keys: tuple[str, ...]
    label: Text
    help: Text
    group: str
    palette: bool = True
    footer: int = 0
    available: Condition | None = None
    by_app: bool = False
    everywhere: bool = False
    argument: str = ""
    method: str = ""
    other_keys: tuple[str, ...] = ()


GRAPH = "Flame graph"
"""Group of the actions that only flame graphs have."""

RECORDING = "Recording"
"""Group of the actions that only replays have."""


def never(_: Any) -> bool:
    """Return False: only some screens, which declare their own condition, have this key."""
    return False


def always(_: Any) -> bool:
    """Return True."""
    return True


def is_shown(screen: Any) -> bool:
    """Return whether the table is shown, and not a notice instead."""
    return bool(screen.is_shown())


def _has_rows(screen: Any) -> bool:
    return is_shown(screen) and len(screen.rows.order) > 0


def _is_replay(screen: Any) -> bool:
    return screen.context.player is not None


def _is_live(screen: Any) -> bool:
    return not _is_replay(screen)


def _has_byte_rates(screen: Any) -> bool:
    fields = (*screen.table.fields, *screen.totals_history.fields)
    return any(field.unit == "bytes/s" or (field.unit == "bytes" and field.has_rate) for field in fields)


def _freeze_label(screen: Any) -> str:
    player = screen.context.player
    if player is not None:
        return "play" if player.is_paused or player.is_at_end else "pause"
    return "freeze" if screen.shown_frame.frozen is None else "resume"


def _lens_title(digit: str, screen: Any) -> str:
    """Return the title of the lens with this digit; nothing if there is none."""
    return next((lens.title for lens in screen.context.lenses if lens.digit == digit), "")


def _is_offered(name: str, screen: Any) -> bool:
    """Return whether a key changes this option. Nothing changes how a recording was made."""
    option = next((option for option in screen.lens.options if option.name == name), None)
    if option is None:
        return False
    opens_another = option.opens not in ("", screen.table.name)
    return opens_another or (_is_live(screen) and option.concerns(screen.table))


_GROUPS: Mapping[str, Condition] = {"Rows": is_shown, "Move": is_shown, GRAPH: never, RECORDING: _is_replay}
"""Conditions of the actions of a group; those of other groups are always available."""

OPTIONS = {
    f"option_{option.name}": Action(
        f"option_{option.name}", (option.key,), option.name.replace("_", " "), f"{option.help}: next value",
        lens.title, footer=34, available=partial(_is_offered, option.name), argument=repr(option.name),
        method="next_option_value",
    )
    for lens in lenses() for option in lens.options if option.key
}  # fmt: skip
"""Actions of the options that lenses declare."""

ACTIONS: tuple[Action, ...] = (
    Action("refresh_now", ("enter",), lambda screen: "try again" if screen.has_failed else "refresh",
           "Refresh now; in the filter box, also apply the filter", "Screen", footer=90, by_app=True, everywhere=True,
           other_keys=("ctrl+l",)),
    Action("filter", ("slash",), "filter", "Filter the rows by words, or by field op value", "Rows",
           footer=80, available=always),  # also while the view loads: what is typed next is no command
    Action("sort_next", ("s",), "sort", "Sort by the next column", "Rows", footer=70),
    Action("sort_reverse", ("S",), "reverse", "Reverse the sort order", "Rows", footer=20),
    Action("sort_left", ("less_than_sign",), "sort left", "Sort by the column to the left", "Rows", palette=False,
           method="sort_right", argument="-1"),
    Action("sort_right", ("greater_than_sign",), "sort right", "Sort by the column to the right", "Rows",
           palette=False),
    Action("columns", ("C",), "columns", "Choose the columns and their order; the choice is saved", "Rows", footer=6,
           by_app=True),
    Action("keep_closed", ("x",), "keep closed", "Keep showing connections that close from now on, the newest 1,000; "
           "again: drop them", "Rows", footer=1, available=never),
    Action("next_finding", ("exclamation_mark",), "finding", "Open the rows that show the first finding, in their "
           "lens, or the selected one; again: the next; after the last: all rows", "Lenses", by_app=True,
           available=lambda screen: screen.context.has_findings),
    Action("freeze", ("space",), _freeze_label, lambda screen: "Freeze the screen; collection continues"
           if _is_live(screen) else "Pause the recording, or play on; at its end, from the beginning", "Screen",
           footer=60, available=lambda screen: _is_replay(screen) or is_shown(screen) or screen.shown_frame.frozen),
    Action("totals", ("t",), lambda screen: "rates" if screen.state.totals else "totals", "Show rates, or totals "
           "since each row began", "Screen", footer=40,
           available=lambda screen: is_shown(screen) and screen.state.has_forms),
    Action("all_rows", ("a",), lambda screen: "fewer" if screen.state.query.all_rows else "all", "Show all rows, or "
           "leave some out as by default", "Rows", footer=30,
           available=lambda screen: is_shown(screen) and bool(screen.table.default_filter)),
    Action("details", ("right",), lambda screen: screen.member_table.name if screen.member_table else "details",
           "Open the selected row's details (again: scroll them), or the rows it groups", "Screen", footer=50,
           available=_has_rows),
    Action("explain", ("m",), "meanings", "In the details, show what each value means and how it is computed", "Screen",
           footer=45, available=lambda screen: screen.details_open),
    Action("follow", ("f",), lambda screen: "unfollow" if screen.rows.follows else "follow", "Follow the selected row "
           "when the order changes, or stop; → and a click also follow, ↑ and ↓ stop", "Rows",
           available=lambda screen: _has_rows(screen) and not screen.table.append),
    Action("copy", ("y",), "copy", "Copy the selected row to the terminal's clipboard (OSC 52), separated by "
           "tabs", "Rows", footer=3,
           available=lambda screen: _has_rows(screen) and screen.rows.chosen_fold is None),
    Action("copy_command", ("Y",), "copy command", "Copy an ss command for the selected socket; again: "
           "a tcpdump command for its packets", "Rows", available=never),
    Action("back", ("left",), lambda screen: screen.opened_from.name if screen.opened_from and not screen.details_open
           else "back", "Leave the details, then close them, then return to the table where → was pressed", "Screen",
           palette=False, footer=65, available=lambda screen: screen.details_open or screen.opened_from),
    Action("clear", ("escape",), "clear", "Close the details and stop following, then clear the filter, then "
           "deselect the row", "Screen", footer=35, available=lambda screen: screen.details_open
           or screen.state.query.filter.text or screen.rows.key is not None),
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
           "or SVG", "Screen", footer=4, by_app=True, available=is_shown),
    Action("bars", ("b",), lambda screen: "hide bars" if screen.rows.bars else "bars", "Show or hide a bar of each "
           "row's rate", "Screen", footer=5,
           available=lambda screen: is_shown(screen) and screen.rows.has_room_for_bars),
    Action("average", ("A",), "average", "Average rates over 2, 10 or 40 seconds, or not at all", "Screen",
           footer=33, available=lambda screen: screen.context.next_average_s != screen.context.average_s),
    Action("unit", ("B",), lambda screen: "bits" if screen.context.in_bytes else "bytes", "Show rates in bits or in "
           "bytes per second", "Screen", footer=7,
           available=lambda screen: is_shown(screen) and _has_byte_rates(screen)),
    Action("host_names", ("r",), lambda screen: "names" if screen.context.names is None else "addresses", "Show host "
           "names once they are resolved, or addresses", "Screen", footer=2,
           available=lambda screen: is_shown(screen) and any(f.kind is Kind.ADDRESS for f in screen.table.fields)),
    Action("slower", ("plus",), "slower", "Lengthen the refresh interval", "Screen", footer=11, available=_is_live),
    Action("faster", ("minus",), "faster", "Shorten the refresh interval", "Screen", footer=10, available=_is_live,
           method="slower", argument="-1"),
    *(Action(id_, (key,), label, help_, RECORDING, footer=footer, method="replay", argument=argument)
      for id_, key, label, help_, footer, argument in (
          ("jump", "colon", "jump", "Go to a moment of the recording: 14:32, -5m, +30s, end", 64, "'jump'"),
          ("step_forward", "full_stop", "step", "Pause, and show the next reading", 62, "'step_forward', 1"),
          ("step_back", "comma", "step back", "Pause, and show the reading before", 61, "'step_forward', -1"),
          ("play_faster", "right_square_bracket", "play faster", "Play faster, up to ×100", 59, "'play_faster', 1"),
          ("play_slower", "left_square_bracket", "play slower", "Play slower, down to ×0.1", 58, "'play_faster', -1"),
          ("next_match", "M", "next match",
           "Go to the next moment with a row that passes the filter; without one, to the next finding", 57,
           "'next_match'"),
      )),
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
           "digits open them", "Lenses", palette=False, by_app=True,
           available=lambda screen: len(screen.context.lenses) > 1),
    Action("previous_lens", ("shift+tab",), "previous lens", "Show the previous lens", "Lenses", palette=False,
           available=lambda screen: len(screen.context.lenses) > 1, by_app=True, method="next_lens", argument="-1"),
    Action("next_table", ("p",), lambda screen: screen.next_table_name, "Show the next table of this lens", "Lenses",
           palette=False, footer=42, available=lambda screen: len(screen.lens.tables) > 1, by_app=True),
    Action("previous_table", ("P",), "previous table", "Show the previous table", "Lenses", palette=False,
           available=lambda screen: len(screen.lens.tables) > 1, by_app=True, method="next_table", argument="-1"),
    *(Action("lens", (digit,), f"lens {digit}", partial(_lens_title, digit), "Lenses", palette=False,
             available=lambda screen: len(screen.context.lenses) > 1, by_app=True, argument=digit)
      for digit in "0123456789"),
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


BY_ID = {action.id: action for action in ACTIONS}
"""Actions by id; the last one if several share an id and differ only in their argument."""


def changed(*changes: tuple[Any, ...]) -> dict[str, Action]:
    """Return the actions that differ on a screen, by id. A change is an id, a condition, and any new label and help."""
    return {
        name: replace(BY_ID[name], available=available, **dict(zip(("label", "help"), texts, strict=False)))
        for name, available, *texts in changes
    }


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


_WHILE_TYPING = {"refresh_now": "apply and refresh", "clear": "cancel"}
"""Labels of the keys that work while the filter box is open; all others are typed into it."""


class Keys:
    """The keys of a screen in its current state. `own` are the actions that differ on it, by id."""

    def __init__(self, screen: Any, own: Mapping[str, Action]) -> None:
        self._screen, self._own = screen, own

    def is_available(self, action: Action) -> bool:
        """Return whether a key would do something now."""
        if self._screen.has_class("-small"):
            return action.id in ("quit", "interrupt", "suspend")
        if self._screen.has_class("-typing"):
            return action.id in _WHILE_TYPING or action.everywhere
        action = self._own.get(action.id, action)
        condition = action.available or _GROUPS.get(action.group)
        return condition is None or bool(condition(self._screen))

    def label_of(self, action: Action) -> str:
        """Return the current label of a key."""
        if self._screen.has_class("-typing") and action.id in _WHILE_TYPING:
            return _WHILE_TYPING[action.id]
        return self._text(self._own.get(action.id, action).label)

    def help_of(self, action: Action) -> str:
        """Return a line about a key."""
        return self._text(self._own.get(action.id, action).help)

    def _text(self, text: Text) -> str:
        return text if isinstance(text, str) else text(self._screen)

    def footer(self) -> list[BarItem]:
        """Return the available keys; the least important are dropped first."""
        shown = [action for action in ACTIONS if action.footer and self.is_available(action)]
        texts = [((key_name(a.keys[0]), Role.KEY), (f" {self.label_of(a)}", Role.DIM)) for a in shown]
        return [item(*t, importance=a.footer, action=call(a)) for a, t in zip(shown, texts, strict=True)]


def bindings(*, everywhere: bool) -> list[BindingType]:
    """Return Textual's bindings of the app (`everywhere`, taking priority over a box's own) or of a lens's screen."""
    actions = [action for action in ACTIONS if action.everywhere == everywhere]
    return [
        Binding(",".join(a.keys + a.other_keys), call(a), a.id, show=False, priority=a.everywhere)
        for a in actions
    ]


_STEPS = {"up,k": -1, "down,j": 1, "pageup": -10, "pagedown": 10, "home": -10_000, "end": 10_000}
MOVES: list[BindingType] = [Binding(keys, f"move({step})", show=False) for keys, step in _STEPS.items()]
"""The keys that scroll texts and select in lists, by the action `move`."""
