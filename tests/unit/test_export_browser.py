# SPDX-License-Identifier: Apache-2.0
"""The exported flame graph in a browser: zoom, reset, search, legend, details, and window sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page

from nettop.snapshots.cpu import RX_SOFTIRQ, TX_SYSCALLS
from nettop.stacks.counts import StackCount
from nettop.stacks.flame_svg import flame_svg
from tests.builders.example_stacks import SEND, TCP, WAKE, category_of, profile
from tests.unit.chromium import needs_chromium

HOSTILE = "bpf_prog_1f<&>\"'"
NARROW = 1e-6
"""Pixels by which two positions may differ."""

pytestmark = needs_chromium


def count(entry: int, stack: str, samples: int) -> StackCount:
    """Return a stack with this many samples."""
    return StackCount(entry, 0, tuple(stack.split(";")), category_of(stack), samples, samples * 1_000_000)


COUNTS = [
    count(RX_SOFTIRQ, WAKE, 500),
    count(RX_SOFTIRQ, TCP, 100),
    count(RX_SOFTIRQ, f"net_rx_action;{HOSTILE}", 100),
    count(TX_SYSCALLS, SEND, 300),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a flame graph of 1,000 samples."""
    path = tmp_path_factory.mktemp("picture") / "flame.svg"
    path.write_text(flame_svg(profile(COUNTS)), encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Browser, image: Path) -> Iterator[Page]:
    """Yield the flame graph in a page 1,200 pixels wide, which makes no network requests and has no errors."""
    window = browser.new_page(viewport={"width": 1216, "height": 600})
    wrong: list[str] = []
    requested: list[str] = []
    window.on("pageerror", lambda error: wrong.append(str(error)))
    window.on("console", lambda message: wrong.append(message.text))
    window.on("request", lambda request: requested.append(request.url))
    window.goto(image.as_uri())
    yield window
    window.close()
    assert wrong == []
    assert [url for url in requested if not url.startswith("file:")] == []


def frame(page: Page, label: str) -> Locator:
    """Return the frame with that label."""
    return page.locator(f".frame[data-label={quoted(label)}]")


def quoted(text: str) -> str:
    """Return the text as a CSS string."""
    return '"' + text.replace('"', '\\"') + '"'


def place(page: Page, label: str) -> tuple[float, float]:
    """Return where a frame begins, and its width."""
    box = frame(page, label).locator("rect")
    return float(box.get_attribute("x") or "nan"), float(box.get_attribute("width") or "nan")


def test_widths_are_shares(page: Page) -> None:
    """Without zoom all frames are shown, each as wide as its share."""
    assert page.locator(".frame:visible").count() == page.locator(".frame").count()
    left, whole = place(page, "all")
    assert place(page, "RX softirq") == pytest.approx((left, whole * 0.7), abs=NARROW)
    assert place(page, "TX syscalls") == pytest.approx((left + whole * 0.7, whole * 0.3), abs=NARROW)


def test_zoom_and_reset(page: Page) -> None:
    """A click makes a frame and its callers as wide as the image; others are hidden until the reset."""
    everywhere = place(page, "all")
    before = {label: place(page, label) for label in ("TX syscalls", "Y do_syscall_64", "T tcp_v4_rcv")}
    frame(page, "Y do_syscall_64").click()
    assert place(page, "Y do_syscall_64") == place(page, "TX syscalls") == place(page, "all") == everywhere
    assert not frame(page, "RX softirq").is_visible()
    assert "above" in (frame(page, "TX syscalls").get_attribute("class") or "")
    page.locator("#reset").click()
    assert not page.locator("#reset").is_visible()
    assert frame(page, "RX softirq").is_visible()
    assert {label: place(page, label) for label in before} == before


def test_escape_resets(page: Page) -> None:
    """Esc or a click on the root ends the zoom."""
    for end in (lambda: page.keyboard.press("Escape"), lambda: frame(page, "all").click()):
        frame(page, "TX syscalls").click()
        assert not frame(page, "RX softirq").is_visible()
        end()
        assert frame(page, "RX softirq").is_visible()


