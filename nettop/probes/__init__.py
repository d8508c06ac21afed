# SPDX-License-Identifier: Apache-2.0
"""One probe a lens: a `.py` and a `.bpf.c` of the lens's name, found by it."""
