"""A corpus on an object store, at an s3://, gs:// or az:// URL: what corpus.files asks of a folder, through obstore.

Commit is a conditional create (PUT with If-None-Match), which of several writers lets exactly one win. Nothing is
renamed: the files of a segment are put one by one and count from the moment that the log names them. Credentials come
from the environment (AWS_*, AZURE_*, GOOGLE_*) and go nowhere else. What never changes is kept on this machine
(corpus.copies), with its sha256."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from flywheel.corpus.copies import Copies
from flywheel.corpus.segment import CorpusError

SCHEMES = ("s3", "gs", "az")
SECRET = re.compile(r"(AWS|AZURE|GOOGLE)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS|ACCOUNT$)")
CACHED = ("segments/", "checkpoints/")
AT_ONCE = 8  # requests
PART = 1 << 25  # bytes of a large object that are in memory at once


class Objects:
    """The objects below a URL. `cache` is a local folder, which may be deleted at any time."""

    def __init__(self, url: str, cache: Path | None = None):
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or parts.username or parts.password or parts.query or not parts.hostname:
            raise CorpusError(
                f"a store or corpus at a {parts.scheme}:// URL: expected {', '.join(SCHEMES)}://BUCKET/PREFIX and "
                "nothing else in it; credentials are taken from the environment only (AWS_ACCESS_KEY_ID, "
                "AZURE_STORAGE_ACCOUNT_KEY, ...)"
            )
        try:
            from obstore.store import from_url
        except ImportError:
            raise CorpusError(f"{url}: obstore is not installed: pip install obstore (the extra [cloud])") from None
        self.root = url.rstrip("/")
        with self._translated():
            self.remote = from_url(self.root)
        self.copies = Copies(self.root, cache)

    def __str__(self) -> str:
        return self.root

    def read(self, name: str) -> bytes:
        if not name.startswith(CACHED):
            return self._get(name)
        with contextlib.suppress(FileNotFoundError):
            data = self.copies.path(name).read_bytes()
            if hashlib.sha256(data[:-32]).digest() == data[-32:]:
                return data[:-32]
        data = self._get(name)
        with contextlib.suppress(OSError):  # no room: the caller has what it wanted all the same
            self.copies.keep(name, data + hashlib.sha256(data).digest())
        return data

    def map(self, name: str) -> mmap.mmap | bytes:
        while True:
            try:
                file = open(self.copies.path(f"{name}.map"), "rb")  # noqa: SIM115 (closed below)
                break
            except FileNotFoundError:  # never read, or gone since to make room
                self.copies.keep(f"{name}.map", self._get(name))
        with file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""

    def exists(self, name: str) -> bool:
        return self._head(name) is not None

    def create(self, name: str, data: bytes) -> bool:
        import obstore

        with self._translated():
            try:
                obstore.put(self.remote, name, data, mode="create")
                return True
            except obstore.exceptions.AlreadyExistsError:
                pass
        # A put whose answer was lost is sent again and finds its own object: entries are never equal by chance.
        return self._get(name) == data

    def replace(self, name: str, data: bytes) -> None:
        import obstore

        with self._translated():
            obstore.put(self.remote, name, data)

    def tree(self, name: str, files: Mapping[str, bytes]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda path: self.replace(f"{name}/{path}", files[path]), files))

    def folder(self, name: str) -> None:
        """There are no folders."""

    def settle(self, *names: str) -> None:
        """What is there is durable."""

    def names(self, folder: str) -> list[str]:
        return sorted(entry["path"] for entry in self.listed(folder))

    def children(self, folder: str) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for entry in self.listed(folder):
            name = entry["path"].split("/")[folder.count("/") + 1]
            size, newest = found.get(name, (0, 0.0))
            found[name] = size + entry["size"], max(newest, entry["last_modified"].timestamp())
        return found

    def leftovers(self) -> dict[str, tuple[int, float]]:
        return {}

    def age(self, name: str) -> float:
        return self._head(name)["last_modified"].timestamp()

    def remove(self, name: str) -> None:
        import obstore

        paths = [entry["path"] for entry in self.listed(name)] or [name]
        paths.sort(key=lambda path: not path.endswith("/episodes.json"))  # first: without it the rest is an orphan
        for path in paths:
            with self._translated(), contextlib.suppress(obstore.exceptions.NotFoundError, FileNotFoundError):
                obstore.delete(self.remote, path)
            self.copies.drop(path, f"{path}.map")

    def fetch(self, name: str, folder: Path) -> None:
        """Write an object, however large, into a local folder under its last name, in one step."""
        import obstore

        path = folder / name.rpartition("/")[2]
        aside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
        try:
            with self._translated(), open(aside, "wb") as file:
                for part in obstore.get(self.remote, name).stream(PART):
                    file.write(part)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def hand_over(self, name: str, path: Path) -> None:
        """Make a local file, however large, an object, or exchange it."""
        import obstore

        with self._translated():
            obstore.put(self.remote, name, path if path.stat().st_size > PART else path.read_bytes())

    def sha256(self, name: str) -> str:
        """sha256 (64 hex digits) of an object as it is there now; FileNotFoundError where there is none."""
        import obstore

        with self._translated():
            found = hashlib.sha256()
            for part in obstore.get(self.remote, name).stream(PART):
                found.update(part)
            return found.hexdigest()

    def lock(self, what: str):
        """None is needed: deleting twice is deleting once."""
        return contextlib.nullcontext()

    def _get(self, name: str) -> bytes:
        import obstore

        with self._translated():
            return bytes(obstore.get(self.remote, name).bytes())

    def _head(self, name: str):
        import obstore

        try:
            with self._translated():
                return obstore.head(self.remote, name)
        except FileNotFoundError:
            return None

    def listed(self, folder: str) -> list:
        """What lies below a folder: {"path", "size", "last_modified"} each."""
        import obstore

        with self._translated():
            return [entry for page in obstore.list(self.remote, f"{folder}/") for entry in page]

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the store as OSErrors without any secret of the environment in them."""
        import obstore

        try:
            yield
        except (obstore.exceptions.NotFoundError, FileNotFoundError):
            raise FileNotFoundError(f"{self.root}: no such object") from None
        except obstore.exceptions.AlreadyExistsError:
            raise
        except obstore.exceptions.BaseError as error:
            text = str(error).split("\n")[0]
            for name, value in os.environ.items():
                if SECRET.match(name) and value:
                    text = text.replace(value, f"${name}")
            raise OSError(f"{self.root}: {text}") from None
