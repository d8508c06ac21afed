# SPDX-License-Identifier: Apache-2.0
"""The entry point of `nettop` and `python -m nettop`."""

import signal
import sys

# Until nettop handles Ctrl-C itself, exit on it without a traceback from some import.
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from nettop.cli import main

if __name__ == "__main__":
    sys.exit(main())
