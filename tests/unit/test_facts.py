# SPDX-License-Identifier: Apache-2.0
"""Host facts, read below a root directory made by the test."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from nettop.errors import ExitCode, NettopError, PermissionMissing, Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import perf_events
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host, SocketCounts, container_of
from nettop.kernel.host.privileges import CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, how_to_get
from nettop.kernel.host.proc_files import what_hides

pytestmark = pytest.mark.usefixtures("made_capabilities")

ALL_CAPABILITIES = "000001ffffffffff"
CONTAINER_ID = "4f1c2ab09d7e" + "0" * 52


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a host on which everything is as nettop needs it."""
    put(tmp_path, "sys/kernel/btf/vmlinux", "BTF")
    monkeypatch.setattr(bpf, "errno_before_kernel", lambda: 0)
    put(tmp_path, "proc/thread-self/status", f"Name:\tnettop\nCapEff:\t{ALL_CAPABILITIES}\n")
    return tmp_path


def put(root: Path, path: str, text: str) -> None:
    """Write a file of the made host."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


BY_SUCCESSORS = f"CapEff:\t{1 << 38 | 1 << 39:016x}\nSeccomp:\t2\n"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("proc/thread-self/status", f"CapEff:\t{ALL_CAPABILITIES}\n"),
        ("proc/thread-self/status", f"CapEff:\t{1 << 21:016x}\n"),
        ("proc/thread-self/status", BY_SUCCESSORS),
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
    ],
    ids=["root", "CAP_SYS_ADMIN", "its successors", "lockdown of integrity"],
)
def test_hosts_that_are_accepted(root: Path, path: str, text: str) -> None:
    """Either set of capabilities is enough on a kernel with BTF, as long as programs may read its memory."""
    put(root, path, text)
    Host(root).require_bpf()


def test_kernels_that_are_refused(root: Path) -> None:
    """A kernel in confidentiality lockdown, or without BTF, is refused with a remedy."""
    put(root, "sys/kernel/security/lockdown", "none integrity [confidentiality]\n")
    with pytest.raises(Unsupported, match="locked down"):
        Host(root).require_bpf()
    (root / "sys/kernel/btf/vmlinux").unlink()
    with pytest.raises(Unsupported) as refusal:
        Host(root).require_bpf()
    assert "CONFIG_DEBUG_INFO_BTF" in refusal.value.remedy


@pytest.mark.parametrize(
    ("held", "named"),
    [(0, "CAP_BPF and CAP_PERFMON"), (1 << 39, "needs CAP_PERFMON"), (1 << 38, "needs CAP_BPF")],
)
@pytest.mark.parametrize(
    ("as_root", "remedy", "other"), [(False, "sudo", "docker"), (True, "--cap-add", "sudo")]
)
def test_missing_capabilities_are_named(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    held: int,
    named: str,
    as_root: bool,
    remedy: str,
    other: str,
) -> None:
    """Exactly the missing capabilities are named. Sudo is the remedy for other users; root gets them from the
    container or unit."""
    monkeypatch.setattr(privileges, "BEGAN_AS_ROOT", as_root)
    put(root, "proc/thread-self/status", f"CapEff:\t{held:016x}\n")
    with pytest.raises(PermissionMissing) as refusal:
        Host(root).require_bpf()
    assert named in refusal.value.what
    assert remedy in refusal.value.remedy
    assert other not in refusal.value.remedy


def test_the_confinement_of_capabilities_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the container image the executable has capabilities: the container withholds them, or ignores the file's."""
    monkeypatch.setattr(privileges, "BEGAN_AS_ROOT", False)
    monkeypatch.setattr(privileges, "of_file", lambda path: frozenset({CAP_BPF, CAP_PERFMON}))
    monkeypatch.setattr(privileges, "is_withheld", lambda number: number == CAP_BPF)
    bounded = how_to_get([CAP_BPF, CAP_PERFMON], ())
    assert (
        "add CAP_BPF to the container (docker run --cap-add BPF; Kubernetes: capabilities.add BPF)" in bounded
    )
    ignored = how_to_get([CAP_PERFMON], ())
    assert "no-new-privileges" in ignored and "allowPrivilegeEscalation: true" in ignored
    assert "sudo" in how_to_get([CAP_SYS_ADMIN], ())


