# SPDX-License-Identifier: Apache-2.0
"""The output of `make deb` and `make offline`, in fresh Debians offline: installed, used, upgraded, removed.

It is built on each release by an ordinary user, and installed in another root without the build dependencies.
"""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nettop.errors import ExitCode
from nettop.kernel.bpf.kprobes import KPROBES
from nettop.snapshots import collector, lenses
from nettop.snapshots.own_cost import SELF

from .roots import CLONE, NOBODY, Root, changed
from .tools import debian_package

pytestmark = [pytest.mark.kernel, pytest.mark.deploy, pytest.mark.timeout(1200)]

OLD, NEW = "0.0.1", "0.0.2"
RELEASES = {"bookworm": "deb12", "trixie": "deb13"}
TO_BUILD = ("make", "debhelper", "dpkg-dev", "python3", "python3-venv")
INSTALLED = "/srv/installed"
"""Folder of the files to install, in the root."""

TRAFFIC = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
accepted, _ = listener.accept()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def send():
    while True:
        client.sendall(bytes(65536))
        accepted.recv(65536, socket.MSG_WAITALL)
        datagrams.sendto(b"nobody listens here", ("127.0.0.1", 9))
threading.Thread(target=send, daemon=True).start()
print(listener.getsockname()[1], flush=True)
input()
"""
"""Script that sends data over a loopback connection and datagrams that are dropped. It prints its port."""

REMARKS = () if KPROBES.exists() else ("nettop: n/a here: ip (",)
"""Expected prefixes on stderr: without kprobes and fentry the latency lens lacks a stage."""

Say = Callable[[str], None]


@pytest.fixture(scope="module")
def say(request: pytest.FixtureRequest) -> Say:
    """Return a function that prints progress."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    began = time.monotonic()

    def printed(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"  {time.monotonic() - began:4.0f} s  {text}", flush=True)

    return printed


@pytest.fixture(scope="module", params=RELEASES)
def suite(request: pytest.FixtureRequest) -> str:
    """Return a Debian release."""
    return str(request.param)


