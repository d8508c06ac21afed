# SPDX-License-Identifier: Apache-2.0
"""The image, built by an ordinary user and run as its own user: effects of capabilities, and serving."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from nettop.snapshots import lenses
from tests.collecting import until
from tests.proc import status_fields

from .compose import CAPABILITIES, SERVICES
from .images import Buildah, a_user, confined

pytestmark = [pytest.mark.kernel, pytest.mark.deploy, pytest.mark.timeout(1800)]

SUITE = "trixie"
IMAGE, FLOWS_IMAGE = "localhost/nettop", "localhost/nettop:flows"
UID = "10001"
DEADLINE_S = 60


@dataclass(frozen=True, slots=True)
class Built:
    """The images in root's store, with the mounted root of a container of each."""

    rootful: Buildah
    root: str
    flows_root: str


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """Build both images. BPF programs cannot be loaded in a user namespace, so root imports the images."""
    folder = Path(tempfile.mkdtemp(prefix="nettop-image-", dir="/var/tmp"))
    folder.chmod(0o755)
    home, roots = folder / "user", folder / "root"
    for place in (home, roots):
        place.mkdir()
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, folder)
        rootless = Buildah(home, ends.enter_context(a_user("nettop-image-test", home)))
        rootful = Buildah(roots)
        rootless.import_debian(SUITE)
        mounts = []
        for image, options in ((IMAGE, ()), (FLOWS_IMAGE, ("--build-arg=EXTRA=flows",))):
            rootless.build(image, SUITE, *options)
            archive = home / "archive.tar"
            rootless("push", image, f"docker-archive:{archive}:{image}")
            rootful("pull", f"docker-archive:{archive}")
            archive.unlink()
            container = rootful("from", image).splitlines()[-1]
            mounts.append(rootful("mount", container).splitlines()[-1])
        ends.callback(rootful, "rm", "--all")
        yield Built(rootful, *mounts)


def test_the_image_configuration(built: Built) -> None:
    """The image starts `nettop serve` as a numeric user, has a health check, and exposes no port."""
    config = built.rootful.described(IMAGE)["config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == (f"{UID}:{UID}", ["nettop"], ["serve"])
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "python3", "-I"]
    assert not config.get("ExposedPorts") and not config.get("Volumes")
    assert config["Labels"]["org.opencontainers.image.title"] == "nettop"
    # This machine's package configuration is not in it.
    for place in ("etc/apt/apt.conf.d/99handed-on", "etc/pip.conf", "run/handed-on.pem"):
        left = Path(built.root, place)
        assert not left.exists() or left.stat().st_size == 0


@contextlib.contextmanager
def running(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in its own group; terminate it by SIGTERM and check that it exits with 0."""
    process = subprocess.Popen(words, start_new_session=True)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return an unused port on loopback."""
    with socket.socket(socket.AF_INET, kind) as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def answer(url: str, token: str = "") -> bytes:
    """Return the body of the answer; empty if there is none or an error."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as response:
        body: bytes = response.read()
        return body
    return b""


def has_every_lens(metrics: str) -> bool:
    """Return whether each lens is up and has series; flows has none without a collector."""
    series = {line.split("_")[1] for line in metrics.splitlines() if line.startswith("nettop_")}
    return series >= {lens.id for lens in lenses()} - {"collector"} and all(
        f'nettop_lens_up{{lens="{lens.id}"}} 1' in metrics for lens in lenses()
    )


def drop_a_datagram() -> None:
    """Send a datagram to a closed port, so that the kernel drops it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"for nobody", ("127.0.0.1", free_port(socket.SOCK_DGRAM)))


def threads(pid: int) -> list[dict[str, str]]:
    """Return the status of each thread."""
    return [status_fields(path / "status") for path in Path(f"/proc/{pid}/task").iterdir()]


def test_every_lens_is_served_on_a_read_only_root(built: Built) -> None:
    """The image's user serves every lens without any capability left.

    Clients need the token, which the user's group may read. The health check needs none, and notices when nettop is
    gone.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    state = built.rootful.folder / "secrets"
    state.mkdir()
    token = "0123456789abcdef" * 4
    (state / "token").write_text(token)
    os.chown(state / "token", 0, int(UID))
    (state / "token").chmod(0o440)
    around = confined(built.root, UID, CAPABILITIES, state=str(state))
    words = [*around, "touch", "/run/nettop/x", "/var/tmp/x"]
    writing = subprocess.run(words, capture_output=True, text=True, check=False)
    assert writing.stderr.count("Read-only file system") == 2
    health = built.rootful.described(IMAGE)["config"]["Healthcheck"]["Test"][1:]
    check = [*around, *(word.replace("9471", str(port)) for word in health)]
    options = ["--listen", f"127.0.0.1:{port}", "--token-file", "/var/lib/nettop/token"]
    with running([*around, "nettop", "serve", *options]) as process:
        until(lambda: answer(f"{url}/health") or process.poll() is not None, "every lens is read")
        assert answer(f"{url}/metrics") == b""
        drop_a_datagram()
        until(
            lambda: has_every_lens(answer(f"{url}/metrics", token).decode()),
            "every lens is up, and has series",
        )
        for status in threads(process.pid):
            assert set(status["Uid"].split()) == {UID}
            assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == int(status["CapAmb"], 16) == 0
        assert subprocess.run(check, check=False).returncode == 0
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0


def test_the_collector_stores_without_any_capability(built: Built) -> None:
    """The collector stores flows without capabilities, with only its volume and /tmp writable, as in compose.yaml."""
    state = built.rootful.folder / "state"
    state.mkdir(mode=0o750)
    os.chown(state, int(UID), int(UID))
    port, query_port = free_port(socket.SOCK_DGRAM), free_port()
    around = confined(built.flows_root, UID, (), state=str(state))
    ports = ["--listen", f"127.0.0.1:{port}", "--query-listen", f"127.0.0.1:{query_port}"]
    url = f"http://127.0.0.1:{query_port}"
    with (
        running([*around, "nettop", *SERVICES["collect"]["command"], *ports]) as collector,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter,
    ):
        until(lambda: answer(f"{url}/health") or collector.poll() is not None, "it receives")
        exporter.sendto(netflow5(octets=4242), ("127.0.0.1", port))
        query = f"{url}/?query=SELECT+sum(bytes)+FROM+flows_raw"
        until(lambda: answer(query).strip() == b"4242", "the flow is stored")


def netflow5(octets: int) -> bytes:
    """Return a NetFlow 5 datagram with one flow."""
    header = struct.pack(">HHIIIIBBH", 5, 1, 1000, 1_790_000_000, 0, 1, 0, 0, 0)
    addresses = bytes([192, 0, 2, 1, 192, 0, 2, 2, 0, 0, 0, 0])
    record = struct.pack(
        ">HHIIIIHHBBBBHHBBH", 1, 2, 7, octets, 0, 500, 40000, 443, 0, 0, 6, 0, 0, 0, 24, 24, 0
    )
    return header + addresses + record
