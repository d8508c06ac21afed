# SPDX-License-Identifier: Apache-2.0
"""The screens of the connections lens."""

from nettop.screens.connections.sockets import ConnectionsScreen
from nettop.screens.connections.tables import EventsScreen, FailuresScreen, GroupsScreen

SCREENS = {
    "sockets": ConnectionsScreen,
    "events": EventsScreen,
    "failures": FailuresScreen,
    "groups": GroupsScreen,
}
