# SPDX-License-Identifier: Apache-2.0
"""Options as a command line has them."""

from __future__ import annotations

import shlex
from typing import Any

from nettop.cli import parse


def words(**given: Any) -> list[str]:
    """Return options by their names: True is a flag, a list one that is repeated."""
    found: list[str] = []
    for name, value in given.items():
        flag = "--" + name.strip("_").replace("_", "-")
        found += (
            [flag]
            if value is True
            else [f"{flag}={text}" for text in (value if isinstance(value, list) else [value])]
        )
    return found


def settings_of(command: str, *arguments: str, **given: Any) -> Any:
    """Return the settings that a command, with the words after it, has with these arguments and options."""
    return parse([*shlex.split(command), *words(**given), *arguments])
