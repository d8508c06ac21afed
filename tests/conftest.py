# SPDX-License-Identifier: Apache-2.0
"""What all tests share: their terminal's size comes from the terminal, and no example fails for the time it took."""

import os

from hypothesis import settings

# readline, which pytest imports, sets both in the environment of every child, behind the back of os.environ.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)
    os.unsetenv(size)

settings.register_profile("nettop", deadline=None)
settings.load_profile("nettop")
