# SPDX-License-Identifier: Apache-2.0
"""The file of user preferences: reading, errors, writing, and `nettop config`."""

from __future__ import annotations

import os
import pwd
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from nettop.cli import run
from nettop.commands.config import load_own_preferences
from nettop.errors import ExitCode, NettopError
from nettop.preferences import (
    THEMES,
    LoadedPreferences,
    Preferences,
    load_preferences,
    preferences_path,
    remember,
    toml_text,
)
from nettop.query.findings import find, parsed_rules
from nettop.snapshots.connections import LENS, SOCKETS
from nettop.snapshots.drops import COUNTERS
from nettop.snapshots.thresholds import rules_of
from nettop.widgets.themes import PALETTES, THEME_PREFIX
from tests.unit.build import make_frame


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file, which is not there yet, in an $XDG_CONFIG_HOME of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("nettop.commands.config.SYSTEM_FILE", tmp_path / "etc" / "config.toml")
    monkeypatch.setattr("nettop.snapshots.thresholds._chosen", {})
    return tmp_path / "nettop" / "config.toml"


def written(file: Path, text: str) -> Path:
    """Return the file, with this text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_choices_come_back(file: Path) -> None:
    """Written preferences are read back; a table with its default columns is left out. A missing file says nothing."""
    assert load_preferences(file) == LoadedPreferences(file)
    assert tuple(THEME_PREFIX + name for name in THEMES) == tuple(PALETTES)
    remember(file, "theme", "light")
    remember(file, "columns", {"connections": ("remote", "pid"), "bandwidth.flows": ("process",)})
    remember(file, "unit", "bytes")
    remember(file, "columns", {"bandwidth.flows": None})
    expected = Preferences({"connections": ("remote", "pid")}, "light", "bytes")
    assert load_preferences(file) == LoadedPreferences(file, expected)
    assert file.read_text().endswith(
        'theme = "light"\nunit = "bytes"\n\n[columns]\nconnections = ["remote", "pid"]\n'
    )
    assert list(file.parent.iterdir()) == [file]


def test_unknown_preferences_are_kept(file: Path) -> None:
    """A choice leaves other keys as they are, of every type that TOML has."""
    text = (
        'theme = "dark"\nmore = 1\nshare = 0.5\nsince = 2026-11-20T11:02:40+00:00\nday = 2026-11-20\nat = 11:02:00\n'
        'on = true\n"odd key" = "a \\"quote\\", \\\\, \\n, \\u007f, é"\nlist = [1, [2, "x"], { a = 1, "b c" = [] }]\n'
        '[columns]\n"drops" = ["reason"]\n[other]\nx = { y = { z = inf } }\n'
    )
    before = tomllib.loads(text)
    remember(written(file, text), "theme", "light")
    assert tomllib.loads(file.read_text()) == before | {"theme": "light"}
    assert tomllib.loads(toml_text(before)) == before


OWN = """\
# my colours
theme = 'dark'  # at night

# as I like them
[columns]
"connections" = [  # the usual ones
    "remote", "pid",
]
"bandwidth.flows" = ["process"] # who

# never again
[findings]
"tiny sends" = false  # we know
"""


def test_comments_are_kept(file: Path) -> None:
    """A choice changes only its own line; a new one comes to the end of its section."""
    written(file, OWN)
    remember(file, "theme", "light")
    assert file.read_text() == OWN.replace("'dark'", '"light"')
    remember(file, "unit", "bytes")
    remember(file, "columns", {"connections": ("pid",), "bandwidth.flows": None, "drops": ("reason",)})
    assert (
        file.read_text()
        == """\
# my colours
theme = "light"  # at night
unit = "bytes"

# as I like them
[columns]
connections = ["pid"]
drops = ["reason"]

