# SPDX-License-Identifier: Apache-2.0
"""nettop's own process: signals, wake-ups, limits, and notifications to the service manager."""
