# SPDX-License-Identifier: Apache-2.0
"""`nettop doctor`: options, settings and startup."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nettop.commands.invoker import file_owner, invoking_user
from nettop.commands.new_file import new_file
from nettop.commands.options import (
    SourceOf,
    checked_word,
    completer,
    mechanism_option,
    option,
    parse_mechanisms,
    parse_seconds,
    require_output,
)
from nettop.commands.privilege import become_user, why_still_root
from nettop.doctor.deadline import STEP_S
from nettop.errors import ExitCode
from nettop.process.importing import importing
from nettop.snapshots import lenses

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

_FORMATS = ("text", "json")
_PARTS = ("host", *(lens.id for lens in lenses()))

HELP = "Report what works on this host and why the rest does not, and verify the numbers."

EXAMPLES = """[bold]Examples[/bold]

nettop doctor  [dim]check the host and each lens, and run the self-test[/dim]

nettop doctor --bundle report.tar.gz  [dim]for a bug report, with addresses and names replaced[/dim]

nettop doctor --format json | jq .lenses  [dim]for programs[/dim]

nettop doctor --only host --only drops --no-traffic

Exit codes: 0 every lens works, 1 the self-test found a difference, 3 a lens cannot work or a host check failed,
4 only permissions are missing, 128 + N interrupted by signal N."""


# fmt: off
@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """Options and arguments as given, in the order of --help."""

    format: Annotated[str, option("--format", metavar="text|json", autocompletion=completer(_FORMATS),
                                  help="Report format: text for people, json for programs (text)")] = "text"
    bundle: Annotated[str | None, option("--bundle", metavar="FILE",
                                         help="Also write a .tar.gz archive for a bug report, with addresses and "
                                         "names replaced")] = None
    no_traffic: Annotated[bool, option("--no-traffic", help="Skip the self-test")] = False
    only: Annotated[list[str] | None, option("--only", metavar="PART", autocompletion=completer(_PARTS),
                                             help=f"Check only this part: {', '.join(_PARTS)}; repeatable")] = None
    timeout: Annotated[str, option("--timeout", metavar="SECONDS",
                                   help=f"Longest time for each check and lens ({STEP_S:g})")] = f"{STEP_S:g}"
    mechanism: Annotated[list[str] | None, mechanism_option()] = None
    # fmt: on


def start_doctor(options: DoctorOptions, source_of: SourceOf) -> ExitCode:
    """Run the checks and report. Raise NettopError if the report cannot be written."""
    as_json = checked_word("format", options.format, _FORMATS) == "json"
    parts = tuple(checked_word("part", part, _PARTS) for part in options.only or ())
    timeout_s = parse_seconds("--timeout", options.timeout, least=1)
    mechanisms = parse_mechanisms(options.mechanism)
    require_output()
    with importing():
        from nettop.doctor.command import DoctorSettings, run_doctor
        from nettop.engine.source import probe_of
        from nettop.kernel.host.facts import Host
        from nettop.kernel.host.privileges import use_permitted
        from nettop.kernel.net.nf_rules import open_asker
        from nettop.snapshots.findings import LENS as FINDINGS
    path = None if options.bundle is None else Path(options.bundle)
    user = invoking_user() if path is None else file_owner(path)
    settings = DoctorSettings(
        parts, not options.no_traffic, mechanisms, as_json, why_still_root(user) or "", timeout_s
    )
    drop_privileges = partial(become_user, user) if source_of is None else None
    remedy = "choose another --bundle file"
    with nullcontext() if path is None else new_file(path, user, remedy) as bundle, ExitStack() as ends:
        if source_of is None:
            use_permitted()

        def make_probe(lens: str) -> Source:
            host = Host()
            host.require_own_pids()
            if lens == FINDINGS.id:
                ends.enter_context(open_asker(host))
            return probe_of(lens, host)

        return run_doctor(settings, source_of or make_probe, sys.stdout, bundle, drop_privileges)
