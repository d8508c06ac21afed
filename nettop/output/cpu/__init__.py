# SPDX-License-Identifier: Apache-2.0
"""Exports of stacks: folded, for speedscope, and as a flame graph."""

from nettop.output.cpu.stacks import StackExporter
from nettop.output.lens_output import LensOutput
from nettop.snapshots.cpu import STACKS

OUTPUT = LensOutput(exporters={STACKS.name: StackExporter()})
