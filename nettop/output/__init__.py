# SPDX-License-Identifier: Apache-2.0
"""Plain output: the same view as the screens show, as text for people, pipes and programs."""
