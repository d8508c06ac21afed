# SPDX-License-Identifier: Apache-2.0
"""nettop's user and capabilities, and that everything keeps working after it drops the others."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nettop as nettop_package
from nettop.doctor.capabilities import USED
from nettop.kernel.bpf.compiling import Compiler
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host
from nettop.kernel.host.privileges import (
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_PERFMON,
    ENTERING,
    FINDING_NAMESPACES,
    LOADER,
    LOADING,
    LOADING_NET,
    STARTING,
    name_of,
)
from nettop.kernel.net.entered_namespaces import Namespaces, shared_namespaces
from nettop.kernel.net.namespaces import enter_namespace
from nettop.snapshots.snapshot import PARTLY_SEEN
from tests.proc import status_fields

from . import traffic
from .command import AS_NOBODY as BECOME_NOBODY
from .command import JSON, NOBODY, SUDO, Running, complaints, in_namespaces, living, nettop, rows_in, run
from .lab import PATIENCE, Lab, Worker, until
from .terminal import Terminal
from .test_drops import REASONS_OF_DROPS

pytestmark = pytest.mark.kernel

EVERY_LENS = ["connections", "connections.events", "bandwidth.flows", "drops", "services", "self"]
_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")

User = tuple[int, int, tuple[int, ...]]
AS_NOBODY: User = (NOBODY, NOBODY, (NOBODY,))
AS_ROOT: User = (0, 0, tuple(os.getgroups()))


def numbers(mask: str) -> frozenset[int]:
    """Return the capabilities in a mask."""
    return frozenset(number for number in range(64) if int(mask, 16) >> number & 1)


def threads(pid: int) -> list[tuple[User, frozenset[int]]]:
    """Return each thread's user, the same in all four fields, and its capabilities from all sets."""
    listed = []
    for path in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = status_fields(path / "status")
            uids, gids = ({int(word) for word in status[name].split()} for name in ("Uid", "Gid"))
            assert len(uids) == len(gids) == 1
            user = uids.pop(), gids.pop(), tuple(map(int, status["Groups"].split()))
            listed.append((user, frozenset().union(*(numbers(status[name]) for name in _SETS))))
    return listed


def kept(pid: int) -> list[frozenset[int]]:
    """Return the capabilities of threads beyond those for reading on this kernel; usually none."""
    return [capabilities for _, capabilities in threads(pid) if not capabilities <= privileges.for_reading()]


def bounds(pid: int) -> set[frozenset[int]]:
    """Return the capabilities that its threads could still gain."""
    sets = set()
    for path in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            sets.add(numbers(status_fields(path / "status")["CapBnd"]))
    return sets


def users(pid: int) -> set[User]:
    """Return the users of its threads."""
    assert status_fields(Path(f"/proc/{pid}/status"))["NoNewPrivs"] == "1"
    return {user for user, _ in threads(pid)}


@pytest.fixture
def neighbour(lab: Lab) -> Worker:
    """Return a process of root's in another namespace, with sockets, so that every table has a row."""
    worker = lab.worker(lab.namespace(), "neighbour")
    worker.call(traffic.leave_in_backlog)
    return worker


# --- frontends ----------------------------------------------------------------------------------------------------


@pytest.mark.walks
@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize(("environment", "user"), [(SUDO, AS_NOBODY), (None, AS_ROOT)], ids=["sudo", "root"])
@pytest.mark.parametrize("view", ["connections", "drops.counters", "services"])
def test_text_keeps_nothing(view: str, environment: dict[str, str] | None, user: User) -> None:
    """Plain output runs as the sudo caller, without capabilities in any thread, and keeps refreshing."""
    with Running(*JSON, "--all", "--view", view, "--interval", "0.2", env=environment) as running:
        running.first_rows()
        assert users(running.pid) == {user}
        until(lambda: not kept(running.pid), "the rest of its programs is loaded")
        assert len(threads(running.pid)) > 3  # also those in namespaces
        before = len(running.refreshes())
        until(lambda: len(running.refreshes()) > before + 1, "it goes on")
        assert running.end() == 0
        assert running.complaints() == ""


