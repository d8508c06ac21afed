# SPDX-License-Identifier: Apache-2.0
"""nettop's CPU priority: raised at the start, restored at the end, and not that of the commands it runs."""

import json
import os
from pathlib import Path

import pytest

from nettop.process.priority import NICE, REFUSED
from tests.proc import status_fields

from .command import HOUR, NETTOP, SUDO, TABLE, Running, nettop, run

pytestmark = pytest.mark.kernel

_CAP_SYS_NICE = 1 << 23
_SHOW = "nice; cat /proc/self/autogroup"


def nice_values(pid: int) -> set[int]:
    """Return the nice values of a process's threads."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {int(text.rpartition(")")[2].split()[16]) for text in texts}


def session_nice(pid: int) -> int:
    """Return the nice value of a process's session; 0 if the kernel does not share the CPUs by session."""
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
    except FileNotFoundError:
        return 0


SHARED_BY_SESSION = Path("/proc/self/autogroup").exists()


@pytest.mark.parametrize("environment", [dict(os.environ), SUDO], ids=["root", "sudo"])
def test_raised_before_capabilities_are_dropped(environment: dict[str, str]) -> None:
    """Every thread has the raised priority, and none the capability for it."""
    with Running(*TABLE, *HOUR, env=environment) as running:
        running.first_rows()
        assert nice_values(running.pid) == {NICE}
        assert session_nice(running.pid) == (NICE if SHARED_BY_SESSION else 0)
        threads = Path(f"/proc/{running.pid}/task").glob("*/status")
        assert not any(int(status_fields(path)["CapPrm"], 16) & _CAP_SYS_NICE for path in threads)


@pytest.mark.parametrize(
    ("around", "options", "expected"),
    [((), ("--normal-priority",), 0), (("nice", "-n", "5"), (), 5)],
    ids=["option", "chosen"],
)
def test_not_raised(around: tuple[str, ...], options: tuple[str, ...], expected: int) -> None:
    """Keep the normal priority with the option, and a nice value with which nettop was started."""
    with Running(*TABLE, *HOUR, *options, around=around) as running:
        running.first_rows()
        assert (nice_values(running.pid), session_nice(running.pid)) == ({expected}, 0)


def test_restored_at_the_end() -> None:
    """After nettop ends, also by an error, the session has its own priority again."""
    script = f"{NETTOP} --table --once > /dev/null; {_SHOW}; {NETTOP} --interval x 2> /dev/null; {_SHOW}"
    done = run("sh", "-c", script, start_new_session=True)
    numbers = [line.split()[-1] for line in done.stdout.splitlines()]
    assert set(numbers) == {"0"}, done.stdout


def test_commands_run_at_normal_priority() -> None:
    """A command of `nettop run` has the priority of the shell that started nettop."""
    done = nettop("run", "--output", "/dev/null", "--", "sh", "-c", _SHOW, start_new_session=True)
    assert {line.split()[-1] for line in done.stdout.splitlines()} == {"0"}, done.stdout + done.stderr


def test_refusal_is_reported() -> None:
    """Without CAP_SYS_NICE nettop works at normal priority, and doctor says how to change that."""
    confined = ("setpriv", "--bounding-set=-sys_nice")
    done = nettop("doctor", "--only", "host", "--format", "json", around=confined)
    assert json.loads(done.stdout)["host"]["priority"] == REFUSED
    assert nettop(*TABLE, "--once", around=confined).returncode == 0
