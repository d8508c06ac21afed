# SPDX-License-Identifier: Apache-2.0
"""A command that has nothing to show ends with the code of the cause: a table of situations and commands.

The same cause has the same words, the same remedy and the same code, whichever command meets it.
"""

import subprocess
from pathlib import Path

import pytest

from nettop.errors import ExitCode

from .command import AS_NOBODY, Running, mounted, nettop, without
from .lab import PATIENCE, Lab, until
from .terminal import Terminal

pytestmark = pytest.mark.kernel

SOME = (*AS_NOBODY, "--inh-caps", "+bpf,+perfmon", "--ambient-caps", "+bpf,+perfmon")
CONFINED = without("bpf", "sys_admin")
WITHOUT_TYPES = mounted("mount --bind /dev/null /sys/kernel/btf/vmlinux")
ONCE = ("--table", "--once", "--view")
LOG = ("log", "--log-dir", "none")
SERVE = ("serve", "--listen", "127.0.0.1:0", "--lenses")

NEED_PROGRAMS = [
    *((*ONCE, view) for view in (
        "connections.events", "connections.failures", "cpu", "cpu.stacks", "cpu.categories", "cpu.processes",
        "bandwidth.protocols", "bandwidth.services", "bandwidth.flows", "latency.pairs", "drops", "services",
        "services.clients", "services.connections", "services.waiting",
    )),
    (*LOG, "--events-only"),
    (*LOG, "--lens", "drops", "--metrics-only"),
    (*LOG, "--lens", "bandwidth.flows"),
    (*LOG, "--lens", "connections", "--lens", "services"),
    ("export", "cpu.stacks", "--duration", "1", "--format", "folded", "-"),
    ("run", "--", "true"),
    (*SERVE, "cpu"),
    (*SERVE, "services"),
]  # fmt: skip
"""What has no rows where no program can be loaded."""
NEED_NONE = [
    (*ONCE, view) for view in ("connections", "connections.groups", "bandwidth", "drops.counters", "self")
]
NEED_NET_ADMIN = [(*ONCE, view) for view in ("bandwidth.protocols", "bandwidth.services", "bandwidth.flows")]
OF_AN_INTERFACE = [
    (*ONCE, "bandwidth"),
    (*ONCE, "bandwidth.flows", "--format", "jsonl"),
    (*LOG, "--lens", "bandwidth"),
    (*SERVE, "bandwidth,drops"),
]
OF_A_COLLECTOR = [(*ONCE, "collector"), (*ONCE, "collector.ledger"), (*LOG, "--lens", "collector")]


