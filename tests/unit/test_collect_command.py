# SPDX-License-Identifier: Apache-2.0
"""Options of nettop collect and nettop flows, and what they reject before opening anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nettop import cli
from nettop.commands import collect
from nettop.commands.flows import FlowsSettings, start_flows
from nettop.commands.invoker import SERVICE_USERS, first_closed_directory, named_user, owner_of_directory
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.process.interrupts import Requests
from nettop.settings import SYSTEM_FLOWS_DIR, default_flows_dir
from nettop.settings.collect import CollectSettings
from tests.words import settings_of

PACKAGES = ("google.protobuf", "h11", "starlette", "uvloop", "zstandard", "chdb")


def settings(**given: Any) -> CollectSettings:
    """Return the settings for these options."""
    return settings_of("collect", **given)  # type: ignore[no-any-return]


def flows_settings(data_dir: Path, words: Sequence[str] = (), **given: Any) -> FlowsSettings:
    """Return the settings of nettop flows for these arguments and options."""
    return settings_of("flows", *words, **{"data_dir": str(data_dir), **given})  # type: ignore[no-any-return]


def test_defaults() -> None:
    """The usual ports, the store on this host, queries at its socket and on loopback."""
    usual = settings()
    assert usual.listen == ("6343", "2055", "4739", "2056")
    assert usual.directory == default_flows_dir()
    assert usual.queries.listen == (f"unix:{usual.directory}/flows.sock", "127.0.0.1:9472")
    assert (usual.workers, usual.spool_bytes, usual.receive_buffer_bytes) == (1, 10 << 30, 64 << 20)
    assert (usual.mirrors, usual.clickhouse, usual.kafka) == ((), (), "")


def test_options_become_settings(tmp_path: Path) -> None:
    """Every option ends in the settings."""
    given = settings(
        listen=["2055", "[::1]:4739"],
        exporters=["192.0.2.0/24, 2001:db8::1", "10.0.0.1"],
        workers="3",
        receive_buffer="1M",
        interface=["eth1", "eth1"],
        sampling="10",
        sampling_rate=["1000", "192.0.2.1/5=100"],
        filter=["protocol=tcp"],
        data_dir=str(tmp_path),
        retention=["raw=3d,1h=2y", "talkers=4w"],
        spool_size="1G",
        clickhouse=["http://ch1:8123"],
        cluster="flows",
        kafka="broker:9092/flows",
        networks=["a.csv"],
        own_network=["10.0.0.0/8"],
        interfaces=["b.csv"],
        query_listen=["none"],
        token_file="token",
        insecure_listen=True,
        cert="chain.pem",
        key="key.pem",
    )
    assert given.queries.listen == (f"unix:{tmp_path}/flows.sock",)
    queries = given.queries
    assert (queries.token_file, queries.insecure_listen, queries.cert, queries.key) == (
        *("token", True, "chain.pem", "key.pem"),
    )
    assert given == CollectSettings(
        data_dir=str(tmp_path),
        listen=("2055", "[::1]:4739"),
        exporters=("192.0.2.0/24", "2001:db8::1", "10.0.0.1"),
        receive_buffer_bytes=1 << 20,
        workers=3,
        mirrors=("eth1",),
        sampling=10,
        sampling_rates=("1000", "192.0.2.1/5=100"),
        clickhouse=("http://ch1:8123",),
        cluster="flows",
        kafka="broker:9092/flows",
        retention={"flows_raw": 3 * 86_400, "flows_1h": 730 * 86_400, "talkers_1m": 28 * 86_400},
        spool_bytes=1 << 30,
        filters=("protocol=tcp",),
        networks=("a.csv",),
        interfaces=("b.csv",),
        own_networks=("10.0.0.0/8",),
        query_listen=(),
        token_file="token",
        insecure_listen=True,
        cert="chain.pem",
        key="key.pem",
    )


def test_the_default_directory_is_that_of_who_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's directory stays the default when the collector becomes another user."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    collector = settings()
    assert collector.directory == SYSTEM_FLOWS_DIR
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert collector.directory == SYSTEM_FLOWS_DIR


@pytest.mark.parametrize(
    ("given", "what", "remedy"),
    [
        ({"workers": "65"}, "--workers 65 is too high", "64 or less"),
        ({"workers": "0"}, "--workers", ""),
        ({"sampling": "x"}, "--sampling", ""),
        ({"retention": ["row=3d"]}, "unknown table of --retention 'row'", "raw"),
        ({"retention": ["raw=3x"]}, "--retention 'raw=3x' has no valid time", "raw=3d"),
        ({"spool_size": "lots"}, "--spool-size", ""),
        ({"cluster": "flows"}, "--cluster requires --clickhouse", "URL"),
    ],
)
def test_errors_name_cause_and_remedy(given: dict[str, Any], what: str, remedy: str) -> None:
    """The error names it, and what to write."""
    with pytest.raises(UsageError) as raised:
        settings(**given)
    assert what in raised.value.what
    assert remedy in raised.value.remedy


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"filters": ("nonsense=1",)}, "nonsense"),
        ({"kafka": "broker:9092"}, "has no topic"),
        ({"own_networks": ("10.0.0.1/8",)}, "10.0.0.1/8"),
        ({"sampling_rates": ("router=1000",)}, "router=1000"),
        ({"networks": ("/nowhere.csv",)}, "/nowhere.csv"),
        ({"listen": ("127.0.0.1:0", "example.org:2055")}, "has no address before the port"),
        ({"mirrors": ("nowhere0",)}, "no such interface"),
    ],
)
def test_unusable_arguments(given: dict[str, Any], what: str, tmp_path: Path) -> None:
    """An unusable setting is rejected before anything is received, and nothing is left open."""
    pytest.importorskip("starlette")
    from nettop.serve.collect import open_collector

    settings = CollectSettings(**{"data_dir": str(tmp_path), "listen": ("127.0.0.1:0",), **given})
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NettopError, match=what), open_collector(settings, Requests(), None):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["collect"], "chdb"),
        (["collect", "--clickhouse", "http://ch1:8123"], "clickhouse_connect"),
        (["collect", "--kafka", "broker:9092/flows"], "confluent_kafka"),
    ],
)
def test_missing_packages(
    words: list[str], missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the extra, one line says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    assert cli.run(words) == ExitCode.FAILURE
    shown = capsys.readouterr().err
    assert f"not installed: {missing}" in shown
    assert "nettop[flows]" in shown


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """The error names it."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="flows cannot be stored in"):
        collect._owner(tmp_path / "file" / "flows")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def shared(flows_dir: Path) -> Path:
    """Return a directory like /tmp: everybody may make files in it, and remove their own."""
    flows_dir.mkdir()
    flows_dir.chmod(0o1777)
    return flows_dir


