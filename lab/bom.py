"""Print what is installed, as a CycloneDX 1.5 bill of materials:  python lab/bom.py NAME VERSION

Python's packages and Debian's. Needs the standard library alone: `export.sh` runs it in the image.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

DPKG_STATUS = Path("/var/lib/dpkg/status")


def python_packages() -> Iterator[dict[str, Any]]:
    """Every distribution that this Python finds."""
    for package in distributions():
        name, version = package.metadata["Name"], package.version
        component: dict[str, Any] = {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}",
        }
        fields = package.metadata.json
        stated = fields.get("license_expression") or fields.get("license")
        if isinstance(stated, str) and "\n" not in stated:
            component["licenses"] = [{"license": {"name": stated}}]
        yield component


def debian_packages(status: Path = DPKG_STATUS) -> Iterator[dict[str, Any]]:
    """Every installed package of the distribution; none where it is no Debian."""
    if not status.is_file():
        return
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        pairs = (line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
        fields = {pair[0]: pair[1] for pair in pairs if not pair[0].startswith(" ")}
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            yield {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}",
            }


def bill(name: str, version: str) -> dict[str, Any]:
    """The whole document."""
    components = {each["purl"]: each for each in (*python_packages(), *debian_packages())}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": version}},
        "components": [components[purl] for purl in sorted(components)],
    }


def main(argv: Sequence[str]) -> int:
    """Print the bill of this machine, or of the image that it runs in."""
    json.dump(bill(*argv), sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
