"""ingest: recordings of any format in datasets/ into the corpus; each episode is committed or quarantined with a reason.

A bad file never stops the good ones; the same file twice adds nothing.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import inspect
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import outcome
from flywheel import store as files
from flywheel.episode import Episode, EpisodeError, as_error, passing
from flywheel.log import say
from flywheel.stages import _card, _inputs, _open_loop, _screen
from flywheel.stages._screen import sound, streak

__all__ = ["formats", "inputs", "reader", "run", "sound", "streak"]

ASKED = (
    "obs_keys",
    "cameras",
    "filter_key",
    "action_key",
    "outcome",
)  # what a format that does not know it must refuse
OPTIONS = (*ASKED, "origin", "fps", "rollouts", "seed", "card")
LETTERS, LISTED = 2000, 10_000  # of a reason; reasons that are kept


def formats() -> list[str]:
    """The formats there are: the modules of datasets/."""
    import flywheel_datasets

    return sorted(p.stem for d in flywheel_datasets.__path__ for p in Path(d).glob("*.py") if p.stem[0] != "_")


def layout(name: str):
    """The module of a format: `read(path, ...)`, and `parts(path, ...)` where one recording is many files."""
    if name not in formats():
        raise ValueError(f"no format {name!r} in datasets/. There are: {', '.join(formats())}")
    return importlib.import_module(f"flywheel_datasets.{name}")


def reader(name: str):
    return layout(name).read


def matches(source: str, module=None) -> list[Path]:
    """The files that `source` names: itself, a data set's folder (by the module's `unit`), the files and data sets of a folder,
    or a glob of these; ValueError if none."""
    source = os.path.expanduser(str(source))
    unit = getattr(module, "unit", lambda folder: None)

    def files_of(path: str | Path) -> list[Path]:
        path = Path(path)
        return (
            [found] if (found := unit(path) if path.is_dir() else path) and (found.is_file() or found == path) else []
        )

    if os.path.isdir(source):
        inside = (p for p in Path(source).iterdir() if p.name[0] != "." and p.suffix != ".yaml")  # no data cards
        found = files_of(source) or [one for p in inside for one in files_of(p)]
    elif os.path.exists(source):
        found = [Path(source)]
    else:
        found = [one for p in glob.glob(source, recursive=True) for one in files_of(p)]
    if not found:
        raise ValueError(
            f"source={source!r} names no file (from {os.getcwd()}). Quote a glob, so that the shell leaves it"
        )
    return sorted(set(found))


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    module = layout(cfg["format"])
    outcome.rule(cfg.get("outcome"))
    known = inspect.signature(module.read).parameters
    if unknown := [key for key in ASKED if cfg.get(key) is not None and key not in known]:
        raise ValueError(f"format={cfg['format']} takes no {', '.join(unknown)}; it takes {', '.join(list(known)[1:])}")
    paths = matches(cfg["source"], module)
    parts = {
        p
        for path in paths
        for p in ([path] if not hasattr(module, "parts") else module.parts(path, **_options(module.parts, cfg)))
    } | {card for card in (_card_of(module.read, path, cfg) for path in paths) if card}
    digest = hashlib.sha256("\n".join(_content(p) for p in sorted(parts)).encode()).hexdigest()
    return {"source": {"id": digest, "ref": cfg["source"], "files": [p.name for p in paths]}}


def title(path: Path, module) -> str:
    """What a recording is called: its file, or the folder of the data set that it is."""
    unit = getattr(module, "unit", lambda folder: None)
    return next((folder.name for folder in list(path.parents)[:3] if unit(folder) == path), path.name)


def _content(path: Path) -> str:
    """What a file's content is known by; of one that cannot be read now, that: `run` says so, and it is another input then."""
    try:
        return files.sha256_file(path)
    except OSError as error:
        return f"not readable: {error.errno}"


def _card_of(read, path: Path, cfg: dict[str, Any]) -> Path | None:
    """Where a recording's data card lies, if it has one and its reader does not read by a card of its own."""
    return None if "card" in inspect.signature(read).parameters else _card.place(path, cfg.get("card"))


