# SPDX-License-Identifier: Apache-2.0
"""Filter, sort, rates and joins: one implementation for every frontend."""
