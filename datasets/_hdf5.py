"""HDF5 files that nobody vouches for: groups and arrays that open no other file and allocate no more than the file can
hold.

Refused by name, before anything is read: external links, external storage, virtual datasets of other files, soft links
that lead to one of these, filters that are not h5py's own, declarations that the stored bytes cannot hold, blocks that
unpack to more than they declare. A path may go through groups: group["obs/front"]."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from flywheel import bounds
from flywheel.episode import EpisodeError

LINKS, DEPTH, LEAVES = 16, 8, 10_000  # links in a row, groups in groups, arrays below one group
SMALL = 16 * 2**10  # a compressed block of at most so many bytes is unpacked unseen
WORDS, ATTRIBUTE = 64, 100_000  # texts that are read at once; values of an attribute
GZIP, SHUFFLE, FLETCHER, LZF = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000


@contextmanager
def opened(path: Path) -> Iterator[Group]:
    """The root group of a file; EpisodeError where it is no HDF5 file that can be read.

    HDF5 is given an open file, not a name, so that it can open no other. One who writes the file holds a lock on it.
    """
    try:
        raw = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise EpisodeError(f"{path}: not an HDF5 file that can be read: {error}") from error
    with raw:
        try:
            _not_written(raw)
            file = h5py.File(raw, "r")
        except Exception as error:
            raise EpisodeError(f"{path}: not an HDF5 file that can be read: {error}") from error
        with file:
            yield Group(file, Path(path).stat().st_size)


def _not_written(raw: BinaryIO) -> None:
    """BlockingIOError where somebody writes the file; nothing where its file system knows no locks."""
    try:
        fcntl.flock(raw, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise


class Node:
    """What groups and arrays share: `name`, `attr(key)`."""

    def __init__(self, node: Any, stored: int):
        self._node, self._stored = node, stored
        self.name: str = node.name or "/"
        self.where = self.name.lstrip("/")[:200] or "the file"

    def attr(self, key: str, default: Any = None) -> Any:
        """An attribute, `default` where there is none."""
        if key not in self._node.attrs:
            return default
        count = self._node.attrs.get_id(key).get_space().get_simple_extent_npoints()
        if count > ATTRIBUTE:
            raise EpisodeError(f"{self.where}: attribute {key} has {count} values; expected at most {ATTRIBUTE}")
        with bounds.memory(self._stored):  # of a text HDF5 allocates as much as its length field says
            return self._node.attrs[key]


class Group(Node):
    """A group: names, `in`, [path], get, items."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._node)

    def __contains__(self, path: str) -> bool:
        return self.get(path) is not None

    def __getitem__(self, path: str) -> Group | Array:
        found = self.get(path)
        if found is None:
            raise EpisodeError(f"{self.where}: no {path}; there is {', '.join(self)[:500] or 'nothing'}")
        return found

    def get(self, path: str, links: int = 0) -> Group | Array | None:
        """What lies at a path below this group, None where nothing does."""
        here: Group | Array | None = self
        for name in str(path).strip("/").split("/"):
            if not isinstance(here, Group):
                return None
            here = here._child(name, links)
        return here

    def _child(self, name: str, links: int) -> Group | Array | None:
        """One step down; links are looked at before they are followed."""
        where, key = f"{self.where}: {name}", name.encode("utf-8", "surrogateescape")
        try:
            kind = self._node.id.links.get_info(key).type
        except (KeyError, ValueError, RuntimeError):
            return None
        if kind == h5py.h5l.TYPE_SOFT:
            target = self._node.id.links.get_val(key).decode("utf-8", "surrogateescape")
            if links >= LINKS:
                raise EpisodeError(f"{where}: over {LINKS} links in a row; do they go in a circle?")
            start = Group(self._node.file, self._stored) if target[:1] == "/" else self
            return start.get(target, links + 1)
        if kind != h5py.h5l.TYPE_HARD:
            raise EpisodeError(f"{where}: a link to another file, which is not opened; copy the data into this one")
        node = self._node[name]
        if isinstance(node, h5py.Group):
            return Group(node, self._stored)
        return Array(node, self._stored) if isinstance(node, h5py.Dataset) else None

    def items(self) -> Iterator[tuple[str, Group | Array]]:
        return ((name, found) for name in self if (found := self.get(name)) is not None)

    def arrays(self, prefix: str = "", depth: int = 0) -> dict[str, Array]:
        """{path: array} of all arrays below, those of nested groups as "a/b", sorted."""
        if depth > DEPTH:
            raise EpisodeError(f"{self.where}: groups in groups, over {DEPTH} deep; do they go in a circle?")
        out: dict[str, Array] = {}
        for name in sorted(self):
            found = self.get(name)
            if isinstance(found, Array):
                out[prefix + name] = found
            elif found is not None:
                out |= found.arrays(f"{prefix}{name}/", depth + 1)
            if len(out) > LEAVES:
                raise EpisodeError(f"{self.where}: over {LEAVES} arrays below one group")
        return out

    def array(self, path: str) -> Array:
        """The array at a path; EpisodeError where it is a group or not there."""
        found = self[path]
        if not isinstance(found, Array):
            raise EpisodeError(f"{self.where}: {path} is a group of {', '.join(found)[:300]}; expected an array")
        return found

    def group(self, path: str) -> Group:
        """The group at a path; EpisodeError where it is an array or not there."""
        found = self[path]
        if not isinstance(found, Group):
            raise EpisodeError(f"{self.where}: {path} is an array {list(found.shape)}; expected a group")
        return found


