# SPDX-License-Identifier: Apache-2.0
"""What the host lacks is one clear line with the documented exit code, or a counted gap while the rest goes on."""

import subprocess

import pytest

from . import traffic
from .command import JSON, NETTOP, TABLE
from .lab import Lab

pytestmark = pytest.mark.kernel

CANNOT, PERMISSION = 3, 4
SYSTEM_BCC = "import bcc, os; print(os.path.dirname(bcc.__file__))"


def without(capabilities: str) -> "subprocess.CompletedProcess[str]":
    """One table by a root that lacks these capabilities, banner and all."""
    dropped = ",".join(f"-{name}" for name in capabilities.split())
    command = [
        "setpriv",
        "--bounding-set",
        dropped,
        "--inh-caps",
        dropped,
        NETTOP,
        "--table",
        "--once",
        "--all",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def with_mounted(mount: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """One run of nettop in a mount namespace of its own, in which that was mounted first."""
    script = f'{mount} && exec "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, NETTOP, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("missing", ["bpf", "perfmon", "bpf perfmon"])
def test_missing_capability(missing: str) -> None:
    """A root without the capabilities that BPF takes is told which, and nettop exits with 4."""
    done = without(f"{missing} sys_admin")
    assert (done.returncode, done.stdout) == (PERMISSION, "")
    for name in missing.split():
        assert f"CAP_{name.upper()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_namespaces_that_may_not_be_entered(lab: Lab) -> None:
    """Without CAP_SYS_ADMIN other namespaces cannot be entered: named and counted, and held sockets are still shown."""
    home = lab.namespace()
    worker = lab.worker(home, "confined")
    worker.call(traffic.listen, "listener", "127.0.0.1")
    done = without("sys_admin")
    assert done.returncode == 0
    assert str(home.inode) in done.stderr
    assert "confined" in done.stdout


def test_kernel_without_btf() -> None:
    """A kernel that does not describe its types is named as the cause, with exit code 3."""
    done = with_mounted("mount --bind /dev/null /sys/kernel/btf/vmlinux", *TABLE, "--once")
    assert (done.returncode, done.stdout) == (CANNOT, "")
    assert "/sys/kernel/btf/vmlinux" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content", ["", "raise ImportError('built for another Python')"], ids=["empty", "broken"]
)
def test_bcc_that_is_missing_or_broken(content: str) -> None:
    """Without a bcc that can be imported nettop says so and names the remedy, with exit code 3."""
    interpreter = "/usr/bin/python3"
    found = subprocess.run(
        [interpreter, "-c", SYSTEM_BCC], capture_output=True, text=True, check=True
    ).stdout.strip()
    write = f'echo "{content}" > {found}/__init__.py' if content else "true"
    done = with_mounted(f"mount -t tmpfs none {found} && {write}", *TABLE, "--once")
    assert (done.returncode, done.stdout) == (CANNOT, "")
    assert "bcc" in done.stderr
    assert "install-deps.sh" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_locked_memory(lab: Lab) -> None:
    """A limit of no locked memory that cannot be raised changes nothing here."""
    home = lab.namespace()
    lab.worker(home).call(traffic.listen, "listener", "127.0.0.1")
    command = [
        "prlimit",
        "--memlock=0:0",
        "setpriv",
        "--bounding-set",
        "-sys_resource",
        NETTOP,
        *JSON,
        "--once",
        "--all",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f'"netns":{home.inode}' in done.stdout.replace(" ", "")
