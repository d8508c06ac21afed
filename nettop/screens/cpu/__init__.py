# SPDX-License-Identifier: Apache-2.0
"""The screens of the CPU lens, and their own widgets."""

from nettop.screens.cpu.cpus import CpuScreen
from nettop.screens.cpu.tables import CategoriesScreen, CpuProcessesScreen, StacksScreen

SCREENS = {
    "cpus": CpuScreen,
    "categories": CategoriesScreen,
    "processes": CpuProcessesScreen,
    "stacks": StacksScreen,
}
