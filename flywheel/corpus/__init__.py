"""The corpus: a growing, versioned, append-only store of episodes that several processes may write to at once.

    corpus/
        format.json           {"format": 1, "id": uuid}
        segments/<ulid>/      immutable Zarr v3 groups, some episodes each                  (corpus.segment)
        log/0000/00000042.json   one entry a version: what was added, what was removed     (corpus.log)
        tags/<name>.json      names of versions, and of views of them (corpus.views), create-only
        checkpoints/ cache/   derived, may be deleted

Nothing is ever changed in place: removing a bad batch is a new version, older versions still show it. What checks it,
makes it small again and frees what is given up is in corpus.maintenance.
"""

from __future__ import annotations

import functools
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import store
from flywheel.corpus import media, views
from flywheel.corpus import segment as segments
from flywheel.corpus.files import Files
from flywheel.corpus.objects import Objects
from flywheel.corpus.reader import Reader
from flywheel.corpus.rows import RESIDENT
from flywheel.corpus.segment import CorpusError
from flywheel.corpus.version import Version
from flywheel.corpus.windows import Windows
from flywheel.episode import Episode

__all__ = ["Appended", "Corpus", "CorpusError", "Version", "Windows"]

FORMAT = 1
SEGMENT_BYTES = (
    64 * 2**20
)  # an append writes a segment whenever one schema has gathered this much: memory stays bounded
TAG = re.compile(r"[a-z][a-z0-9._-]*")
NOT_TAGS = ("latest", "null", "true", "false")


@dataclass(frozen=True)
class Appended:
    """What an append did. `version` is the new version, or the head where nothing was new."""

    version: int
    added: list[str]
    duplicates: list[str]
    refused: list[tuple[str, str]]


