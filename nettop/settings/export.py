# SPDX-License-Identifier: Apache-2.0
"""Settings of `nettop export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from nettop.errors import UsageError
from nettop.settings import DAY_S, STDOUT, ExportFormat, shared
from nettop.settings.declared import choice, setting
from nettop.settings.values import checked_word, parse_seconds
from nettop.snapshots import all_views, find_table
from nettop.snapshots.schema import OptionValues

_FORMATS = {
    ".folded": ExportFormat.FOLDED,
    ".txt": ExportFormat.FOLDED,
    ".json": ExportFormat.SPEEDSCOPE,
    ".svg": ExportFormat.SVG,
}
"""Format by file suffix."""
_EXPORTABLE = [(lens, table) for lens, table in all_views() if table.exports]
_VIEWS = [f"{lens.id}.{table.name}" for lens, table in _EXPORTABLE]


# fmt: off
@dataclass(frozen=True, kw_only=True)
class ExportSettings(shared.CommandSettings):
    """Settings of `nettop export`. Rows must match all `filters`. `path` is a file, or `-` for standard output."""

    VIEWS = _EXPORTABLE

    named: str = setting(MISSING, metavar="LENS[.TABLE]", complete=_VIEWS,
                         help=f"Table to export: {', '.join(_VIEWS)}; a lens alone means its first such table")
    path: str = setting(MISSING, metavar="FILE", help="Output file; - for standard output")
    chosen: ExportFormat | None = choice(None, "--format", ExportFormat,
                                         help="Output format (by suffix of FILE: .folded or .txt, .json, .svg)")
    duration_s: float = setting(10.0, "--duration", metavar="SECONDS", parse=partial(parse_seconds, most=DAY_S),
                                help="Seconds to sample (10)")
    filters: tuple[str, ...] = setting((), "--filter", metavar="TEXT",
                                       help="Export only matching rows, as in nettop --filter")
    recording: Path | None = shared.from_setting("Export from")
    at: str | None = shared.at_setting()
    mechanisms: Mapping[str, str] = shared.mechanism_setting()
    options: OptionValues = field(default_factory=dict)
    # fmt: on

    @property
    def lens_and_table(self) -> shared.LensView:
        """The named table, or the lens's first table that can be exported. Raise UsageError if it cannot be."""
        lens, table = find_table(self.named)
        tables = (table,) if "." in self.named else lens.tables
        exported = next((candidate for candidate in tables if candidate.exports), None)
        if exported is None:
            writes = "nettop" if self.recording is None else f"nettop replay {quote(str(self.recording))}"
            raise UsageError(
                f"{self.named} cannot be exported",
                f"export {', '.join(_VIEWS)}, or write any table with {writes} --view {self.named} --format csv",
            )
        return lens, exported

    @property
    def view(self) -> str:
        """LENS.TABLE."""
        lens, table = self.lens_and_table
        return f"{lens.id}.{table.name}"

    @property
    def format(self) -> ExportFormat:
        """The chosen format, or the one that the file's suffix implies. Raise UsageError if there is none."""
        _, table = self.lens_and_table
        if self.chosen is not None:
            return ExportFormat(checked_word("format", self.chosen, table.exports))
        form = _FORMATS.get(Path(self.path).suffix.lower())
        if form is None or form not in table.exports:
            raise UsageError(
                "standard output has no suffix to derive a format from"
                if self.path == STDOUT
                else f"no format is known for the suffix of {self.path}",
                f"add --format {' or '.join(table.exports)}",
            )
        return form

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for a table that cannot be exported like this, and for settings that exclude each other."""
        _ = self.format
        shared.check_source(self, given)

    def watched(self) -> tuple[Sequence[shared.LensView], float]:
        """Return the table, and the seconds to sample."""
        return [self.lens_and_table], self.duration_s
