# SPDX-License-Identifier: Apache-2.0
"""`nettop compile`, and the same in the background of a nettop that finds the cache incomplete."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from nettop.commands.options import SourceOf
from nettop.diagnostics import StatusLine
from nettop.errors import ExitCode, PermissionMissing
from nettop.process.interrupts import delay_interrupts
from nettop.settings.declared import setting
from nettop.settings.shared import CommandSettings
from nettop.writing import write_output

HELP = "Compile all programs for this kernel, so that every lens starts at once."

EXAMPLES = """\
nettop compile  # as root, after a new kernel was booted; the installer has done it for the first one

Programs are kept in /var/cache/nettop; nettop doctor says whether they are used. Without this command, each lens takes
seconds to start until sudo nettop has compiled all of them in the background.

Exit codes: 0 done, 1 they cannot be kept, 3 some cannot be compiled or loaded here, 4 not root,
5 the compiler failed, 128 + N interrupted by signal N."""


@dataclass(frozen=True, kw_only=True)
class CompileSettings(CommandSettings):
    """Settings of `nettop compile`."""

    background: bool = setting(
        False, "--background", hidden=True, help="End when standard input does, and print nothing"
    )


def start_compile(settings: CompileSettings, _source_of: SourceOf) -> ExitCode:
    """Compile what the cache lacks, with its progress on a terminal, and print a summary."""
    if os.geteuid():
        raise PermissionMissing("only root may keep compiled programs", "run it as root: sudo nettop compile")
    with delay_interrupts():
        from nettop.kernel.bpf.program_cache import DIRECTORY
        from nettop.kernel.host import privileges
        from nettop.kernel.host.facts import Host
        from nettop.probes.precompile import precompile
    privileges.use_permitted()
    Host().require_bpf()
    privileges.keep_only(privileges.for_loading(privileges.LOADER))
    if settings.background:
        threading.Thread(target=_end_with_standard_input, daemon=True).start()
    status = StatusLine(sys.stderr)
    done = precompile(
        lambda count, every: status.show(f"{count} of {every} programs compiled", count / every)
    )
    status.show("")
    for lens, error in done.refused.items():
        status.report(f"{lens}: {error.what}; {error.remedy}")
    if sys.stdout is not None:
        summary = f"{done.found + done.added} programs in {DIRECTORY}, {done.added} of them compiled now"
        write_output(sys.stdout, f"{summary} for Linux {os.uname().release}\n")
    return ExitCode.UNSUPPORTED if done.refused else ExitCode.DONE


# --- in the background ---------------------------------------------------------------------------------------------


def compile_in_background(resources: ExitStack) -> None:
    """Compile what the cache lacks, at idle priority, until `resources` are closed.

    Only root can keep the results, so call it before becoming another user, while there is only one thread.
    """
    with delay_interrupts():
        from nettop.kernel.bpf import program_cache

    if os.geteuid() or program_cache.is_complete() or not os.access(program_cache.DIRECTORY.parent, os.W_OK):
        return
    with suppress(OSError):  # nettop does without
        child = subprocess.Popen(
            [sys.executable, "-I", "-m", "nettop", "compile", "--background"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert child.stdin is not None
        resources.callback(child.stdin.close)
        os.sched_setscheduler(child.pid, os.SCHED_IDLE, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, child.pid, 0)


def _end_with_standard_input() -> None:
    """Exit when standard input is closed, as it is when nettop ends, however it ends."""
    from nettop.kernel.bpf.compiling import no_loading

    os.read(0, 1)
    with no_loading():
        os._exit(ExitCode.DONE)
