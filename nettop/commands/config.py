# SPDX-License-Identifier: Apache-2.0
"""`nettop config`, and loading the preferences of the screens as the user who called nettop."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass, replace
from typing import Any

from nettop.commands.invoker import User, caller, open_files_as
from nettop.commands.options import SourceOf, require_output
from nettop.errors import ExitCode, FilterError, NettopError, UsageError
from nettop.preferences import (
    SYSTEM_FILE,
    UNITS,
    LoadedPreferences,
    load_preferences,
    preferences_path,
    toml_line,
)
from nettop.process.importing import importing
from nettop.settings.declared import setting
from nettop.settings.shared import CommandSettings
from nettop.snapshots import all_rules, find_table, views
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Rule
from nettop.snapshots.thresholds import Threshold, use_thresholds
from nettop.writing import write_output

HELP = "Show the preferences: columns, theme, unit, and what counts as a finding."

EXAMPLES = """\
nettop config --show  # every setting in effect and its origin, file or default
nettop config --show | grep '# file'  # only settings from the file

The file is $XDG_CONFIG_HOME/nettop/config.toml or ~/.config/nettop/config.toml; under sudo, that of the user who called
it. What it does not say is taken from /etc/nettop/config.toml, which services read too. The screens write it when you
choose columns (C), a theme (T) or a unit (B). Command line options override it.

Exit codes: 0 done, 1 the file contains invalid settings, which were replaced by defaults, 2 usage error."""


@dataclass(frozen=True, kw_only=True)
class ConfigSettings(CommandSettings):
    """Settings of `nettop config`."""

    show: bool = setting(False, "--show", help="Print the file's path and each setting with its origin")


def load_own_preferences() -> LoadedPreferences:
    """Load the preferences of the user who called nettop, opening the file as that user, and of the system where it
    says nothing; use their thresholds of findings. Call it before threads start.

    Return errors as problems, so that they never keep nettop from starting.
    """
    below = _parsed(load_preferences(SYSTEM_FILE))
    try:
        user = caller()
        path = preferences_path(_home(user))
        with open_files_as(user):
            own = _parsed(load_preferences(path))
    except NettopError as error:
        problem = f"cannot read the preferences: {error.what}; {error.remedy}"
        own = LoadedPreferences(problems=(problem,), is_read=False)
    chosen = own.preferences.over(below.preferences)
    use_thresholds(chosen.findings)
    return replace(own, preferences=chosen, problems=(*below.problems, *own.problems))


def _parsed(loaded: LoadedPreferences) -> LoadedPreferences:
    """Leave out the thresholds whose filters cannot be parsed, and say why."""
    if not loaded.preferences.findings:
        return loaded
    from nettop.query.filter import parse_filter  # not needed by --help, nor without such choices

    parsed, problems = dict(loaded.preferences.findings), list(loaded.problems)
    rules = all_rules()
    for kind, threshold in loaded.preferences.findings.items():
        _, table, _ = rules[kind]
        try:
            parse_filter(table, threshold.filter or "")
        except FilterError as error:
            problems.append(f"{loaded.path}: findings: {kind}: {error.what}; {error.remedy}")
            del parsed[kind]
    return replace(loaded, preferences=replace(loaded.preferences, findings=parsed), problems=tuple(problems))


def report_preferences() -> None:
    """Load them, and write what is wrong in them to standard error. A file that may not be read has no choices: whoever
    has none of their own, such as another user with root's $HOME, need not hear of it."""
    loaded = load_own_preferences()
    for problem in loaded.problems if loaded.is_read and sys.stderr is not None else ():
        sys.stderr.write(f"nettop: {safe_text(problem)}\n")


def _home(user: User | None) -> str:
    """Return the home directory; under sudo from the caller's account, as $HOME may be root's."""
    if user is None:
        return os.path.expanduser("~")
    try:
        return pwd.getpwuid(user.uid).pw_dir
    except KeyError:
        raise NettopError(f"uid {user.uid} has no home directory", "create an account for it") from None


def start_config(settings: ConfigSettings, _source_of: SourceOf) -> ExitCode:
    """Print the settings in effect as TOML, each with its origin as a comment, and problems on standard error."""
    if not settings.show:
        raise UsageError("nettop config requires an option", "run nettop config --show")
    require_output()
    loaded = load_own_preferences()
    with importing():
        from nettop.widgets.themes import THEME_PREFIX, first_theme
    chosen = loaded.preferences
    theme = first_theme(remembered=chosen.theme).removeprefix(THEME_PREFIX)
    is_there = "" if loaded.path is None or os.path.lexists(loaded.path) else " (does not exist yet)"
    lines = [
        f"# {loaded.path or 'no file'}{is_there}",
        _line("theme", theme, is_chosen=theme == chosen.theme),
        _line("unit", chosen.unit or UNITS[0], is_chosen=chosen.unit is not None),
        "",
        "[columns]",
    ]
    for view in views():
        names = chosen.columns.get(view)
        lines.append(_line(view, names or find_table(view)[1].screen, is_chosen=names is not None))
    lines += ["", "[findings]"]
    for _, _, rule in all_rules().values():
        lines.append(_finding_line(rule, chosen.findings.get(rule.name)))
    write_output(sys.stdout, "".join(f"{safe_text(line)}\n" for line in lines))
    for problem in loaded.problems:
        sys.stderr.write(f"nettop: {safe_text(problem)}\n")
    return ExitCode.FAILURE if loaded.problems else ExitCode.DONE


def _finding_line(rule: Rule, chosen: Threshold | None) -> str:
    rows = rule.min_rows if rule.min_rows > 1 else None
    threshold = chosen or Threshold(rule.filter, rows, rule.after_s or None)
    parts = {"filter": threshold.filter, "rows": threshold.rows, "after": threshold.after_s}
    given = {name: value for name, value in parts.items() if value is not None}
    value = False if threshold.never else threshold.filter if given.keys() == {"filter"} else given
    return _line(rule.name, value, is_chosen=chosen is not None)


def _line(key: str, value: Any, *, is_chosen: bool) -> str:
    return f"{toml_line(key, value)}  # {'file' if is_chosen else 'default'}"
