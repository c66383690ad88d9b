"""Pin what the image installs, by version and by the sum of every wheel:  python -m lab.lock

Writes `locks/base.txt` (requirements.txt without torch) and `locks/torch-VERSION.txt` (torch and
what it brings) for the image's Python on Linux x86-64. To be run, and committed, when requirements
or the Dockerfile's torch change; a test holds them together.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
PYTHON = "3.11"
PLATFORMS = tuple(f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "1"))
HEADING = "# Made by python -m lab.lock; the sums are those of the wheels for Linux x86-64.\n"


def base_requirements() -> list[str]:
    """The lines of requirements.txt without comments and torch."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stated = [line.partition("#")[0].strip() for line in lines]
    return [line for line in stated if line and not line.startswith("torch")]


def image_torch() -> str:
    """The version of torch that the Dockerfile names."""
    found = re.search(r"^ARG TORCH=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found, "the Dockerfile names no torch"
    return found[1]


def resolve(requirements: Sequence[str]) -> str:
    """Every package that these bring, one `name==version --hash=...` a line."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        platforms = [word for tag in PLATFORMS for word in ("--platform", tag)]
        subprocess.run(  # noqa: S603
            [
                sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed",
                "--quiet", "--report", str(report), "--python-version", PYTHON, *platforms,
                "--only-binary=:all:", "--target", folder, *requirements,
            ],
            check=True,
        )  # fmt: skip
        found = json.loads(report.read_bytes())["install"]
    lines = [
        f"{package['metadata']['name']}=={package['metadata']['version']}"
        f" --hash=sha256:{package['download_info']['archive_info']['hashes']['sha256']}\n"
        for package in found
    ]
    return HEADING + "".join(sorted(lines, key=str.lower))


def main() -> int:
    """Write the locks anew."""
    torch = image_torch()
    # nothing is touched before all is known: there may be no network
    locks = {
        "base.txt": resolve(base_requirements()),
        f"torch-{torch}.txt": resolve([f"torch=={torch}"]),
    }
    LOCKS.mkdir(exist_ok=True)
    for old in LOCKS.glob("torch-*.txt"):
        old.unlink()
    for name, lines in locks.items():
        (LOCKS / name).write_text(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
