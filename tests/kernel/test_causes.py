# SPDX-License-Identifier: Apache-2.0
"""Every lens and every command names the limitation of the host as the cause, and nothing else."""

import contextlib
import json
import os
import re
import resource
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nettop.errors import ExitCode, NettopError, TooManyFiles
from nettop.kernel.bpf.compiling import Compiler
from nettop.probes.connections.programs import table_text

from .command import mounted, nettop
from .command import without as without_capabilities
from .lab import Lab

pytestmark = pytest.mark.kernel

Start = tuple[str, ...] | str
Reports = dict[Start, Future[dict[str, Any]]]

DEADLINE_S = 120
ALL = ("bpf", "perfmon", "sys_admin", "net_admin", "sys_ptrace", "dac_read_search", "syslog")
"""The capabilities that docs/privileges.md lists."""
MISSING = [
    *((name,) for name in ALL),
    *((name, "sys_admin") for name in ALL if name != "sys_admin"),
    tuple(name for name in ALL if name not in ("bpf", "perfmon")),
    tuple(name for name in ALL if name not in ("bpf", "perfmon", "net_admin")),
]
"""Each alone; each without the one that replaces others; all but those of each set in docs/privileges.md."""
OTHER_CAUSES = (
    "security module", "seccomp", "sandbox", "kptr_restrict", "report", "bug", "does not compile", "install",
    "ended", "exited", "please", "Operation not permitted", "No such file",
)  # fmt: skip
"""What nothing here is the fault of."""
FOLLOWS = (
    "the sum lacks", "there are no samples", "is not available", "the table uses another", "sock_diag", "not requested",
)  # fmt: skip
"""Words that tell of something else that is missing, which names the cause."""


