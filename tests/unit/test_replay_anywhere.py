# SPDX-License-Identifier: Apache-2.0
"""Recordings need nothing of the host: an ordinary user shows them where there is no bcc, no BTF, no /proc, no /sys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.demo import DEMO, RECORDED
from tests.kernel.terminal import Terminal
from tests.unit.children import DEADLINE_S

CHECKOUT = Path(__file__).resolve().parents[2]
NETTOP = ("env", "-i", "TERM=xterm-256color", "HOME=/tmp", sys.executable, "-m", "nettop")
LACKS = """
import os
try:
    from bcc import BPF
except ImportError:
    print("no BPF", os.path.exists("/sys"), os.path.exists("/proc"), os.getuid())
"""

BARE = """
root=$1; shift
mount -t tmpfs tmpfs $root
mkdir -m 1777 $root/tmp
mkdir $root/usr $root/etc $root/dev
for place in usr etc; do mount --rbind /$place $root/$place; done
for place in bin lib lib64; do cp -P /$place $root/$place; done
touch $root/dev/null $root/dev/tty
mount --bind /dev/null $root/dev/null
mount --bind /dev/tty $root/dev/tty
for place in "$1" "$2"; do mkdir -p "$root$place"; mount --bind "$place" "$root$place"; done; shift 2
for place in $root/usr/lib/python3*/dist-packages/bcc; do [ ! -d $place ] || mount -t tmpfs tmpfs $place; done
exec chroot $root setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all "$@"
"""
"""Starts a command in a root with /usr, /etc, two more folders, and nothing else."""


def bare(folder: Path) -> tuple[str, ...]:
    """Return the words that start a command there; skip the test where nothing can be mounted."""
    able = (
        os.geteuid() == 0
        and not subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "-", folder], check=False).returncode
    )
    if not able:
        pytest.skip("mounts file systems, which takes root")
    places = (str(folder), str(CHECKOUT / "nettop"), sys.prefix)
    return "unshare", "--mount", "sh", "-euc", BARE, "sh", *places


def test_the_demo_as_text(tmp_path: Path) -> None:
    """Print every lens without bcc, BTF, /proc and /sys."""
    shown = [
        f"echo '# {lens.id}' && {' '.join(NETTOP)} --demo --view {lens.id} --table --once"
        for lens in RECORDED
    ]
    done = subprocess.run(
        [*bare(tmp_path), "sh", "-ec", "\n".join([f"{sys.executable} -c '{LACKS}'", *shown])],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *tables = done.stdout.split("# ")
    assert first == "no BPF False False 65534\n"
    titles = [tuple(table.split()[:2]) for table in tables]
    assert titles == [(lens.id, lens.main.text[0]) for lens in RECORDED]


def test_a_replay_on_a_terminal(tmp_path: Path) -> None:
    """Open the screens, show another lens, and quit by q."""
    with Terminal("replay", str(DEMO), around=(*bare(tmp_path), *NETTOP[:-3])) as terminal:
        terminal.shows(b"UTC")
        terminal.type(b"7", b"webapp")
        terminal.type(b"q")
        assert terminal.wait() == 0