def test_keys(page: Page) -> None:
    """The arrows move among functions, Enter zooms in, Backspace out; in the search box they edit text."""
    details = page.locator("#details")
    for key, name in {"ArrowDown": "RX softirq", "ArrowRight": "TX syscalls", "ArrowUp": "all"}.items():
        page.keyboard.press(key)
        assert (details.text_content() or "").startswith(f"{name} · ")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert place(page, "RX softirq") == place(page, "all")
    page.locator("#search input").focus()
    page.keyboard.press("Backspace")
    assert place(page, "RX softirq") == place(page, "all")
    page.locator("#search input").blur()
    page.keyboard.press("Backspace")
    assert frame(page, "TX syscalls").is_visible()


def test_search(page: Page) -> None:
    """Ctrl-F focuses the search box; typing highlights functions and shows their share, each sample once."""
    page.keyboard.press("Control+f")
    page.keyboard.type("TCP_")
    hits = page.locator(".frame.hit").evaluate_all("frames => frames.map(frame => frame.dataset.label)")
    assert sorted(hits) == ["T tcp_rcv_established", "T tcp_sendmsg", "T tcp_v4_rcv"]
    assert page.locator("#matched").text_content() == "matched: 90.0 % (900 samples)"
    page.keyboard.press("Escape")
    assert page.locator(".frame.hit").count() == 0
    assert page.locator("#matched").text_content() == ""


def test_search_within_the_zoom(page: Page) -> None:
    """The matching share is that of the zoomed frame."""
    frame(page, "RX softirq").click()
    page.locator("#search input").fill("established")
    assert page.locator("#matched").text_content() == "matched: 71.4 % (500 samples)"


def test_markup_in_a_name_is_text(page: Page) -> None:
    """A name that looks like markup is found and shown as it is."""
    page.locator("#search input").fill("<&>\"'")
    assert page.locator(".frame.hit").count() == 1
    page.locator(".frame.hit").hover()
    assert (page.locator("#details").text_content() or "").startswith(
        f"{HOSTILE} · softirq loop · 100 samples"
    )


def test_legend(page: Page) -> None:
    """A click on a category highlights its frames; a second click ends that."""
    entry = page.locator(".entry", has_text="socket wake-up")
    entry.click()
    assert page.locator(".frame.hit").evaluate_all("frames => frames.map(frame => frame.dataset.label)") == [
        "W sock_def_readable"
    ]
    assert page.locator("#matched").text_content() == "matched: 50.0 % (500 samples)"
    entry.click()
    assert page.locator(".frame.hit").count() == 0


def test_details(page: Page) -> None:
    """The function under the mouse is described in a visible line."""
    details = page.locator("#details")
    assert not details.is_visible()
    frame(page, "T tcp_v4_rcv").hover()
    assert details.text_content() == "tcp_v4_rcv · TCP · 600 samples (60.0 %) · 600 ms · 6.0 % of one CPU"
    box, height = details.bounding_box(), (page.viewport_size or {})["height"]
    assert box is not None
    assert 0 <= box["y"] <= box["y"] + box["height"] <= height + NARROW


def test_another_width(page: Page) -> None:
    """The flame graph fills the window; names are shortened to fit their frames."""
    wide = place(page, "all")[1]
    page.set_viewport_size({"width": 616, "height": 600})
    page.wait_for_function("innerWidth === 616")
    page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    assert place(page, "all")[1] == pytest.approx(wide - 600, abs=NARROW)
    longer = page.locator(".frame:visible").evaluate_all(
        "frames => frames.filter(frame => frame.querySelector('text').getComputedTextLength() + 3"
        " > frame.querySelector('rect').width.baseVal.value + 1).map(frame => frame.dataset.label)"
    )
    assert longer == []
    right = page.locator(".entry").evaluate_all(
        "entries => entries.map(entry => entry.getBoundingClientRect().right)"
    )
    assert max(right) <= 616


def test_the_same_without_scripts(page: Page, browser: Browser, image: Path) -> None:
    """The file as written equals what the script draws for a window of its width."""
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1216, "height": 600})
    plain = context.new_page()
    plain.goto(image.as_uri())
    all_rows = page.locator(".frame").count()
    assert plain.locator(".frame").count() == all_rows
    for number in range(all_rows):
        drawn, written = (item.locator(".frame").nth(number) for item in (page, plain))
        assert drawn.locator("text").text_content() == written.locator("text").text_content()
        for name in ("x", "y", "width"):
            ours, theirs = (
                float(item.locator("rect").get_attribute(name) or "nan") for item in (drawn, written)
            )
            assert ours == pytest.approx(theirs, abs=0.01)
    context.close()
