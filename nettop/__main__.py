# SPDX-License-Identifier: Apache-2.0
"""Where the program begins: `nettop` and `python -m nettop`."""

import signal
import sys

# Until nettop can answer Ctrl-C it just ends, rather than with a traceback out of some import.
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from nettop.cli import main

if __name__ == "__main__":
    sys.exit(main())
