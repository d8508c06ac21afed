# SPDX-License-Identifier: Apache-2.0
"""A program for the terminal tests: the app over example rows, in whatever terminal it is started."""

from __future__ import annotations

import sys

from nettop.process.interrupts import leave_output
from tests.builders.harness import busy_host, harness_of


def main() -> int:
    """Publish two snapshots, then show them until somebody or something ends it."""
    harness = harness_of([])
    for step in busy_host():
        harness.session.bus.publish(step)
    app = harness.app()
    try:
        app.run_until_ended()
    finally:
        leave_output()
    return app.return_code or 0


if __name__ == "__main__":
    sys.exit(main())
