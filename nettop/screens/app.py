# SPDX-License-Identifier: Apache-2.0
"""The terminal frontend. It attaches the lens before importing the screens, because attaching takes longer."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

from nettop.engine.session import Session
from nettop.errors import ExitCode
from nettop.preferences import LoadedPreferences
from nettop.process.importing import importing
from nettop.settings import Settings
from nettop.snapshots import find_table
from nettop.snapshots.source import SourceOptions

if TYPE_CHECKING:
    from nettop.recording.player import Player

_GC_THRESHOLD = 10_000
"""New objects between garbage collections: about as many as drawing one refresh allocates."""


def run_app(
    settings: Settings,
    session: Session,
    loaded: LoadedPreferences = LoadedPreferences(),  # noqa: B008 - frozen
    writing_refused: str = "",
    player: Player | None = None,
    *,
    host: str = "",
    on_interrupt: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Show the session in the terminal until the user, a signal or an error ends it; after Ctrl-C or a signal call
    `on_interrupt`.

    `loaded` holds the user's saved preferences; `writing_refused` says why no files are written, if so; `player` plays
    a recording; `host` is what the first line names if the rows are from elsewhere. The caller enters and exits
    `session`. Raise the NettopError that prevented the first lens from being shown.
    """
    lens, table = find_table(settings.view.view)
    options = SourceOptions(
        frozenset({table.name}),
        settings.mechanisms,
        all_rows=settings.view.all_rows,
        values=settings.options,
    )
    lease = session.enable(lens.id, options, settings.view.columns or ())
    # Import only once the lens is attaching. After an interrupted import the sampler would wait forever for its lock.
    with importing(without=["ssl"]):  # asyncio would load OpenSSL, 4 MB
        from nettop.screens.context import ScreenContext
        from nettop.screens.nettop_app import NettopApp

    context = ScreenContext(settings, session, loaded=loaded, writing_refused=writing_refused, player=player)
    context.host = host or context.host
    app = NettopApp(context)
    # Existing objects stay alive: scanning them in every collection took a sixth of the drawing time.
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    app.run_until_ended()
    lease.release()
    if app.was_interrupted:
        on_interrupt()
    if app.fatal_error is not None:
        raise app.fatal_error
    return ExitCode.DONE if app.return_code == 0 else ExitCode.FAILURE
