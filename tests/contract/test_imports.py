# SPDX-License-Identifier: Apache-2.0
"""What a frontend imports: never the kernel package, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PRINT_MODULES = "import json, sys; sys.stderr.write(json.dumps(sorted(sys.modules)))"


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\ntry:\n    {code}\nfinally:\n    {PRINT_MODULES}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    modules: list[str] = json.loads(done.stderr.splitlines()[-1])
    return set(modules)


@pytest.mark.parametrize("frontend", ["nettop.output.text", "nettop.screens.app"])
def test_frontends_import_no_kernel_package(frontend: str) -> None:
    """Importing a frontend imports neither bcc nor the kernel package nor a probe."""
    loaded = loaded_by(f"import {frontend}")
    assert frontend in loaded
    assert not {
        name for name in loaded if name == "bcc" or name.startswith(("nettop.kernel", "nettop.probes."))
    }


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_is_light(option: str) -> None:
    """--help and --version load neither Textual nor numpy nor the engine."""
    loaded = loaded_by(f"sys.argv = ['nettop', '{option}']; from nettop.cli import main; main()")
    assert "nettop.cli" in loaded
    assert not {"textual", "numpy", "nettop.engine", "nettop.kernel"} & loaded


def test_plain_output_loads_no_screens() -> None:
    """Plain output does without Textual."""
    assert "textual" not in loaded_by("import nettop.output.text, nettop.engine.session")
