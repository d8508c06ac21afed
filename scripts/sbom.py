#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Print a software bill of materials (CycloneDX 1.5, JSON) of Python packages installed in directories or as wheels.

sbom.py FOLDER...
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any


def main(folders: list[Path]) -> None:
    """Print the list; the same packages give the same output."""
    packages = {
        str(found["bom-ref"]): found for folder in folders for found in map(component, metadata_in(folder))
    }
    own = [package for package in packages.values() if package["name"] == "nettop"]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": own[0] | {"type": "application"}} if own else {},
        "components": [packages[ref] for ref in sorted(packages) if packages[ref] not in own],
    }
    json.dump(bill, sys.stdout, indent=1)
    sys.stdout.write("\n")


def metadata_in(folder: Path) -> Iterator[Message]:
    """Yield the metadata of each package, installed or in a wheel."""
    for file in sorted(folder.glob("*.dist-info/METADATA")):
        yield message_from_string(file.read_text(encoding="utf-8"))
    for file in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(file) as wheel:
            (name,) = (
                member for member in wheel.namelist() if re.fullmatch(r"[^/]*\.dist-info/METADATA", member)
            )
            yield message_from_string(wheel.read(name).decode())


def component(metadata: Message) -> dict[str, Any]:
    """Return the CycloneDX component of a package."""
    name, version = re.sub(r"[-_.]+", "-", metadata["Name"]).lower(), metadata["Version"]
    url = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    classified = (text.split(" :: ") for text in metadata.get_all("Classifier", []))
    named = metadata["License"] or ", ".join(words[-1] for words in classified if words[0] == "License")
    licences: list[Any] = [{"license": {"name": named.splitlines()[0]}}] if named else []
    if metadata["License-Expression"]:
        licences = [{"expression": metadata["License-Expression"]}]
    return {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        "purl": url,
        **({"licenses": licences} if licences else {}),
    }


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
