# SPDX-License-Identifier: Apache-2.0
"""Plain output: the views of the screens as text for people, pipes and programs."""
