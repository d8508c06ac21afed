# SPDX-License-Identifier: Apache-2.0
"""Recordings: a stream of snapshots, written to a file or a pipe and read from there."""
