# SPDX-License-Identifier: Apache-2.0
"""Redaction of recordings: addresses, names and free texts are replaced, so that a recording can go into a ticket."""