@needs_root
def test_a_directory_of_roots(flows_dir: Path) -> None:
    """An empty one is given to a user without rights; what root has in one is not touched."""
    user = collect._owner(flows_dir / "new")
    assert user is not None
    assert user.uid != 0
    assert (flows_dir / "new").stat().st_uid == user.uid
    (flows_dir / "old").mkdir()
    (flows_dir / "old" / "file").touch()
    with pytest.raises(NettopError, match="nettop never reads datagrams as root") as raised:
        collect._owner(flows_dir / "old")
    assert "chown -R" in raised.value.remedy


@needs_root
@pytest.mark.parametrize("at", ["flows", "."])
def test_a_directory_where_everybody_makes_files(shared: Path, at: str) -> None:
    """collect and flows reuse a directory that nettop created or was given, closed to others."""
    first = collect._owner(shared / at)
    assert first is not None
    assert collect._owner(shared / at) == owner_of_directory(shared / at, SERVICE_USERS) == first
    assert not (shared / at).stat().st_mode & 0o022


def _link(place: Path) -> None:
    (place.parent / "target").mkdir()
    place.symlink_to(place.parent / "target")


PLANTED: dict[str, tuple[Callable[[Path], object], int | None, int]] = {
    "a directory of another user": (Path.mkdir, 4242, 0o700),
    "a link of the user that nettop becomes": (_link, None, 0o777),
    "a directory that others may write into": (Path.mkdir, None, 0o777),
    "a file": (Path.touch, None, 0o600),
}


