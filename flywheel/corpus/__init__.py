"""The corpus: a growing, versioned, append-only store of episodes that several processes may write to at once.

    corpus/
        format.json           {"format": 1, "id": uuid}
        segments/<ulid>/      immutable Zarr v3 groups, some episodes each                  (corpus.segment)
        log/0000/00000042.json   one entry a version: what was added, what was removed     (corpus.log)
        tags/<name>.json      names of versions, create-only
        cache/                derived, may be deleted

Nothing is ever changed in place: removing a bad batch is a new version, older versions still show it. What checks it,
makes it small again and frees what is given up is in corpus.maintenance.
"""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import store
from flywheel.corpus import segment as segments
from flywheel.corpus.log import Log
from flywheel.corpus.segment import CorpusError, Segment
from flywheel.corpus.version import Version
from flywheel.corpus.windows import Windows
from flywheel.episode import Episode

__all__ = ["Appended", "Corpus", "CorpusError", "Version", "Windows"]

FORMAT = 1
SEGMENT_BYTES = (
    64 * 2**20
)  # an append writes a segment whenever one schema has gathered this much: memory stays bounded
DECODED_BYTES = 128 * 2**20  # decoded segments kept for the next `read`
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
    """A corpus on disk. Cheap to open; reads the log when first asked and then only what is new in it."""

    def __init__(self, path: str | Path, create: bool = False):
        self.path = Path(path)
        if create and not (self.path / "format.json").exists():
            for name in ("segments", "log", "tags"):
                store.make_dirs(self.path / name)
            store.link_new(self.path / "format.json", store.to_json({"format": FORMAT, "id": str(uuid.uuid4())}))
        if not (self.path / "format.json").exists():
            raise CorpusError(
                f"{self.path}: there is no corpus here (no format.json). `flywheel ingest` makes one; is store= right?"
            )
        header = store.read_json(self.path / "format.json")
        if header["format"] != FORMAT:
            raise CorpusError(f"{self.path}: corpus format {header['format']}, this flywheel reads {FORMAT}; update it")
        self.id: str = header["id"]
        self.history = Log(self.path, self.id)
        self._segments: dict[str, Segment] = {}
        self._columns: dict[str, list] = defaultdict(list)  # a value a row; None in "hash" where not read yet
        self._decoded: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()
        self._statistics: dict[str, dict[str, np.ndarray]] = {}

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
        log.refresh()
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
                name, sha256 = segments.write(self.path / "segments", batch)
            hashes = [episode.hash for episode in batch]
            parts.append({"segment": name, "sha256": sha256, "hashes": hashes, "steps": sum(map(len, batch))})

        for number, episode in enumerate(episodes):
            episode = segments.prepare(episode, f"{episode.meta.get('demo', f'episode {number}')}")
            if episode.hash in mine or episode.hash in log.live:
                duplicates.append(episode.hash)
            elif episode.hash in log.tombstones and not restore:
                refused.append((episode.hash, log.tombstones[episode.hash][1]))
            else:
                mine[episode.hash] = None
                key = repr(segments.schema(episode))
                waiting[key].append(episode)
                size[key] += sum(value.nbytes for value in (*episode.obs.values(), *episode.extras.values()))
                if size[key] >= SEGMENT_BYTES:
                    flush(key)
        for key in list(waiting):
            flush(key)

        def entry() -> dict[str, Any] | None:
            self.not_freed(parts)
            for part in parts:  # another writer may have been first with the same episode, or have removed it
                for index, found in enumerate(part["hashes"]):
                    if found in log.live:
                        duplicates.append(found)
                    elif found in log.tombstones and not restore:
                        refused.append((found, log.tombstones[found][1]))
                    else:
                        continue
                    part["hashes"][index] = None
                    del mine[found]
            add = [part for part in parts if any(part["hashes"])]
            if not add:
                return None
            return new_entry("append", add=add, message=message, author=author, time=time)

        with self.writing("append"):
            version = log.commit(entry)
        return Appended(version, list(mine), duplicates, refused)

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

    def tag(self, name: str, ref: int | str = "latest") -> int:
        """Name a version for good; the version. The same name for the same version again is no error."""
        if not TAG.fullmatch(name) or name in NOT_TAGS:
            raise CorpusError(
                f"tag {name!r}: expected lower-case letters, digits, '.', '_' or '-', starting with a letter, and not "
                f"{', '.join(NOT_TAGS)}"
            )
        version = self._number(ref)
        self.history.refresh()
        gone = {self.history.segments[row] for row in self.at(version).rows} & self.history.expired.keys()
        if gone and not self._tag_path(name).exists():
            expired = min(self.history.expired[segment] for segment in gone)
            raise CorpusError(f"tag {name!r}: version {version} was expired in version {expired}; tag a newer one")
        with self.writing("tag"):
            store.make_dirs(self.path / "tags")
            new = store.link_new(self._tag_path(name), store.to_json({"version": version}))
            if not new:  # of a writer that was stopped between link and fsync, perhaps
                store.fsync_dir(self.path / "tags")
        if not new:
            taken = store.read_json(self._tag_path(name))["version"]
            if taken != version:
                raise CorpusError(f"tag {name!r} is version {taken} already and tags never move; choose another name")
        return version

    # -- reading ------------------------------------------------------------------------------------------------------

    def at(self, ref: int | str) -> Version:
        """The version with a number ("42" or 42), a tag, or "latest". CorpusError lists what there is."""
        number = self._number(ref)
        log = self.history
        added, removed = np.asarray(log.added, np.int64), np.asarray(log.removed, np.int64)
        return Version(self, number, np.flatnonzero((added <= number) & (number < removed)))

    def tags(self) -> dict[str, int]:
        """{tag: version}."""
        found = sorted((self.path / "tags").glob("[a-z]*.json"))
        return {path.name.removesuffix(".json"): store.read_json(path)["version"] for path in found}

    def log(self) -> list[dict[str, Any]]:
        """A dict a version, newest last: version op time author message added removed live steps tags hash."""
        self.history.refresh()
        tags = defaultdict(list)
        for name, version in self.tags().items():
            tags[version].append(name)
        lines, live = [], 0
        for entry in self.history.entries:
            parts, gone = ([], []) if entry["op"] == "compact" else (entry["add"], entry["remove"])
            added = sum(found is not None for part in parts for found in part["hashes"])
            live += added - len(gone)
            line = {key: entry[key] for key in ("version", "op", "time", "author", "message", "hash")}
            line |= {"added": added, "removed": len(gone), "live": live, "tags": tags[entry["version"]]}
            lines.append(line | {"steps": sum(part["steps"] for part in parts)})
        return lines

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
        self, version: Version, fields: Sequence[str] = ("obs.state", "action", "reward"), *, cache: str | Path
    ) -> Windows:
        """The memory-mapped rows of `version` (or a selection) for training; see corpus.windows."""
        if version.corpus.id != self.id:
            raise CorpusError(f"windows: version {version.number} is of {version.corpus.path}, this is {self.path}")
        return Windows(version, tuple(fields), Path(cache))

    def orphans(self) -> list[Path]:
        """Folders in segments/ that no version names: of a writer that was killed, or of one that is at work now."""
        found = [path for path in (self.path / "segments").iterdir()]
        self.history.refresh()
        return sorted(path for path in found if path.name not in self.history.used)

    # -- for Version, Windows and maintenance --------------------------------------------------------------------------------------

    def not_freed(self, parts: list[dict[str, Any]]) -> None:
        """CorpusError where one of the new segments of a version to be made is no longer there."""
        for part in parts:
            if not (self.path / "segments" / part["segment"]).exists():
                raise CorpusError(
                    f"{self.path}: gc freed the new segment {part['segment']} before its version was made (its grace is "
                    "shorter than this took); nothing was added, do it again"
                )

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Storage that is full, read-only or broken, as a CorpusError that says what became of the corpus."""
        try:
            yield
        except OSError as error:
            raise CorpusError(
                f"{self.path}: {what} failed, the storage says: {error}. Every version is as it was. Make room or make "
                f"it writable and {what} again; if the failed one was recorded at the last moment, that adds nothing twice"
            ) from error

    def segment(self, name: str) -> Segment:
        """An opened segment that the log names; columns are read once a process."""
        if name not in self._segments:
            if name in self.history.expired and not (self.path / "segments" / name).exists():
                raise CorpusError(
                    f"{self.path}: segment {name} is gone, no version that was kept by the expire of version "
                    f"{self.history.expired[name]} shows it; read a newer version (tags keep theirs for good)"
                )
            self._segments[name] = Segment(self.path / "segments" / name, self.history.used[name])
        return self._segments[name]

    def columns(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The table of some rows (see Version.table)."""
        log, known = self.history, self._columns
        for name in (*segments.COLUMNS, "added"):
            known[name] += [None] * (int(rows.max(initial=-1)) + 1 - len(known[name]))
        for row in rows:
            if known["hash"][row] is None:
                columns, index = self.segment(log.segments[row]).columns, log.locals[row]
                for name in segments.COLUMNS:
                    known[name][row] = columns[name][index]
                known["added"][row] = log.born[row]
        taken = {name: [known[name][row] for row in rows] for name in (*segments.COLUMNS, "added")}
        table = {name: np.asarray(taken[name], dtype=str) for name in ("hash", "task", "origin")}
        table["seed"] = np.asarray([-1 if seed is None else seed for seed in taken["seed"]], np.int64)
        table["success"] = np.asarray([-1 if done is None else done for done in taken["success"]], np.int8)
        types = {"terminated": bool, "fps": float, "length": np.int64, "return_": float, "added": np.int64}
        table |= {name: np.asarray(taken[name], dtype) for name, dtype in types.items()}
        table["meta"] = np.empty(len(rows), object)
        table["meta"][:] = taken["meta"]
        return table

    def read_row(self, row: int) -> Episode:
        """The episode of one row; its segment is decoded whole and kept for the next."""
        name = self.history.segments[row]
        if name not in self._decoded:
            self._decoded[name] = self.segment(name).everything()
            size = {key: sum(v.nbytes for v in arrays.values()) for key, arrays in self._decoded.items()}
            while len(self._decoded) > 1 and sum(size.values()) > DECODED_BYTES:
                size.pop(self._decoded.popitem(last=False)[0])
        self._decoded.move_to_end(name)
        return self.segment(name).episode(self._decoded[name], self.history.locals[row])

    def statistics_row(self, row: int, field: str) -> np.ndarray:
        """[4, D] statistics of one episode's stream."""
        name = self.history.segments[row]
        if name not in self._statistics:
            self._statistics[name] = self.segment(name).statistics()
        if field not in self._statistics[name]:
            raise CorpusError(f"no statistics of {field!r}. There are: {', '.join(self._statistics[name])}")
        return self._statistics[name][field][self.history.locals[row]]

    def _alive(self, prefix: str) -> str:
        live = self.history.live
        if prefix in live:
            return prefix
        found = [name for name in live if name.startswith(prefix)] if len(prefix) >= 6 else []
        if len(found) == 1:
            return found[0]
        if len(prefix) < 6:
            raise CorpusError(f"episode {prefix!r}: at least 6 digits of its hash, please")
        if found:
            raise CorpusError(f"episode {prefix!r} is one of {len(found)}: {', '.join(n[:16] for n in found[:5])}")
        gone = [entry for name, entry in self.history.tombstones.items() if name.startswith(prefix)]
        why = f"was removed in version {gone[0][0]} ({gone[0][1]!r})" if gone else "is in no version"
        raise CorpusError(
            f"episode {prefix!r} {why}; `flywheel corpus show episodes=true` lists the {len(live)} episodes at head"
        )

    def _tag_path(self, name: str) -> Path:
        return self.path / "tags" / f"{name}.json"

    def _number(self, ref: int | str) -> int:
        log, text = self.history, str(ref)
        if text.isdecimal():
            number = int(text)
            if number <= log.head or number <= log.refresh():
                return number
        elif text == "latest":
            return log.refresh()
        elif TAG.fullmatch(text) and self._tag_path(text).exists():
            number = store.read_json(self._tag_path(text))["version"]
            log.refresh()
            return number
        head = log.refresh()
        versions = f"versions 1 to {head}" if head else "no version yet"
        tags = ", ".join(f"{name} ({number})" for name, number in self.tags().items()) or "none"
        raise CorpusError(f"{self.path}: no version {text!r}. There are: {versions}; latest; tags: {tags}")


def new_entry(
    op: str, *, message: str, author: str, time: str | None, add: list = (), remove: list = ()
) -> dict[str, Any]:
    stamp = store.now() if time is None else time
    return {"op": op, "add": list(add), "remove": list(remove), "time": stamp, "author": author, "message": message}