def _options(function, cfg: dict[str, Any]) -> dict[str, Any]:
    """What the config says of the options that a reader's function takes."""
    known = inspect.signature(function).parameters
    told = {k: cfg[k] for k in OPTIONS if k in known and cfg.get(k) is not None}
    return told | ({"task": _inputs.title(cfg)} if "task" in known else {})


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    module = layout(cfg["format"])
    options = _options(module.read, cfg)
    env = _inputs.open_env(cfg, 1)
    corpus = run.store.corpus(create=True)
    rows, quarantined, added, duplicates, refused = [], [], [], [], []
    replayed: list[dict[str, Any]] = []
    tally, far = Counter(), _screen.Far()
    for path in matches(cfg["source"], module):
        before, name = Counter(tally), title(path, module)
        episodes = accepted(_carded(module.read, path, options, cfg), name, options, env, run, quarantined, tally, far)
        try:
            if cfg.get("check") == "replay":
                episodes = list(episodes)
                replayed += _open_loop.back(env, episodes, cfg)
            message, restore = f"ingest {name}", bool(cfg.get("restore"))
            done = corpus.append(episodes, message=message, author=run.name, restore=restore)
        except EpisodeError as error:  # a video that changed or went away while its episodes were written
            tally["good"] = before["good"]
            aside(error, name, None, quarantined, tally)
            continue
        added += done.added
        duplicates += done.duplicates
        refused += done.refused
        good, bad = (tally[key] - before[key] for key in ("good", "bad"))
        rows.append((name, good + bad, len(done.added), len(done.duplicates), len(done.refused), bad))
    env.close()
    strange = far.found()
    metrics: dict[str, Any] = {"added": len(added), "duplicates": len(duplicates), "quarantined": tally["bad"]}
    metrics |= {"refused": len(refused), "clipped_values": tally["clipped"], "far_values": len(strange)}
    metrics |= {"dropped": tally["dropped"]}
    tell(rows, refused, tally, strange)
    if replayed:
        metrics["replay"] = _open_loop.told(replayed)
        files.write_json(run.out / "replay.json", replayed, indent=1)
    files.write_json(run.out / "quarantine.json", quarantined, indent=1)
    if strange:
        files.write_json(run.out / "far.json", strange, indent=1)
    run.log("ingest", **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
    made = {
        "outputs": {"corpus": corpus.head},
        "metrics": metrics,
        "content": {"episodes": added + duplicates, "quarantined": quarantined},
    }
    error = failure(tally, quarantined, cfg)
    return {"status": "failed", "error": error, **made} if error else made


def failure(tally: Counter, quarantined: list[dict[str, Any]], cfg: dict[str, Any]) -> str | None:
    """Why an ingest is no final result, in one sentence: something could not be read now, or nothing was taken."""
    waiting = [one for one in quarantined if one.get("passing")]
    if waiting:
        names = ", ".join(dict.fromkeys(one["file"] for one in waiting))[:500]
        return (
            f"ingest: {names} could not be read now ({waiting[0]['reason'][:300]}); {tally['good']} episodes were taken. "
            "Nothing is decided about it: run the same again when it can be read"
        )
    if tally["good"]:
        return None
    return (
        f"ingest: nothing was taken, all {tally['bad']} episodes of {cfg['source']} were quarantined; the first because "
        f"{quarantined[0]['reason'][:500]}"
    )


def tell(rows: list[tuple], refused: list, tally: Counter, strange: list[dict[str, Any]]) -> None:
    """Say what was taken, and what to look at."""
    say(f"  {'file':40} episodes  added  duplicate  tombstoned  quarantined")
    for name, *counts in rows:
        say(f"  {name:40} " + "  ".join(f"{c:>{w}}" for c, w in zip(counts, (8, 5, 9, 10, 11), strict=True)))
    for hash_, message in refused:
        say(f"  {hash_[:12]} was removed before ({message}); restore=true brings it back")
    if tally["clipped"]:
        say(
            f"  {tally['clipped']} action values lay outside the range: clipped in `action`, kept in extras['recorded_action']"
        )
    if tally["dropped"]:
        say(f"  {tally['dropped']} episodes: a seed or a reward that is none was dropped; meta.dropped says what")
    for one in strange[:5]:
        say(
            f"  WARNING {one['file']}, episode {one['episode']}: {one['stream']}[row {one['row']}, column {one['column']}] is "
            f"{one['value']:.4g}; the others stay within {one['usual']:.3g} of {one['centre']:.3g}. Taken: `flywheel corpus "
            "tombstone` removes it if it is an error"
        )
    if len(strange) > 5:
        say(f"  WARNING and {len(strange) - 5} more far values; far.json of the run has them all")


def accepted(carded, name: str, options: dict[str, Any], env, run, quarantined: list, tally: Counter, far: _screen.Far):
    """The episodes of a recording that may enter the corpus, one at a time; the others are quarantined. `tally` counts."""
    for number, (found, card) in enumerate(carded):
        where = f"{name}, episode {number}"
        try:
            if isinstance(found, EpisodeError):
                raise found
            found = card.check(found, options.get("obs_keys"), where) if card else found
            episode, outside = sound(found.replace(task=env.task), env, where)
        except Exception as error:  # one bad episode never stops the others
            aside(
                error if isinstance(error, EpisodeError) else as_error(error, where), name, number, quarantined, tally
            )
            keep(found, run.out / "quarantine" / f"{Path(name).stem}-{number}.npz")
            continue
        tally += Counter(good=1, clipped=outside, dropped=int("dropped" in episode.meta))
        far.add(episode, {"file": name, "episode": number})
        yield episode


def aside(error: EpisodeError, name: str, number: int | None, quarantined: list, tally: Counter) -> None:
    """Count a quarantined episode, and keep its reason."""
    tally["bad"] += 1
    reason = str(error) if len(str(error)) <= LETTERS else f"{str(error)[:LETTERS]}..."
    if len(quarantined) < LISTED:
        more = {"passing": True} if passing(error) else {}
        quarantined.append({"file": name, "episode": number, "reason": reason, **more})
        say(f"  quarantined {name}, episode {number}: {reason}")


def _all(read, path: Path, options: dict[str, Any]):
    """What a reader yields; what it raises becomes the last thing it yields, as does that it yields nothing."""
    some = False
    try:
        for found in read(path, **options):
            some = True
            yield found
        if not some:
            yield EpisodeError(f"{path}: it holds no episode")
    except Exception as error:  # whatever damaged input makes a reader raise
        yield as_error(error, str(path))


def _carded(read, path: Path, options: dict[str, Any], cfg: dict[str, Any]):
    """(what a reader yields, the recording's card or None)."""
    card = None
    try:
        if place := _card_of(read, path, cfg):
            card = _card.Card(place, cfg["format"], units(cfg["task"]["name"]))
    except Exception as error:
        yield as_error(error, str(path)), None
        return
    for found in _all(read, path, card.options(read, options) if card else options):
        yield found, card


def units(task: str) -> dict[str, str]:
    """{key: unit} of what a task of sim/ observes; nothing for others."""
    import flywheel_sim

    keys = flywheel_sim.load(task).obs_keys if task in flywheel_sim.tasks() else {}
    return {key: unit for key, (_, unit) in keys.items()}


def keep(found: Any, path: Path) -> None:
    """Keep a quarantined episode's arrays beside the reason: nothing is lost."""
    if isinstance(found, Episode):
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"obs.{k}": v for k, v in found.obs.items()} | {"action": found.action, "reward": found.reward}
        plain = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray) and v.dtype != object}
        kept = {k if re.fullmatch(r"[\w.-]{1,80}", k) else f"key{n}": v for n, (k, v) in enumerate(plain.items())}
        np.savez_compressed(path, **kept)  # encoded frames stay where they are, in the source
