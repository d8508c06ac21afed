# SPDX-License-Identifier: Apache-2.0
"""`nettop doctor`: its options, its settings, and how it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

from nettop.commands.invoker import User, acting_as, invoking_user, opening_as, owner_of_files
from nettop.commands.options import checked_word, completing, mechanism_option, option, parse_mechanisms
from nettop.commands.privilege import become_user, why_still_root
from nettop.errors import ExitCode, NettopError
from nettop.interrupts import undisturbed
from nettop.limits import set_up_process
from nettop.snapshots import lenses
from nettop.writing import open_to_write, writing

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

_FORMATS = ("text", "json")
_PARTS = ("host", *(lens.id for lens in lenses()))

DOCTOR = "doctor"
DOCTOR_HELP = (
    "Report what works on this host and why the rest does not, and check the numbers with self-test traffic."
)

DOCTOR_EXAMPLES = """[bold]Examples[/bold]

nettop doctor  [dim]everything: the host, each lens, the self-test[/dim]

nettop doctor --bundle report.tar.gz  [dim]for a bug report, without addresses and names[/dim]

nettop doctor --format json | jq .lenses  [dim]for a program[/dim]

nettop doctor --only host --only drops --no-traffic

Exit codes: 0 every lens works, 1 the self-test found a difference, 3 a lens cannot work or the host is bad,
4 only permissions are missing, 128 + N interrupted by signal N."""


# fmt: off
@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """The options and arguments as they were given, in the order of --help."""

    format: Annotated[str, option("--format", metavar="text|json", autocompletion=completing(_FORMATS),
                                  help="A report to read (text) or for programs (json)")] = "text"
    bundle: Annotated[str | None, option("--bundle", metavar="FILE",
                                         help="Also write an archive (.tar.gz) for a bug report, with addresses and "
                                         "names replaced")] = None
    no_traffic: Annotated[bool, option("--no-traffic", help="Skip the self-test")] = False
    only: Annotated[list[str] | None, option("--only", metavar="PART", autocompletion=completing(_PARTS),
                                             help=f"Check only this part: {', '.join(_PARTS)}")] = None
    mechanism: Annotated[list[str] | None, mechanism_option()] = None
    # fmt: on


def start_doctor(options: DoctorOptions, source_of: Callable[[str], Source] | None) -> ExitCode:
    """Examine what the options say, and report. Raises NettopError where nothing can be written.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    as_json = checked_word("format", options.format, _FORMATS) == "json"
    parts = tuple(checked_word("part", part, _PARTS) for part in options.only or ())
    mechanisms = parse_mechanisms(options.mechanism)
    if sys.stdout is None:
        raise NettopError("standard output is closed", "nettop doctor needs somewhere to write to")
    with undisturbed():
        from nettop.doctor.command import DoctorSettings, run_doctor
        from nettop.engine.source import probe_of
        from nettop.kernel.facts import Host
        from nettop.kernel.privileges import use_permitted
    path = None if options.bundle is None else Path(options.bundle)
    user = invoking_user() if path is None else owner_of_files(path)
    settings = DoctorSettings(parts, not options.no_traffic, mechanisms, as_json, why_still_root(user) or "")
    drop_privileges = partial(become_user, user) if source_of is None else None
    with nullcontext() if path is None else _new_file(path, user) as bundle:
        if source_of is None:
            set_up_process()
            use_permitted()

        def make_probe(lens: str) -> Source:
            Host().require_own_pids()
            return probe_of(lens)

        return run_doctor(settings, source_of or make_probe, sys.stdout, bundle, drop_privileges)


@contextmanager
def _new_file(path: Path, owner: User | None) -> Iterator[BinaryIO]:
    """Make a new file, which belongs to its owner and which nobody else may read; gone if it is not finished.

    Raises NettopError where the file is there already, or cannot be made.
    """
    remedy = "give --bundle another file"
    with ExitStack() as ends:
        with opening_as(owner), writing(str(path), remedy):
            try:
                file = ends.enter_context(open(path, "wb", opener=_create))
            except FileExistsError:
                raise NettopError(f"{path} exists already", f"{remedy}, or remove that one") from None
        try:
            yield file
        except BaseException:
            with suppress(OSError), acting_as(owner):
                path.unlink()
            raise


def _create(path: str, _flags: int) -> int:
    return open_to_write(path, os.O_CREAT | os.O_EXCL, 0o600)