def test_the_capabilities_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's capabilities are 64 bits in two halves, each before the inheritable ones; a missing file or attribute
    has none.
    """
    attribute = struct.pack("<5I", 0x02000000, 1 << 12, 0xFF, 1 << (39 - 32), 0xFF)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getxattr", lambda path, name: attribute)
        assert privileges.of_file("/any") == {12, 39}
    assert privileges.of_file("/nonexistent") == privileges.of_file("/proc/version") == frozenset()


FILTERED = BY_SUCCESSORS
NOT_FILTERED = FILTERED.replace("\t2\n", "\t0\n")


@pytest.mark.parametrize(
    ("number", "status", "said", "code"),
    [
        (errno.EPERM, FILTERED, "a seccomp filter denies bpf(2)", ExitCode.PERMISSION),
        (errno.ENOSYS, FILTERED, "a seccomp filter denies bpf(2)", ExitCode.PERMISSION),
        (errno.EPERM, NOT_FILTERED, "likely in a sandbox", ExitCode.PERMISSION),
        (errno.ENOSYS, NOT_FILTERED, "this kernel has no bpf(2)", ExitCode.UNSUPPORTED),
    ],
)
def test_calls_that_do_not_reach_the_kernel(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, number: int, status: str, said: str, code: ExitCode
) -> None:
    """A filter is named if present, and a kernel without the call only without a filter."""
    monkeypatch.setattr(bpf, "errno_before_kernel", lambda: number)
    put(root, "proc/thread-self/status", status)
    with pytest.raises(NettopError) as refusal:
        Host(root).require_bpf()
    assert said in refusal.value.what
    assert refusal.value.exit_code is code
    assert refusal.value.remedy


@pytest.mark.parametrize(
    ("capabilities", "paranoid", "blocked", "said", "remedy"),
    [
        (1 << 38 | 1 << 39, "4", 0, "perf_event_paranoid is 4", "sysctl kernel.perf_event_paranoid=2"),
        (1 << 38 | 1 << 39, "2", 0, "likely by a security module", "allow perf_event in its policy"),
        (1 << 21, "4", 0, "likely by a security module", "allow perf_event in its policy"),
        (1 << 39, "2", 0, "needs CAP_PERFMON", "CAP_PERFMON"),
        (1 << 38 | 1 << 39, "4", errno.EPERM, "a seccomp filter denies perf_event_open(2)", "in the filter"),
    ],
)
def test_perf_events_that_are_refused(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    capabilities: int,
    paranoid: str,
    blocked: int,
    said: str,
    remedy: str,
) -> None:
    """The setting, filter or capability that provably refuses perf events is named."""
    monkeypatch.setattr(perf_events, "_errno_before_kernel", lambda: blocked)
    put(root, "proc/sys/kernel/perf_event_paranoid", f"{paranoid}\n")
    put(root, "proc/thread-self/status", f"CapEff:\t{capabilities:016x}\nSeccomp:\t2\n")
    error = perf_events.why_refused(PermissionError(errno.EACCES, "Permission denied"), Host(root))
    assert isinstance(error, PermissionMissing)
    assert said in error.what
    assert remedy in error.remedy


def test_sockstat_adds_both_families(root: Path) -> None:
    """The hash tables hold IPv4 and IPv6 sockets together, so their counts are added; IPv6 may be missing."""
    of_v4 = "sockets: used 9\nTCP: inuse 5 orphan 1 tw 7 alloc 6 mem 1\nUDP: inuse 2 mem 0\n"
    put(root, "proc/thread-self/net/sockstat", of_v4)
    assert Host(root).sockstat() == SocketCounts(tcp=5, udp=2, time_wait=7)
    put(root, "proc/thread-self/net/sockstat6", "TCP6: inuse 11\nUDP6: inuse 3\n")
    assert Host(root).sockstat() == SocketCounts(tcp=16, udp=5, time_wait=7)


@pytest.mark.parametrize(
    ("lines", "group"),
    [
        ("0::/system.slice/nginx.service\n", "/system.slice/nginx.service"),
        ("0::/\n", "/"),
        ("4:memory:/docker/a\n1:name=systemd:/docker/abc\n0::/\n", "/docker/abc"),
        ("0::/with:colon\n", "/with:colon"),
        ("4:memory:/lxc/web1\n0::/system.slice/lxc@web1.service/with/a/long/path\n", "/lxc/web1"),
    ],
)
def test_cgroup_of_a_process(root: Path, lines: str, group: str) -> None:
    """The unified hierarchy's path counts, unless the host still uses the old ones, or one of these leads into
    a container."""
    put(root, "proc/77/cgroup", lines)
    assert Host(root).cgroup(77) == group


MOUNTS = "32 31 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
OLD_MOUNTS = "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(("mounts", "root_path"), [(MOUNTS, "/"), (OLD_MOUNTS + MOUNTS, None)])
def test_control_groups_by_id(root: Path, mounts: str, root_path: str | None) -> None:
    """Each group of the unified hierarchy has its directory's inode number, lower half, as id. Without it, none
    is known."""
    put(root, "proc/self/mountinfo", mounts)
    top = root / "sys/fs/cgroup/unified"
    for path in ("a.slice/b.service", "a.slice/c.scope", "d"):
        put(top, f"{path}/cgroup.procs", "")
    expected = {f"/{path}": top / path for path in ("a.slice", "a.slice/b.service", "a.slice/c.scope", "d")}
    expected |= {root_path: top} if root_path else {}
    by_id = {folder.stat().st_ino & 0xFFFFFFFF: path for path, folder in expected.items()}
    assert Host(root).cgroups_by_id() == by_id
    put(root, "proc/self/mountinfo", OLD_MOUNTS)
    assert Host(root).cgroups_by_id() == {}


def test_the_root_control_group(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root is the directory that has its inode number, not that of a container's own group; others may be
    hidden."""
    put(root, "proc/self/mountinfo", MOUNTS.replace("unified", "hidden") + OLD_MOUNTS + MOUNTS)
    top = root / "sys/fs/cgroup/unified"
    put(top, "cgroup.procs", "")
    assert Host(root).root_cgroup() is None
    monkeypatch.setattr("nettop.kernel.host.facts.ROOT_CGROUP", top.stat().st_ino)
    assert Path(Host(root).root_cgroup() or "") == top


