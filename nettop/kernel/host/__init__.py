# SPDX-License-Identifier: Apache-2.0
"""This host: its processes, files of /proc and /sys, and nettop's privileges on it."""
