# SPDX-License-Identifier: Apache-2.0
"""`python -m nettop` is `nettop`."""

import sys

from nettop.cli import main

if __name__ == "__main__":
    sys.exit(main())
