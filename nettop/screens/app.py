# SPDX-License-Identifier: Apache-2.0
"""The frontend on the terminal: its lens attaches first, which takes longer than importing the screens."""

from __future__ import annotations

import gc

from nettop.engine.session import Session
from nettop.errors import ExitCode
from nettop.interrupts import undisturbed
from nettop.preferences import LoadedPreferences
from nettop.settings import Settings
from nettop.snapshots import find_table

_GARBAGE = 10_000
"""New objects between two garbage collections: about what drawing one refresh allocates."""


def run_app(
    settings: Settings,
    session: Session,
    loaded: LoadedPreferences = LoadedPreferences(),  # noqa: B008 - frozen
    writing_refused: str = "",
) -> ExitCode:
    """Show the session in the terminal until the user, a signal or an error ends it.

    `loaded` is what the user chose before; `writing_refused` says why no files are written, if so. The caller enters
    and leaves `session`. Raises the NettopError that kept the first lens from being shown.
    """
    lens, table = find_table(settings.view.view)
    lease = session.enable(
        lens.id,
        all_rows=settings.view.all_rows,
        table=table.name,
        columns=settings.view.columns or (),
        mechanisms=settings.mechanisms,
        **settings.options,
    )
    # Only after the lens began to attach. The sampler would wait for ever for the lock of an interrupted import.
    with undisturbed():
        from nettop.screens.context import ScreenContext
        from nettop.screens.nettop_app import NettopApp

    app = NettopApp(ScreenContext(settings, session, loaded=loaded, writing_refused=writing_refused))
    # What exists now stays: collecting it again and again took a sixth of the time spent on drawing.
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    app.run_until_ended()
    lease.release()
    if app.fatal_error is not None:
        raise app.fatal_error
    return ExitCode.DONE if app.return_code == 0 else ExitCode.FAILURE
