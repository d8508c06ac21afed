# SPDX-License-Identifier: Apache-2.0
"""`nettop serve`: startup."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nettop.commands.invoker import SERVICE_USERS, file_owner, invoking_user, named_user, open_files_as
from nettop.commands.options import SourceOf, require_packages
from nettop.commands.privilege import give_up_privileges, open_watching, refuse_root_for_caller
from nettop.commands.recordings import moment_of, open_replay, opened_recording
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import DEFAULT_LISTEN
from nettop.settings.serve import ALL_LENSES, ServeSettings
from nettop.snapshots import lenses
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.recording.player import Player
    from nettop.recording.recording import Recording

_PACKAGES = ("h11", "prometheus_client", "starlette", "uvloop")
_UNIX = "unix:"

HELP = "Serve metrics for Prometheus, a REST API, an event stream and a dashboard over HTTP."

EXAMPLES = f"""\
nettop serve  # dashboard at http://{DEFAULT_LISTEN}/, metrics at /metrics
nettop serve --listen 0.0.0.0:9471 --token-file /etc/nettop/token --cert chain.pem --key key.pem
nettop serve --listen unix:/run/nettop/http.sock --lenses connections,drops
nettop serve --top process=50 --top pair=0 --interval 5  # metrics of 50 processes, none of pairs of hosts
nettop serve --from incident.nettop --at 14:32  # a recording, to any user; it plays from there to its end
curl -s 'http://{DEFAULT_LISTEN}/api/v1/connections?filter=:443&sort=-bytes_per_s&limit=10'

On SIGHUP, nettop rereads the token and the certificate; on SIGTERM, it answers pending requests, then exits."""


def start_serve(settings: ServeSettings, source_of: SourceOf) -> ExitCode:
    """Serve until requested to end. Raise NettopError if the server cannot start."""
    recorded, at = settings.recording, settings.at
    require_packages("serve", _PACKAGES, "install nettop[serve], or run scripts/install-deps.sh")
    with importing():
        from nettop.serve.command import open_server

    named_by = invoking_user()
    user = named_user(SERVICE_USERS) if named_by is None and not os.geteuid() else named_by
    unix = next((word.removeprefix(_UNIX) for word in settings.listen if word.startswith(_UNIX)), None)
    if any((unix, settings.token_file, settings.cert, settings.key)):
        refuse_root_for_caller()
    if unix is not None:
        # As for log files: nettop becomes the owner of the directory, who can remove the Unix socket at the end. In a
        # directory of root's it stays there, and the next start replaces it.
        user = file_owner(Path(unix).parent) or user
    with ExitStack() as resources:
        player = None
        read = settings.read_lenses
        if recorded is not None:
            recording = resources.enter_context(
                opened_recording(recorded, keeps_privileges=True, whole=at is not None)
            )
            read = _recorded_lenses(recording, settings)
            player = _player(recording, at)
        settings = replace(settings, lenses=read)
        # While nettop is still root: root's own files, and a port below 1024.
        requests = resources.enter_context(requested_by_signals())
        run = resources.enter_context(
            open_server(settings, requests, sys.stderr, partial(open_files_as, named_by))
        )
        if player is not None:
            if os.geteuid() == 0 and source_of is None:
                give_up_privileges(user)
            return run(resources.enter_context(open_replay(player)), player)
        session = resources.enter_context(open_watching(settings, source_of, user, together=read))
        return run(session)


def _recorded_lenses(recording: Recording, settings: ServeSettings) -> tuple[str, ...]:
    """Return the chosen lenses that were recorded. Raise Unsupported if one that is named was not, or if none was."""
    if SELF.id in settings.lenses:
        raise UsageError(
            "self is not in recordings: it is what nettop costs here", "leave it out of --lenses"
        )
    missing = [lens for lens in lenses() if lens.id in settings.lenses and lens.id not in recording.lenses]
    if missing and (settings.lenses != ALL_LENSES or len(missing) == len(settings.lenses)):
        raise recording.refusal(missing[0])
    return tuple(name for name in settings.read_lenses if name in recording.lenses)


def _player(recording: Recording, at: str | None) -> Player:
    from nettop.recording.player import Player

    player = Player(recording)
    player.jump(moment_of(recording, at))
    return player