def test_sock_diag_keeps_the_capabilities_to_find_owners(neighbour: Worker) -> None:
    """With sock_diag the threads that read and that watch namespaces keep the capabilities to inspect every process."""
    with Running(
        *JSON, "--all", "--mechanism", "sockets=sock_diag", "--interval", "0.2", env=SUDO
    ) as running:
        running.first_rows()
        assert users(running.pid) == {AS_NOBODY}
        assert set(kept(running.pid)) == {FINDING_NAMESPACES | privileges.for_reading()}
        before = len(running.refreshes())
        until(lambda: len(running.refreshes()) > before + 1, "it goes on")
        assert neighbour.pid in {row["pid"] for row in running.refreshes()[-1]}
        assert running.end() == 0


@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize("view", EVERY_LENS)
def test_every_table_as_nobody(view: str) -> None:
    """Each table reads the same as the sudo caller and as root."""
    as_nobody, as_root = mechanisms_of(view, SUDO), mechanisms_of(view, None)
    assert as_nobody == as_root != []


def mechanisms_of(view: str, environment: dict[str, str] | None) -> list[str]:
    """Return the mechanism of each hook once all are attached: UDP of connections comes last, after the
    first refresh."""
    last = "udp " if view.startswith("connections") else ""

    def attached() -> list[str]:
        hooks = mechanisms_in(running.errors())
        return hooks if any(hook.startswith(last) for hook in hooks) else []

    with Running("--table", "--interval", "0.2", "--view", view, env=environment) as running:
        hooks = until(attached, "all hooks are attached")
        assert running.end() == 0
    return hooks


def mechanisms_in(banner: str) -> list[str]:
    """Return the last mechanism of each hook, without gaps for namespaces that other processes made meanwhile.

    A banner has all hooks, the lines after it what has changed.
    """
    said = re.findall(r"  via (.*?)(?:  |$)", banner, re.MULTILINE)
    hooks = {hook.partition(" ")[0]: hook for line in said for hook in line.split(" · ")}
    return [hook for name, hook in hooks.items() if not name.startswith("namespace")]


@pytest.mark.walks
@pytest.mark.parametrize(("environment", "user"), [(SUDO, AS_NOBODY), (None, AS_ROOT)], ids=["sudo", "root"])
def test_run_is_who_the_command_is(environment: dict[str, str] | None, user: User, tmp_path: Path) -> None:
    """`nettop run` runs as the command's user, so that it may signal it, and without capabilities."""
    script = "trap 'exit 9' TERM; echo begun; while :; do sleep 0.01; done"
    with Running("run", "--", "sh", "-c", script, env=environment) as running:
        until(lambda: "begun" in running.text(), "the command runs")
        assert users(running.pid) == {user}
        assert kept(running.pid) == []
        assert running.end(signal.SIGTERM) == 9


@pytest.mark.parametrize(("environment", "user"), [(SUDO, AS_NOBODY), (None, AS_ROOT)], ids=["sudo", "root"])
def test_doctor_keeps_what_starting_lenses_takes(environment: dict[str, str] | None, user: User) -> None:
    """Doctor examines lenses and sends its traffic as the sudo caller, and still finds that everything works."""
    with Running("doctor", "--only", "connections", "--format", "json", env=environment) as running:
        # Its first children send the traffic.
        children = until(
            lambda: [pid for pid, parent, _ in living() if parent == running.pid],
            "it is about to send traffic",
        )
        for pid in (running.pid, *children):
            assert users(pid) == {user}
            assert all(capabilities <= STARTING for _, capabilities in threads(pid))
        assert running.wait(60) == 0, running.errors()
        report = json.loads(running.text())
    assert {result["ok"] for result in report["self_test"]} == {True}


