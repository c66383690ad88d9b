"""What the image installs is what is required, and is listed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.bom import bill, debian_packages
from lab.lock import LOCKS, ROOT, base_requirements, image_torch

PINNED = re.compile(r"^([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$")


def locked(name: str) -> dict[str, str]:
    lines = (LOCKS / name).read_text().splitlines()
    found = [PINNED.match(line) for line in lines if not line.startswith("#")]
    assert found
    assert all(found)
    return {match[1].lower(): match[2] for match in found if match}


def test_the_base_is_locked_at_the_required_versions_and_brings_nothing_else() -> None:
    required = dict(line.lower().split("==") for line in base_requirements())
    assert locked("base.txt") == required


def test_the_release_s_torch_is_locked_with_all_it_brings() -> None:
    found = locked(f"torch-{image_torch()}.txt")
    assert found["torch"] == image_torch()
    assert {"sympy", "filelock", "nvidia-cudnn-cu12"} <= set(found)
    assert sorted(path.name for path in LOCKS.iterdir()) == [
        "base.txt", f"torch-{image_torch()}.txt",
    ]  # fmt: skip


def test_the_bill_of_materials_lists_what_is_installed() -> None:
    script = [sys.executable, str(ROOT / "lab" / "bom.py"), "calcium-denoiser", "1.0"]
    listed = json.loads(subprocess.run(script, check=True, capture_output=True).stdout)
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.5")
    assert listed["metadata"]["component"]["name"] == "calcium-denoiser"
    purls = [each["purl"] for each in listed["components"]]
    assert len(purls) == len(set(purls))
    for line in base_requirements():
        name, version = line.lower().split("==")
        assert f"pkg:pypi/{name}@{version}" in purls


def test_of_debian_s_packages_the_installed_ones_are_listed(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(
        "Package: libgomp1\nStatus: install ok installed\nArchitecture: amd64\n"
        "Version: 12.2.0-14\nDescription: OpenMP\n Version: of no account\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n"
    )
    assert [each["purl"] for each in debian_packages(status)] == [
        "pkg:deb/debian/libgomp1@12.2.0-14?arch=amd64"
    ]
    assert list(debian_packages(tmp_path / "none")) == []


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_bill_names_its_own_subject(name: str) -> None:
    assert bill(name, "2")["metadata"]["component"] == {
        "type": "container", "name": name, "version": "2",
    }  # fmt: skip