def report_of(*around: str) -> dict[str, Any]:
    """Return doctor's report, started by these words."""
    words = ("doctor", "--no-traffic", "--format", "json")
    done = nettop(*words, around=around, deadline_s=DEADLINE_S)
    assert "Traceback" not in done.stderr, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def words_of(report: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the reasons that a report gives for what each lens lacks."""
    words = set()
    for lens in report["lenses"]:
        whys = [refusal["why"] for hook in lens["hooks"] for refusal in hook["refused"]]
        whys += [*lens["gaps"].values(), *([lens["error"]["what"]] if lens["error"] else [])]
        words |= {(lens["id"], why) for why in whys}
    return words


@cache
def usual_report() -> dict[str, Any]:
    """Return doctor's report here, with everything that the host provides."""
    return report_of()


def news_of(report: dict[str, Any]) -> set[str]:
    """Return the causes of features missing in any lens there, but not here."""
    news = words_of(report) - words_of(usual_report())
    return {why for _, why in news if not any(word in why for word in FOLLOWS)}


def blamed(why: str, *others: str) -> list[str]:
    """Return other causes that the report names."""
    return [other for other in (*OTHER_CAUSES, *others) if other in why]


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    """Yield another network namespace that nettop must enter."""
    with Lab() as lab:
        lab.worker(lab.namespace())
        yield


@contextlib.contextmanager
def reports_of(starts: Mapping[Start, Sequence[str]]) -> Iterator[Reports]:
    """Yield doctor's reports, each started by these words, three at a time: a doctor mostly waits."""
    with ThreadPoolExecutor(3) as pool:
        yield {start: pool.submit(report_of, *words) for start, words in starts.items()}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def without(namespace: None) -> Iterator[Reports]:
    """Yield doctor's reports without each set of capabilities."""
    with reports_of({missing: without_capabilities(*missing) for missing in MISSING}) as reports:
        yield reports


@pytest.mark.parametrize("missing", MISSING, ids="+".join)
def test_a_missing_capability_is_the_cause(without: Reports, missing: tuple[str, ...]) -> None:
    """A lens that lacks a capability names that one, and nothing else."""
    for why in news_of(without[missing].result()):
        named = set(re.findall(r"CAP_[A-Z_]+", why))
        assert named, why
        assert named <= {f"CAP_{name.upper()}" for name in missing}, why
        assert not blamed(why), why


def test_bandwidth_without_the_right_to_load_for_interfaces(without: Reports) -> None:
    """With the two capabilities that load other programs, only the interfaces' own counters are left."""
    (lens,) = (each for each in without[MISSING[-2]].result()["lenses"] if each["id"] == "bandwidth")
    whys = {hook["hook"]: [refusal["why"] for refusal in hook["refused"]] for hook in lens["hooks"]}
    assert whys["received"] == ["loading programs for network interfaces needs CAP_NET_ADMIN"]
    assert whys["interfaces"] == []


# --- what is hidden -------------------------------------------------------------------------------------------


NO_PROC = "/proc is not mounted"
HIDDEN = {
    "proc": ("mount -t tmpfs none /proc", NO_PROC),
    "subset": ("mount -t proc -o subset=pid proc /proc", "/proc is mounted with subset=pid"),
    "kallsyms": ("mount --bind /dev/null /proc/kallsyms", "mounted at /proc/kallsyms hides it"),
    "stat": ("mount --bind /dev/null /proc/stat", "mounted at /proc/stat hides it"),
    "settings": ("mount -t tmpfs none /proc/sys", ""),
    "sys": ("umount -R /sys", "/sys is not mounted"),
    "sys-tmpfs": ("mount -t tmpfs none /sys", "mounted at /sys hides it"),
    "btf": ("mount -t tmpfs none /sys/kernel/btf", "mounted at /sys/kernel/btf"),
    "cpus": ("mount -t tmpfs none /sys/devices", "mounted at /sys/devices hides it"),
    "bus": ("mount -t tmpfs none /sys/bus", "mounted at /sys/bus hides it"),
    "class": ("mount -t tmpfs none /sys/class", ""),
    "cgroups": ("umount -R /sys/fs/cgroup", "the root of the control groups is not mounted"),
    "tracing": ("{ ! mountpoint -q /sys/kernel/tracing || umount -R /sys/kernel/tracing; }", ""),
}
"""What hides something from nettop in a mount namespace, and what has to be said of it; empty where nothing is lost."""


@pytest.fixture(scope="module")
def hidden(namespace: None) -> Iterator[Reports]:
    """Yield doctor's reports with each of these hidden."""
    with reports_of({name: mounted(command) for name, (command, _) in HIDDEN.items()}) as reports:
        yield reports


@pytest.mark.parametrize("name", HIDDEN)
def test_the_environment_is_named_as_the_cause(hidden: Reports, name: str) -> None:
    """If a file is hidden, no report blames a capability, a setting, a file of nettop or a package."""
    cause = HIDDEN[name][1]
    for why in news_of(hidden[name].result()):
        assert cause and cause in why, why
        assert not blamed(why, "CAP_"), why


@pytest.mark.parametrize("name", HIDDEN)
def test_the_host_is_not_blamed_for_the_environment(hidden: Reports, name: str) -> None:
    """A bad fact under HOST names the hidden file as its cause."""
    before = {check["name"] for check in usual_report()["checks"] if check["verdict"] == "bad"}
    for check in hidden[name].result()["checks"]:
        assert "CAP_" not in check["remedy"]
        if check["verdict"] == "bad" and check["name"] not in before:
            assert HIDDEN[name][1], check
            words = ("is not mounted",) if name.startswith("sys") else (HIDDEN[name][1],)
            assert any(word in check["value"] for word in (*words, "instead of sysfs", "mounted at /sys")), (
                check
            )
            assert check["remedy"]


@pytest.mark.parametrize(
    "command", [("--table", "--once"), ("log", "--log-dir", "none"), ("run", "--", "true")]
)
def test_commands_without_proc(command: tuple[str, ...]) -> None:
    """Without /proc each command says the same as doctor, and exits."""
    done = nettop(*command, around=mounted("mount -t tmpfs none /proc"))
    assert (done.returncode, done.stdout) == (ExitCode.UNSUPPORTED, "")
    assert done.stderr == f"nettop: {NO_PROC}\n  mount -t proc proc /proc\n"


# --- limits ---------------------------------------------------------------------------------------------------


def assert_named(report: dict[str, Any], limit: str) -> None:
    """Assert that something is lacking for the limit, and that nothing else is the cause."""
    causes = news_of(report)
    assert causes
    for why in causes:
        assert limit in why, why
        assert not blamed(why, "CAP_"), why


def test_a_soft_limit_is_raised(namespace: None) -> None:
    """Doctor sets the process up as every command does: a soft limit of 24 open files costs nothing."""
    report = report_of("prlimit", "--nofile=24:20000")
    assert not news_of(report)


@pytest.mark.parametrize("files", range(13, 22, 2))
def test_open_files_of_the_compiler(files: int) -> None:
    """Either the limit of open files is enough, or the error for any table or program names it."""
    failure = None
    with contextlib.closing(Compiler()) as compiler:
        resource.prlimit(compiler._child.pid, resource.RLIMIT_NOFILE, (files, files))
        try:
            compiler.compile(table_text())
        except NettopError as error:
            failure = error
    assert failure is None or isinstance(failure, TooManyFiles), failure


@contextlib.contextmanager
def control_group(controller: str, name: str, value: str) -> Iterator[Path]:
    """Yield a control group with this limit; skip the test if none can be made."""
    top = Path("/sys/fs/cgroup")
    group = (top / controller if (top / controller).is_dir() else top) / f"nettop-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        if not (group / name).exists():
            pytest.skip(f"the control group has no {name} here")
        (group / name).write_text(value)
        yield group
    finally:
        group.rmdir()


def inside(group: Path) -> tuple[str, ...]:
    """Return words that start a command in a control group."""
    return "sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"'


def test_memory_of_a_control_group(nothing_cached: None, namespace: None) -> None:
    """If the kernel kills a compiler, nettop reports the limit and its remedy, not a bug."""
    name = "memory.max" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "memory.limit_in_bytes"
    with control_group("memory", name, str(80 << 20)) as group:
        report = report_of(*inside(group))
        assert_named(report, f"may use 83,886,080 bytes of memory ({group}/{name})")
    (memory,) = (check for check in report["checks"] if check["name"] == "memory")
    assert "83,886,080 bytes" in memory["value"]


@pytest.mark.parametrize("megabytes", [150, 600])
def test_doctor_ends_with_little_address_space(namespace: None, megabytes: int) -> None:
    """Doctor exits in little address space, and names the limit."""
    for why in news_of(report_of("prlimit", f"--as={megabytes << 20}")):
        assert "RLIMIT_AS" in why, why
