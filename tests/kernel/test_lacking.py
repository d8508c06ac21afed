# SPDX-License-Identifier: Apache-2.0
"""A limitation of the host gives one clear line and the documented exit code, or a counted gap while the rest works."""

import re
import socket

import pytest

from . import traffic
from .command import JSON, TABLE, bcc_folder, complaints, denied, mounted, nettop, without
from .lab import Lab

pytestmark = pytest.mark.kernel

CANNOT = 3


ALL_ONCE = ("--table", "--once", "--all")


@pytest.mark.walks
@pytest.mark.parametrize("missing", ["bpf", "perfmon", "bpf perfmon", ""])
def test_missing_capability(lab: Lab, missing: str) -> None:
    """The missing capabilities are named, and the sockets come from sock_diag; without CAP_SYS_ADMIN nettop enters no
    other namespace, but names and counts them, and shows sockets that processes hold there."""
    lab.worker(lab.namespace(), "confined").call(traffic.listen, "listener", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as own:
        done = nettop(*ALL_ONCE, around=without(*missing.split(), "sys_admin"))
        assert f"127.0.0.1:{own.getsockname()[1]}" in done.stdout
    assert done.returncode == 0
    assert ("via sockets sock_diag + /proc" in done.stderr) == bool(missing)
    assert missing or "confined" in done.stdout
    for name in missing.split():
        assert f"CAP_{name.upper()}" in done.stderr
    assert re.search(r"namespaces? [^·]* not entered: ", done.stderr)
    assert re.search(r"lost .*\bnamespaces [1-9]", done.stderr)
    assert "Traceback" not in done.stderr


def test_kernel_without_btf() -> None:
    """Without BTF the sockets come from sock_diag, and everything else says why it is not available."""
    hidden = "mount --bind /dev/null /sys/kernel/btf/vmlinux"
    with socket.create_server(("127.0.0.1", 0)) as own:
        done = nettop(*ALL_ONCE, around=mounted(hidden))
        assert f"127.0.0.1:{own.getsockname()[1]}" in done.stdout
    assert done.returncode == 0
    assert "via sockets sock_diag + /proc" in done.stderr
    assert "events n/a: " in done.stderr
    assert "/sys/kernel/btf/vmlinux" in done.stderr
    assert "Traceback" not in done.stderr
    forced = nettop(*TABLE, "--once", "--mechanism", "sockets=iter", around=mounted(hidden))
    assert (forced.returncode, forced.stdout) == (CANNOT, "")
    assert "/sys/kernel/btf/vmlinux" in forced.stderr


@pytest.mark.parametrize(
    "content", ["", "raise ImportError('built for another Python')"], ids=["empty", "broken"]
)
def test_bcc_that_is_missing_or_broken(content: str) -> None:
    """If bcc cannot be imported, nettop says so; a command that needs it names the remedy, and exits with 3."""
    package = bcc_folder()
    write = f'echo "{content}" > {package}/__init__.py' if content else "true"
    hidden = f"mount -t tmpfs none {package} && {write}"
    done = nettop(*ALL_ONCE, around=mounted(hidden))
    assert done.returncode == 0
    assert "via sockets sock_diag + /proc" in done.stderr
    assert "events n/a: cannot import bcc" in done.stderr or "events n/a: the module bcc" in done.stderr
    assert "Traceback" not in done.stderr
    run = nettop("run", "--", "true", around=mounted(hidden))
    assert (run.returncode, run.stdout) == (CANNOT, "")
    assert "bcc" in run.stderr
    assert "install-deps.sh" in run.stderr


IN_A_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.parametrize("use", [(), ("--mechanism", "sockets=sock_diag")], ids=["best", "sock_diag"])
def test_processes_outside(use: tuple[str, ...]) -> None:
    """In a container's PID namespace, sockets of the host have an invisible owner, not no owner."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        done = nettop(*ALL_ONCE, *use, around=IN_A_PID_NAMESPACE)
        (row,) = (line for line in done.stdout.splitlines() if f"127.0.0.1:{own.getsockname()[1]} " in line)
    assert row.split()[:2] == ["(outside)", "–"]
    assert "processes outside not visible from this PID namespace" in done.stderr


def test_no_locked_memory(lab: Lab) -> None:
    """A zero limit of locked memory that cannot be raised has no effect here."""
    home = lab.namespace()
    lab.worker(home).call(traffic.listen, "listener", "127.0.0.1")
    around = ("prlimit", "--memlock=0:0", "setpriv", "--bounding-set", "-sys_resource")
    done = nettop(*JSON, "--once", "--all", around=around)
    assert (done.returncode, complaints(done.stderr)) == (0, "")
    assert f'"netns":{home.inode}' in done.stdout.replace(" ", "")


@pytest.mark.parametrize(("error", "code"), [("EPERM", 4), ("ENOSYS", 3)])
def test_no_files_in_memory(nothing_cached: None, error: str, code: int) -> None:
    """If a filter refuses memfd_create(2), it is the named cause: sockets work without programs, CPU time does not."""
    around = denied("memfd_create", error)
    sockets, cpu = (nettop(*TABLE, "--once", *words, around=around) for words in ((), ("--view", "cpu")))
    assert (sockets.returncode, cpu.returncode) == (0, code)
    assert cpu.stderr.splitlines()[0].startswith("nettop: memfd_create is refused: ")
    assert "report" not in cpu.stderr + sockets.stderr