@needs_root
@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("below", ["", "flows"])
def test_files_planted_by_another_user(shared: Path, kind: str, below: str) -> None:
    """A path that another user may have planted is rejected unchanged, with all paths below it."""
    plant, uid, mode = PLANTED[kind]
    place = shared / "planted"
    plant(place)
    if not place.is_symlink():
        place.chmod(mode)
    os.chown(place, named_user(SERVICE_USERS).uid if uid is None else uid, -1, follow_symlinks=False)
    before = place.lstat()
    for ask in (collect._owner, lambda path: owner_of_directory(path, SERVICE_USERS)):
        with pytest.raises(NettopError, match=r"created by another user|may write to"):
            ask(place / below)
    after = place.lstat()
    assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (
        before.st_uid,
        before.st_mode,
        before.st_mtime_ns,
    )


@needs_root
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("by_link", [True, False])
def test_a_directory_that_nobody_may_reach(flows_dir: Path, *, exists: bool, by_link: bool) -> None:
    """An unreachable directory is rejected before it is made or given away; the error names the closed parent."""
    closed = flows_dir / "closed"
    (closed / "home").mkdir(parents=True)
    closed.chmod(0o700)
    place = closed / "home" / "flows"
    if exists:
        place.mkdir()
    (flows_dir / "link").symlink_to(closed / "home")
    with pytest.raises(UsageError, match=f"may not enter {closed}$") as raised:
        collect._owner(flows_dir / "link" / "flows" if by_link else place)
    assert f"chmod o+x {closed}" in raised.value.remedy
    assert place.exists() == exists
    assert not exists or place.stat().st_uid == 0


@needs_root
def test_parents_that_are_made(flows_dir: Path) -> None:
    """Whoever owns the directory may reach it, also where root's files are closed to others."""
    umask = os.umask(0o077)
    try:
        user = collect._owner(flows_dir / "parent" / "flows")
    finally:
        os.umask(umask)
    assert user is not None
    assert first_closed_directory(user, flows_dir / "parent" / "flows") is None


# --- nettop flows ---------------------------------------------------------------------------------------------


@pytest.fixture
def kept_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests' own privileges, which later tests need."""
    monkeypatch.setattr("nettop.commands.flows.give_up_privileges", lambda user: None)


@pytest.mark.usefixtures("kept_privileges")
@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"words": ["select"]}, "unknown argument 'select'"),
        ({"words": ["sql"]}, "no query after sql"),
        ({"since": "1"}, "--since '1' is not a duration"),
        ({"since": "0h"}, "--since '0h' is not a duration"),
        ({"top": "sorce"}, "unknown column of flows 'sorce'"),
        ({"by": "size"}, "unknown order 'size'"),
        ({"limit": "0"}, "--limit"),
        ({"format": "xml"}, "unknown format 'xml'"),
        ({"collector": "nowhere"}, "'nowhere' is not the URL of a collector"),
    ],
)
def test_wrong_options_of_flows(given: dict[str, Any], what: str, tmp_path: Path) -> None:
    """The error names it."""
    with pytest.raises(UsageError) as raised:
        start_flows(flows_settings(tmp_path, **given), None)
    assert what in raised.value.what


@pytest.mark.usefixtures("kept_privileges")
def test_nothing_to_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a collector or a directory with flows, the error says how to get one."""
    monkeypatch.setattr("nettop.commands.flows.collector_urls", lambda there: (f"unix:{there}/flows.sock",))
    for options, what in (
        (FlowsSettings(collector=f"unix:{tmp_path}/flows.sock"), "does not answer"),
        (FlowsSettings(data_dir=str(tmp_path / "none")), "no collector answers at"),
    ):
        with pytest.raises(NettopError, match=what) as raised:
            start_flows(options, None)
        assert "nettop collect" in raised.value.remedy


def test_urls_in_a_file(tmp_path: Path) -> None:
    """A file keeps a password out of the command line; what it has stands where its word does."""
    file = tmp_path / "urls"
    file.write_text("http://a:secret@ch1:8123\n\nhttp://ch2:8123\n")
    urls = collect._server_urls(["http://ch0:8123", f"@{file}"], None)
    assert urls == ("http://ch0:8123", "http://a:secret@ch1:8123", "http://ch2:8123")
    file.write_text("\n")
    with pytest.raises(UsageError, match="contains no URL"):
        collect._server_urls([f"@{file}"], None)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        collect._server_urls([f"@{tmp_path}/none"], None)
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read: it is not UTF-8 text"):
        collect._server_urls([f"@{file}"], None)
