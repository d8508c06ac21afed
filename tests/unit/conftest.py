# SPDX-License-Identifier: Apache-2.0
"""How the property tests run: the same examples each time, or new ones when somebody explores."""

import os

from hypothesis import HealthCheck, settings

# A busy machine is no failure, so nothing is timed.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("repeat", derandomize=True, **_PATIENT)
settings.register_profile("explore", max_examples=3000, **_PATIENT)
settings.load_profile(os.environ.get("NETTOP_PROPERTY_TESTS", "repeat"))
