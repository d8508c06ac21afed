# SPDX-License-Identifier: Apache-2.0
"""The containers in compose.yaml, with which the other files must agree."""

from __future__ import annotations

from typing import Any

import yaml

from .tools import DEPLOY

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "container/compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CAPABILITIES: list[str] = SERVICES["nettop"]["cap_add"]
"""Capabilities that nettop gets, without CAP_."""