class Corpus:
    """A corpus in a folder, or at an s3://, gs:// or az:// URL (corpus.objects). Cheap to open; reads the log when
    first asked and then only what is new in it."""

    def __init__(self, path: str | Path, create: bool = False):
        self.files = files_at(path)
        self.path = self.files.root
        if create and not self.files.exists("format.json"):
            for name in ("segments/x", "log/x", "tags/x"):
                self.files.folder(name)
            self.files.create("format.json", store.to_json({"format": FORMAT, "id": str(uuid.uuid4())}))
        try:
            header = json.loads(self.files.read("format.json"))
        except FileNotFoundError:
            raise CorpusError(
                f"{self.path}: there is no corpus here (no format.json). `flywheel ingest` makes one; is store= right?"
            ) from None
        if header["format"] != FORMAT:
            raise CorpusError(f"{self.path}: corpus format {header['format']}, this flywheel reads {FORMAT}; update it")
        self.id: str = header["id"]
        self.reader = Reader(self.files, self.id)
        self.history = self.reader.history

    def __repr__(self) -> str:
        return f"<Corpus {self.path} at version {self.head}>"

    @property
    def head(self) -> int:
        """The newest version; 0 for an empty corpus."""
        return self.history.refresh()

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(
        self,
        episodes: Iterable[Episode],
        *,
        message: str = "",
        author: str = "",
        time: str | None = None,
        restore: bool = False,
    ) -> Appended:
        """Add episodes as one new version; all of them or none.

        An episode that is alive already is a duplicate and adds nothing; one that was tombstoned is refused with the
        tombstone's message unless `restore`. Episodes of different schema go to different segments of the version.
        EpisodeError for one that breaks the record's rules: then nothing is added.
        """
        log = self.history
        looked = log.refresh()
        waiting: dict[str, list[Episode]] = defaultdict(list)
        size: dict[str, int] = defaultdict(int)
        parts: list[dict[str, Any]] = []
        mine: dict[str, None] = {}
        duplicates: list[str] = []
        refused: list[tuple[str, str]] = []

        def flush(key: str) -> None:
            batch = waiting.pop(key)
            size.pop(key)
            with self.writing("append"):
                parts.append(segments.write(self.files, batch))

        for number, episode in enumerate(episodes):
            episode = segments.prepare(episode, f"{episode.meta.get('demo', f'episode {number}')}")
            why = None if episode.hash in mine else self._refusal(episode.hash, restore)
            if episode.hash in mine or why == "":
                duplicates.append(episode.hash)
            elif why:
                refused.append((episode.hash, why))
            else:
                mine[episode.hash] = None
                key = repr(segments.schema(episode))
                waiting[key].append(episode)
                size[key] += media.weight(episode)
                if size[key] >= SEGMENT_BYTES:
                    flush(key)
        for key in list(waiting):
            flush(key)

        look_again = functools.partial(self._look_again, parts, mine, duplicates, refused, restore)
        said = {"message": message, "author": author, "time": time}

        def entry() -> dict[str, Any] | None:
            self.not_freed(parts)
            if self.history.head != looked:
                look_again()
            add = [part for part in parts if any(part["hashes"])]
            return new_entry("append", add=add, **said) if add else None

        with self.writing("append"):
            version = log.commit(entry)
        return Appended(version, list(mine), duplicates, refused)

    def _look_again(self, parts, mine, duplicates, refused, restore: bool) -> None:
        """Leave out what another writer was first with meanwhile, or has removed."""
        for part in parts:
            for index, found in enumerate(part["hashes"]):
                why = None if found is None else self._refusal(found, restore)
                if why is None:
                    continue
                if why:
                    refused.append((found, why))
                else:
                    duplicates.append(found)
                part["hashes"][index] = None
                del mine[found]

    def tombstone(self, hashes: Sequence[str], message: str, *, author: str = "", time: str | None = None) -> int:
        """Remove episodes in a new version (older ones still have them); the version.

        `hashes` may be unique prefixes of at least 6 digits. CorpusError where one matches no living one, or several.
        """
        if not message.strip():
            raise CorpusError("tombstone: message is empty; say why, the next who appends this episode will read it")
        if isinstance(hashes, str):
            hashes = [hashes]

        def entry() -> dict[str, Any]:
            found = {self._alive(prefix): None for prefix in hashes}
            if not found:
                raise CorpusError("tombstone: no episode was named")
            return new_entry("tombstone", remove=list(found), message=message, author=author, time=time)

        with self.writing("tombstone"):
            return self.history.commit(entry)

    def flag(self, hashes: Sequence[str], why: str | None, *, author: str = "", time: str | None = None) -> int:
        """Flag episodes in a new version, with the reason, or with None unflag them; the version.

        They stay, and are left out of training and of new views from this version on; older versions are as they were.
        `hashes` as in `tombstone`. CorpusError where one matches no living episode, or several, or the reason is empty.
        """
        if why is not None and not why.strip():
            raise CorpusError("flag: why is empty; say what is wrong, the next who looks at this episode will read it")
        hashes = [hashes] if isinstance(hashes, str) else hashes

        def entry() -> dict[str, Any] | None:
            found, there = [self._alive(prefix) for prefix in hashes], self.history.state.flagged(self.history.head)
            new = [one for one in found if why is not None or one in there]
            message = f"flag: {why}" if why is not None else "unflag"
            made = new_entry("flag", message=message, author=author, time=time)
            return made | {"flags": dict.fromkeys(new, why)} if new else None

        with self.writing("flag"):
            return self.history.commit(entry)

    def tag(self, name: str, ref: int | str = "latest", view: dict[str, Any] | None = None) -> int:
        """Name a version for good; the version. The same name for the same version again is no error.

        `view` is what corpus.views keeps of a selection; the name of a view named anew stands for the same episodes.
        """
        if not TAG.fullmatch(name) or name in NOT_TAGS:
            raise CorpusError(
                f"tag {name!r}: expected lower-case letters, digits, '.', '_' or '-', starting with a letter, and not "
                f"{', '.join(NOT_TAGS)}"
            )
        version = self._number(ref)
        view = view or self._entry(str(ref)).get("view")
        named = {"version": version} | ({"view": view} if view else {})
        self.history.refresh()
        expired = self.history.state.expired()
        if expired and not self.files.exists(_tag(name)):
            gone = expired.keys() & set(self.at(version).segments())
            if gone:
                first = min(expired[segment] for segment in gone)
                raise CorpusError(f"tag {name!r}: version {version} was expired in version {first}; tag a newer one")
        with self.writing("tag"):
            new = self.files.create(_tag(name), store.to_json(named))
            if not new:  # of a writer that was stopped between link and fsync, perhaps
                self.files.settle(_tag(name))
        if not new:
            taken = self._entry(name)
            if taken != named:
                what = f"a view of version {taken['version']}" if "view" in taken else f"version {taken['version']}"
                raise CorpusError(f"tag {name!r} is {what} already and tags never move; choose another name")
        return version

    # -- reading ------------------------------------------------------------------------------------------------------

    def at(self, ref: int | str) -> Version:
        """The version with a number ("42" or 42), a tag, or "latest"; the episodes of a view by its name. CorpusError
        lists what there is."""
        number = self._number(ref)
        version = Version(self, number, self.history.state.alive(number))
        view = self._entry(str(ref)).get("view")
        return views.apply(version, str(ref), view) if view else version

    def refused(self, hashes: Sequence[str]) -> set[str]:
        """Those of these episodes that an append would refuse: they were tombstoned."""
        self.history.refresh()
        return {one for one in hashes if self._refusal(one, False)}

    def holding(self, hashes: Sequence[str]) -> Version:
        """The episodes with these hashes, in this order, also where they were removed since; CorpusError for one
        that was never there."""
        head = self.history.refresh()
        rows = self.history.state.newest(list(hashes))
        if len(rows) and rows.min() < 0:
            raise CorpusError(
                f"{self.path}: no version has episode {hashes[int(rows.argmin())][:12]}; is it another copy of the "
                "corpus?"
            )
        return Version(self, head, rows)

    def tags(self) -> dict[str, int]:
        """{tag: version}."""
        found = [name[5:-5] for name in self.files.names("tags") if re.fullmatch(r"tags/[a-z][^/]*\.json", name)]
        return {name: self._tagged(name) for name in found}

    def log(self, last: int | None = None, progress: Callable[[str, int], Any] | None = None) -> list[dict[str, Any]]:
        """A dict a version, newest last: version op time author message added removed live steps tags hash.

        `last` of them, or all: each is one small file. `progress` is flywheel.log.progress or the like.
        """
        head = self.history.refresh()
        tags = defaultdict(list)
        for name, version in self.tags().items():
            tags[version].append(name)
        lines, live = [], self.history.state.living_count
        wanted = range(head, max(0, head - last) if last is not None else 0, -1)
        with progress("log", len(wanted)) if progress else nullcontext(lambda: None) as tick:
            for version in wanted:
                entry = self.history.entry(version)
                parts, gone = ([], []) if entry["op"] == "compact" else (entry["add"], entry["remove"])
                added = sum(found is not None for part in parts for found in part["hashes"])
                line = {key: entry[key] for key in ("version", "op", "time", "author", "message", "hash")}
                line |= {"added": added, "removed": len(gone), "live": live, "tags": tags[version]}
                lines.append(line | {"steps": sum(part["steps"] for part in parts)})
                live += len(gone) - added
                tick()
        return lines[::-1]

    def diff(self, a: int | str | Version, b: int | str | Version) -> dict[str, Any]:
        """What b has and a has not, and the other way round.

        {"added": [hash], "removed": [hash], "counts": {"added": summary, "removed": summary}} (see Version.summary).
        """
        a, b = (ref if isinstance(ref, Version) else self.at(ref) for ref in (a, b))
        sides = {}
        for name, one, other in (("added", b, a), ("removed", a, b)):
            there = set(other.hashes)
            sides[name] = one.select(np.asarray([found not in there for found in one.hashes], bool))
        counts = {name: side.summary() for name, side in sides.items()}
        return {name: side.hashes for name, side in sides.items()} | {"counts": counts}

    def windows(
        self,
        version: Version,
        fields: Sequence[str] = ("obs.state", "action", "reward"),
        *,
        cache: str | Path,
        align: Any = None,
        progress: Callable[[str, int], Any] | None = None,
        resident: int = RESIDENT,
        map: Callable | None = None,
        apart: bool = False,
    ) -> Windows:
        """The memory-mapped rows of `version` (or a selection) for training, or the frames of one camera, decoded:
        see corpus.windows, and corpus.align for `align`. A camera takes rows * H * W * 3 bytes below `cache`, which
        may be deleted. Of the rows `resident` bytes stay in memory at most. `map(function, tasks)` (an executor's)
        has others decode, who see the same files; `apart`: they need not see the cache."""
        if version.corpus.id != self.id:
            raise CorpusError(f"windows: version {version.number} is of {version.corpus.path}, this is {self.path}")
        return Windows(version, tuple(fields), Path(cache), resident, align, progress, map=map, apart=apart)

    def orphans(self) -> dict[str, tuple[int, float]]:
        """{name: (bytes, when written)} of folders in segments/ that no version names: of a writer that was killed,
        or of one that is at work now."""
        found = self.files.children("segments")
        self.history.refresh()
        used = set(self.history.state.segments())
        return {name: weight for name, weight in sorted(found.items()) if name not in used}

    # -- for Version, Windows and maintenance
    # --------------------------------------------------------------------------------------

    def not_freed(self, parts: list[dict[str, Any]]) -> None:
        """CorpusError where one of the new segments of a version to be made is no longer there."""
        for part in parts:
            if not self.files.exists(f"segments/{part['segment']}/episodes.json"):
                raise CorpusError(
                    f"{self.path}: gc freed the new segment {part['segment']} before its version was made (its grace "
                    "is shorter than this took); nothing was added, do it again"
                )

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Storage that is full, read-only or broken, as a CorpusError that says what became of the corpus."""
        try:
            yield
        except OSError as error:
            raise CorpusError(
                f"{self.path}: {what} failed, the storage says: {error}. Every version is as it was. Make room or make "
                f"it writable and {what} again; if the failed one was recorded at the last moment, that adds nothing "
                "twice"
            ) from error

    def _refusal(self, hash_: str, restore: bool) -> str | None:
        """None where an episode may be added; "" where it is there already, else the message of its tombstone."""
        state = self.history.state
        row = int(state.newest([hash_])[0])
        removed = state.removed(row) if row >= 0 else None
        if removed is None:
            return None if row < 0 else ""
        return None if restore else self.history.entry(removed[0])["message"]

    def _alive(self, prefix: str) -> str:
        if len(prefix) < 6 or not set(prefix) <= set("0123456789abcdef"):
            raise CorpusError(f"episode {prefix!r}: at least 6 digits of its hash, please")
        state = self.history.state
        rows = state.starting(prefix)
        found = [one for one, row in rows.items() if state.removed(row) is None]
        if len(found) == 1:
            return found[0]
        if found:
            raise CorpusError(f"episode {prefix!r} is one of {len(found)}: {', '.join(n[:16] for n in found[:5])}")
        gone = [state.removed(row)[0] for row in rows.values()]
        message = self.history.entry(gone[0])["message"] if gone else ""
        why = f"was removed in version {gone[0]} ({message!r})" if gone else "is in no version"
        raise CorpusError(
            f"episode {prefix!r} {why}; `flywheel corpus show episodes=true` lists the {state.living_count} episodes "
            "at head"
        )

    def _tagged(self, name: str) -> int:
        return self._entry(name)["version"]

    def _entry(self, ref: str) -> dict[str, Any]:
        """What a tag says, nothing where `ref` is none."""
        tagged = TAG.fullmatch(ref) and ref not in NOT_TAGS and self.files.exists(_tag(ref))
        return json.loads(self.files.read(_tag(ref))) if tagged else {}

    def _number(self, ref: int | str) -> int:
        log, text = self.history, str(ref)
        if text.isdecimal():
            number = int(text)
            if number <= log.head or number <= log.refresh():
                return number
        elif text == "latest":
            return log.refresh()
        elif TAG.fullmatch(text) and self.files.exists(_tag(text)):
            log.refresh()
            return self._tagged(text)
        head = log.refresh()
        versions = f"versions 1 to {head}" if head else "no version yet"
        tags = ", ".join(f"{name} ({number})" for name, number in self.tags().items()) or "none"
        raise CorpusError(f"{self.path}: no version {text!r}. There are: {versions}; latest; tags: {tags}")


def files_at(path: str | Path) -> Files | Objects:
    """The files of a corpus in a folder or at a URL."""
    return Objects(str(path)) if "://" in str(path) else Files(Path(path))


def _tag(name: str) -> str:
    return f"tags/{name}.json"


def new_entry(
    op: str, *, message: str, author: str, time: str | None, add: list = (), remove: list = ()
) -> dict[str, Any]:
    stamp = store.now() if time is None else time
    return {"op": op, "add": list(add), "remove": list(remove), "time": stamp, "author": author, "message": message}
