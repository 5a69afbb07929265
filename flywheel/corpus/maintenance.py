"""Keeping a corpus for years: is every byte what was written?

fsck(corpus)      compares the files with the log, from the disk and not from memory; changes nothing
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.corpus import log as logs
from flywheel.corpus.segment import Segment

if TYPE_CHECKING:
    from flywheel.corpus import Corpus

COPY = "restore it from a copy of the corpus"
AGAIN = f"{COPY}, or tombstone the segment's episodes and ingest them again with restore=true"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written. `where` is relative to the corpus; str() is the line for people."""

    where: str
    found: str
    expected: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; expected {self.expected}. To do: {self.advice}"


def fsck(corpus: Corpus, progress: Callable[[str, int], Any] | None = None) -> list[Finding]:
    """Everything in the corpus that is not what was written; [] where all is well.

    The log (numbers, chain of hashes, what each entry does to the one before), every file of every segment that any
    version names, each episode's content hash, and the tags. Caches are derived and orphans are no damage: neither is
    looked at. `progress` is flywheel.log.progress or the like; all is read once, a segment at a time.
    """
    findings: list[Finding] = []

    def say(where: Path, found: str, expected: str, advice: str = COPY) -> None:
        findings.append(Finding(str(where.relative_to(corpus.path)), found, expected, advice))

    entries = _check_log(corpus, say)
    parts = [(entry["version"], part) for entry in entries for part in entry["add"]]
    with progress("fsck", len(parts)) if progress else nullcontext(lambda: None) as tick:
        for version, part in parts:
            _check_segment(corpus.path / "segments" / part["segment"], version, part, say)
            tick()
    _check_tags(corpus, max((entry["version"] for entry in entries), default=0), say)
    return findings


def _check_log(corpus: Corpus, say: Callable[..., None]) -> list[dict[str, Any]]:
    """The entries that are whole. One that is damaged or missing is named and those behind it are still read."""
    numbers = set()
    for path in sorted((corpus.path / "log").glob("*/[!.]*")):
        number = int(path.stem) if path.stem.isdecimal() else 0
        if number and path == corpus.history.path(number):
            numbers.add(number)
        else:
            say(path, "a file that is no entry of this log", "only <version>.json here", "move it out of log/")
    entries, live = [], set()
    tip: str | None = corpus.id
    whole = True  # every entry so far could be read, so `live` is known
    for number in range(1, max(numbers, default=0) + 1):
        path = corpus.history.path(number)
        if number not in numbers:
            say(path, "no such file", f"the entry of version {number}: there are later ones")
            tip, whole = None, False
            continue
        try:
            entry, digest = logs.parse(path.read_bytes())
        except (OSError, ValueError) as error:
            say(path, str(error), f"the bytes of version {number} as they were committed")
            tip, whole = None, False
            continue
        if entry["version"] != number:
            say(path, f"the entry of version {entry['version']}", f"that of version {number}")
        elif tip is not None and entry["parent"] != tip:
            advice = f"restore this file, or {corpus.history.path(number - 1).name}, from a copy of the corpus"
            say(path, f"parent {entry['parent'][:12]}", f"{tip[:12]}, the hash of version {number - 1}", advice)
        tip = digest
        entries.append(entry)
        added = [found for part in entry["add"] for found in part["hashes"] if found is not None]
        if whole:
            strange = [found for found in entry["remove"] if found not in live]
            live -= set(entry["remove"])
            strange += [found for found in added if found in live]
        live |= set(added)
        if whole and strange:
            say(path, f"{len(strange)} episodes such as {strange[0][:12]} that it cannot {entry['op']}", "others")
    return entries


def _check_segment(folder: Path, version: int, part: dict[str, Any], say: Callable[..., None]) -> None:
    """One segment against the log entry that added it."""
    if not folder.is_dir():
        say(folder, "no such folder", f"the segment that version {version} added", AGAIN)
        return
    if not _same(folder / "episodes.json", part["sha256"], say):
        return
    segment = Segment(folder, part["sha256"])
    hashes = segment.columns["hash"]
    if len(hashes) != len(part["hashes"]) or int(segment.lengths.sum()) != part["steps"]:
        found = f"{len(hashes)} episodes of {segment.lengths.sum()} steps"
        say(folder, found, f"{len(part['hashes'])} of {part['steps']}, as in the log of version {version}", AGAIN)
        return
    if not all([_same(folder / name, sha256, say) for name, sha256 in segment.files.items()]):
        return
    arrays = segment.everything()
    for index, (inside, logged) in enumerate(zip(hashes, part["hashes"], strict=True)):
        content = segment.episode(arrays, index).hash
        if content != inside or logged not in (None, inside):
            say(
                folder,
                f"episode {index} with content hash {content[:12]}",
                f"{(logged or inside)[:12]}, as in the log of version {version}",
                AGAIN,
            )


def _same(path: Path, sha256: str, say: Callable[..., None]) -> bool:
    """Does a file have this sha256? If not, say so."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        say(path, "no such file", f"a file with sha256 {sha256[:12]}", AGAIN)
        return False
    except OSError as error:
        say(path, f"it cannot be read ({error})", f"a file with sha256 {sha256[:12]}", AGAIN)
        return False
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        say(path, f"{len(data)} bytes with sha256 {found[:12]}", f"sha256 {sha256[:12]}", AGAIN)
    return found == sha256


def _check_tags(corpus: Corpus, head: int, say: Callable[..., None]) -> None:
    advice = "restore it from a copy of the corpus, or delete the file and tag again"
    for path in sorted((corpus.path / "tags").glob("[!.]*")):
        try:
            version = json.loads(path.read_bytes())["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(path, f"no tag ({error!r})", '{"version": N}', advice)
            continue
        if type(version) is not int or not 0 <= version <= head:
            say(path, f"version {version!r}", f"a version from 0 to {head}, the newest in the log", advice)
