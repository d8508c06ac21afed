# SPDX-License-Identifier: Apache-2.0
"""`nettop doctor` on this kernel, and on hosts that lack something: it names the cause, and leaves nothing behind."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nettop as nettop_package
from nettop.doctor.capabilities import USED
from nettop.errors import ExitCode
from nettop.kernel.host.privileges import name_of
from nettop.kernel.net.namespaces import find_namespaces

from .command import AS_NOBODY, Running, denied, mounted, nettop, without
from .lab import Lab, until

pytestmark = pytest.mark.kernel

REPORT = ("doctor", "--format", "json")
DEADLINE_S = 120
RIGHTS = tuple(map(name_of, USED))

Report = dict[str, Any]


def report_of(*around: str, **how: Any) -> Report:
    """Return the report of a doctor started with these words; check that its exit code agrees with it."""
    done = nettop(*REPORT, around=around, deadline_s=DEADLINE_S, **how)
    assert "Traceback" not in done.stderr, done.stderr
    report: Report = json.loads(done.stdout)
    works = all(lens["works"] for lens in report["lenses"]) and not bad(report)
    agrees = all(trial["ok"] is not False for trial in report["self_test"])
    codes = (ExitCode.DONE,) if works and agrees else (ExitCode.FAILURE,) if works else (
        ExitCode.UNSUPPORTED, ExitCode.PERMISSION
    )  # fmt: skip
    assert done.returncode in codes, done.stdout
    assert report["ok"] is (done.returncode == ExitCode.DONE)
    assert agrees, [trial for trial in report["self_test"] if trial["ok"] is False]
    return report


def checks(report: Report) -> dict[str, Report]:
    """Return the facts by name."""
    return {check["name"]: check for check in report["checks"]}


def bad(report: Report) -> set[str]:
    """Return the names of the bad facts."""
    return {check["name"] for check in report["checks"] if check["verdict"] == "bad"}


def hooks(report: Report) -> dict[str, Report]:
    """Return the hooks of all working lenses by name."""
    return {hook["hook"]: hook for lens in report["lenses"] for hook in lens["hooks"]}


def tried(report: Report) -> list[Report]:
    """Return what the self-test covered."""
    return [trial for trial in report["self_test"] if trial["ok"] is not None]


@pytest.fixture
def nothing_left(left_clean: None) -> Iterator[None]:
    """Fail the test if a BPF object or a process of the self-test is left; its namespaces end with its processes."""
    yield
    until(lambda: not traffic_processes(), "no process is left")


def traffic_processes() -> list[int]:
    """Return the processes that the self-test has forked."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"doctor-"):
                pids.append(int(path.parent.name))
    return pids


def private_namespaces(pids: list[int]) -> set[int]:
    """Return the network namespaces of these processes, except our own."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            inodes.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
    return inodes - {os.stat("/proc/self/ns/net").st_ino}


# --- here -----------------------------------------------------------------------------------------------------


@cache
def report_here() -> Report:
    """Return the report with all that this machine has."""
    return report_of()


@pytest.mark.core
def test_here(nothing_left: None) -> None:
    """Every lens works, the report names the mechanisms in use and those refused, and every number is exact."""
    report = report_here()
    assert report["ok"]
    assert not bad(report)
    assert checks(report)["capabilities"]["verdict"] == "ok"
    assert report["host"]["kernel"] == os.uname().release
    assert report["host"]["bcc"]
    by_name = hooks(report)
    assert {"sockets", "unattributed", "events", "accepts", "routes", "packets", "counters"} <= by_name.keys()
    for hook in by_name.values():
        assert hook["mechanism"] or hook["refused"], hook
        assert all(refused["why"] for refused in hook["refused"])
    assert by_name["sockets"]["mechanism"]
    untried = [trial for trial in report["self_test"] if trial["ok"] is None]
    # Other programs of a busy machine may fill the ring: that is counted, and no reason to doubt the rest.
    assert [trial for trial in untried if not re.search("not available|were lost", trial["remedy"])] == []
    assert len(tried(report)) >= 16
    expected = {trial["what"]: trial["expected"] for trial in report["self_test"]}
    assert expected["loopback IPv4 TCP"] == 1_000_003
    assert expected["veth IPv6 TCP, returned"] == 500_057
    assert expected["veth IPv4 UDP to a closed port"] == 997


def test_without_traffic(nothing_left: None) -> None:
    """Nothing is forked or attached, yet the mechanisms are listed."""
    done = nettop("doctor", "--no-traffic", "--format", "json", deadline_s=DEADLINE_S)
    report = json.loads(done.stdout)
    assert (done.returncode, report["self_test"]) == (0, [])
    assert hooks(report)["sockets"]["mechanism"]


# --- hosts that lack something --------------------------------------------------------------------------------


def test_tracefs_unmounted() -> None:
    """Nothing is reported as missing: nettop does without it."""
    script = "for at in /sys/kernel/tracing /sys/kernel/debug; do umount $at 2>/dev/null; done; true"
    report = report_of(*mounted(script))
    assert report["ok"]
    assert report["host"]["tracefs"] == []
    assert "not needed by nettop" in checks(report)["tracefs"]["value"]
    assert any("veth" in trial["what"] for trial in tried(report))


def test_in_a_network_namespace_of_its_own(nothing_left: None) -> None:
    """The report names this namespace and the host's, and how to get there; private traffic is still exact."""
    own = os.stat("/proc/self/ns/net").st_ino
    report = report_of("unshare", "--net")
    check = checks(report)["network namespace"]
    assert check["verdict"] == "note"
    assert report["host"]["network_namespace"] != own
    assert f"the host's, {own}," in check["value"]
    assert "nsenter" in check["remedy"]
    untried = {trial["what"]: trial["remedy"] for trial in report["self_test"] if trial["ok"] is None}
    for family in ("IPv4", "IPv6"):
        assert "loopback device is down" in untried[f"loopback {family}"]
    assert any(trial["what"] == "veth IPv6 TCP" for trial in tried(report))


