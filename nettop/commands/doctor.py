# SPDX-License-Identifier: Apache-2.0
"""`nettop doctor`: startup."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from nettop.commands.invoker import file_owner, invoking_user, new_file
from nettop.commands.options import SourceOf, require_output
from nettop.commands.privilege import become_user, why_still_root
from nettop.errors import ExitCode
from nettop.process.importing import importing
from nettop.settings.doctor import DoctorSettings

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

HELP = "Report what works on this host and why the rest does not, and verify the numbers."

EXAMPLES = """\
nettop doctor  # check the host and each lens, and run the self-test
nettop doctor --bundle report.tar.gz  # for a bug report, with addresses and names replaced
nettop doctor --format json | jq .lenses  # for programs
nettop doctor --only host --only drops --no-traffic

Exit codes: 0 every lens works, 1 the self-test found a difference, 3 a lens cannot work or a host check failed,
4 only permissions are missing, 128 + N interrupted by signal N."""


def start_doctor(settings: DoctorSettings, source_of: SourceOf) -> ExitCode:
    """Run the checks and report. Raise NettopError if the report cannot be written."""
    require_output()
    with importing():
        from nettop.doctor.command import run_doctor
        from nettop.engine.source import probe_of
        from nettop.kernel.host.facts import Host
        from nettop.kernel.host.privileges import use_permitted
        from nettop.kernel.net.nf_rules import open_asker
        from nettop.snapshots.findings import LENS as FINDINGS
    path = settings.bundle
    user = invoking_user() if path is None else file_owner(path)
    settings = replace(settings, stays_root=why_still_root(user) or "")
    drop_privileges = partial(become_user, user) if source_of is None else None
    remedy = "choose another --bundle file"
    with nullcontext() if path is None else new_file(path, user, remedy) as bundle, ExitStack() as resources:
        if source_of is None:
            use_permitted()

        def make_probe(lens: str) -> Source:
            host = Host()
            host.require_own_pids()
            if lens == FINDINGS.id:
                resources.enter_context(open_asker(host))
            return probe_of(lens, host)

        return run_doctor(settings, source_of or make_probe, sys.stdout, bundle, drop_privileges)
