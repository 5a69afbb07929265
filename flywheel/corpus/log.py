"""The version log: one small file a version, made by link, chained by hash. It only grows.

    log/0000/00000042.json   {"version", "parent", "op": "append" | "tombstone" | "compact" | "expire", "add": [{"segment",
                             "sha256", "steps", "hashes"}], "remove": [hash], "time", "author", "message", "hash"}

`compact` removes episodes from old segments and adds the same ones in a new segment; `expire` has "expired": [segment],
which no kept version shows and gc may free.


Commit is `link` to head + 1: of several writers one wins, the others read its entry, see whether their operation still
applies, and try again. The highest number is the head; there is no pointer that can go stale. An entry's "hash" is the
sha256 of its own text before that key, which names its parent's hash: version 42 proves the bytes of versions 1 to 42.

The state in memory is one list of rows (an episode each time it was added) with the version that added it and the one
that removed it, so it serves every version; a process reads only the entries that it has not seen. cache/log.jsonl is a
derived copy of the entries in one file, so that a fresh process opens one file and not thousands.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel import store
from flywheel.corpus.segment import CorpusError

FOLDER = 4096  # entries in one folder
PACK = 256  # loose entries that a fresh process reads before it packs them
NEVER = 2**62  # `removed` of a row that is alive
_HASH_TAIL = len(',"hash":""}\n') + 64


def parse(data: bytes) -> tuple[dict[str, Any], str]:
    """One entry and its hash, out of a file's bytes; ValueError where they are not those that were committed."""
    body, tail = data[:-_HASH_TAIL], data[-_HASH_TAIL:]
    digest = hashlib.sha256(body).hexdigest()
    if tail != f',"hash":"{digest}"}}\n'.encode():
        raise ValueError(f"{len(data)} bytes whose hash is not the one at their end")
    return json.loads(data), digest


class Log:
    """The log of one corpus and the state that follows from it.

    hashes, segments, locals, added, removed   one list entry a row, in append order
    born          the version that added the episode, also where the row is of a `compact`
    live          {hash: row} at `head`
    tombstones    {hash: (version, message)} of episodes that are not alive at `head`
    entries       the entries as read, `entries[n - 1]` is version n
    used          {segment: sha256 of its episodes.json}
    expired       {segment: version whose `expire` named it}
    """

    def __init__(self, root: Path, corpus_id: str):
        self.root = root
        self.tip = corpus_id  # hash of the newest entry read; the first entry's parent is the corpus id
        self.entries: list[dict[str, Any]] = []
        self.hashes: list[str] = []
        self.segments: list[str] = []
        self.locals: list[int] = []
        self.added: list[int] = []
        self.removed: list[int] = []
        self.born: list[int] = []
        self.live: dict[str, int] = {}
        self.tombstones: dict[str, tuple[int, str]] = {}
        self.used: dict[str, str] = {}
        self.expired: dict[str, int] = {}

    @property
    def head(self) -> int:
        """The newest version read so far (see refresh)."""
        return len(self.entries)

    def path(self, version: int) -> Path:
        return self.root / "log" / f"{version // FOLDER:04d}" / f"{version:08d}.json"

    def refresh(self) -> int:
        """Read the entries that others have made since; the head."""
        if not self.entries:
            self._read_pack()
        loose = 0
        while True:
            try:
                data = self.path(self.head + 1).read_bytes()
            except FileNotFoundError:
                break
            self._apply(data, str(self.path(self.head + 1)))
            loose += 1
        if loose >= PACK:
            self._write_pack()
        return self.head

    def commit(self, make: Callable[[], dict[str, Any] | None]) -> int:
        """Add the entry that `make` returns for the state at head; its version, or the head where `make` returns None.

        `make` is called again, with a refreshed state, whenever another writer was first.
        """
        while True:
            self.refresh()
            entry = make()
            if entry is None:
                if self.head:  # what we answer with may be of a writer that was stopped between link and fsync
                    store.fsync_dir(self.path(self.head).parent)
                return self.head
            version = self.head + 1
            body = store.to_json({"version": version, "parent": self.tip, **entry})[:-2]  # without "}\n"
            data = body + f',"hash":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()
            path = self.path(version)
            store.make_dirs(path.parent)
            if version % FOLDER == 0 or version == 1:  # the first of a folder
                if version > 1:  # our predecessor's name may not be durable yet
                    store.fsync_dir(self.path(version - 1).parent)
                for folder in (path.parent.parent, self.root):  # nor this folder's, where its maker was stopped
                    store.fsync_dir(folder)
            if store.link_new(path, data):
                self._apply(data, str(path))
                return version
            time.sleep(random.random() * 0.01)

    def _apply(self, data: bytes, where: str) -> None:
        """Take one entry into the state; CorpusError where it is not the one that was written after its parent."""
        version = self.head + 1
        try:
            entry, digest = parse(data)
        except ValueError:
            raise CorpusError(
                f"{where}: version {version} is damaged; restore this file from a copy of the corpus"
            ) from None
        if entry["version"] != version or entry["parent"] != self.tip:
            raise CorpusError(
                f"{where}: version {entry['version']} with parent {entry['parent'][:12]}, expected version {version} "
                f"with parent {self.tip[:12]}; files of two corpora are mixed here, restore log/ from a copy"
            )
        self.entries.append(entry)
        self.tip = digest
        self.expired |= dict.fromkeys(entry.get("expired", ()), version)
        moved: dict[str, int] = {}
        for found in entry["remove"]:
            row = self.live.pop(found)
            self.removed[row] = version
            if entry["op"] == "compact":
                moved[found] = self.born[row]
            else:
                self.tombstones[found] = (version, entry["message"])
        for part in entry["add"]:
            self.used[part["segment"]] = part["sha256"]
            for index, found in enumerate(part["hashes"]):
                if found is None:  # in the segment, but another writer had added the same episode first
                    continue
                self.live[found] = len(self.hashes)
                self.tombstones.pop(found, None)
                self.hashes.append(found)
                self.segments.append(part["segment"])
                self.locals.append(index)
                self.added.append(version)
                self.removed.append(NEVER)
                self.born.append(moved.get(found, version))

    def _read_pack(self) -> None:
        """Start from the copy, as far as it agrees with the log: what it lacks is read from the log itself."""
        try:
            lines = (self.root / "cache" / "log.jsonl").read_bytes().splitlines(keepends=True)
            if lines and self.path(len(lines)).read_bytes() == lines[-1]:
                for line in lines:
                    self._apply(line, "cache/log.jsonl")
        except (OSError, CorpusError):
            return

    def _write_pack(self) -> None:
        pack = self.root / "cache" / "log.jsonl"
        with contextlib.suppress(OSError):  # read-only or full: the copy is a convenience
            store.make_dirs(pack.parent)
            store.write_atomic(pack, b"".join(self.path(n).read_bytes() for n in range(1, self.head + 1)))
