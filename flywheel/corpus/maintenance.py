"""Keeping a corpus for years: is every byte what was written, and what can go?

fsck(corpus)      compares the files with the log, from the disk and not from memory; changes nothing
compact(corpus)   a new version with the same episodes in few large segments instead of many small ones
expire(corpus)    a new version that gives up segments which only old versions show; deletes nothing
gc(corpus)        deletes those, and what killed writers left behind
"""

from __future__ import annotations

import hashlib
import json
import time as clock
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.corpus import SEGMENT_BYTES, new_entry, pages
from flywheel.corpus import log as logs
from flywheel.corpus import segment as segments
from flywheel.corpus.files import Files
from flywheel.corpus.segment import CorpusError, Segment

if TYPE_CHECKING:
    from flywheel.corpus import Corpus

COPY = "restore it from a copy of the corpus"
GRACE = 24 * 3600.0  # seconds that a writer may take from its segment to its version
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
    version names (if not expired), each episode's content hash, the tags, and every page of the checkpoints. Caches are
    derived and orphans are no damage: neither is looked at. Whether the newest entries were lost no later entry can
    tell, only a tag of them. `progress` is flywheel.log.progress or the like. Memory is bounded by the largest segment.
    """
    findings: list[Finding] = []

    def say(where: str, found: str, expected: str, advice: str = COPY) -> None:
        findings.append(Finding(where, found, expected, advice))

    entries = _check_log(corpus, say)
    expired = {name for entry in entries for name in entry.get("expired", ())}
    parts = [(entry["version"], part) for entry in entries for part in entry["add"]]
    there = corpus.files.children("segments")
    parts = [pair for pair in parts if pair[1]["segment"] not in expired or pair[1]["segment"] in there]
    with progress("fsck", len(parts)) if progress else nullcontext(lambda: None) as tick:
        for version, part in parts:
            if part["segment"] in there:
                _check_segment(corpus.files, version, part, say)
            else:
                say(f"segments/{part['segment']}", "no such folder", f"the segment that version {version} added", AGAIN)
            tick()
    _check_tags(corpus, max((entry["version"] for entry in entries), default=0), say)
    _check_checkpoints(corpus, entries, say)
    return findings


def _check_log(corpus: Corpus, say: Callable[..., None]) -> list[dict[str, Any]]:
    """The entries that are whole. One that is damaged or missing is named and those behind it are still read."""
    numbers = set()
    for name in corpus.files.names("log"):
        stem = name.rpartition("/")[2].removesuffix(".json")
        if stem.isdecimal() and int(stem) and name == corpus.history.name(int(stem)):
            numbers.add(int(stem))
        else:
            say(name, "a file that is no entry of this log", "only <version>.json here", "move it out of log/")
    entries, live = [], set()
    tip: str | None = corpus.id
    whole = True  # every entry so far could be read, so `live` is known
    for number in range(1, max(numbers, default=0) + 1):
        path = corpus.history.name(number)
        if number not in numbers:
            say(path, "no such file", f"the entry of version {number}: there are later ones")
            tip, whole = None, False
            continue
        try:
            entry, digest = logs.parse(corpus.files.read(path))
        except (OSError, ValueError) as error:
            say(path, str(error), f"the bytes of version {number} as they were committed")
            tip, whole = None, False
            continue
        if entry["version"] != number:
            say(path, f"the entry of version {entry['version']}", f"that of version {number}")
        elif tip is not None and entry["parent"] != tip:
            advice = f"restore this file, or {corpus.history.name(number - 1)}, from a copy of the corpus"
            say(path, f"parent {entry['parent'][:12]}", f"{tip[:12]}, the hash of version {number - 1}", advice)
        tip = digest
        entries.append(entry)
        added = [found for part in entry["add"] for found in part["hashes"] if found is not None]
        if whole:
            strange = [found for found in entry["remove"] if found not in live]
            live -= set(entry["remove"])
            strange += [found for found in added if found in live]
            if entry["op"] == "compact":
                strange += sorted({*added} ^ {*entry["remove"]})
        live |= set(added)
        if whole and strange:
            say(path, f"{len(strange)} episodes such as {strange[0][:12]} that it cannot {entry['op']}", "others")
    return entries


def _check_segment(files: Files, version: int, part: dict[str, Any], say: Callable[..., None]) -> None:
    """One segment against the log entry that added it."""
    folder = f"segments/{part['segment']}"
    if not _same(files, f"{folder}/episodes.json", part["sha256"], say):
        return
    segment = Segment(files, part["segment"], part["sha256"])
    hashes = segment.columns["hash"]
    if len(hashes) != len(part["hashes"]) or int(segment.lengths.sum()) != part["steps"]:
        found = f"{len(hashes)} episodes of {segment.lengths.sum()} steps"
        say(folder, found, f"{len(part['hashes'])} of {part['steps']}, as in the log of version {version}", AGAIN)
        return
    if not all([_same(files, f"{folder}/{name}", sha256, say) for name, sha256 in segment.files.items()]):
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


def _same(files: Files, path: str, sha256: str, say: Callable[..., None]) -> bool:
    """Does a file have this sha256? If not, say so."""
    try:
        data = files.read(path)
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
    for path in corpus.files.names("tags"):
        try:
            tag = json.loads(corpus.files.read(path))
            version = tag["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(path, f"no tag ({error!r})", '{"version": N}', advice)
            continue
        if type(version) is not int or not 0 <= version <= head:
            say(path, f"version {version!r}", f"a version from 0 to {head}, the newest in the log", advice)
        elif "view" in tag:
            try:
                corpus.at(path.removeprefix("tags/").removesuffix(".json"))
            except CorpusError as error:
                say(path, str(error), f"a view that fits version {version}", advice)


def _check_checkpoints(corpus: Corpus, entries: list[dict[str, Any]], say: Callable[..., None]) -> None:
    """Every page of every checkpoint, and that each ends where the log does."""
    tips = {entry["version"]: entry["hash"] for entry in entries}
    advice = "delete it, it is a copy of the log and will be made again"
    for path in corpus.files.names("checkpoints"):
        try:
            columns, about = pages.decode(corpus.files.read(path), path, _wrong)
            for column in columns.load().values():
                column.all()
        except (OSError, ValueError, KeyError) as error:
            say(path, str(error), "the pages that its name promises", advice)
            continue
        if tips.get(about["last"]) != about["tip"]:
            say(path, f"the log up to version {about['last']} as {about['tip'][:12]}", "this log", advice)


def _wrong() -> None:
    raise ValueError("a page with another checksum")


@dataclass(frozen=True)
class Compacted:
    """What a compact did. `version` is the new version, or the head where there was nothing to merge."""

    version: int
    merged: int
    segments: list[str]
    episodes: int


def _small(corpus: Corpus, small: int) -> list[tuple[list[int], list[int]]]:
    """The parts, and their living rows, of each segment that `compact` is to write."""
    log = corpus.history
    alive = corpus.at("latest").rows
    sources, first = np.unique(log.state.parts(alive), return_index=True)
    bins: dict[str, list[tuple[list[int], list[int]]]] = {}  # schema -> the parts and rows of one new segment each
    room: dict[str, int] = {}
    for source, begin, end in zip(sources.tolist(), first, [*first[1:], len(alive)], strict=False):
        mine = alive[begin:end]
        segment = corpus.reader.segment(source)
        size = sum(int(np.prod(row)) * np.dtype(dtype).itemsize for dtype, row, _ in segment.schema["rows"].values())
        living = int((segment.lengths[log.state.take("local", mine)] + 1).sum())
        pictures = sum(n for files in segment.media.values() for path, n in files if not path.endswith(".mp4"))
        size = living * size + pictures * living // int(segment.first[-1])  # a video counts nothing (see media.weight)
        if size < small:
            key = json.dumps(segment.schema)
            if size > room.get(key, -1):
                bins.setdefault(key, []).append(([], []))
                room[key] = SEGMENT_BYTES
            bins[key][-1][0].append(source)
            bins[key][-1][1].extend(mine.tolist())
            room[key] -= size
    return [one for several in bins.values() for one in several if len(one[0]) > 1]


def compact(
    corpus: Corpus,
    small: int = SEGMENT_BYTES // 2,
    *,
    message: str = "",
    author: str = "",
    time: str | None = None,
    progress: Callable[[str, int], Any] | None = None,
) -> Compacted:
    """Merge segments with less than `small` bytes of living episodes, those of one schema into one, as a new version.

    The version has the same episodes and the same id; older versions still read the old segments (until expired).
    Others may write meanwhile: what they removed stays removed, what they added is not touched. CorpusError where an
    old segment cannot be read: then nothing is changed.
    """
    log, chosen = corpus.history, _small(corpus, small)
    parts: list[dict[str, Any]] = []
    with progress("compact", sum(len(mine) for _, mine in chosen)) if progress else nullcontext(lambda: None) as tick:
        for _, mine in chosen:
            batch = []
            for row, expected in zip(mine, log.state.hashes(np.asarray(mine)), strict=True):
                batch.append(corpus.reader.episode(row))
                if batch[-1].hash != expected:
                    (name,) = log.state.segments(log.state.parts(np.asarray([row])))
                    raise CorpusError(
                        f"{corpus.path}/segments/{name}: episode {expected[:12]} has other content; run fsck"
                    )
                tick()
            with corpus.writing("compact"):
                parts.append(segments.write(corpus.files, batch))
    said = {"message": message, "author": author, "time": time}

    def entry() -> dict[str, Any] | None:
        corpus.not_freed(parts)
        for part, (_, mine) in zip(parts, chosen, strict=True):
            there = [index for index, found in enumerate(part["hashes"]) if found is not None]
            now = log.state.living([part["hashes"][index] for index in there])
            for index, row in zip(there, now.tolist(), strict=True):
                if row != mine[index]:  # somebody has removed or moved it meanwhile
                    part["hashes"][index] = None
        add = [part for part in parts if any(part["hashes"])]
        remove = [found for part in add for found in part["hashes"] if found is not None]
        if not add:
            return None
        return new_entry("compact", add=add, remove=remove, **said)

    with corpus.writing("compact"):
        version = log.commit(entry)
    made = [part for part in parts if any(part["hashes"])]
    episodes = sum(found is not None for part in made for found in part["hashes"])
    merged = sum(len(names) for (names, _), part in zip(chosen, parts, strict=True) if any(part["hashes"]))
    return Compacted(version, merged, [part["segment"] for part in made], episodes)


def expire(
    corpus: Corpus, keep: int, *, message: str = "", author: str = "", time: str | None = None
) -> tuple[int, list[str]]:
    """Give up the segments that neither the newest `keep` versions nor a tagged one shows; (version, segments).

    This only says so, in a new version with the same episodes: gc deletes, after its grace. A version that is not kept
    stays in the log, and its episodes read as far as kept versions show them too. There is no way back: tag first.
    """
    if keep < 1:
        raise CorpusError(f"expire: keep is {keep}; expected the number of newest versions to keep, at least 1")
    log = corpus.history
    given: list[str] = []

    said = {"message": message, "author": author, "time": time}

    def entry() -> dict[str, Any] | None:
        given[:] = sorted(set(log.state.segments()) - log.state.expired().keys() - _shown(corpus, keep))
        if not given:
            return None
        return new_entry("expire", **said) | {"expired": given, "kept": keep}

    with corpus.writing("expire"):
        return log.commit(entry), given


@dataclass(frozen=True)
class Garbage:
    """A folder or file that nothing needs, relative to the corpus: `why` is "expired", "orphan" or "aside"."""

    name: str
    bytes: int
    why: str


def gc(
    corpus: Corpus,
    grace: float = GRACE,
    dry_run: bool = True,
    now: float | None = None,
    progress: Callable[[str, int], Any] | None = None,
) -> list[Garbage]:
    """What can go, and with dry_run=False is gone: expired segments, and what killed writers left behind.

    Only what is older than `grace` seconds: a writer at work has segments that no version names yet. What a tag or the
    newest version shows always stays. May be killed and run again at any moment.
    """
    files, limit = corpus.files, (clock.time() if now is None else now) - grace
    with nullcontext() if dry_run else files.lock(f"gc of {corpus.path}"), corpus.writing("gc"):
        orphans = corpus.orphans()
        found = [(f"segments/{name}", *weight, "orphan") for name, weight in orphans.items()]
        there, shown = files.children("segments"), _shown(corpus, 1)
        for name, version in corpus.history.state.expired().items():
            if name not in shown and name in there:
                when = files.age(corpus.history.name(version))
                found.append((f"segments/{name}", there[name][0], when, "expired"))
        found += [(name, *weight, "aside") for name, weight in files.leftovers().items()]
        garbage = [Garbage(name, size, why) for name, size, written, why in found if written <= limit]
        if not dry_run:
            with progress("gc", len(garbage)) if progress else nullcontext(lambda: None) as tick:
                for waste in garbage:
                    files.remove(waste.name)
                    tick()
            files.settle("segments/x")
    return garbage


def _shown(corpus: Corpus, keep: int) -> set[str]:
    """The segments that the newest `keep` versions or a tagged one show."""
    state = corpus.history.state
    kept = {*range(max(0, state.head - keep + 1), state.head + 1), *corpus.tags().values()}
    kept = np.asarray(sorted(kept), np.int64)
    # row r is in the versions added[r] <= n < removed[r]
    rows = np.arange(state.end(state.head))
    removed = np.full(len(rows), state.head + 1)
    for block in state.everything():
        removed[block.columns["gone"].all()] = block.columns["gone_version"].all()
    first, end = (np.searchsorted(kept, column) for column in (state.added(rows), removed))
    return set(state.segments(np.unique(state.parts(rows[first < end]))))
