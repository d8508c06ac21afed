# SPDX-License-Identifier: Apache-2.0
"""The user's choices, kept in a TOML file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any

from nettop.errors import NettopError, UsageError, unknown_word
from nettop.reading import read_file
from nettop.snapshots import all_rules, find_table, view_name
from nettop.snapshots.schema import FORMER_KINDS, Table
from nettop.snapshots.thresholds import Threshold
from nettop.writing import replace_file, why_not, writing

SYSTEM_FILE = Path("/etc/nettop/config.toml")
"""Choices for all users and services, where their own file has none."""
_KEYS = ("theme", "unit", "columns", "findings")
THEMES = ("dark", "light", "terminal")
UNITS = ("bits", "bytes")
_MAX_BYTES = 1 << 16
"""Maximum size of the file: four times that of all choices."""
_DEEP_KEY = re.compile(rb"(?:\.[^.=\n]*){100}")
"""A key with too many parts: Python's parser takes half a minute for ten thousand parts."""
_HEADER = "# Written by nettop's screens too. See nettop config --show.\n"
_ENTRY = r"""(?m)^[ \t]*(?:{0}|"{0}")[ \t]*=[ \t]*(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\[[^\]]*\])"""
"""An entry as the screens write it: a text, or a list of texts."""
_ASIDE = re.compile(r"(?m)(?:^[ \t]*(?:#.*)?\n)*\Z")
"""Blank lines and comments at the end of a section, which are about the next one."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """The user's choices; None means no choice.

    `columns` are by table, with its name in --view. `theme` is one of THEMES; `unit`, for rates, is one of UNITS.
    `findings` are thresholds by kind; their filters are not yet parsed.
    """

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    theme: str | None = None
    unit: str | None = None
    findings: Mapping[str, Threshold] = field(default_factory=dict)

    def over(self, below: Preferences) -> Preferences:
        """Return these choices, and others where there is none."""
        return Preferences(
            {**below.columns, **self.columns},
            self.theme or below.theme,
            self.unit or below.unit,
            {**below.findings, **self.findings},
        )


@dataclass(frozen=True, slots=True)
class LoadedPreferences:
    """The content of a file, and its `problems`, each with the file, the place and the remedy.

    Without a `path` nothing is saved. `is_read` is false if the file could not be read at all.
    """

    path: Path | None = None
    preferences: Preferences = field(default_factory=Preferences)
    problems: tuple[str, ...] = ()
    is_read: bool = True


def preferences_path(home: str) -> Path:
    """Return the file of a user with this home directory. $XDG_CONFIG_HOME takes precedence if absolute, as in XDG."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.join(home, ".config")) / "nettop" / "config.toml"


# --- reading ----------------------------------------------------------------------------------------------------


def load_preferences(path: Path) -> LoadedPreferences:
    """Load the file. Missing and invalid entries have their defaults, as does a missing file."""
    try:
        document = _read(path)
    except NettopError as error:
        is_read = not isinstance(error.__cause__, OSError)
        return LoadedPreferences(path, problems=(f"{error.what}; {error.remedy}",), is_read=is_read)
    problems: list[str] = []
    theme, unit = (
        _word(document, key, words, problems) for key, words in (("theme", THEMES), ("unit", UNITS))
    )
    columns = _columns(document.get("columns", {}), problems)
    findings = _findings(document.get("findings", {}), problems)
    problems += [_in_words(unknown_word("key", key, _KEYS)) for key in document if key not in _KEYS]
    return LoadedPreferences(
        path, Preferences(columns, theme, unit, findings), tuple(f"{path}: {problem}" for problem in problems)
    )


def _read(path: Path) -> dict[str, Any]:
    """Parse the file; return an empty document if it is missing. Raise NettopError if it cannot be read."""
    import tomllib  # not needed by --help

    try:
        content = read_file(path, _MAX_BYTES)
        if _DEEP_KEY.search(content):
            raise RecursionError
        document = tomllib.loads(content.decode())
        toml_text(document)  # refuse what is nested too deeply to be written again
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise NettopError(
            f"{path} cannot be read: {why_not(error)}", "make it readable; until then defaults are used"
        ) from error
    except ValueError as error:  # also for invalid UTF-8
        raise NettopError(
            f"{path} is not valid TOML: {error}", "correct that line, or remove the file"
        ) from error
    except RecursionError:
        raise NettopError(
            f"{path} is nested too deeply", "correct it, or remove the file; until then defaults are used"
        ) from None
    return document


def _word(document: Mapping[str, Any], key: str, words: tuple[str, ...], problems: list[str]) -> str | None:
    word = document.get(key)
    if word is None or word in words:
        return word
    problems.append(f"{key} is {word!r}; write {', '.join(words[:-1])} or {words[-1]}, or remove the line")
    return None


def _columns(tables: Any, problems: list[str]) -> dict[str, tuple[str, ...]]:
    if not isinstance(tables, dict):
        problems.append('columns is not a table; write [columns], and below it VIEW = ["COLUMN", …]')
        return {}
    columns = {}
    for view, names in tables.items():
        try:
            lens, table = find_table(view)
        except UsageError as error:
            problems.append(f"columns: {_in_words(error)}")
            continue
        known = _known_columns(view, table, names, problems)
        if known:
            columns[view_name(lens, table)] = known
    return columns