@pytest.fixture
def dumpable() -> Iterator[None]:
    """Make the host's setuid processes dumpable, so that their user could debug them."""
    sysctl = Path("/proc/sys/fs/suid_dumpable")
    before = sysctl.read_text()
    try:
        sysctl.write_text("1")
    except OSError:
        pytest.skip("fs.suid_dumpable may not be set here")
    try:
        yield
    finally:
        sysctl.write_text(before)


@pytest.mark.usefixtures("neighbour", "dumpable")
def test_nobody_may_debug_it_where_setuid_programs_may_be() -> None:
    """With fs.suid_dumpable a change of user opens a process to that user: nettop closes it again."""
    with Running(*JSON, "--all", "--interval", "0.2", env=SUDO) as running:
        running.first_rows()
        assert users(running.pid) == {AS_NOBODY}
        assert_closed_to_its_user(running.pid)
        assert running.end() == 0


def locked(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a nettop in a directory that only root may read."""
    home = tmp_path / "locked"
    shutil.copytree(
        Path(nettop_package.__file__).parent, home / "nettop", ignore=shutil.ignore_patterns("__pycache__")
    )
    home.chmod(0o750)
    open_to_all(tmp_path)
    return SUDO | {"PYTHONPATH": str(home)}


def open_to_all(place: Path) -> None:
    """Make the directory accessible to everybody."""
    for part in (place, *place.parents):
        if part.stat().st_uid == 0 and not part.stat().st_mode & 0o001:
            part.chmod(part.stat().st_mode | 0o011)


def by_module(environment: dict[str, str], *words: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    """Return a nettop that Python finds by its path."""
    return run(sys.executable, "-m", "nettop", *words, env=environment, **how)


def test_a_nettop_that_its_user_may_not_read(tmp_path: Path) -> None:
    """nettop stays root and says why; it refuses to write a file named by the user."""
    environment = locked(tmp_path)
    unread = f"uid {NOBODY} may not read {tmp_path / 'locked'}"
    why = f"nettop stays root, without capabilities: {unread}"
    done = by_module(environment, *JSON, "--once", "--mechanism", "sockets=sock_diag", cwd=tmp_path)
    assert (done.returncode, complaints(done.stderr)) == (0, f"{why}\n")
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    os.chown(home, NOBODY, NOBODY)
    (home / "token").write_text("0123456789abcdef")
    (home / "token").chmod(0o600)
    for words in (
        ("log", "--log-dir", "l2"),
        ("export", "cpu.stacks", "cpu.svg"),
        ("serve", "--listen", "127.0.0.1:0", "--token-file", "token"),
    ):
        done = by_module(environment, *words, cwd=home)
        what, remedy = done.stderr.splitlines()
        assert (done.returncode, what) == (4, f"nettop: nettop would stay root: {unread}")
        assert "install nettop where every user may read it" in remedy
    assert [path.name for path in home.iterdir()] == ["token"]


@pytest.mark.walks
@REASONS_OF_DROPS
@pytest.mark.core
def test_screens_keep_what_later_lenses_take(neighbour: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The screens' two loading threads keep two and three capabilities, the one that asks for rules of the firewall
    one; a lens opened later works as the sudo caller."""
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.setenv(name, str(NOBODY))
    interval = f"{min(PATIENCE, 5):g}"  # an emulated machine would do nothing but draw
    netns = f"netns={os.stat(f'/proc/{neighbour.pid}/ns/net').st_ino}"
    with Terminal("--interval", interval, "--filter", netns) as terminal:
        terminal.shows(b"neighbour")
        assert users(terminal.pid) == {AS_NOBODY}
        expected = [{CAP_NET_ADMIN}, LOADING, LOADING_NET]
        until(lambda: sorted(kept(terminal.pid), key=len) == expected, "all programs are loaded")
        terminal.type(b"3", b"INTERFACE")
        terminal.type(b"5", b"REASON")
        until(lambda: shows_a_drop(terminal, neighbour), "a drop, and the function that it was dropped in")
        assert users(terminal.pid) == {AS_NOBODY}
        until(lambda: sorted(kept(terminal.pid), key=len) == expected, "all programs are loaded")
        assert_closed_to_its_user(terminal.pid)
        terminal.type(b"q")
        assert terminal.wait() == 0


def shows_a_drop(terminal: Terminal, worker: Worker) -> bool:
    """Drop a packet in the worker's namespace; return whether the screen shows its location."""
    worker.call(send_to_nobody, 9)
    terminal.take_in()
    return bool(re.search(r"NO_SOCKET[^\n]*udp\w*_rcv", terminal.screen()))


def send_to_nobody(memory: dict[Any, Any], port: int) -> None:
    """Send a datagram to a closed port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", port))


def assert_closed_to_its_user(pid: int) -> None:
    """Assert that its user cannot open its memory: writing there would give the user its capabilities."""
    assert "Permission denied" in run(*BECOME_NOBODY, "cat", f"/proc/{pid}/mem").stderr


@pytest.mark.walks
@pytest.mark.usefixtures("neighbour")
def test_a_right_user_needs_no_root() -> None:
    """A user with two ambient capabilities, as in a systemd unit, sees root's sockets and their owners."""
    capabilities = "+bpf,+perfmon"
    sets = (
        f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
        f"--bounding-set=-all,{capabilities}",
    )
    around = (*BECOME_NOBODY, "--no-new-privs", *sets)
    done = nettop(*JSON, "--once", "--filter", "neighbour", around=around)
    assert (done.returncode, complaints(done.stderr)) == (0, "")
    assert {row["process"] for row in rows_in(done.stdout)} == {"neighbour"}


# --- namespaces ---------------------------------------------------------------------------------------------------


@pytest.mark.walks
@pytest.mark.usefixtures("neighbour")
def test_a_namespace_that_appears_later_is_not_entered(lab: Lab) -> None:
    """A namespace that appears later is named and counted, not entered; sockets owned by processes are listed."""
    with Running("--table", "--format", "jsonl", "--all", "--interval", "0.2", env=SUDO) as running:
        running.first_rows()
        home = lab.namespace()
        worker = lab.worker(home)
        worker.call(traffic.leave_in_backlog)
        rows = until(lambda: in_namespaces(running.refreshes()[-1], home.inode), "its sockets are listed")
        assert all(row["pid"] == worker.pid for row in rows)
        assert running.end() == 0


@contextlib.contextmanager
def followed_without_privileges() -> Iterator[tuple[Namespaces, Callable[..., Namespaces]]]:
    """Yield namespaces that were entered before privileges were dropped, and a follower without privileges."""
    namespaces, unprivileged = Namespaces(), enter_namespace(None)

    def follow(*seen: int) -> Namespaces:
        unprivileged.submit(namespaces.follow, frozenset(seen)).result()
        return namespaces

    try:
        namespaces.enter()
        namespaces.stop_entering()
        yield namespaces, follow
    finally:
        unprivileged.shutdown()
        namespaces.close()


def test_a_namespace_is_left_when_its_processes_have_ended(lab: Lab) -> None:
    """A namespace with a running process stays entered, one without is left, and later ones are gaps."""
    old, gone = lab.namespace(), lab.namespace()
    resident, leaver = lab.worker(old), lab.worker(gone)
    with followed_without_privileges() as (namespaces, follow):
        for namespace in (old, gone):
            namespace.remove()  # so that only processes are left in them
        named, unnamed = lab.namespace(), lab.namespace()  # while the numbers of the others are taken
        lab.worker(unnamed)
        unnamed.remove()
        leaver.end()
        until(lambda: gone.inode not in follow().threads, "it is left")
        with namespaces.lock:  # the guard thread scans meanwhile
            assert old.inode in namespaces.threads
            assert namespaces.name(old.inode) == f"of process {resident.pid}"
            assert namespaces.refused.keys().isdisjoint({old.inode, gone.inode})
        until(lambda: named.inode in follow(unnamed.inode).refused, "it is refused")
        reason = "it appeared after nettop dropped privileges"
        with namespaces.lock:
            assert namespaces.refused[named.inode] == namespaces.refused[unnamed.inode] == reason
            assert namespaces.name(named.inode) == named.name
            assert namespaces.name(unnamed.inode) == "hidden"
            (gap,) = (name for name, text in namespaces.gaps().items() if text == PARTLY_SEEN)
            refused = list(namespaces.refused.values()).count(reason)
        more = re.search(r" and (\d+) more$", gap)
        assert refused == (3 + int(more[1]) if more else len(re.split(", | and ", gap)))


def test_a_namespace_with_sockets_is_not_left(lab: Lab) -> None:
    """A namespace whose known processes have ended stays entered while sockets are seen in it."""
    home = lab.namespace()
    first = lab.worker(home)
    with followed_without_privileges() as (namespaces, follow):
        lab.worker(home)
        home.remove()
        first.end()
        until(lambda: home.inode not in follow(home.inode)._paths, "no known process is left in it")
        with namespaces.lock:
            assert home.inode in namespaces.threads
            assert home.inode not in namespaces.refused
            assert namespaces.name(home.inode) == "hidden"
        until(lambda: home.inode not in follow().threads, "it is left", 30)
        until(lambda: home.inode in follow(home.inode).refused, "it is a gap")


def test_too_few_open_files_are_no_bug() -> None:
    """With too few descriptors nettop names the limit and its remedy; with exactly enough it works."""
    for limit, code in ((9, 3), (32, 3), (63, 3), (64, 0)):
        done = nettop(*JSON, "--once", around=("prlimit", f"--nofile={limit}:{limit}"))
        assert done.returncode == code, done.stderr
        assert "bug" not in done.stderr
        if code:
            assert f"may open only {limit} files (hard limit of RLIMIT_NOFILE)" in done.stderr
            assert "ulimit -n" in done.stderr


@contextlib.contextmanager
def crowd(many: int) -> Iterator[frozenset[int]]:
    """Yield `count` unnamed namespaces, each with a listening process and a connection that is never accepted."""
    script = (
        "import os, socket; a = socket.create_server(('127.0.0.1', 0));"
        "b = socket.create_connection(a.getsockname()); print(os.stat('/proc/self/ns/net').st_ino, flush=True); input()"
    )
    up = 'ip link set lo up && exec "$0" -S -c "$1"'
    command = ["unshare", "--net", "sh", "-c", up, sys.executable, script]
    with contextlib.ExitStack() as ends:
        inodes = []
        for _ in range(many):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            ends.callback(process.communicate, "\n")
            assert process.stdout
            inodes.append(int(process.stdout.readline()))
        yield frozenset(inodes)


def test_lenses_share_the_threads() -> None:
    """All users of the shared namespaces get the same ones, until the last has closed them."""
    host = Host()
    first, second = shared_namespaces(host), shared_namespaces(host)
    assert first is second
    first.enter()
    first.close()
    assert second.threads[second.own].submit(lambda: 7).result() == 7
    second.close()
    assert second.threads == {}
    third = shared_namespaces(host)
    assert third is not second
    third.close()


def test_with_the_right_to_follow_they_are_entered(lab: Lab) -> None:
    """--follow-namespaces keeps three capabilities in two threads, and namespaces that appear later are entered."""
    lab.worker(lab.namespace()).call(traffic.listen, "neighbour", "127.0.0.1")
    with Running(*JSON, "--all", "--interval", "3600", "--follow-namespaces", env=SUDO) as running:
        running.first_rows()
        assert users(running.pid) == {AS_NOBODY}
        expected = {ENTERING | privileges.for_reading(), FINDING_NAMESPACES}
        until(lambda: set(kept(running.pid)) == expected, "the rest of its programs is loaded")
        assert FINDING_NAMESPACES in bounds(running.pid)
        home = lab.namespace()
        lab.worker(home).call(traffic.leave_in_backlog)
        assert running.end() == 0  # after a last reading
        rows = in_namespaces(running.refreshes()[-1], home.inode)
        assert [row["state"] for row in rows if row["pid"] is None] == ["ESTABLISHED"]


def test_parked_threads_keep_nothing(lab: Lab) -> None:
    """A thread inside a namespace has no capabilities left, whatever the process has."""
    home = lab.namespace()
    namespaces = Namespaces()
    try:
        namespaces.enter()
        assert namespaces.threads[home.inode].submit(privileges.held).result() == privileges.for_reading()
        assert privileges.held() >= LOADING
    finally:
        namespaces.close()


def test_the_compiler_keeps_what_it_uses() -> None:
    """The compiling child drops all other privileges before it compiles."""
    compiler = Compiler()
    try:
        until(lambda: threads(compiler._child.pid)[0][1] <= LOADER, "it has given up the rest")
        assert {CAP_BPF, CAP_PERFMON} <= threads(compiler._child.pid)[0][1]
    finally:
        compiler.close()


# --- older kernels ------------------------------------------------------------------------------------------------


@pytest.fixture
def python_with_capabilities() -> Iterator[Path]:
    """Yield a copy of Python in its own environment, with nettop's capabilities permitted and none effective."""
    environment = Path(sys.prefix)
    with tempfile.TemporaryDirectory(prefix="nettop-capabilities-", dir="/var/tmp") as folder:
        place = Path(folder)
        place.chmod(0o755)
        (place / "bin").mkdir()
        (place / "lib").symlink_to(environment / "lib")
        shutil.copy(environment / "pyvenv.cfg", place)
        python = place / "bin" / "nettop-python"
        shutil.copy(os.path.realpath(sys.executable), python)
        subprocess.run(["setcap", f"{','.join(map(name_of, USED)).lower()}=p", python], check=True)
        yield python


@pytest.mark.parametrize(
    "lacking", [None, CAP_BPF, CAP_NET_ADMIN], ids=lambda number: name_of(number) if number else "nothing"
)
def test_capabilities_of_a_file(python_with_capabilities: Path, lacking: int | None) -> None:
    """In a container a user has the file's capabilities that the container does not withhold; withheld
    ones are named."""
    given = [name_of(number).removeprefix("CAP_").lower() for number in USED if number != lacking]
    report = host_report(
        python_with_capabilities, "--bounding-set", f"-all,{','.join(f'+{name}' for name in given)}"
    )
    host, remedy = report["host"], remedy_for_missing(report)
    assert {name.removeprefix("CAP_").lower() for name in host["capabilities_effective"]} == set(given)
    if lacking is None:
        assert host["capabilities_missing"] == []
        return
    name = name_of(lacking)
    if lacking in LOADING:
        assert host["capabilities_missing"] == []
        assert f"CAP_SYS_ADMIN instead of {name}" in json.dumps(report["checks"])
        return
    assert host["capabilities_missing"] == [name]
    assert remedy.startswith(
        f"add {name} to the container (docker run --cap-add {name.removeprefix('CAP_')};"
    )


def test_no_new_privileges_is_named(python_with_capabilities: Path) -> None:
    """If the kernel ignores the file's capabilities, the remedy is to allow new privileges."""
    # setpriv itself keeps what it permits; another program in between, as an engine for containers, does not.
    report = host_report(python_with_capabilities, "--no-new-privs", "env")
    assert set(report["host"]["capabilities_missing"]) == set(map(name_of, USED))
    assert "remove --security-opt no-new-privileges" in remedy_for_missing(report)


def host_report(python: Path, *confined: str) -> dict[str, Any]:
    """Return doctor's report of the host, as nobody, confined by these options of setpriv."""
    doctor = [str(python), "-I", "-m", "nettop", "doctor", "--only", "host", "--format", "json"]
    done = run(*BECOME_NOBODY, *confined, *doctor)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def remedy_for_missing(report: dict[str, Any]) -> str:
    """Return doctor's remedy for missing capabilities."""
    (remedy,) = (check["remedy"] for check in report["checks"] if check["name"] == "capabilities")
    assert isinstance(remedy, str)
    return remedy
