# SPDX-License-Identifier: Apache-2.0
"""Screens remember columns, theme and unit, or say why they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nettop.preferences import LoadedPreferences, Preferences, load_preferences, remember
from nettop.screens.dialogs import ColumnsDialog
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.connections import SOCKETS
from tests.builders.driving import Running, notes, press, running, screen_text, shown, text_of
from tests.builders.harness import busy_host


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the user's file, which is not there yet."""
    return tmp_path / "nettop" / "config.toml"


def put(file: Path, text: str) -> None:
    """Write the file, as its user might."""
    file.parent.mkdir()
    file.write_text(text)


def text_in(file: Path) -> str | None:
    """Return the file's text; None if there is no file."""
    return file.read_text() if file.exists() else None


def dialog(run: Running) -> ColumnsDialog:
    """Return the open dialog."""
    return run[0].app.screen


def loaded(file: Path, **more: Any) -> dict[str, Any]:
    """Return the arguments of an app that remembers in this file."""
    return {"loaded": load_preferences(file), **more}


def header(run: Running) -> list[str]:
    """Return the titles of the columns."""
    return text_of(shown(run).rows)[0].split()


async def test_columns_are_chosen_and_remembered(file: Path) -> None:
    """Space hides and shows, < moves: at once on the screen below, and at the next start."""
    async with running(busy_host(), (200, 30), **loaded(file)) as run:
        await press(run, "C")
        lines = dialog(run).page.text.splitlines()
        assert [line[:3] for line in lines[: len(SOCKETS.screen) + 1]] == [
            *["[x]"] * len(SOCKETS.screen),
            "[ ]",
        ]
        await press(run, "down", "space")
        assert "PROTO" not in header(run)
        at = next(n for n, line in enumerate(lines) if "CWND" in line)
        await press(run, *["down"] * (at - 1), "space", *["less_than_sign"] * len(SOCKETS.screen))
        assert header(run)[:2] == ["CWND", "PROCESS"]
        assert "congestion window" in screen_text(run)
        await press(run, "escape")
        names = shown(run).state.names
        assert names[:2] == ("cwnd", "owner")
    assert load_preferences(file).preferences == Preferences({"connections": names})
    async with running(busy_host(), (200, 30), **loaded(file)) as run:
        assert header(run)[:2] == ["CWND", "PROCESS"]
        assert shown(run).rows.bars
        await press(run, "C", "r", "escape")
        assert header(run)[0] == "PROCESS"
    assert load_preferences(file).preferences == Preferences()


async def test_nothing_is_written_without_a_choice(file: Path) -> None:
    """Looking at the columns writes no file; without a file nothing is written or reported."""
    async with running(busy_host(), **loaded(file)) as run:
        await press(run, "C", "space", "space", "down", "escape")
    assert text_in(file) is None
    async with running(busy_host(), loaded=LoadedPreferences()) as run:
        await press(run, "B")
        assert notes(run) == []


async def test_a_column_without_room_is_marked(file: Path) -> None:
    """The dialog says which columns have no room in a narrow terminal; the last one cannot be hidden."""
    settings = Settings(view=ViewSettings(columns=("owner", "local", "remote", "state", "cwnd")))
    async with running(busy_host(), (60, 24), settings=settings, **loaded(file)) as run:
        await press(run, "C")
        marked = [line.split()[1] for line in dialog(run).page.text.splitlines() if "no room" in line]
        assert marked
        assert not set(marked) & set(header(run))
        await press(run, *["space", "down"] * 5)
        assert len(shown(run).state.names) == 1


async def test_the_command_line_wins(file: Path) -> None:
    """--columns shows its own columns in that view, and remembers nothing."""
    remember(file, "columns", {"connections": ("remote",), "connections.events": ("event", "remote")})
    settings = Settings(view=ViewSettings(columns=("pid", "state")))
    async with running(busy_host(), settings=settings, **loaded(file)) as run:
        assert shown(run).state.names == ("pid", "state")
        await press(run, "p")
        assert shown(run).state.names == ("event", "remote")
        await press(run, "P")
        assert shown(run).state.names == ("pid", "state")
    assert load_preferences(file).preferences.columns["connections"] == ("remote",)


async def test_every_screen_of_a_table_has_the_chosen_columns(file: Path) -> None:
    """Columns chosen in a group's sockets apply to the table of sockets too."""
    async with running(busy_host(), **loaded(file), view="connections.groups") as run:
        await press(run, "p")
        first = shown(run)
        await press(run, "P")
        screen = shown(run)
        screen.post_message(screen.MembersOpened(SOCKETS, "nginx"))
        await run[0].pause()
        assert shown(run) is not screen
        await press(run, "C", "space", "escape")
        await press(run, "left", "p")
        assert shown(run) is first
        assert first.state.names == SOCKETS.screen[1:]


async def test_theme_and_unit_are_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theme, unit and columns in totals are restored, also after Ctrl-C in the dialog, except a theme that a terminal
    without colours cannot show."""
    async with running(busy_host(), **loaded(file)) as run:
        await press(run, "T", "B", "t", "C", "space", "ctrl+c")
    saved = load_preferences(file).preferences
    assert (saved.theme, saved.unit) == ("light", "bytes")
    async with running(busy_host(), theme=None, **loaded(file)) as run:
        assert run[0].app.theme == "nettop-light"
        assert shown(run).context.in_bytes
        assert shown(run).state.totals
        assert shown(run).state.query.sort.field == "bytes"
        await press(run, "t")
        assert "B/s" in text_of(shown(run).rows)[1]
        await press(run, "B")
    assert load_preferences(file).preferences.unit == "bits"
    monkeypatch.setenv("NO_COLOR", "1")
    async with running(busy_host(), theme=None, **loaded(file)) as run:
        assert run[0].app.theme == "nettop-terminal"


async def test_problems_are_said(file: Path) -> None:
    """A file with a mistake is named once, and the screen has its defaults; a choice does not overwrite it."""
    put(file, "theme = [\n")
    async with running(busy_host(), **loaded(file)) as run:
        (note,) = notes(run)
        assert "line" in note
        assert str(file) in note
        await press(run, "T")
        assert notes(run)[-1].startswith("not remembered: ")
        assert run[0].app.theme == "nettop-light"
    assert text_in(file) == "theme = [\n"


async def test_root_writes_no_file_of_the_caller(file: Path) -> None:
    """If nettop must stay root, nothing is written, and a notice gives the reason."""
    async with running(busy_host(), **loaded(file, writing_refused="nettop stays root: why")) as run:
        await press(run, "B")
        assert "not remembered: no files are written: nettop stays root: why" in notes(run)[0]
    assert text_in(file) is None
