"""What an earlier job left in the output folder, and which of it need not be made again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
from pathlib import Path
from typing import Any

from model.report import RECORD_NAME, StackRecord, read_jobs
from model.stack_io import StackPaths

logger = logging.getLogger(__name__)


def file_sum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_sum(folder: Path = Path(__file__).parent) -> str:
    """SHA-256 over the code in a folder: another program may give another result."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def _earlier_stacks(
    folder: Path, files: Set[str], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What the folder's record tells of these files; none where it is no record.

    Nor of what was made with other settings.
    """
    try:
        jobs = read_jobs(folder)
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        logger.warning("%s cannot be read: everything is made anew", folder / RECORD_NAME)
        return []
    stacks: list[dict[str, Any]] = []
    changed: dict[str, set[str]] = {}  # by file
    for job in jobs:
        earlier = job["settings"]
        other = {name for name, value in settings.items() if earlier.get(name) != value}
        for stack in job["stacks"]:
            if stack["file"] in files and other:
                changed[stack["file"]] = other
            elif stack["file"] in files:
                stacks.append(stack)
    if of_all := changed.keys() - {stack["file"] for stack in stacks}:
        names = set().union(*(changed[file] for file in of_all))
        logger.info(
            "results of an earlier job are made anew, as %s changed", ", ".join(sorted(names))
        )
    return stacks


def _is_still_right(record: StackRecord, paths: StackPaths, time_limit: float | None) -> bool:
    """Whether recording and result are, byte by byte, those that the record tells of."""
    was_shortened = bool(record.shortened) and record.time_limit != time_limit
    if record.status == "failed" or was_shortened or record.result != str(paths.target):
        return False
    try:
        return (
            record.input_sha256 == file_sum(paths.source)
            and record.result_sha256 == file_sum(paths.target)
        )  # fmt: skip
    except OSError:
        return False


def finished_before(
    folder: Path,
    stacks: Sequence[StackPaths],
    settings: Mapping[str, Any],
    time_limit: float | None,
) -> dict[Path, StackRecord]:
    """Records, by source, of the stacks whose results an earlier job left whole in `folder`.

    Only those made of the same bytes with the same settings. What a time limit had shortened counts
    under the same limit alone.
    """
    known = {field.name for field in fields(StackRecord)}
    of_source = {str(paths.source): paths for paths in stacks}
    found: dict[Path, StackRecord] = {}
    for entry in _earlier_stacks(folder, of_source.keys(), settings):
        record = StackRecord(**{key: entry[key] for key in known & entry.keys()})
        paths = of_source[record.file]
        if paths.source not in found and _is_still_right(record, paths, time_limit):
            found[paths.source] = record
    return {paths.source: found[paths.source] for paths in stacks if paths.source in found}
