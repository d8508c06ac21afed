# SPDX-License-Identifier: Apache-2.0
"""What compose.yaml says of the containers: the other files have to agree with it."""

from __future__ import annotations

from typing import Any

import yaml

from .tools import DEPLOY

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "container/compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CAPABILITIES: list[str] = SERVICES["nettop"]["cap_add"]
"""Those that nettop is given, without CAP_."""