class Array(Node):
    """An array: shape, dtype, ndim, len, [rows], texts()."""

    def __init__(self, node: h5py.Dataset, stored: int):
        super().__init__(node, stored)
        virtual = (
            node.virtual_sources() if node.is_virtual else []
        )  # before its shape is asked for: that would open them
        if others := {source.file_name for source in virtual} - {"."}:
            raise EpisodeError(f"{self.where}: rows of other files ({sorted(others)[0][:200]}), which are not opened")
        if node.id.get_create_plist().get_external_count():
            raise EpisodeError(
                f"{self.where}: its numbers lie in another file, which is not opened; copy them into this one"
            )
        if node.shape is None:
            raise EpisodeError(f"{self.where}: an array without a shape; expected numbers")
        self.shape, self.dtype, self.ndim = tuple(node.shape), node.dtype, node.ndim
        self._allowed = False

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 1

    def __getitem__(self, rows: Any) -> np.ndarray:
        if self.dtype.kind not in "biufSU":
            raise EpisodeError(f"{self.where}: it is of {str(self.dtype)[:100]}; expected numbers")
        self._allow()
        return self._node[rows]

    def last(self, count: int) -> np.ndarray:
        """The last of its `count` rows, [1, ...]; EpisodeError where it has another number of them."""
        if not self.shape or len(self) != count:
            raise EpisodeError(f"{self.where}: it has {len(self)} rows; expected {count}, one an action")
        return self[-1:]

    def texts(self) -> list[bytes]:
        """Its texts, of any kind; EpisodeError where one stored text is repeated beyond what the file can hold."""
        self._allow()
        out: list[bytes] = []
        total = 0
        for first in range(0, len(self), WORDS):
            with bounds.memory(self._stored):
                found = self._node[first : first + WORDS] if self.shape else self._node[()]
            for text in np.asarray(found, object).reshape(-1):
                out.append(text if isinstance(text, bytes) else str(text).encode())
                total += len(out[-1])
            bounds.allow(total, self._stored, self.where)
        return out

    def _allow(self) -> None:
        """EpisodeError where the declared size is more than the stored bytes can hold."""
        if self._allowed:
            return
        node, plist = self._node, self._node.id.get_create_plist()
        stored = min(node.id.get_storage_size(), self._stored)
        filters = [plist.get_filter(n) for n in range(plist.get_nfilters())]
        names = [code for code, *_ in filters]
        if set(names) - {GZIP, SHUFFLE, FLETCHER, LZF} or names.count(GZIP) + names.count(LZF) > 1:
            raise EpisodeError(
                f"{self.where}: packed by HDF5's filters {names}; expected gzip or lzf, once: write it again"
            )
        size = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        if not names and size > stored + bounds.SPARE:
            raise EpisodeError(f"{self.where}: it declares {size:,} bytes and holds {stored:,}; expected all of them")
        bounds.allow(size, stored, self.where)
        if plist.get_layout() == h5py.h5d.CHUNKED:
            block = int(np.prod(plist.get_chunk(), dtype=object)) * self.dtype.itemsize
            bounds.allow(block, stored, f"{self.where}: a block")
            if names and stored:
                self._blocks(block, names)
        self._allowed = True

    def _blocks(self, block: int, names: list[int]) -> None:
        """EpisodeError where a stored block is larger than the file, or unpacks to more than it declares."""
        large: list[Any] = []

        def look(info: Any) -> None:
            if info.size > min(SMALL, self._stored):
                large.append((info.chunk_offset, info.size, info.filter_mask))

        self._node.id.chunk_iter(look)
        for offset, size, skipped in large:
            if size > self._stored:
                raise EpisodeError(f"{self.where}: a block of {size:,} bytes in a file of {self._stored:,}")
            packed = GZIP in names and not skipped >> names.index(GZIP) & 1
            if packed:
                bounds.inflate(self._node.id.read_direct_chunk(offset)[1], block + 64, self.where)
            elif LZF not in names and size > block + 64:
                raise EpisodeError(f"{self.where}: a block of {size:,} bytes that declares {block:,}")