# never again
[findings]
"tiny sends" = false  # we know
"""
    )
    only = "# nothing but this\n"
    remember(written(file, only), "theme", "dark")
    remember(file, "columns", {"drops": ("reason",)})
    assert file.read_text() == f'{only}theme = "dark"\n\n[columns]\ndrops = ["reason"]\n'


@pytest.mark.parametrize("text", [
    "columns = { drops = ['reason'] }\n", "columns.drops = ['reason']\n", "[ 'columns' ]\ndrops = ['reason']",
    "theme = \"\"\"dark\"\"\"\n[columns]\ndrops = ['reason']\n", "[columns]\r\ndrops = ['reason']\r\n",
])  # fmt: skip
def test_any_form_can_be_changed(text: str, file: Path) -> None:
    """Where an entry is written in another form than the screens write it, the file is written again."""
    written(file, text)
    remember(file, "theme", "light")
    remember(file, "columns", {"connections": ("pid",)})
    expected = {"theme": "light", "columns": {"drops": ["reason"], "connections": ["pid"]}}
    assert tomllib.loads(file.read_text()) == expected


def test_a_symbolic_link_stays(file: Path, tmp_path: Path) -> None:
    """A file that is kept elsewhere is written there."""
    target = written(tmp_path / "dotfiles" / "nettop.toml", "")
    file.parent.mkdir()
    file.symlink_to(target)
    remember(file, "unit", "bytes")
    assert file.is_symlink()
    assert tomllib.loads(target.read_text()) == {"unit": "bytes"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("theme = ", "end of document|correct that line, or remove the file"),
        ('unit = "bits"\ntheme = light\n', "line 2|correct that line"),
        ("theme = '\udcff'", "not valid TOML|remove the file"),
        ('theme = "blue"', "theme is 'blue'|write dark, light or terminal, or remove the line"),
        ("unit = 8", "unit is 8|write bits or bytes"),
        ('themes = "dark"', "unknown key 'themes'|did you mean theme"),
        ('columns = "pid"', "columns is not a table|[columns]"),
        ('[columns]\nconections = ["pid"]', "unknown view 'conections'|did you mean connections"),
        ('[columns]\nconnections = ["pids"]', "unknown column 'pids'|did you mean pid"),
        ('[columns]\nconnections = "pid"', "the columns of connections are not a list|write connections = ["),
        ("[columns]\nconnections = []", "not a list of names|write connections = ["),
        ("findings = 1", "findings is not a table|[findings]"),
        ('[findings]\n"tiny send" = false', "unknown kind 'tiny send'|did you mean tiny sends"),
        *(
            (f'[findings]\n"tiny sends" = {value}', "tiny sends is|{ filter = ")
            for value in (
                "true",
                "7",
                "{}",
                "{ row = 1 }",
                "{ rows = 0 }",
                "{ rows = true }",
                "{ after = -1 }",
            )
        ),
        *(
            (f'[findings]\n"tiny sends" = {value}', "tiny sends is|{ filter = ")
            for value in ("{ after = nan }", "{ filter = 1 }")
        ),
    ],
)
def test_invalid_preferences_are_named(file: Path, text: str, expected: str) -> None:
    """A problem names the file, the place and the remedy, and affects no other preference. A file that cannot be parsed
    is not overwritten."""
    written(file, "").write_bytes(text.encode(errors="surrogateescape"))
    loaded = load_preferences(file)
    assert loaded.preferences == Preferences()
    (problem,) = loaded.problems
    assert str(file) in problem
    assert all(part in problem for part in expected.split("|")), problem
    if "not valid TOML" in problem:
        with pytest.raises(NettopError, match="not valid TOML"):
            remember(file, "theme", "light")
        assert file.read_text(errors="surrogateescape") == text
        return
    remember(file, "unit", "bytes")
    assert load_preferences(file).preferences.unit == "bytes"


def test_a_file_that_cannot_be_read_or_written(file: Path, tmp_path: Path) -> None:
    """A directory in its place is a problem to read, and an error to write; so is a file in place of its directory."""
    file.mkdir(parents=True)
    assert "cannot be read: Is a directory" in load_preferences(file).problems[0]
    with pytest.raises(NettopError, match="cannot be read"):
        remember(file, "unit", "bits")
    below = written(tmp_path / "plain", "") / "nettop" / "config.toml"
    with pytest.raises(NettopError, match="cannot be written"):
        remember(below, "unit", "bits")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """$XDG_CONFIG_HOME where it is absolute, else ~/.config."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/xdg")
    assert preferences_path("/home/a") == Path("/xdg/nettop/config.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert preferences_path("/home/a") == Path("/home/a/.config/nettop/config.toml")


@pytest.mark.skipif(os.geteuid() != 0, reason="opens a file as another user, which takes root")
def test_through_sudo_it_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in the home directory of who called sudo is opened as that user: what they may not read is not read."""
    user = pwd.getpwnam("nobody")
    monkeypatch.setenv("SUDO_UID", str(user.pw_uid))
    monkeypatch.setenv("SUDO_GID", str(user.pw_gid))
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        monkeypatch.setenv("XDG_CONFIG_HOME", open_to_all)
        file = written(Path(open_to_all) / "nettop" / "config.toml", 'theme = "light"\n')
        file.chmod(0o600)
        assert load_own_preferences().preferences.theme is None
        assert "cannot be read: Permission denied" in load_own_preferences().problems[0]
        os.chown(file, user.pw_uid, user.pw_gid)
        assert load_own_preferences() == LoadedPreferences(file, Preferences(theme="light"))
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert load_own_preferences().path == Path(user.pw_dir) / ".config/nettop/config.toml"
    monkeypatch.setenv("SUDO_UID", "no number")
    assert load_own_preferences().path is None
    assert "SUDO_UID=no number" in load_own_preferences().problems[0]


def test_config_show(file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The path, every setting and its origin, as TOML that the file could have."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLORFGBG"):
        monkeypatch.delenv(name, raising=False)
    assert run(["config", "--show"]) == ExitCode.DONE
    shown = capfd.readouterr().out
    assert shown.startswith(f'# {file} (does not exist yet)\ntheme = "dark"  # default\n')
    assert "# file" not in shown
    remember(file, "columns", {"drops": ("reason", "packets")})
    remember(file, "theme", "light")
    assert run(["config", "--show"]) == ExitCode.DONE
    shown = capfd.readouterr().out
    assert shown.splitlines()[:3] == [f"# {file}", 'theme = "light"  # file', 'unit = "bits"  # default']
    assert 'drops = ["reason", "packets"]  # file' in shown
    assert '"connections.events" = ["time", ' in shown
    written(file, shown)
    assert load_preferences(file).problems == ()


def test_config_show_of_a_file_with_mistakes(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each error is named on standard error, and sets the exit code."""
    written(file, 'theme = "blue"\nunit = 8\n')
    assert run(["config", "--show"]) == ExitCode.FAILURE
    out, err = capfd.readouterr()
    assert 'unit = "bits"  # default' in out
    assert [line.split(": ")[2].split(" ")[0] for line in err.splitlines()] == ["theme", "unit"]


OWN_THRESHOLDS = """[findings]
CLOSE_WAIT = { rows = 3 }
"tiny sends" = false
retransmitting = "retransmit_ratio>=0.5%"
"no listener" = "sped=1"
"""


def test_own_thresholds(file: Path, tmp_path: Path) -> None:
    """The user's file comes before the system's; what is not named stays as declared, what cannot be parsed too."""
    written(tmp_path / "etc" / "config.toml", 'findings = { CLOSE_WAIT = false, "small segments" = false }')
    written(file, OWN_THRESHOLDS)
    declared = {rule.name: rule for table in (SOCKETS, COUNTERS) for rule in table.rules}
    (problem,) = load_own_preferences().problems
    rules = {rule.name: rule for table in (SOCKETS, COUNTERS) for rule in rules_of(table)}
    assert declared.keys() - rules.keys() == {"tiny sends", "small segments"}
    assert rules["retransmitting"] == replace(declared["retransmitting"], filter="retransmit_ratio>=0.5%")
    assert rules["CLOSE_WAIT"] == replace(declared["CLOSE_WAIT"], min_rows=3, min_growing_rows=None)
    changed = {"retransmitting", "CLOSE_WAIT"}
    assert all(rules[name] is declared[name] for name in rules.keys() - changed)
    assert problem.startswith(f"{file}: findings: no listener: filter term ‘sped=1’: unknown field 'sped'; ")
    written(file, "")
    written(tmp_path / "etc" / "config.toml", "")
    load_own_preferences()
    assert rules_of(SOCKETS) is SOCKETS.rules


def test_own_thresholds_find(file: Path) -> None:
    """Three connections in CLOSE_WAIT are a finding for who says so, and its rows are those that matched."""
    written(file, OWN_THRESHOLDS)
    closed = {"state": "CLOSE_WAIT", "process": "api", "send_queue": 0}
    frame = make_frame([{**closed, "id": number} for number in range(3)])
    assert list(find(parsed_rules(LENS, SOCKETS), frame)) == []
    load_own_preferences()
    (finding,) = find(parsed_rules(LENS, SOCKETS), frame)
    assert finding.rule.name == "CLOSE_WAIT"


def test_config_shows_thresholds(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Those declared, for every kind, and the user's; the file could have them all."""
    written(file, OWN_THRESHOLDS.rpartition('"no listener')[0])
    assert run(["config", "--show"]) == ExitCode.DONE
    shown = capfd.readouterr().out
    assert "CLOSE_WAIT = {rows = 3}  # file\n" in shown
    assert '"tiny sends" = false  # file\n' in shown
    assert '"accept queue full" = "state=LISTEN accept_queue_use>=80%"  # default\n' in shown
    assert "DNS silent" in shown
    assert load_preferences(written(file, shown)).problems == ()
