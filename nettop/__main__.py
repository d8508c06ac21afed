# SPDX-License-Identifier: Apache-2.0
"""The entry point of `nettop` and `python -m nettop`."""

from nettop.process.priority import raise_priority

raise_priority()

import gc  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402

# Until nettop handles Ctrl-C itself, exit on it without a traceback from some import.
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

gc.disable()  # see nettop.process.importing
from nettop.cli import main  # noqa: E402 - imported without collections

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
