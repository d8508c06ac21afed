# SPDX-License-Identifier: Apache-2.0
"""Screens name what is not available on this kernel or host, and the mechanisms behind the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nettop.screens.dialogs import help_lines
from nettop.screens.headline import status_items
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.connections import FAILURES, LENS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import NAMESPACES_PARTLY_SEEN, PARTLY_SEEN, Snapshot
from nettop.widgets.themes import Role
from tests.builders.driving import Running, press, running, shown, text_of
from tests.builders.example_events import eventful_host
from tests.builders.harness import Step, busy_host

HOOKS = (
    HookStatus("sockets", "iter/task_file"),
    HookStatus(
        "accepts", "tp/accept", (("fexit/inet_csk_accept", "no fentry here"), ("kretprobe/x", "no kprobes"))
    ),
    HookStatus(
        "events",
        None,
        (("tp_btf/inet_sock_set_state", "no BTF"), ("tp/x", "no tracefs")),
        ("opened", "closed", "failed", "reset"),
    ),
)
EVENTS_WHY = "tp_btf/inet_sock_set_state: no BTF; tp/x: no tracefs"


def with_hooks(steps: list[Step]) -> list[Step]:
    """Return the steps of a host that tells in these ways, and has a namespace that may not be entered."""
    return [
        replace(s, hooks=HOOKS, gaps={"namespace 7": "not entered"}) for s in steps if isinstance(s, Snapshot)
    ]


async def test_help_lists_each_hook_and_its_mechanisms() -> None:
    """Each hook has its mechanism, its meaning, and the refused mechanisms, faintly; the gaps stand below. The headline
    counts what is not available."""
    async with running(with_hooks(busy_host()), (160, 30)) as run:
        lines = help_lines(shown(run), 110)
        assert (
            shown(run)
            .headline_bar.text.rstrip()
            .endswith("0 missed   4 n/a (opened, closed, failed, reset)   !1 gap")
        )
    texts = ["".join(span.text for span in line) for line in lines]
    at = texts.index("HOOKS")
    indent = " " * 17
    assert texts[at + 1 : at + 3] == [f"{'sockets':17}iter/task_file", f"{indent}{LENS.hooks[0].help}"]
    assert texts[at + 3] == f"{'unattributed':17}not known yet"
    accepts = next(n for n, text in enumerate(texts) if text.startswith("accepts  "))
    assert texts[accepts].endswith("tp/accept")
    assert texts[accepts + 2 : accepts + 4] == [
        f"{indent}fexit/inet_csk_accept refused: no fentry here",
        f"{indent}kretprobe/x refused: no kprobes",
    ]
    assert {piece.role for line in lines[accepts + 2 : accepts + 4] for piece in line} == {Role.FAINT}
    events = next(n for n, text in enumerate(texts) if n > at and text.startswith("events  "))
    assert texts[events] == f"{'events':17}n/a"
    assert "tp_btf/inet_sock_set_state refused: no BTF" in map(str.strip, texts[events + 2 : events + 4])
    assert texts.index(f"{'namespace 7':17}not entered") > events


def with_new_namespaces(lost: int = 0) -> list[Step]:
    """Return the steps of a host on which three namespaces were made after the start, and so many cannot be entered."""
    gaps = {"namespaces web, db and 4026532201": PARTLY_SEEN}
    return [
        replace(
            s,
            counts={**s.counts, NAMESPACES_PARTLY_SEEN: 3},
            gaps=gaps | ({"namespace 7": "not entered"} if lost else {}),
            lost={"namespaces": lost},
        )
        for s in busy_host()
        if isinstance(s, Snapshot)
    ]


def roles_of_ending(run: Running) -> dict[str, Role]:
    """Return the role of each text at the end of the headline."""
    view = shown(run).view
    return {span.text: span.role for item in status_items(view.snapshot) for span in item.spans}


async def test_namespaces_made_later_raise_no_alarm() -> None:
    """The headline says so dimly, and the help what is missing; those that cannot be entered are missed, and a gap."""
    async with running(with_new_namespaces(), (200, 30)) as run:
        text, roles = shown(run).headline_bar.text, roles_of_ending(run)
        helps = ["".join(span.text for span in line) for line in help_lines(shown(run), 400)]
    assert helps[helps.index("namespaces web, db and 4026532201") + 1].strip() == PARTLY_SEEN
    sign = next(line for line in helps if line.startswith("n partly seen"))
    for said in ("sockets without a process", "drop counters", "--follow-namespaces"):
        assert said in sign
        assert said in PARTLY_SEEN
    assert text.rstrip().endswith("0 missed   3 namespaces partly seen")
    assert roles["3 namespaces partly seen"] is Role.DIM
    assert not {Role.WARN, Role.BAD} & set(roles.values())
    async with running(with_new_namespaces(lost=1), (200, 30)) as run:
        text, roles = shown(run).headline_bar.text, roles_of_ending(run)
    assert text.rstrip().endswith("1 missed   !1 gap   3 namespaces partly seen")
    assert (roles["1"], roles["!1 gap"]) == (Role.BAD, Role.WARN)


async def test_columns_and_help_of_a_table_say_why() -> None:
    """Cells and the total of what the events would tell are n/a; the help of the columns says why."""
    async with running(with_hooks(eventful_host()[0]), (140, 30), view="connections.groups") as run:
        rows = [line for line in text_of(shown(run).rows) if "nginx" in line or "total" in line]
        assert [row.split().count("n/a") for row in rows] == [4, 4]
        texts = ["".join(span.text for span in line) for line in help_lines(shown(run), 400)]
        assert f"n/a: {EVENTS_WHY}" in next(text for text in texts if "[closed]" in text)
        assert "opened n/a   closed n/a   failed n/a" in shown(run).headline_bar.text


async def test_a_table_that_nobody_fills_does_not_wait_for_it() -> None:
    """Where the source gives no failures at all, the screen says why, and not that it attaches."""
    steps = [
        replace(s, tables=dict(s.tables)) for s in with_hooks(eventful_host()[0]) if isinstance(s, Snapshot)
    ]
    for step in steps:
        del step.tables[FAILURES.name]
    async with running([*steps], (140, 30), view="connections.failures") as run:
        assert any(
            "failures of connections are not available: tp_btf" in line for line in text_of(shown(run).rows)
        )


@pytest.mark.parametrize("text", ["closed>=0", "failed_per_s!=3"])
async def test_a_filter_on_it_says_so(text: str) -> None:
    """The line of the filter and the empty table name the column and the reason."""
    view_settings = ViewSettings(view="connections.groups", filters=(text,))
    async with running(
        with_hooks(eventful_host()[0]), (160, 30), settings=Settings(view=view_settings)
    ) as run:
        name = text.partition(">")[0].partition("!")[0]
        remark = f"{name} is n/a here: {EVENTS_WHY}"
        assert f"0 of 4   {remark}" in shown(run).third_line.text
        assert any(f"no row passes the filter; {remark}" in line for line in text_of(shown(run).rows))
        await press(run, "escape")
        assert "n/a here" not in shown(run).third_line.text