def _known_columns(view: str, table: Table, names: Any, problems: list[str]) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        problems.append(
            f'the columns of {view} are not a list of names; write {view} = ["{table.names[0]}", …]'
        )
        return ()
    names = list(map(table.current, names))
    problems += [
        f"the columns of {view}: {_in_words(unknown_word('column', name, table.names))}"
        for name in names
        if name not in table.names
    ]
    return tuple(dict.fromkeys(name for name in names if name in table.names))


def _findings(kinds: Any, problems: list[str]) -> dict[str, Threshold]:
    if not isinstance(kinds, dict):
        problems.append('findings is not a table; write [findings], and below it "KIND" = "FILTER"')
        return {}
    known = all_rules()
    findings = {}
    for given, value in kinds.items():
        kind = FORMER_KINDS.get(str(given), str(given))
        if kind not in known:
            problems.append(f"findings: {_in_words(unknown_word('kind', kind, known))}")
        elif (threshold := _threshold(value)) is None:
            problems.append(
                f'findings: {kind} is {value!r:.60}; write "FILTER", false for never, or '
                '{ filter = "FILTER", rows = 100, after = 10 }'
            )
        else:
            findings[kind] = threshold
    return findings


def _threshold(value: Any) -> Threshold | None:
    """Return the threshold that a value says; None if it says none."""
    if isinstance(value, str):
        return Threshold(filter=value)
    if value is False:
        return Threshold(never=True)
    if not isinstance(value, dict) or not value or not value.keys() <= {"filter", "rows", "after"}:
        return None
    wanted, rows, after_s = (value.get(name) for name in ("filter", "rows", "after"))
    is_valid = (
        isinstance(wanted, str | None)
        and (rows is None or (type(rows) is int and rows > 0))
        and (after_s is None or (type(after_s) in (int, float) and 0 <= after_s < math.inf))
    )
    return Threshold(wanted, rows, after_s) if is_valid else None


def _in_words(error: NettopError) -> str:
    return f"{error.what}; {error.remedy}"


# --- writing ----------------------------------------------------------------------------------------------------

# tomlkit would save forty of these lines, but puts a new entry below the comment that introduces the next section, and
# every way of installing nettop would have one more package.


def remember(path: Path, key: str, value: str | Mapping[str, tuple[str, ...] | None]) -> None:
    """Save one choice in the file, and keep all other entries, even unknown ones.

    The `value` of `columns` maps tables to columns, None for the defaults. Raise NettopError if the file cannot be
    written, or if it is invalid, so that its content is not lost.
    """
    document = _read(path)
    text = read_file(path, _MAX_BYTES).decode().rstrip("\n") + "\n" if path.exists() else _HEADER
    if isinstance(value, str):
        document[key] = value
        text = _with_entry(text, "", key, value)
    else:
        before = document.get(key)
        changed = {**(before if isinstance(before, dict) else {}), **value}
        document[key] = {name: names for name, names in changed.items() if names is not None}
        for name, names in value.items():
            text = _with_entry(text, key, name, names)
    if not _has(text, document):  # a section is written in another form
        text = _HEADER + toml_text(document)
    with writing(str(path), "your choices last until nettop exits"):
        os.makedirs(os.path.dirname(os.path.realpath(path)), mode=0o700, exist_ok=True)
        replace_file(path, text.encode())


def _has(text: str, document: Mapping[str, Any]) -> bool:
    """Return whether a TOML file has this content."""
    import tomllib  # not needed by --help

    try:
        return toml_text(tomllib.loads(text)) == toml_text(document)
    except ValueError:
        return False


def _with_entry(text: str, section: str, name: str, value: Any) -> str:
    """Return a TOML file with another value of an entry, or without it for None, and all else as it is. A new entry
    comes to the end of its section."""
    head = rf"^[ \t]*\[{section}\].*\n" if section else r"\A"
    found = re.search(rf"(?m)({head})((?:(?![ \t]*\[).*\n)*)", text)
    if found is None:
        return _with_entry(f"{text.rstrip()}\n\n[{section}]\n", section, name, value)
    line, part = "" if value is None else toml_line(name, value), found[2]
    changed, count = re.subn(_ENTRY.format(re.escape(name)) + ("" if line else r".*\n"), lambda _: line, part)
    if line and not count:
        aside = _ASIDE.search(part)
        at = aside.start() if aside and found.end() < len(text) else len(part)
        changed = f"{part[:at]}{line}\n{part[at:]}"
    return text[: found.start(2)] + changed + text[found.end(2) :]


def toml_text(document: Mapping[str, Any]) -> str:
    """Format the content of a TOML file: plain values first, then a section for each table."""
    lines = [toml_line(key, value) for key, value in document.items() if not isinstance(value, dict)]
    for key, table in document.items():
        if isinstance(table, dict):
            lines += ["", f"[{_key(key)}]", *(toml_line(name, value) for name, value in table.items())]
    return "\n".join((*lines, ""))


def toml_line(key: str, value: Any) -> str:
    """Format `key = value`."""
    return f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        # A basic string is like a JSON string, but DEL must be escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())}}}"
    return repr(value)
