# SPDX-License-Identifier: Apache-2.0
"""The entry point of `nettop` and `python -m nettop`."""

import gc
import signal
import sys

# Until nettop handles Ctrl-C itself, exit on it without a traceback from some import.
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

gc.disable()  # see nettop.process.importing
from nettop.cli import main  # noqa: E402 - imported without collections

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
