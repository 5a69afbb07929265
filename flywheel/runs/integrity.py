"""Is everything in a store what was written? Runs by the hashes in their records, names and the ledger by their
chains, the corpus by its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flywheel import store
from flywheel.runs import chain
from flywheel.runs.run import Store, hashes


def fsck(place: Store, progress: Callable[[str, int], Any]) -> Iterator[str]:
    """Yield a sentence for each thing that is not as it was written: what, where, and what to do."""
    yield from _runs(place, progress)
    yield from _chains(place)
    yield from _weights(place, progress)
    if place.has_corpus:
        from flywheel.corpus import maintenance

        yield from (f"corpus: {finding}" for finding in maintenance.fsck(place.corpus(), progress))


def _runs(place: Store, progress: Callable[[str, int], Any]) -> Iterator[str]:
    paths = sorted(place.root.glob("runs/*/*/_DONE.json"))
    with progress("runs", len(paths)) as tick:
        for path in paths:
            tick()
            try:
                done = store.read_json(path)
                files, name = done["files"], f"{done['stage']}/{done['key']}"
            except (ValueError, KeyError, TypeError) as error:
                yield f"{path}: no record of a run ({error}); remove the folder, and the same command does it again"
                continue
            here = hashes(path.parent / "out")
            for file in sorted(files):
                if here.get(file) != files[file]:
                    what = "is missing" if file not in here else "is not what was written"
                    yield f"{name}: out/{file} {what}; bring it back from a copy, or remove the run and do it again"


def _chains(place: Store) -> Iterator[str]:
    folders = [*(place.names.path / name for name in place.names.names()), *sorted((place.root / "ledger").glob("*"))]
    for folder in folders:
        try:
            chain.entries(folder)
        except ValueError as error:
            yield str(error)


def _weights(place: Store, progress: Callable[[str, int], Any]) -> Iterator[str]:
    made: dict[str, tuple[str, str]] = {}
    for name in place.names.names():
        try:
            log = place.names.log(name)
        except ValueError:
            continue  # told above
        made |= {entry["path"]: (f"{name}@{entry['id']}", entry["sha256"]) for entry in log if entry["op"] == "make"}
    with progress("checkpoints", len(made)) as tick:
        for path, (ref, sha256) in sorted(made.items()):
            tick()
            file = place.root / path
            if not file.exists():
                if any(ref == f"{n}@{place.names.production(n)}" for n in [ref.partition("@")[0]]):
                    yield f"{ref}: its weights are gone ({path}), and it is in production; bring them back, or rollback"
            elif store.sha256_file(file) != sha256:
                yield f"{ref}: its weights are damaged ({path}); bring them back from a copy"
