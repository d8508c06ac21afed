# SPDX-License-Identifier: Apache-2.0
"""A widget of lines draws only changed lines."""

from __future__ import annotations

from typing import Any, Self

from rich.segment import Segment
from textual.app import App, ComposeResult
from textual.geometry import Region, Size
from textual.strip import Strip

from nettop.widgets.lines import Lines

WIDTH, HEIGHT = 10, 3


class Words(Lines):
    """A widget of one word per line that records its redraws."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ["one", "two", "three"]
        self.refreshed: list[tuple[Region, ...]] = []

    def strips(self, size: Size) -> list[Strip]:
        """Return the words."""
        return [Strip([Segment(word.ljust(size.width))], size.width) for word in self.words]

    def refresh(self, *regions: Region, **how: Any) -> Self:
        """Refresh as any widget, and record it."""
        self.refreshed.append(regions)
        return super().refresh(*regions, **how)


class Stand(App[None]):
    """An app with only the words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = Words()

    def compose(self) -> ComposeResult:
        """Yield the words."""
        yield self.words

    @property
    def seen(self) -> str:
        """Return the text on the screen."""
        return self.export_screenshot()


async def test_only_a_line_that_changed_is_drawn() -> None:
    """Unchanged lines keep their strips; a hidden widget draws its newest lines once it is visible again."""
    stand = Stand()
    async with stand.run_test(size=(WIDTH, HEIGHT)) as pilot:
        await pilot.pause()
        words = stand.words
        before = [words.render_line(y) for y in range(HEIGHT)]
        words.refreshed.clear()
        words.redraw()
        assert words.refreshed == []
        words.words[1] = "other"
        words.redraw()
        assert words.refreshed == [(Region(0, 1, WIDTH, 1),)]
        await pilot.pause()
        assert [words.render_line(y) is before[y] for y in range(HEIGHT)] == [True, False, True]
        assert "other" in stand.seen and "two" not in stand.seen
        words.display = False
        await pilot.pause()
        words.words[2] = "last"
        words.redraw()
        words.display = True
        await pilot.pause()
        assert "last" in stand.seen and "three" not in stand.seen
