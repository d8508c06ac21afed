# SPDX-License-Identifier: Apache-2.0
"""`nettop bundle`: settings and startup."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nettop.commands.invoker import User, new_file
from nettop.commands.options import SourceOf, require_file_output
from nettop.commands.privilege import owner_of_output
from nettop.commands.recordings import (
    SERVICE_FOLDER,
    drop_all_privileges,
    moment_of,
    opened_recording,
)
from nettop.commands.redaction import redaction_key
from nettop.errors import ExitCode
from nettop.process.importing import importing
from nettop.settings import STDOUT
from nettop.settings.declared import setting
from nettop.settings.shared import Redacting, at_setting
from nettop.writing import OUTPUT

if TYPE_CHECKING:
    from nettop.recording.recording import Recording
    from nettop.recording.redaction.redactor import Redactor

HELP = "Put the last minutes of a recording, its findings and doctor's report into one file."

EXAMPLES = """\
nettop bundle incident.nettop  # its last ten minutes, to nettop-HOST-TIME.tar.gz
sudo nettop bundle --redact --last 30m  # for a ticket, from what nettop-record.service has kept
nettop bundle incident.nettop --at 14:32 --last 5m -o ticket.tar.gz
nettop replay ticket.tar.gz  # wherever nettop is installed

The bundle has recording.nettop, findings.txt, doctor.txt if the recording is from this host, and README.txt. Only its
owner may read it. An existing file is not replaced.

Exit codes: 0 done, 2 usage error, no such recording or nothing in that time, 5 damaged; others as for nettop."""

_DOCTOR_S = 120.0
"""Maximum seconds for doctor's report."""


# fmt: off
@dataclass(frozen=True, kw_only=True)
class BundleSettings(Redacting):
    """Settings of `nettop bundle`."""

    recording: Path = setting(SERVICE_FOLDER, metavar="[FILE|DIR]", kind=Path,
                              help="Recording, or folder of recordings (those of nettop-record.service)")
    output: str = setting("", "--output", "-o", metavar="FILE", help="File to create, or - for standard output "
                          "(nettop-HOST-TIME.tar.gz in the working directory)")
    last: str = setting("10m", "--last", metavar="TIME", help="How much of the recording's end to take, or from --at "
                        "on: 90, 60s, 15m, 2h (10m)")
    at: str | None = at_setting(default="--last before the end")
    no_doctor: bool = setting(False, "--no-doctor", help="Leave out doctor's report, which attaches every lens for a "
                              "moment")
    # fmt: on


def start_bundle(settings: BundleSettings, source_of: SourceOf) -> ExitCode:
    """Write the bundle. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    with importing():
        from nettop.output.bundle import BundleParts, is_from_here, run_bundle
        from nettop.recording import bundle
        from nettop.recording.files import SUFFIX, file_name
        from nettop.recording.moments import parse_length
        from nettop.recording.redaction.redactor import Redactor

    last_ns = parse_length(settings.last)
    # Without a path, that is the owner of the working directory.
    user = None if settings.output == STDOUT else owner_of_output(Path(settings.output))
    key = redaction_key(settings)
    redactor = None if key is None else Redactor(key)
    with opened_recording(settings.recording, keeps_privileges=True) as recording:
        begin_ns, end_ns = _span(recording, settings.at, last_ns)
        host = recording.host if redactor is None else redactor.host(recording.host)
        usual = file_name(host, begin_ns).removesuffix(SUFFIX) + bundle.SUFFIX
        name = settings.output or usual
        with _opened(name, user) as file:
            doctor = None
            if is_from_here(recording) and not settings.no_doctor:
                doctor = _doctor(redactor)
            if source_of is None:
                drop_all_privileges()
            shown = OUTPUT if name == STDOUT else name
            called = shown if redactor is None else usual
            parts = BundleParts(shown, called, begin_ns, end_ns, redactor)
            run_bundle(parts, recording, doctor, file, sys.stderr)
    return ExitCode.DONE


def _span(recording: Recording, at: str | None, last_ns: int) -> tuple[int, int]:
    """Return the first and the last moment that are wanted."""
    if at is None:
        return max(recording.begin_ns, recording.end_ns - last_ns), recording.end_ns
    begin_ns = moment_of(recording, at)
    return begin_ns, min(begin_ns + last_ns, recording.end_ns)


@contextmanager
def _opened(name: str, owner: User | None) -> Iterator[IO[bytes]]:
    """Open standard output, or create the file; remove it if it is not completed."""
    if name != STDOUT:
        with new_file(Path(name), owner, "choose another file with -o") as file:
            yield file
        return
    require_file_output("name a file with -o")
    yield sys.stdout.buffer


# --- doctor's report ------------------------------------------------------------------------------------------------

_PREFIXES = {"process": "proc", "container": "ctr", "netns": "ns"}
"""What names are called in a redacted recording, if not by their kind."""


def _doctor(redactor: Redactor | None) -> str:
    """Return the report of this host. Doctor is another process, with the privileges that it needs."""
    from nettop.diagnostics import StatusLine
    from nettop.doctor.bundle import names_here

    before = {} if redactor is None else names_here()  # of what ends meanwhile too
    StatusLine(sys.stderr).show("running nettop doctor --no-traffic …")
    words = [sys.executable, "-I", "-m", "nettop", "doctor", "--no-traffic"]
    try:
        done = subprocess.run(words, capture_output=True, check=False, timeout=_DOCTOR_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nettop doctor failed: {type(error).__name__}\n"
    text = (done.stdout or done.stderr).decode(errors="replace")
    if redactor is None:
        return text
    return _redacted(redactor, text, {kind: names | before[kind] for kind, names in names_here().items()})


def _redacted(redactor: Redactor, text: str, names: Mapping[str, set[str]]) -> str:
    """Redact doctor's report as doctor does, but by the words of the recording."""
    from nettop.doctor.bundle import ReportRedactor as DoctorRedactor
    from nettop.recording.redaction.texts import interface

    def replaced(kind: str, word: str) -> str:
        if kind in ("ipv4", "ipv6"):
            return redactor.texts.place(word) or redactor.texts.name("addr", word)
        if kind == "interface":
            return interface(redactor.texts, word)
        return redactor.texts.name(_PREFIXES.get(kind, kind), word)

    return DoctorRedactor(names, replaced).text(text)
