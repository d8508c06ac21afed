# SPDX-License-Identifier: Apache-2.0
"""The way in: starts the kernel side first, so that it compiles while the terminal side is still imported."""

from __future__ import annotations

import gc

from nettop.engine.session import Session
from nettop.errors import ExitCode
from nettop.settings import Settings
from nettop.snapshots import find_table

_GARBAGE = 10_000
"""New objects after which garbage is looked for: about what one picture takes."""


def run_app(settings: Settings, session: Session) -> ExitCode:
    """Show the session in the terminal until the user, a signal or an error ends it.

    `session` is entered by the caller, who also leaves it. Raises the NettopError for which there was nothing
    to show.
    """
    lens, table = find_table(settings.view.view)
    lease = session.enable(
        lens.id,
        all_rows=settings.view.all_rows,
        table=table.name,
        mechanisms=settings.mechanisms,
        **settings.options,
    )
    from nettop.screens.context import ScreenContext  # imported here, after the kernel side began its work
    from nettop.screens.frame import NettopApp

    app = NettopApp(ScreenContext(settings, session))
    # What is there by now stays: to look through it for garbage again and again took a sixth of all drawing.
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    app.run()
    lease.release()
    if app.hopeless is not None:
        raise app.hopeless
    return ExitCode.DONE if app.return_code == 0 else ExitCode.FAILURE
