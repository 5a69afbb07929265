"""Append-only logs as numbered files, each chained to the one before by its hash: names and the ledger of seeds are
kept so.

    <folder>/00000007.json   {..., "time", "hash"}   hash = sha256(hash of 00000006 + the rest of this entry)

An entry is created whole or not at all (a link, or a conditional put on an object store: runs.mirror), so of two
writers one takes the number, the other looks again.
Entries written before there were hashes are read as they are; the chain begins where hashes do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel import store
from flywheel.runs.mirror import Folder

Entry = dict[str, Any]


class ChainError(ValueError):
    """An entry that is not what was written; the message names its file."""


def entries(folder: Path) -> list[Entry]:
    """Read the entries, oldest first, and check each against its hash. ChainError names the first file that differs."""
    found: list[Entry] = []
    while (path := folder / f"{len(found) + 1:08d}.json").exists():
        entry = store.read_json(path)
        before = found[-1].get("hash", "") if found else ""
        told = entry.get("hash") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or (told is None and before) or (told and told != link(before, entry)):
            raise ChainError(
                f"{path}: this entry is not the one that was written: its hash does not follow from the entry before. "
                "Bring the file back from a copy of the store; `flywheel fsck` lists all that differs"
            )
        found.append(entry)
    later = [p.name for p in folder.glob("[0-9]*.json") if p.stem.isdecimal() and int(p.stem) > len(found) + 1]
    if later and not path.exists():  # else somebody appends as we look
        raise ChainError(
            f"{path}: this entry is gone, and later ones are there ({min(later)}). Bring the file back from a copy of "
            "the store"
        )
    return found


def link(before: str, entry: Entry) -> str:
    """The hash of an entry after one with the hash `before`."""
    rest = {key: value for key, value in entry.items() if key != "hash"}
    return hashlib.sha256(before.encode() + store.to_json(rest)).hexdigest()


def append(folder: Path, make: Callable[[list[Entry]], Entry], mirror: Folder) -> Entry:
    """Add the entry that `make` returns for the log as it is; nothing where it returns one that is there already."""
    store.make_dirs(folder)
    while True:
        mirror.refresh(folder)
        log = entries(folder)
        entry = make(log)
        if entry in log:
            return entry
        entry = {"time": store.now(), **entry}
        entry["hash"] = link(log[-1].get("hash", "") if log else "", entry)
        if mirror.create(folder / f"{len(log) + 1:08d}.json", store.to_json(entry)):
            return entry
