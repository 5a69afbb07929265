"""The version log: one small file a version, made by link, chained by hash. It only grows.

    log/0000/00000042.json   {"version", "parent", "op": append | tombstone | compact | expire | flag, "add":
                             [{"segment", "sha256", "steps", "hashes"}], "remove": [hash], "time", "author", "message",
                             "hash"}
    checkpoints/00000001-00004096-<digest>.safetensors   what a stretch of the log comes to (corpus.state)

`compact` removes episodes from old segments and adds the same ones in a new segment; `expire` has "expired": [segment],
which no kept version shows and gc may free; `flag` has "flags": {hash: why, or null for one that is unflagged}.

Commit is `link` to head + 1: of several writers one wins, the others read its entry, see whether their operation still
applies, and try again. The highest number is the head; there is no pointer that can go stale. An entry's "hash" is the
sha256 of its own text before that key, which names its parent's hash: version 42 proves the bytes of versions 1 to 42.

Checkpoints are a tree over the log: files of 32, 128, 512 ... versions, of which a reader takes the largest that follow
each other and then reads the few entries behind them. They are only a copy. One is used if its chain of hashes meets
the log's; one that is lost or damaged is made again from smaller ones or from the log; all may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import time
import weakref
from collections.abc import Callable
from typing import Any

from flywheel import store
from flywheel.corpus import pages
from flywheel.corpus.block import Block
from flywheel.corpus.files import Files
from flywheel.corpus.segment import CorpusError
from flywheel.corpus.state import FAN, State

FOLDER = 4096  # entries in one folder
_HASH_TAIL = len(',"hash":""}\n') + 64


def parse(data: bytes) -> tuple[dict[str, Any], str]:
    """One entry and its hash, out of a file's bytes; ValueError where they are not those that were committed."""
    body, tail = data[:-_HASH_TAIL], data[-_HASH_TAIL:]
    digest = hashlib.sha256(body).hexdigest()
    if tail != f',"hash":"{digest}"}}\n'.encode():
        raise ValueError(f"{len(data)} bytes whose hash is not the one at their end")
    return json.loads(data), digest


def seal(body: dict[str, Any]) -> bytes:
    """The bytes of an entry that `parse` reads."""
    text = store.to_json(body)[:-2]  # without "}\n"
    return text + f',"hash":"{hashlib.sha256(text).hexdigest()}"}}\n'.encode()