def test_in_a_user_namespace(nothing_left: None) -> None:
    """Capabilities that do not reach the kernel are distinguished from missing ones; whose sockets are not seen is said
    as in the table."""
    around = ("unshare", "--user", "--map-root-user")
    if subprocess.run([*around, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here, as in a chroot")
    report = report_of(*around)
    assert bad(report) == {"user namespace"}
    check = checks(report)["user namespace"]
    assert "do not reach the kernel" in check["value"]
    assert "outside the user namespace" in check["remedy"]
    assert "user namespace" in hooks(report)["packets"]["refused"][0]["why"]
    assert "are not attributed" in checks(report)["processes"]["value"]
    table = nettop("--table", "--once", around=around)
    assert f"owners {WHOSE_ARE_HIDDEN}{check['remedy']}" in table.stderr


WHOSE_ARE_HIDDEN = "not visible for other users' sockets: "


def cpu_table_of(around: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    """Show a table of the CPU lens, which needs programs, and return the finished process."""
    return nettop("--table", "--once", "--view", "cpu", around=around, deadline_s=DEADLINE_S)


def diagnosis_of(around: tuple[str, ...]) -> tuple[Report, int]:
    """Return doctor's report of the host and the CPU lens, and its exit code."""
    words = ("--no-traffic", "--only", "host", "--only", "cpu")
    done = nettop(*REPORT, *words, around=around, deadline_s=DEADLINE_S)
    assert "report it" not in done.stdout
    return json.loads(done.stdout), done.returncode


PROGRAM = Path(nettop_package.__file__).parent / "probes/cpu/cpu.bpf.c"
STUB = (
    "bcc=$(/usr/bin/python3 -c 'import bcc, os; print(os.path.dirname(bcc.__file__))') && "
    "mount -t tmpfs none $bcc && echo 'class BPF: pass' > $bcc/__init__.py"
)


@pytest.mark.parametrize(
    ("around", "what", "remedy", "code"),
    [
        (denied("bpf", "EPERM"), "a seccomp filter denies bpf(2)", "allow bpf in the filter", ExitCode.PERMISSION),
        (denied("bpf", "ENOSYS"), "a seccomp filter denies bpf(2)", "allow bpf in the filter", ExitCode.PERMISSION),
        (mounted("mount -t tmpfs none /sys/kernel/btf"),
         "the tmpfs mounted at /sys/kernel/btf hides it", "umount /sys/kernel/btf", ExitCode.UNSUPPORTED),
        (mounted("mount -t tmpfs none /sys"), "the tmpfs mounted at /sys hides it", "umount /sys",
         ExitCode.UNSUPPORTED),
        (mounted(STUB), "/bcc/__init__.py is not the BPF compiler", "remove /", ExitCode.UNSUPPORTED),
        (mounted(f"mount --bind /dev/null {PROGRAM}"), f"{PROGRAM}, which is part of nettop, is empty",
         "reinstall nettop", ExitCode.UNSUPPORTED),
        (("prlimit", "--as=150000000"), "150,000,000 bytes of address space", "ulimit -v", ExitCode.UNSUPPORTED),
        (without("CAP_BPF", "CAP_SYS_ADMIN"), "loading BPF programs needs CAP_BPF", "--cap-add BPF",
         ExitCode.PERMISSION),
    ],
    ids=("filter", "filter-enosys", "btf-hidden", "no-sysfs", "stub-bcc", "lost-program", "memory",
         "capability"),
)  # fmt: skip
def test_the_cause(
    around: tuple[str, ...], *, what: str, remedy: str, code: ExitCode, nothing_cached: None, left_clean: None
) -> None:
    """Doctor and the command name the same cause, with the same remedy and exit code."""
    report, doctors_code = diagnosis_of(around)
    error = report["lenses"][0]["error"]
    assert what in error["what"]
    assert remedy in error["remedy"]
    table = cpu_table_of(around)
    assert table.stderr == f"nettop: {error['what']}\n  {error['remedy']}\n"
    assert (table.returncode, doctors_code) == (code, code)


def test_a_filter_of_perf_events(nothing_left: None) -> None:
    """Samples are unavailable, with the reason and the remedy."""
    around = denied("perf_event_open", "EPERM")
    report, code = diagnosis_of(around)
    assert (bad(report), code) == ({"perf events"}, ExitCode.PERMISSION)
    check = checks(report)["perf events"]
    assert "a seccomp filter denies perf_event_open(2)" in check["value"]
    assert "allow perf_event_open in the filter" in check["remedy"]
    assert hooks(report)["samples"]["refused"] == [{"mechanism": "perf cpu-clock", "why": check["value"]}]
    table = cpu_table_of(around)
    assert (table.returncode, table.stdout) == (ExitCode.PERMISSION, "")
    assert check["value"] in table.stderr


def test_as_a_user_without_root(nothing_left: None) -> None:
    """Everything that root would add is named once."""
    report = report_of(*AS_NOBODY)
    assert bad(report) == {"capabilities"}
    remedy = checks(report)["capabilities"]["remedy"]
    assert "sudo nettop" in remedy
    assert all(name in remedy for name in RIGHTS)
    assert any("CAP_SYS_ADMIN" in trial["remedy"] for trial in report["self_test"])
    assert "are not attributed" in checks(report)["processes"]["value"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ended_in_the_middle(number: int, nothing_left: None) -> None:
    """Interrupted at any moment, its processes and namespaces end too; it prints nothing and exits by the signal."""
    with Running("doctor") as doctor:
        made = until(
            lambda: private_namespaces(traffic_processes()), "the processes are in namespaces of their own"
        )
        status = doctor.end(number)
        until(lambda: not traffic_processes(), "the processes have ended")
        until(lambda: not made & find_namespaces().keys(), "nobody is in their namespaces")
        assert (status, doctor.text(), doctor.errors()) == (
            -number if number == signal.SIGKILL else 128 + number, "", ""
        )  # fmt: skip


_MARKERS = {
    "host": "markerhost",
    "user": "markeruser",
    "process": "markerproc",
    "interface": "markerif0",
    "ipv4": "198.51.100.217",
    "ipv6": "2001:db8:77:1::5a5a",
    "mac": "02:77:5a:5b:5c:5d",
}


def content_of(bundle: bytes) -> dict[str, str]:
    """Return the texts in a bundle by name."""
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        files = {Path(member.name).name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file}


def test_bundle_without_addresses_and_names(tmp_path: Path, lab: Lab) -> None:
    """Names and addresses of this host are replaced by tokens in the bundle, always by the same ones."""
    said = " ".join(_MARKERS.values())
    users = tmp_path / "passwd"
    users.write_text(
        Path("/etc/passwd").read_text() + f"{_MARKERS['user']}:x:4711:4711::/nowhere:/bin/false\n"
    )
    home = lab.namespace()
    home.ip("link", "add", _MARKERS["interface"], "type", "veth", "peer", "name", "other0")
    lab.worker(home, _MARKERS["process"])
    Path("/dev/kmsg").write_text(f"bpf test: {said}; again {said}\n")
    file = tmp_path / "bundle.tar.gz"
    script = f"hostname {_MARKERS['host']} && mount --bind {users} /etc/passwd"
    around = ("unshare", "--uts", *mounted(script))
    done = nettop("doctor", "--only", "host", "--bundle", str(file), around=around)
    assert done.returncode == 0, done.stderr
    texts = content_of(file.read_bytes())
    assert set(texts) == {"report.json", "report.txt", "kernel-config.txt", "kernel-messages.txt"}
    whole = "\n".join(texts.values())
    for marker in _MARKERS.values():
        assert marker not in whole
    (line,) = [line for line in texts["kernel-messages.txt"].splitlines() if "bpf test: " in line][-1:]
    first, again = line.partition("bpf test: ")[2].split("; again ")
    assert first == again
    assert [word.rpartition("-")[0] for word in first.split()] == list(_MARKERS)
    assert json.loads(texts["report.json"])["host"]["kernel"] == os.uname().release
