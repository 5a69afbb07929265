"""Is everything in a store what was written? Runs by the hashes in their records, names and the ledger by their
chains, the gate's answers by their figures, the corpus by its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flywheel import evalues, store, unpaired
from flywheel.env.questions import ANSWERS, history
from flywheel.runs import chain
from flywheel.runs.run import Store


def fsck(place: Store, progress: Callable[[str, int], Any]) -> Iterator[str]:
    """Yield a sentence for each thing that is not as it was written: what, where, and what to do."""
    for finding in _findings(place, progress):
        yield finding.replace(str(place.root), str(place))  # where it lies, not where this machine has its copy


def _findings(place: Store, progress: Callable[[str, int], Any]) -> Iterator[str]:
    for part in ("names", "ledger", "runs"):
        place.mirror.refresh(place.root / part, anew=True)
    outputs: dict[str, str] = {}
    yield from _runs(place, progress, outputs)
    yield from _chains(place)
    yield from _decisions(place)
    yield from _weights(place, progress, outputs)
    if place.has_corpus:
        from flywheel.corpus import maintenance

        yield from (f"corpus: {finding}" for finding in maintenance.fsck(place.corpus(), progress))


def _runs(place: Store, progress: Callable[[str, int], Any], outputs: dict[str, str]) -> Iterator[str]:
    """Compare each run's files; `outputs` gets {path: sha256} of them."""
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
            here = place.mirror.outputs(name)
            outputs |= {f"runs/{name}/out/{file}": sha256 for file, sha256 in here.items()}
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


def _decisions(place: Store) -> Iterator[str]:
    """Compute each answer of the gate again from its figures, and these from the ledger, the log and the episodes."""
    try:
        asked = [e for e in place.ledger.taken("gate") if "t" in e]
        logs = {name: place.names.log(name) for name in place.names.names()}
    except ValueError:
        return  # told above
    for name, log in logs.items():
        for at, entry in enumerate(log):
            if "t" not in entry:
                continue
            kind = next(kind for kind, answers in ANSWERS.items() if entry["op"] in answers)
            unspent, made = history(log[:at], kind)
            trials = "asked" in entry  # of a robot: one question, however often it was asked
            found = (unpaired if trials else evalues).differs(entry)
            same = [e for e in asked if (e["run"] == entry["asked"] if trials else e["run"].startswith(entry["run"]))]
            rank = [(e["t"], e["promotions"]) for e in same] if trials else [(entry["number"] - unspent, made)]
            if (entry["t"], entry["promotions"]) not in rank:
                words = ", ".join(f"t is {t}, promotions {promotions}" for t, promotions in rank)
                found.append(f"by the log before it {words or 'there was no such question'}")
            same = [(e["kind"], e["name"], e["number"]) for e in same]
            if (kind, name, entry["number"]) not in same:
                found.append(f"the ledger has no {kind} question {entry['number']} of that run")
            found += _episodes(place, entry)
            yield from (f"{name}: {entry['op']} {entry['id']} by {entry['run']}: {what}" for what in found)


def _episodes(place: Store, entry: dict[str, Any]) -> list[str]:
    """How the figures of an answer differ from its episodes; nothing where these are gone."""
    if "seeds" not in entry:
        return []
    folder = place.root / "runs" / entry["run"]
    if (folder / "_DONE.json").exists():
        with contextlib.suppress(ValueError):  # told above
            place.dir(entry["run"])
    paths = [folder / "out" / f"{kind}.npz" for kind in entry["success"]]
    if not all(path.exists() for path in paths):
        return []
    columns = [dict(np.load(path)) for path in paths]
    won, lost = (int((a["success"] & ~b["success"]).sum()) for a, b in (columns, columns[::-1]))
    first, count = entry["seeds"]["first"], entry["seeds"]["count"]
    found = {"won": won, "lost": lost, "pairs": len(columns[0]["seed"]), "first": int(columns[0]["seed"][0])}
    told = {"won": entry["won"], "lost": entry["lost"], "pairs": count, "first": first}
    return [] if found == told else [f"the episodes have {found}, the log says {told}"]


def _weights(place: Store, progress: Callable[[str, int], Any], outputs: dict[str, str]) -> Iterator[str]:
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
            if (found := outputs.get(path) or place.mirror.digest(path)) is None:
                if any(ref == f"{n}@{place.names.production(n)}" for n in [ref.partition("@")[0]]):
                    yield f"{ref}: its weights are gone ({path}), and it is in production; bring them back, or rollback"
            elif found != sha256:
                yield f"{ref}: its weights are damaged ({path}); bring them back from a copy"
