# SPDX-License-Identifier: Apache-2.0
"""Findings above the rows of every lens, the key that leads to the rows of each, and the lens that lists them."""

from __future__ import annotations

from typing import Any

import pytest
from textual.widgets import Input

from nettop.errors import SourceFailed
from nettop.screens.filter_box import FilterBox
from nettop.screens.finding_strip import place_after
from nettop.screens.lens import LensScreen
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.drops import LENS as DROPS
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.themes import Role
from tests.builders.driving import Running, press, running, shown, text_of, tick
from tests.builders.finding_hosts import ALL_BUT_LEAK, CALM, FOUR, LEAK, LISTENER, WELL
from tests.builders.harness import Step
from tests.unit.build import make_frame

RULES = {rule.name: rule for rule in SOCKETS.rules}
LENS_SET = (CONNECTIONS, DROPS, FINDINGS)


def on_host(steps: list[Step], size: tuple[int, int] = (160, 30), **options: Any) -> Any:
    """Run the app with the findings lens beside the connections."""
    return running(steps, size, lens_set=LENS_SET, ticks=3, silent=(DROPS.id,), **options)


def strip(run: Running) -> list[str]:
    """Return the lines of the findings."""
    return [line.strip() for line in shown(run).findings.text.splitlines()]


def processes(screen: LensScreen) -> set[str]:
    """Return the owners of the rows in sight, above the line of totals."""
    return {line.split()[0] for line in text_of(screen.rows)[1:] if line.strip()} - {"─"}


def filter_text(run: Running) -> str:
    """Return the filter of the screen in sight."""
    return shown(run).state.query.filter.text


async def test_ten_thousand_sockets_in_close_wait_are_named_and_shown() -> None:
    """A problem is a sentence with a sign and a colour; the key filters by its rows, then shows all again."""
    async with on_host(LEAK) as run:
        (line,) = strip(run)
        assert line == "! ▲ leaker leaves 10,000 connections open that their peers have closed  new"
        assert shown(run).findings.size.height == 1
        assert shown(run).findings._line(0, 160)[2].role is Role.BAD
        assert "fine" in processes(shown(run))
        await press(run, "exclamation_mark")
        assert filter_text(run) == f"pid=1 and {RULES['CLOSE_WAIT'].filter}"
        assert f"/ {filter_text(run)}   10,000 of 10,001   Esc clears" in shown(run).third_line.text
        assert processes(shown(run)) == {"leaker"}
        await press(run, "exclamation_mark")
        assert filter_text(run) == ""
        assert strip(run) == [line]


async def test_the_key_goes_from_finding_to_finding() -> None:
    """The key opens one finding after the other, the worst first, and after the last shows all rows."""
    async with on_host(ALL_BUT_LEAK) as run:
        lines = strip(run)
        assert [line.split("▲ ")[1].split()[0] for line in lines] == ["payapi", "stuck", "warning:"]
        for process in ("payapi", "stuck", "proxyd"):
            await press(run, "exclamation_mark")
            assert processes(shown(run)) == {process}
            assert strip(run) == lines
        await press(run, "exclamation_mark")
        assert filter_text(run) == ""
        assert processes(shown(run)) == {"stuck", "proxyd", "fine"} | {"payapi"}


def test_a_finding_that_another_one_explains_by_now_is_not_gone_back_from() -> None:
    """The key goes on after the finding that explains the shown one."""
    rows = [
        {"id": 1, "rank": 1, "view": "connections", "filter": "pid=1", "cause": None},
        {"id": 2, "rank": 2, "view": "drops", "filter": "port=8125", "cause": None},
        {"id": 3, "rank": 3, "view": "drops", "filter": "reason=NO_SOCKET", "cause": 2},
        {"id": 4, "rank": 4, "view": "findings.limits", "filter": "use>=80%", "cause": None},
    ]
    frame = make_frame([row | {"severity": 1} for row in rows], table=FINDINGS.main, lens=FINDINGS.id)
    shown_rows = [(str(row["view"]), str(row["filter"])) for row in rows]
    assert [place_after(frame, *row) for row in shown_rows] == [1, 2, 2, 3]
    assert place_after(frame, "drops", "") == place_after(None, "drops", "") == 0


