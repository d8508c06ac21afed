#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/screenshots/{check,diff,hosts}.svg and page.png, or those named: what other commands show of the demo.

All but the page are reproducible. The page plays for 40 seconds in Chromium.
"""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from textwrap import wrap

from rich.console import Console
from rich.terminal_theme import TerminalTheme

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.recording.diff import Span, differences  # noqa: E402 - the checkout comes first
from nettop.recording.recording import open_recording  # noqa: E402
from nettop.screens.changes import ChangesApp  # noqa: E402
from nettop.screens.export import tidy_svg  # noqa: E402
from nettop.widgets.themes import DARK  # noqa: E402
from tests.builders.demo import DEMO, hosts_playing  # noqa: E402
from tests.unit.chromium import CHROMIUM  # noqa: E402

FOLDER = ROOT / "docs" / "screenshots"
SECOND_NS = 1_000_000_000
COLUMNS = 120
THEME = TerminalTheme((16, 21, 28), (213, 221, 230), [(0, 0, 0)] * 8)
NETTOP = (sys.executable, "-m", "nettop")
ADDRESS = "127.0.0.1:19471"


def check() -> None:
    """Draw what `nettop check` prints about ten seconds."""
    words = ("check", "--from", DEMO.name, "--at", "+48s", "--for", "10")
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*NETTOP, *words], cwd=DEMO.parent, env=environment, capture_output=True, text=True, check=False
    )
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in done.stdout.splitlines():
        console.print(*wrap(line, COLUMNS, subsequent_indent="    "), sep="\n", markup=False, highlight=False)
    svg = console.export_svg(title=f"nettop {' '.join(words)}", theme=THEME, unique_id="terminal-0")
    write("check", tidy_svg(svg))


def diff() -> None:
    """Draw the list of what changed when a service slowed down."""
    with open_recording(DEMO) as recording:
        begins = [recording.begin_ns + second * SECOND_NS for second in (2, 42)]
        found = differences(*(Span(recording, begin, begin + 16 * SECOND_NS) for begin in begins))
    app = ChangesApp(found.changes[:12], found.notes(12), DARK.name, 0)

    async def drawn() -> str:
        async with app.run_test(size=(100, 15)):
            return tidy_svg(app.export_screenshot(title=f"nettop diff {DEMO.name} +2s +42s --span 16s"))

    write("diff", asyncio.run(drawn()))


def hosts() -> None:
    """Draw the connections of several hosts."""

    async def drawn() -> str:
        async with hosts_playing((COLUMNS, 24), range(40, 47)) as app:
            return tidy_svg(app.export_screenshot(title="nettop --host web1 --host db1 --host backup1"))

    write("hosts", asyncio.run(drawn()))


def page() -> None:
    """Draw the page of `nettop serve --from`, once it shows that a service is slow."""
    from playwright.sync_api import expect, sync_playwright

    command = [*NETTOP, "serve", "--from", str(DEMO), "--at", "+5s", "--listen", ADDRESS]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as server, ExitStack() as ends:
        ends.callback(server.terminate)
        assert server.stderr is not None
        server.stderr.readline()  # it listens
        chromium = ends.enter_context(sync_playwright()).chromium
        browser = chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 1180}, color_scheme="dark")
        tab.goto(f"http://{ADDRESS}/")
        tab.fill("#filter", ":5432")
        tab.locator("#filter").blur()
        expect(tab.locator("#findings")).to_contain_text("webapp", timeout=90_000)
        tab.select_option("#interface", label="veth2 (veth)")
        expect(tab.locator("#state")).to_have_text("replay")
        tab.screenshot(path=FOLDER / "page.png")
        browser.close()


def write(name: str, svg: str) -> None:
    """Write a picture."""
    (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8")


PICTURES = {draw.__name__: draw for draw in (check, diff, hosts, page)}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or PICTURES:
        PICTURES[chosen]()
