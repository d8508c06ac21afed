# SPDX-License-Identifier: Apache-2.0
"""Several hosts at once: what `nettop record -` sends from each, as one source."""
