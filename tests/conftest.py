# SPDX-License-Identifier: Apache-2.0
"""What all tests share: programs that they start take their terminal's size from the terminal."""

import os

# readline, which pytest imports, sets both in the environment of every child, behind the back of os.environ.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)
    os.unsetenv(size)