class Log:
    """The log of one corpus and the `state` that follows from it; a process reads only what it has not seen."""

    def __init__(self, files: Files, corpus_id: str, columns: Callable[[str, str], dict[str, list] | None]):
        self.files, self.corpus_id, self.columns = files, corpus_id, columns
        self.state = State(corpus_id, columns)
        self.saves = True

    @property
    def head(self) -> int:
        """The newest version read so far (see refresh)."""
        return self.state.head

    def name(self, version: int) -> str:
        """The file of an entry, relative to the corpus."""
        return f"log/{version // FOLDER:04d}/{version:08d}.json"

    def entry(self, version: int) -> dict[str, Any]:
        """The entry of a version that has been read."""
        try:
            return parse(self.files.read(self.name(version)))[0]
        except (OSError, ValueError):
            raise self._damaged(version) from None

    def refresh(self) -> int:
        """Read the entries that others have made since; the head."""
        if not self.head:
            self._load()
        while True:
            try:
                data = self.files.read(self.name(self.head + 1))
            except FileNotFoundError:
                break
            self._apply(data)
        self._save()
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
                    self.files.settle(self.name(self.head))
                return self.head
            version = self.head + 1
            data = seal({"version": version, "parent": self.state.tip, **entry})
            if version % FOLDER == 0 or version == 1:  # the first of a folder
                if version > 1:  # our predecessor's name may not be durable yet
                    self.files.settle(self.name(version - 1))
                self.files.folder(self.name(version))
            if self.files.create(self.name(version), data):
                self._apply(data)
                self._save()
                return version
            time.sleep(random.random() * 0.01)

    def _damaged(self, version: int) -> CorpusError:
        where = f"{self.files}/{self.name(version)}"
        return CorpusError(f"{where}: version {version} is damaged; restore this file from a copy of the corpus")

    def _apply(self, data: bytes) -> None:
        """Take one entry into the state; CorpusError where it is not the one that was written after its parent."""
        version = self.head + 1
        try:
            entry, digest = parse(data)
        except ValueError:
            raise self._damaged(version) from None
        if entry["version"] != version or entry["parent"] != self.state.tip:
            raise CorpusError(
                f"{self.files}/{self.name(version)}: version {entry['version']} with parent {entry['parent'][:12]}, "
                f"expected version {version} with parent {self.state.tip[:12]}; files of two corpora are mixed here, "
                "restore log/ from a copy"
            )
        try:
            self.state.apply(entry, digest)
        except KeyError as error:
            raise CorpusError(f"{self.files}/{self.name(version)}: it removes {error}, which is not alive") from None

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Begin with the checkpoints that agree with the log: what they lack is read from the log itself."""
        state, bad = State(self.corpus_id, self.columns), set()
        found: dict[int, list[tuple[int, str]]] = {}
        for first, last, name in self._checkpoints():
            found.setdefault(first, []).append((last, name))
        while any(one[1] not in bad for one in found.get(state.head + 1, ())):
            name = max(one for one in found[state.head + 1] if one[1] not in bad)[1]
            block = self._open(name)
            if block and block.parent == state.tip:
                state.use(block)
            else:
                bad.add(name)
        while state.blocks and self.hash(state.head) != state.tip:  # of a log that went back to an older copy of itself
            blocks, state = state.blocks[:-1], State(self.corpus_id, self.columns)
            for block in blocks:
                state.use(block)
        self.state = state

    def hash(self, version: int) -> str | None:
        """The hash of a version's entry, which names all before it; None where the entry is not whole."""
        try:
            return parse(self.files.read(self.name(version)))[1]
        except (OSError, ValueError):
            return None

    def _open(self, name: str) -> Block | None:
        """A checkpoint, or None where it is not whole. A page that is damaged shows when it is used."""

        files, whose = self.files, weakref.ref(self)  # no cycle: a corpus that nobody holds lets its maps go at once

        def damaged() -> None:
            if (log := whose()) is not None:
                log.state = State(log.corpus_id, log.columns)
            with contextlib.suppress(OSError):
                files.remove(name)
            raise CorpusError(
                f"{files}/{name}: the bytes of this checkpoint changed on disk. It is only a copy of the log and was "
                "deleted; do it again, it will be made anew"
            )

        try:
            columns, about = pages.decode(self.files.map(name), name, damaged)
        except (OSError, ValueError, KeyError):
            return None
        return Block(**about, columns=columns, file=name)

    def _save(self) -> None:
        """Write the blocks that are in no file yet and read on from there; what they stand for may go."""
        for index, block in enumerate(self.state.blocks):
            if block.file is None and self.saves:
                columns = {name: column.values for name, column in block.columns.items()}
                digest, data = pages.encode(columns, block.about())
                name = f"checkpoints/{block.first:08d}-{block.last:08d}-{digest}.safetensors"
                written = self._open(name)  # somebody else's, perhaps: equal stretches make equal bytes
                if not written:
                    try:
                        self.files.replace(name, data)
                        self._drop_inside(block)
                    except OSError:  # read-only or full: the copy is a convenience
                        self.saves = False
                        return
                    written = self._open(name)
                if written:
                    written.row0, written.part0 = block.row0, block.part0
                    self.state.blocks[index] = written

    def _drop_inside(self, block: Block) -> None:
        """Delete the small checkpoints that a new one stands for, but not those that it was made of: somebody may be
        opening them."""
        for first, last, name in self._checkpoints():
            if block.first <= first and last <= block.last and (last - first + 1) * FAN < block.span:
                self.files.remove(name)

    def _checkpoints(self) -> list[tuple[int, int, str]]:
        """(first version, last version, file)."""
        found = (
            re.fullmatch(r"checkpoints/(\d+)-(\d+)-\w+\.safetensors", name) for name in self.files.names("checkpoints")
        )
        return [(int(one[1]), int(one[2]), one[0]) for one in found if one]