@pytest.mark.parametrize(
    ("stat", "group"),
    [
        ("77 (a) b) R 1 77 77 0 -1 4194304 0 0 0\n", "/"),
        ("77 (a) b) R 1 77 77 0 -1 4194308 0 0 0\n", None),
        ("", None),
    ],
    ids=["running", "exiting", "gone meanwhile"],
)
def test_cgroup_of_a_process_that_exits(root: Path, stat: str, group: str | None) -> None:
    """Old hierarchies say that a process which exits is in the root; of one that is gone, nothing is known."""
    assert Host(root).cgroup(77) is None
    put(root, "proc/77/cgroup", "4:memory:/\n1:cpu:/\n0::/\n")
    put(root, "proc/77/stat", stat)
    assert Host(root).cgroup(77) == group


@pytest.mark.parametrize(
    ("group", "container"),
    [
        (f"/system.slice/docker-{CONTAINER_ID}.scope", "docker:4f1c2ab09d7e"),
        (f"/docker/{CONTAINER_ID}", "docker:4f1c2ab09d7e"),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{CONTAINER_ID}.scope", "containerd:4f1c2ab09d7e"),
        (f"/kubepods.slice/crio-{CONTAINER_ID}.scope/container", "cri-o:4f1c2ab09d7e"),
        (f"/machine.slice/libpod-{CONTAINER_ID}.scope", "podman:4f1c2ab09d7e"),
        (f"/kubepods-burstable-pod1.slice:cri-containerd:{CONTAINER_ID}", "containerd:4f1c2ab09d7e"),
        (f"/system.slice:docker:{CONTAINER_ID}", "docker:4f1c2ab09d7e"),
        (f"/docker/{CONTAINER_ID}/docker/{'e' * 64}", "docker:eeeeeeeeeeee"),
        (f"/docker/{CONTAINER_ID}/kubelet.slice/cri-containerd-{'e' * 64}.scope", "containerd:eeeeeeeeeeee"),
        (f"/system.slice/docker-{CONTAINER_ID}.scope/system.slice/nginx.service", "docker:4f1c2ab09d7e"),
        (f"/system.slice/web.service/libpod-payload-{CONTAINER_ID}", "podman:4f1c2ab09d7e"),
        (f"/system.slice/nerdctl-{CONTAINER_ID}.scope", "nerdctl:4f1c2ab09d7e"),
        (f"/default/{CONTAINER_ID}", "container:4f1c2ab09d7e"),
        ("/lxc.payload.web1/system.slice/nginx.service", "lxc:web1"),
        ("/lxc.payload/web1/init.scope", "lxc:web1"),
        ("/lxc/101/ns/system.slice/nginx.service", "lxc:101"),
        (f"/lxc.payload.web1/system.slice/docker-{CONTAINER_ID}.scope", "docker:4f1c2ab09d7e"),
        ("/lxc.payload.web1/lxc.payload.inner/init.scope", "lxc:inner"),
        ("/lxc.monitor.web1", None),
        ("/machine.slice/systemd-nspawn@my\\x2ddb.service/payload/system.slice/nginx.service", "nspawn:my-db"),
        ("/machine.slice/machine-web.scope/payload/system.slice/nginx.service", "machine:web"),
        ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator", "machine:qemu-1-vm"),
        (f"/ecs/{CONTAINER_ID[:32]}/{CONTAINER_ID}", "ecs:4f1c2ab09d7e"),
        (f"/ecs/{'a' * 32}/{'a' * 32}-1234567890", f"ecs:{'a' * 32}-1234567890"),
        (f"/machine.slice/libpod-conmon-{CONTAINER_ID}.scope", "libpod-conmon-4f1c2ab09d7e.scope"),
        (f"/system.slice/build-{CONTAINER_ID}.service", f"build-{CONTAINER_ID}.service"),
        ("/system.slice/nginx.service", "nginx.service"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/web.service/sub", "web.service"),
        ("/", None),
    ],
)  # fmt: skip
def test_container_of_a_control_group(group: str, container: str | None) -> None:
    """A container has its own name, not that of a unit inside or outside; without one it is the innermost unit."""
    assert container_of(group) == container


def test_command_lines_are_safe_to_show(root: Path) -> None:
    """A command line's control characters cannot reach the terminal."""
    put(root, "proc/77/cmdline", "evil\x1b[2J\0--flag\0")
    assert Host(root).command_line(77) == "evil␛[2J --flag"


@pytest.mark.parametrize(
    "options", ["rw,subset=pid", "rw,subset=pid,hidepid=invisible", "rw,gid=4,subset=pid"]
)
def test_a_part_of_proc_is_named_whatever_else_is_set(tmp_path: Path, options: str) -> None:
    """subset=pid, anywhere among the mount options, is named as hiding a missing file."""
    own = tmp_path / "proc/self"
    own.mkdir(parents=True)
    (own / "mountinfo").write_text(f"22 27 0:21 / /proc rw,relatime - proc proc {options}\n")
    why, remedy = what_hides("/proc/kallsyms", tmp_path)
    assert "subset=pid" in why
    assert "mount -t proc" in remedy
