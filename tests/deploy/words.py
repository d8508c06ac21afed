# SPDX-License-Identifier: Apache-2.0
"""The options of nettop's commands, by which command lines in files are checked."""

from __future__ import annotations

from typing import Any

import typer

from nettop.cli import app


def options_of(command: str) -> set[str]:
    """Each option of a command, as it is written."""
    group: Any = typer.main.get_command(app)
    return {name for param in group.commands[command].params for name in param.opts}
