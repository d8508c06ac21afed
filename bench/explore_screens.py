# SPDX-License-Identifier: Apache-2.0
"""Send random keys, bytes, sizes and signals to the screens."""

import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nettop.screens.actions import ACTIONS
from nettop.snapshots import views
from tests.kernel import bpf_objects
from tests.kernel.lab import NotInTimeError, until
from tests.kernel.terminal import Terminal

BURSTS = 60
END_S = 2.0
"""Time for the screens to exit on an idle machine, whatever happened before."""
_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
_SHOWN_BYTES = 4000
EXCLUDED = {"ctrl+c", "ctrl+z", "q"}
"""Keys that end or suspend the program; pressed only at the end of a round."""
_BYTES = {
    "enter": b"\r", "slash": b"/", "less_than_sign": b"<", "greater_than_sign": b">", "plus": b"+", "minus": b"-",
    "exclamation_mark": b"!", "question_mark": b"?", "space": b" ", "escape": b"\x1b", "tab": b"\t",
    "shift+tab": b"\x1b[Z", "up": b"\x1b[A", "down": b"\x1b[B", "right": b"\x1b[C", "left": b"\x1b[D",
    "shift+left": b"\x1b[1;2D", "shift+right": b"\x1b[1;2C", "pageup": b"\x1b[5~", "pagedown": b"\x1b[6~",
    "home": b"\x1b[H", "end": b"\x1b[F", "ctrl+p": b"\x10",
}  # fmt: skip
KEYS = [_BYTES.get(key, key.encode()) for action in ACTIONS for key in action.keys if key not in EXCLUDED]
TYPED = (
    b"/443\r", b"/rtt_us>10ms or nginx\r", b"/(((\r", b"/\xc3\xa9\r", b"C", b"\x10sort\r", b"/fe80::1%lo\r",
    b"\x1b\x1b\x1b",
)  # fmt: skip
SAID_BY_TERMINALS = (
    b"\x1b[<0;10;5M", b"\x1b[<0;10;5m", b"\x1b[<64;300;200M", b"\x1b[<35;1;1M", b"\x1b[M !!", b"\x1b[M\xff\xff\xff",
    b"\x1b[200~pasted \xe9 text\x1b[201~", b"\x1b[I", b"\x1b[O", b"\x1b[?1;2c",
    b"\x1b[12;40R", b"\x1b[97;5u", b"\x1b[57414u", b"\x1b[1089::99;5u", b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\",
    b"\x1b[?2026;2$y", b"\x1b[27;5;99~", b"\x1bOM", b"\x1b[", b"\x1bP", b"\x1b_G", b"\x1b]52;c;",
)  # fmt: skip


def _key(chance: random.Random) -> bytes:
    return chance.choice(KEYS)


def _said(chance: random.Random) -> bytes:
    """Return an escape sequence that terminals send, whole or truncated."""
    whole = chance.choice(SAID_BY_TERMINALS)
    return whole[: chance.randint(1, len(whole))] if chance.random() < 0.3 else whole


def _noise(chance: random.Random) -> bytes:
    """Return random bytes, without any that end or suspend the program."""
    raw = chance.randbytes(chance.randint(1, 60))
    return raw.translate(None, b"\x03\x1a\x1cq")


def _held_down(chance: random.Random) -> bytes:
    return _key(chance) * chance.randint(2, 40)


MAKERS: tuple[Callable[[random.Random], bytes], ...] = (
    _key, _key, _key, _said, _noise, _held_down, lambda chance: chance.choice(TYPED),
)  # fmt: skip


def explore_screens(chance: random.Random) -> list[str]:
    """Start the screens, send bursts of input, and end them in one of several ways; return the faults."""
    view = chance.choice(views())
    before = bpf_objects.existing()
    faults, sent = [], []
    with tempfile.TemporaryDirectory(prefix="nettop-explore") as home:
        os.environ.update(HOME=home, XDG_CONFIG_HOME=home)
        here = os.getcwd()
        os.chdir(home)  # exports are written to the current directory
        try:
            with Terminal("--view", view, "--interval", chance.choice(("0.1", "0.5", "1"))) as terminal:
                until(lambda: handles_sigterm(terminal.pid), "nettop handles signals")
                settings = terminal.settings()
                if chance.random() < 0.7:
                    terminal.draws()
                for _ in range(chance.randint(1, BURSTS)):
                    burst = chance.choice(MAKERS)(chance)
                    sent.append(burst)
                    terminal.type(burst)
                    if chance.random() < 0.1:
                        terminal.resize(chance.randint(1, 250), chance.randint(1, 90))
                    terminal.take_in(chance.choice((0, 0, 0.02, 0.3)))
                faults += _ended(terminal, chance, settings)
        except (OSError, NotInTimeError) as error:
            faults.append(repr(error))
        finally:
            os.chdir(here)
    try:
        bpf_objects.nothing_new_since(before)
    except NotInTimeError as error:
        faults.append(str(error))
    return [f"{fault}\n  view {view}, last bursts: {sent[-12:]}" for fault in faults]


def handles_sigterm(pid: int) -> bool:
    """Return whether nettop's own SIGTERM handler is installed, not just that of the starting Python."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _ended(terminal: Terminal, chance: random.Random, settings: list[object]) -> list[str]:
    """End the screens in a random way; return the faults."""
    way = chance.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, b"\x03"))
    began = time.monotonic()
    if isinstance(way, bytes):
        terminal.type(way)
    else:
        os.kill(terminal.pid, way)
    try:
        status = terminal.wait(30)
    except NotInTimeError as error:
        return [f"{way!r}: {error}; last output {bytes(terminal.output[-300:])!r}"]
    took = time.monotonic() - began
    faults = []
    if took > END_S * max(1, os.getloadavg()[0] / (os.cpu_count() or 1)):
        faults.append(f"{way!r}: took {took:.1f} s to exit")
    if status not in (0, -way if isinstance(way, int) else -signal.SIGINT):  # default handler restored
        faults.append(f"{way!r}: exit status {status}")
    for word in (b"Traceback", b"please report", b"Exception"):
        if word in terminal.output:
            shown = _COLOURS.sub(b"", terminal.output[terminal.output.index(word) :])
            faults.append(shown[-_SHOWN_BYTES:].decode(errors="replace"))  # the error itself comes last
            break
    if terminal.settings() != settings:
        faults.append(f"{way!r}: terminal modes were not restored")
    return faults