def ended(words: tuple[str, ...], around: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Run nettop to its end; return its exit code, its rows, and its last message: the cause and the remedy."""
    with Running(*words, around=around, stdin=subprocess.DEVNULL) as running:
        code = running.wait(60)
        errors = running.errors()
        assert "Traceback" not in errors
        cause = errors.rpartition("nettop: ")[2]
        return code, "" if words[0] == "log" else running.text(), cause


def name_of(words: tuple[str, ...] | str) -> str:
    """Return a command's name in the table."""
    return words if isinstance(words, str) else " ".join(words).removeprefix("--table --once ")


LACKING = {
    "ordinary user": (
        AS_NOBODY, ExitCode.PERMISSION, "loading BPF programs needs CAP_BPF and CAP_PERFMON\n", "sudo nettop",
    ),
    "root without CAP_BPF": (
        CONFINED, ExitCode.PERMISSION, "loading BPF programs needs CAP_BPF\n", "add CAP_BPF to the container",
    ),
    "kernel without types": (WITHOUT_TYPES, ExitCode.UNSUPPORTED, "/sys/kernel/btf/vmlinux", ""),
}  # fmt: skip
"""What starts nettop where no program can be loaded, its exit code, the cause, and the remedy."""


@pytest.mark.parametrize(
    ("words", "lacking"),
    [(words, list(LACKING)[number % len(LACKING)]) for number, words in enumerate(NEED_PROGRAMS)],
    ids=name_of,
)
def test_no_program_can_be_loaded(words: tuple[str, ...], lacking: str) -> None:
    """Without programs, every command that needs them exits with the cause, its code and its remedy, and no rows."""
    around, code, cause, remedy = LACKING[lacking]
    actual, rows, said = ended(words, around)
    assert (actual, rows) == (code, "")
    assert cause in said
    assert remedy in said.partition("\n")[2]
    assert "not available on this kernel" not in said
    if code is ExitCode.PERMISSION:
        assert said.startswith(cause)


@pytest.mark.parametrize("words", NEED_NONE, ids=name_of)
@pytest.mark.parametrize("around", [AS_NOBODY, WITHOUT_TYPES], ids=["user", "no types"])
def test_views_that_need_no_programs(around: tuple[str, ...], words: tuple[str, ...]) -> None:
    """A view that has rows without programs is shown, and nettop exits with 0."""
    code, rows, _ = ended(words, around)
    assert code == ExitCode.DONE
    assert rows


@pytest.mark.parametrize("words", NEED_NET_ADMIN, ids=name_of)
def test_some_of_the_capabilities(words: tuple[str, ...]) -> None:
    """With CAP_BPF and CAP_PERFMON, the error names the permission that is still missing."""
    assert ended(words, SOME)[:2] == (ExitCode.PERMISSION, "")


@pytest.mark.parametrize(
    ("around", "code", "cause"),
    [
        (AS_NOBODY, ExitCode.PERMISSION, "loading BPF programs needs CAP_BPF and CAP_PERFMON"),
        (WITHOUT_TYPES, ExitCode.UNSUPPORTED, "/sys/kernel/btf/vmlinux"),
    ],
    ids=["ordinary user", "kernel without types"],
)
def test_doctor(around: tuple[str, ...], code: ExitCode, cause: str) -> None:
    """Doctor exits with each command's code for the cause, and does not report a lens without rows as a bug."""
    actual, report, _ = ended(("doctor",), around)
    assert actual == code
    assert cause in report
    assert "report this" not in report


def test_screens_that_can_show_nothing() -> None:
    """A lens that cannot start ends the screens like plain output; a table without rows shows the reason instead."""
    with Terminal("--view", "cpu", around=AS_NOBODY) as terminal:
        assert terminal.wait() == ExitCode.PERMISSION
        assert b"loading BPF programs needs CAP_BPF and CAP_PERFMON" in terminal.output
    with Terminal("--view", "drops", around=AS_NOBODY) as terminal:
        terminal.shows(b"sudo nettop")
        terminal.type(b"q")
        assert terminal.wait() == ExitCode.DONE


@pytest.mark.parametrize("words", OF_AN_INTERFACE, ids=name_of)
def test_an_interface_that_does_not_exist(words: tuple[str, ...]) -> None:
    """The name of a nonexistent interface is a usage error in every command."""
    code, rows, said = ended((*words, "-i", "nosuch"))
    assert (code, rows) == (ExitCode.USAGE, "")
    assert said.startswith("unknown interface 'nosuch'\n")
    assert "nosuch*" in said


@pytest.fixture
def bracketed(lab: Lab) -> tuple[str, ...]:
    """Return words that start nettop in a namespace with interfaces called [x] and y, which are down."""
    home = lab.namespace()
    inside = ("nsenter", f"--net=/run/netns/{home.name}")
    subprocess.run([*inside, "ip", "link", "add", "[x]", "type", "veth", "peer", "name", "y"], check=True)
    return inside


@pytest.mark.parametrize(
    ("word", "chosen"),
    [("[x]", {"[x]"}), ("[y]", {"y"}), ("[[]x]", {"[x]"}), ("?", {"y"}), ("*", {"[x]", "y", "lo"})],
)
def test_a_name_goes_before_a_pattern(bracketed: tuple[str, ...], word: str, chosen: set[str]) -> None:
    """An exact interface name takes precedence over a pattern; an interface that is down is shown too."""
    inode = subprocess.run(
        [*bracketed, "stat", "-Lc%i", "/proc/self/ns/net"], capture_output=True, text=True, check=True
    ).stdout.strip()
    shown = ("--format", "csv", "--columns", "interface", "--filter", f"netns={inode}")
    code, rows, _ = ended((*ONCE, "bandwidth", *shown, "-i", word), bracketed)
    assert code == ExitCode.DONE
    assert {line.rpartition(",")[2] for line in rows.splitlines()[1:]} == chosen


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_a_pattern_that_matches_nothing(form: str) -> None:
    """A pattern without matches may match later: it is no error, but every format names it."""
    done = nettop(*ONCE, "bandwidth", "--format", form, "-i", "nosuch[0-9]")
    assert done.returncode == ExitCode.DONE
    assert "--interface nosuch[0-9] matches no interface yet" in done.stderr


@pytest.mark.parametrize("words", OF_A_COLLECTOR, ids=name_of)
def test_no_collector(words: tuple[str, ...], tmp_path: Path) -> None:
    """Without a collector the lens and the command report the same."""
    where = ("--collector", f"unix:{tmp_path}/flows.sock")
    code, rows, said = ended((*words, *where))
    assert (code, rows) == (ExitCode.SOURCE, "")
    assert "no collector answers at" in said
    assert "nettop collect" in said
    assert nettop("flows", *where, deadline_s=60 * PATIENCE).returncode == ExitCode.SOURCE


def test_a_server_waits_for_a_collector(tmp_path: Path) -> None:
    """nettop serve keeps running without a collector, which may start later."""
    with Running(*SERVE, "collector", "--collector", f"unix:{tmp_path}/flows.sock") as running:
        until(lambda: "serving at" in running.errors(), "it serves")
        assert running.end() == ExitCode.DONE


@pytest.mark.parametrize(
    "words",
    [
        (*ONCE, "drops", "--mechanism", "packets=none"),
        (*ONCE, "connections.events", "--mechanism", "events=none"),
        (*ONCE, "bandwidth.flows", "--flows", "off"),
        (*ONCE, "bandwidth.flows", "--xdp", "off"),
        (*LOG, "--events-only", "--mechanism", "events=none"),
        ("run", "--mechanism", "events=none", "--", "true"),
        (*SERVE, "services", "--mechanism", "calls=none"),
    ],
    ids=name_of,
)
def test_options_that_leave_nothing_to_show(words: tuple[str, ...]) -> None:
    """Options that leave nothing to show are reported as contradictory."""
    code, rows, said = ended(words)
    assert (code, rows) == (ExitCode.USAGE, "")
    assert "\n  remove --" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "99999"), "--port 99999 is too high"),
        (("--pid", "4194305"), "no process has PID 4194305"),
    ],
    ids=" ".join,
)
def test_impossible_arguments(words: tuple[str, ...], said: str) -> None:
    """A filter that no row can pass is an error: an empty table would look like an idle host."""
    done = nettop(*ONCE, "connections.events", *words)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert said in done.stderr
