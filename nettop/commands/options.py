# SPDX-License-Identifier: Apache-2.0
"""Settings as parameters of typer, and what commands require before they start."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import typer

from nettop.errors import NettopError, UsageError
from nettop.settings.declared import Declared, declared_in, parsed, starting_with
from nettop.settings.shared import CommandSettings, lens_options, parse_lens_options
from nettop.snapshots.schema import Lens, Option

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

WIDTH = 100
"""Maximum width of help, in columns."""
SourceOf: TypeAlias = "Callable[[str], Source] | None"
"""Function that creates the source of a lens; None uses the probes."""
_Settings = TypeVar("_Settings", bound=CommandSettings)


# --- settings as parameters -----------------------------------------------------------------------------------


def parser_of(kind: type[_Settings]) -> Callable[..., _Settings]:
    """Return a function with a parameter for each setting, and for each option of the lenses, which typer calls with
    what was given. It raises UsageError for invalid settings."""

    def parse(**texts: Any) -> _Settings:
        return settings_from(
            kind, {name: text for name, text in texts.items() if text not in (None, False, [])}
        )

    parameters = [_parameter(kind, name, *declared) for name, declared in declared_in(kind).items()]
    parameters += [_lens_parameter(kind, *option) for option in lens_options(kind).values()]
    function: Any = parse
    function.__signature__ = Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return parse


def settings_from(kind: type[_Settings], given: Mapping[str, Any]) -> _Settings:
    """Return the settings with what was given, by name. Raise UsageError for invalid ones."""
    settings = parsed(kind, given)
    settings.check(given)
    if kind.VIEWS:
        views, interval_s = settings.watched()
        options = parse_lens_options(given, interval_s, views, log=kind.IS_LOG, unattended=kind.IS_UNATTENDED)
        settings = replace(settings, options=options)  # type: ignore[type-var]
    return settings


def epilog(examples: str) -> str:
    """Return the end of a command's help from its EXAMPLES: one a line, with what it does behind ` #`; then the rest,
    after an empty line."""
    lines, _, rest = examples.partition("\n\n")
    marked = re.sub(r"  # (.*)$", r"  [dim]\1[/dim]", lines, flags=re.MULTILINE)
    return "\n\n".join(["[bold]Examples[/bold]", *marked.split("\n"), *([rest] if rest else [])])


def _parameter(kind: type[CommandSettings], name: str, declared: Declared, is_required: bool) -> Parameter:
    default = False if declared.kind is bool else None
    if declared.flags:
        info = _option(*declared.flags, default=default, help=declared.help, metavar=declared.metavar or None,
                       panel=declared.panel or kind.PANEL, complete=declared.complete, **declared.more)  # fmt: skip
    else:
        info = typer.Argument(... if is_required else None, metavar=declared.metavar, show_default=False,
                              readable=False, help=declared.help, autocompletion=declared.complete)  # fmt: skip
    annotation = declared.kind if default is False or is_required else declared.kind | None
    return Parameter(name, Parameter.KEYWORD_ONLY, default=info, annotation=annotation)


def _lens_parameter(kind: type[CommandSettings], lens: Lens, declared: Option[Any]) -> Parameter:
    default = declared.default_of(log=kind.IS_LOG, unattended=kind.IS_UNATTENDED)
    info = _option(*filter(None, (declared.flag, declared.short)), default=None, help=declared.help_with(default),
                   metavar=declared.metavar, panel=f"{lens.title} (view {lens.id})",
                   complete=starting_with([declared.text(step) for step in declared.steps]))  # fmt: skip
    annotation = (list[str] if declared.repeatable else str) | None
    return Parameter(declared.name, Parameter.KEYWORD_ONLY, default=info, annotation=annotation)


def _option(*flags: str, default: Any, panel: str | None, complete: Any, **more: Any) -> Any:
    """Declare an option. Its help states the default. Files are checked when they are opened, maybe as another user."""
    return typer.Option(default, *flags, rich_help_panel=panel, show_default=False, readable=False,
                        autocompletion=complete, **more)  # fmt: skip


# --- what commands require ------------------------------------------------------------------------------------


def require_packages(command: str, names: Iterable[str], remedy: str) -> None:
    """Raise NettopError if packages that a command needs are not installed."""
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise NettopError(
            f"nettop {command} needs packages that are not installed: {', '.join(missing)}", remedy
        )


def require_output(remedy: str = "redirect it to a file or a pipe") -> None:
    """Raise NettopError if standard output is closed."""
    if sys.stdout is None:
        raise NettopError("standard output is closed", remedy)


def require_file_output(remedy: str) -> None:
    """Raise NettopError unless standard output can take what is no text."""
    require_output(f"redirect it to a pipe, or {remedy}")
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal", f"redirect it to a file or a pipe, or {remedy}")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False
