"""A view: a name for some episodes of a version, chosen once by an SQL condition and the same for ever.

A view is a tag (tags/<name>.json) that keeps, beside the version, the condition, which of the version's episodes passed
it (a bit each), and the sha256 over their hashes. So it is read without running the query again, never moves, keeps its
version from `expire`, and a copy in which it would stand for other episodes is noticed."""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.corpus.segment import CorpusError

if TYPE_CHECKING:
    from flywheel.corpus import Corpus
    from flywheel.corpus.version import Version


def name(corpus: Corpus, title: str, version: Version, keep: np.ndarray, where: str) -> Version:
    """Name the episodes `keep` [E] (bool) of a version for good; they, as `corpus.at(title)` gives them from now on.

    The same name for the same episodes and condition again is no error. CorpusError for no episode, a name that is
    taken."""
    if not keep.any():
        raise CorpusError(f"view {title!r}: none of the {len(keep)} episodes passes {where!r}; nothing was named")
    every = np.isin(corpus.at(version.number).rows, version.rows[keep])  # `version` may be a view itself
    bits = base64.b64encode(zlib.compress(np.packbits(every).tobytes(), 9)).decode()
    view = {"where": where, "of": version.ref, "id": version.select(keep).id, "bits": bits}
    corpus.tag(title, version.number, view)
    return corpus.at(title)


def apply(version: Version, title: str, view: dict[str, Any]) -> Version:
    """The episodes of a view, out of its version. CorpusError where they are not those that were named."""
    from flywheel.corpus.version import Version

    try:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(view["bits"], validate=True)), np.uint8)
    except (ValueError, zlib.error):
        packed = np.zeros(0, np.uint8)
    if len(packed) == -(-len(version) // 8):
        keep = np.unpackbits(packed, count=len(version)).astype(bool)
        found = Version(version.corpus, version.number, version.rows[keep], title)
        if found.id == view["id"]:
            return found
    raise CorpusError(
        f"{version.corpus.path}: view {title!r} does not fit version {version.number}, of which it names some episodes "
        f"({view['id'][:12]}); tags/{title}.json or the log was changed, restore it from a copy of the corpus"
    )