@pytest.fixture(scope="module")
def made(suite: str, say: Say, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build two versions on the release and return their folder."""
    folder = tmp_path_factory.mktemp(suite) / "dist"
    with Root(suite) as root:
        say(f"{suite}: installing build dependencies")
        root.apt("update", online=True)
        root.install(*TO_BUILD, online=True)
        root.shell("chown -R nobody /srv")
        for version in (OLD, NEW):
            say(f"{suite}: make deb offline, {version}")
            root.shell(f"""sed -i 's/^__version__ = .*/__version__ = "{version}"/' nettop/__init__.py""")
            root.run(*NOBODY, "make", "deb", "offline", online=True)
        # With copy2, the default, they would keep mode and times.
        shutil.copytree(root.path / CLONE / "dist", folder, copy_function=shutil.copyfile)
    return folder


@pytest.fixture(scope="module")
def root(suite: str, made: Path, say: Say) -> Iterator[Root]:
    """Return a root to install in, with only the dependencies of nettop's package downloaded."""
    with Root(suite) as root:
        shutil.copytree(made, root.path / INSTALLED[1:])
        say(f"{suite}: downloading dependencies of nettop's package")
        root.apt("update", online=True)
        package = deb(root, OLD)
        root.install("--download-only", package, online=True)
        yield root


def deb(root: Root, version: str) -> str:
    """Return the path of the package in the root."""
    return matching(root, f"nettop_{version}+*~deb*_*.deb")


def archive(root: Root, version: str) -> str:
    """Return the path of the archive in the root."""
    return matching(root, f"nettop-{version}+*-offline-deb*-*.tar.gz")


def matching(root: Root, pattern: str) -> str:
    (file,) = (root.path / INSTALLED[1:]).glob(pattern)
    return f"{INSTALLED}/{file.name}"


# --- an installed nettop ----------------------------------------------------------------------------------------


@contextmanager
def traffic(root: Root) -> Iterator[str]:
    """Send traffic in a network namespace; yield the sender's PID and port."""
    process = root.start("python3", "-c", TRAFFIC, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    try:
        yield f"{process.pid} {port}"
    finally:
        process.communicate("\n")


def check_that_it_works(root: Root, version: str) -> None:
    """Check the version, tables as root and as an ordinary user, each lens, and a scrape."""
    assert root.run("nettop", "--version").stdout.startswith(f"nettop {version}+")
    with traffic(root) as beside:
        pid, port = beside.split()
        inside = ("nsenter", "--target", pid, "--net", *root.words(online=True))

        def printed(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
            done = subprocess.run([*inside, *words], capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            return done

        for user in ((), NOBODY):
            assert f"127.0.0.1:{port}" in printed(*user, "nettop", "--table", "--once").stdout
        table = ("--table", "-d", "--once")
        for lens in (*lenses(), SELF):
            if lens is collector.LENS:
                shown = printed("nettop", "--view", lens.id, *table, code=ExitCode.SOURCE)
                assert "start one with nettop collect" in shown.stderr
                continue
            options = ("--loopback", "on") if lens.id == "bandwidth" else ()
            shown = printed("nettop", "--view", lens.id, *options, *table)
            heading, *rows = shown.stdout.splitlines()
            remarks = [line for line in shown.stderr.splitlines() if not line.startswith(REMARKS)]
            assert (bool(heading), remarks, bool(rows)) == (True, [], True), (lens.id, shown)
        check_that_it_serves(root, inside, version)


def check_that_it_serves(root: Root, inside: tuple[str, ...], version: str) -> None:
    """Check that /metrics answers, and that SIGTERM stops the server."""
    words = ("nettop", "serve", "--listen", "127.0.0.1:0")
    server = subprocess.Popen([*inside, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if match := re.search(r"serving at (http://\S+/)", line):
                break
        else:
            raise AssertionError("nettop serve ended")
        script = f"import urllib.request; print(urllib.request.urlopen('{match[1]}metrics').read().decode())"
        metrics = subprocess.run(
            [*inside, "python3", "-c", script], capture_output=True, text=True, check=True
        )
        assert f'nettop_build_info{{version="{version}"}} 1' in metrics.stdout
    finally:
        server.send_signal(signal.SIGTERM)
    server.communicate()
    assert server.returncode == 0


# --- the Debian package -----------------------------------------------------------------------------------------


def test_lintian(made: Path) -> None:
    """lintian reports nothing that is not overridden."""
    packages = sorted(made.glob("*.deb"))
    assert len(packages) == 2
    done = subprocess.run(
        ["lintian", "--fail-on=error,warning", "--tag-display-limit=0", packages[0]],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_shells_accept_the_completion(made: Path, tmp_path: Path) -> None:
    """zsh and fish, which no root has, parse their completion scripts; bash's is tested in a root."""
    package = next(made.glob("*.deb"))
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    zsh = tmp_path / "usr/share/zsh/vendor-completions/_nettop"
    first, *_, last = zsh.read_text().splitlines()
    assert (first, last) == ("#compdef nettop", "_nettop_completion")
    subprocess.run([debian_package("zsh") / "bin/zsh", "-f", "-n", zsh], check=True)
    fish = tmp_path / "usr/share/fish/vendor_completions.d/nettop.fish"
    assert "complete --command nettop" in fish.read_text()
    (library,) = (debian_package("libpcre2-32-0") / "usr/lib").rglob("libpcre2-32.so.0")
    subprocess.run(
        [debian_package("fish") / "usr/bin/fish", "--no-execute", fish],
        env={"LD_LIBRARY_PATH": str(library.parent), "HOME": str(tmp_path)},
        check=True,
    )


def test_package(suite: str, root: Root, say: Say) -> None:
    """The package can be installed offline, used, upgraded, removed and purged, and leaves nothing."""
    needed = root.run("dpkg-deb", "--field", deb(root, OLD), "Depends").stdout
    root.install(*{alternative.split()[0] for alternative in needed.split(",")})
    before = root.files()
    say(f"{suite}: the package is installed")
    assert "1 newly installed" in root.install(deb(root, OLD))
    check_that_it_works(root, OLD)
    check_isolation(root)
    check_contents(root)
    say(f"{suite}: the package is upgraded")
    assert "1 upgraded" in root.install(deb(root, NEW))
    assert root.run("nettop", "--version").stdout.startswith(f"nettop {NEW}+")
    root.run("nettop", "--table", "--once")
    say(f"{suite}: the package is removed")
    written = (
        *("/var/log/nettop/events.jsonl", "/var/lib/nettop/recordings/one.nettop"),
        *("/etc/nettop/token", "/etc/default/nettop-serve"),
    )
    for path in written:
        root.shell(f"mkdir -p $(dirname {path}); touch {path}")
    root.apt("remove", "nettop")
    kept = {path[1:] for path in written}
    assert {
        name for name in changed(before, root.files()) if name.split("/")[-1] in map(basename, kept)
    } == kept
    assert not (root.path / "usr/lib/nettop").exists()
    root.apt("purge", "nettop")
    assert changed(before, root.files()) == {}


def basename(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def check_isolation(root: Root) -> None:
    """Check that as root it imports only its own modules and the distribution's."""
    folder = root.path / "srv/others"
    folder.mkdir()
    for module in ("numpy", "rich", "typing"):
        (folder / f"{module}.py").write_text("raise SystemExit(9)")
    root.shell("cd /srv/others; PYTHONPATH=/srv/others nettop --table --once")
    script = (
        "import sys, bcc, numpy, nettop.cli, nettop.serve.command, uvloop; print(*sys.path, sep='\\n')\n"
        "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')"
    )
    paths = root.run("/usr/lib/nettop/bin/python3", "-I", "-c", script).stdout.split()
    assert [path for path in paths if not path.startswith("/usr/lib/")] == []
    shutil.rmtree(folder)


def check_contents(root: Root) -> None:
    """Check the manual, that completion works, that units are not enabled, and the licences."""
    listed = root.run("dpkg-query", "--listfiles", "nettop").stdout.split()
    manual = {basename(name) for name in listed if "/man1/" in name}
    assert "nettop.1.gz" in manual
    assert "nettop-serve.1.gz" in manual
    assert b"nettop" in gzip.decompress((root.path / "usr/share/man/man1/nettop.1.gz").read_bytes())

    complete = "source /usr/share/bash-completion/completions/nettop; COMP_WORDS=(nettop --vi); COMP_CWORD=1"
    assert root.shell(f"{complete}; _nettop_completion nettop; echo ${{COMPREPLY[@]}}") == "--view\n"
    units = {basename(name): name for name in listed if name.endswith(".service")}
    assert units.keys() == {f"nettop-{name}.service" for name in ("serve", "log", "record")}
    for unit in units.values():
        assert re.search(r"(?m)^ExecStart=/usr/bin/nettop ", (root.path / unit[1:]).read_text())
    assert not list((root.path / "etc/systemd/system").rglob("nettop*"))

    licences = (root.path / "usr/share/doc/nettop/copyright").read_text()
    info = (root.path / "usr/lib/nettop").rglob("*.dist-info/METADATA")
    names = {re.findall("(?m)^Name: (.*)$", file.read_text())[0] for file in info} - {"nettop"}
    assert {"uvloop", "textual"} < names
    assert "numpy" not in names
    assert {name for name in names if f"\n{name} " not in licences} == set()


# --- the archive ------------------------------------------------------------------------------------------------


def test_archive(suite: str, root: Root, say: Say) -> None:
    """The archive can be installed offline, used, upgraded and uninstalled, and leaves nothing."""
    root.install("python3-venv", "python3-bpfcc", "python3-numpy", "libbpf1", online=True)
    for version in (OLD, NEW):
        root.shell(f"tar -C /srv -xzf {shlex.quote(archive(root, version))}")
    before = root.files()
    say(f"{suite}: the archive is installed")
    install(root, OLD, "--wheels", "wheels")
    check_that_it_works(root, OLD)
    say(f"{suite}: the archive is upgraded")
    install(root, NEW, "--wheels", "wheels")
    assert root.run("nettop", "--version").stdout.startswith(f"nettop {NEW}+")
    say(f"{suite}: the archive is uninstalled")
    install(root, NEW, "--uninstall")
    assert changed(before, root.files()) == {}


def install(root: Root, version: str, *options: str) -> None:
    """Run the archive's installer as its INSTALL file says."""
    folder = archive(root, version).removeprefix(f"{INSTALLED}/").removesuffix(".tar.gz")
    command = f"scripts/install-deps.sh {' '.join(options)}"
    assert f"sudo {command}\n" in (root.path / "srv" / folder / "INSTALL").read_text().replace("Remove: ", "")
    root.shell(f"cd /srv/{folder} && {command}")
