# SPDX-License-Identifier: Apache-2.0
"""Options of nettop's commands, to check command lines in files."""

from __future__ import annotations

from typing import Any

import typer

from nettop.cli import app


def options_of(command: str) -> set[str]:
    """Return the options of a command, as written."""
    group: Any = typer.main.get_command(app)
    return {name for param in group.commands[command].params for name in param.opts}