async def test_findings_that_cannot_be_read_are_not_shown_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If findings cannot be read, the reason replaces them until they can."""
    why = "too many open files"

    def fail(_taken_ns: int) -> Snapshot:
        raise SourceFailed(why)

    async with on_host(LEAK) as run:
        lines, (_, screen, harness) = strip(run), run
        source = harness.session._attached[FINDINGS.id].source
        with monkeypatch.context() as broken:
            broken.setattr(source, "read", fail)
            await tick(run)
            assert strip(run)[0].startswith(f"▲ nobody looks for problems: {why}; not read since ")
            assert screen.findings.size.height == 1
            why *= 20
            await tick(run)
            assert strip(run)[0].endswith("…")
            assert len(screen.findings.text.rstrip()) == 159
        await tick(run)
        assert [line.split("  ")[0] for line in strip(run)] == [line.split("  ")[0] for line in lines]


@pytest.mark.parametrize(("width", "named"), [(70, True), (65, False)])
async def test_unwatched_lenses_are_named_or_not_spoken_of(width: int, named: bool) -> None:
    """Lenses that are judged only while open are named until they were, if there is room for their names."""
    async with on_host(CALM, (width, 24)) as run:
        await press(run, "0")
        text = shown(run).headline_bar.text
        assert ("watched" in text, "Drops 5" in text) == (named, named)
        await press(run, "5")
        run[2].session.bus.publish(Snapshot(DROPS.id, 0, 0, {}))
        await press(run, "0")
        assert "watched" not in shown(run).headline_bar.text


async def test_the_details_of_a_row_begin_with_its_finding() -> None:
    """Details begin with the finding that a row is part of, if there is one."""
    async with on_host(ALL_BUT_LEAK) as run:
        await press(run, "exclamation_mark", "exclamation_mark", "right")
        first = text_of(shown(run).details)[0]
        assert first.split()[0] == "FINDING"
        assert first.split(maxsplit=1)[1].strip() in strip(run)[1]
        await press(
            run, "left", "exclamation_mark", "exclamation_mark", "slash", *"process=fine", "enter", "right"
        )
        assert "FINDING" not in "".join(text_of(shown(run).details))


async def test_at_most_three_findings_are_shown() -> None:
    """The last line counts the others, and names the key of the lens that lists them; there the key opens the selected
    finding."""
    async with on_host(FOUR) as run:
        assert len(strip(run)) == 3
        assert strip(run)[2].endswith("new  +1 more 0")
        await press(run, "0")
        screen = shown(run)
        assert (screen.lens.id, screen.table.name, strip(run)) == ("findings", "findings", [])
        words = ["▲ problem"] * 3 + ["warning"]
        assert [
            line.strip()[: len(word)] for line, word in zip(text_of(screen.rows)[1:5], words, strict=True)
        ] == words
        await press(run, "down", "down", "right")
        assert "WHAT TO TRY" in shown(run).details.text.upper()
        await press(run, "exclamation_mark")
        assert (shown(run).lens.id, processes(shown(run))) == ("connections", {"leaker"})


async def test_without_findings_nothing_is_said() -> None:
    """They take no line, and the key says that there is none and leaves the filter as it is."""
    async with on_host(CALM) as run:
        assert strip(run) == []
        assert shown(run).findings.size.height == 0
        await press(run, "slash", *"fine", "enter", "exclamation_mark")
        assert filter_text(run) == "fine"
        assert [note.message for note in run[0].app._notifications] == [
            "no findings; lens 0 shows what is watched"
        ]


async def test_a_finding_that_has_gone_is_kept_for_a_while() -> None:
    """It says so, below those still seen; the key does not open it, as it has no rows. While frozen, findings stay."""
    later = [make_frame([LISTENER, WELL], None, seconds).now for seconds in (4.0, 20.0)]
    first = ALL_BUT_LEAK[0]  # read twice: the findings lens attaches after the first reading
    async with on_host([first, *ALL_BUT_LEAK, *later]) as run:
        run[2].tick()
        await run[0].pause()
        payapi, *others = strip(run)
        assert payapi.endswith("for 4 s")
        assert [line.rsplit("  ", 1)[1] for line in others] == ["not for 3 s", "not for 3 s"]
        await press(run, "exclamation_mark")
        assert processes(shown(run)) == {"payapi"}
        await press(run, "exclamation_mark")
        assert filter_text(run) == ""
        await press(run, "space")
        before = strip(run)
        run[2].tick()
        await run[0].pause()
        assert strip(run) == before
        await press(run, "space")
        assert [line.split()[2] for line in strip(run)] == ["payapi"]


async def test_findings_are_shown_in_every_lens() -> None:
    """The key leads from another lens to the rows; its filter is in the box as if typed, and Esc removes it. A click on
    a sentence opens its rows too."""
    async with on_host(ALL_BUT_LEAK) as run:
        lines = strip(run)
        await press(run, "5")
        assert (shown(run).lens.id, strip(run)) == ("drops", lines)
        await press(run, "exclamation_mark")
        assert (shown(run).table.name, processes(shown(run))) == ("sockets", {"payapi"})
        wanted = f"pid=2 and local_port=443 and {RULES['accept queue full'].filter}"
        await press(run, "slash")
        assert shown(run).query_one(FilterBox).query_one(Input).value == wanted
        await press(run, "escape", "escape")
        assert filter_text(run) == ""
        at = shown(run).findings.text.splitlines()[1].index("stuck")
        await run[0].click("#findings", offset=(at + 3, 1))
        assert processes(shown(run)) == {"stuck"}


@pytest.mark.parametrize("width", [40, 64, 80])
async def test_a_sentence_is_cut_where_room_is_short(width: int) -> None:
    """The sentence is cut; its age and the number of other findings are not."""
    async with on_host(FOUR, (width, 20)) as run:
        lines = strip(run)
        assert max(map(len, lines)) <= width
        assert ("…" in lines[2]) == (width < 80)
        assert lines[2].endswith("new  +1 more 0")


async def test_the_help_says_what_findings_are() -> None:
    """The help has the meaning, the threshold and the filter of each kind that the table's rows may be."""
    async with on_host(CALM, (200, 50)) as run:
        await press(run, "question_mark")
        app = run[0].app
        text = " ".join(app.screen.page.text.split())
        assert "CLOSE_WAIT connections that the peer has closed" in text
        assert f"Shown from 100 rows on, or 20 and growing: {RULES['CLOSE_WAIT'].filter}" in text
        assert all(rule.filter in text for rule in SOCKETS.rules)
