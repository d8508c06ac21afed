# SPDX-License-Identifier: Apache-2.0
"""`nettop compile` and the cache of compiled programs, as users meet them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from nettop.errors import ExitCode
from nettop.kernel.bpf import program_cache
from nettop.kernel.bpf.program_cache import DIRECTORY
from nettop.snapshots import own_lenses

from .command import AS_NOBODY, HOUR, JSON, SUDO, TABLE, Running, bcc_folder, living, mounted, nettop
from .lab import until

pytestmark = pytest.mark.kernel


def entries() -> dict[str, bytes]:
    """Return the content of the cache by file name."""
    return {path.name: path.read_bytes() for path in stored()}


def stored() -> list[Path]:
    """Return the files of the cache, without what is still being written: its name begins with a dot."""
    return list(DIRECTORY.glob("[!.]*"))


def test_compiling_twice(nothing_cached: None) -> None:
    """The first run fills the cache; the second finds all programs there, and doctor says so."""
    first, second = nettop("compile", deadline_s=120), nettop("compile")
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")
    count = first.stdout.split()[0]
    assert first.stdout.startswith(f"{count} programs in {DIRECTORY}, {count} of them compiled now for Linux")
    assert second.stdout.startswith(f"{count} programs in {DIRECTORY}, 0 of them compiled now for Linux")
    report = json.loads(nettop("doctor", "--only", "host", "--format", "json").stdout)
    assert report["host"]["program_cache"].startswith(f"{count} programs in {DIRECTORY}, those of all lenses")


def test_compiling_needs_root() -> None:
    """Another user gets the exit code of a missing permission, and the remedy."""
    done = nettop("compile", around=AS_NOBODY)
    assert (done.returncode, done.stdout) == (ExitCode.PERMISSION, "")
    assert "sudo nettop compile" in done.stderr


def test_an_interrupt_is_no_success(nothing_cached: None) -> None:
    """What is interrupted keeps what it has compiled, and does not claim to be done."""
    with Running("compile") as running:
        until(entries, "the first program is stored")
        assert running.end(signal.SIGINT) == 128 + signal.SIGINT
        until(running.gone, "its compiler has ended")
    assert not program_cache.is_complete()


@pytest.mark.parametrize("lens", [lens.id for lens in own_lenses() if lens.id != "collector"])
def test_what_is_cached_needs_no_compiler(tmp_path: Path, lens: str) -> None:
    """With all programs in the cache, every lens works even if bcc cannot be imported."""
    broken = tmp_path / "bcc.py"
    broken.write_text("raise SystemExit('bcc was imported')\n")
    words = mounted(f"mount --bind {broken} {bcc_folder()}/__init__.py")
    with Running(*JSON, "--once", "--all", "--view", lens, around=words) as running:
        assert running.wait() == ExitCode.DONE
        assert "bcc" not in running.errors()


@pytest.mark.walks
def test_damaged_programs_are_compiled_again(nothing_cached: None) -> None:
    """Each damaged entry is replaced by the next nettop that needs it; until then, doctor names it."""
    assert nettop("--table", "--once").returncode == ExitCode.DONE
    (name,) = sound = entries()
    (DIRECTORY / name).write_bytes(sound[name][:-1])
    report = json.loads(nettop("doctor", "--only", "host", "--format", "json").stdout)
    assert report["host"]["ignored_programs"] == f"{DIRECTORY / name} is damaged"
    assert nettop("--table", "--once").returncode == ExitCode.DONE
    assert entries() == sound


def test_the_rest_is_compiled_in_the_background(nothing_cached: None) -> None:
    """Under sudo, a nettop that becomes another user fills the cache at idle priority, and nothing outlives it."""

    def compiling() -> list[int]:
        return [pid for pid, parent, words in living() if parent == running.pid and b"--background" in words]

    with Running(*TABLE, *HOUR, env=SUDO) as running:
        (child,) = until(compiling, "compiling begins")
        until(lambda: os.sched_getscheduler(child) == os.SCHED_IDLE, "it gets idle priority")
        until(entries, "the first program is stored")
        assert {path.stat().st_uid for path in stored()} == {0}
        running.end(signal.SIGKILL)
    until(lambda: child not in {pid for pid, _, _ in living()}, "it has ended too")
    assert not program_cache.is_complete()
    kept = entries()
    with Running(*TABLE, *HOUR, env=SUDO) as running:
        until(program_cache.is_complete, "all programs are there", 120)
        until(lambda: not compiling(), "it has ended")
        assert running.end() == ExitCode.DONE
    assert kept.items() <= entries().items()
    with Running(*TABLE, *HOUR, env=SUDO) as running:
        running.first_rows()
        assert not compiling()
