"""ingest: recordings of any format in datasets/ into the corpus; each episode is committed or quarantined with a reason.

A bad file never stops the good ones; the same file twice adds nothing.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import inspect
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import store as files
from flywheel.episode import Episode, EpisodeError, check
from flywheel.log import progress, say
from flywheel.stages import _card, _inputs

FROZEN = 25  # steps of bit-equal observation under a changing action: a sensor that hangs
OPTIONS = ("obs_keys", "cameras", "origin", "fps", "rollouts", "seed", "card")


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


def matches(source: str) -> list[Path]:
    """The files that `source` names: itself, the files of a folder, or a glob; ValueError if none."""
    source = os.path.expanduser(source)
    if os.path.isdir(source):
        found = [p for p in Path(source).iterdir() if p.is_file()]
    elif os.path.exists(source):
        found = [Path(source)]
    else:
        found = [Path(p) for p in glob.glob(source, recursive=True) if os.path.isfile(p)]
    if not found:
        raise ValueError(
            f"source={source!r} names no file (from {os.getcwd()}). Quote a glob, so that the shell leaves it"
        )
    return sorted(found)


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    module, paths = layout(cfg["format"]), matches(cfg["source"])
    parts = {
        p
        for path in paths
        for p in ([path] if not hasattr(module, "parts") else module.parts(path, **_options(module.parts, cfg)))
    } | {card for card in (_card_of(module.read, path, cfg) for path in paths) if card}
    digest = hashlib.sha256("\n".join(files.sha256_file(p) for p in sorted(parts)).encode()).hexdigest()
    return {"source": {"id": digest, "ref": cfg["source"], "files": [p.name for p in paths]}}


def _card_of(read, path: Path, cfg: dict[str, Any]) -> Path | None:
    """Where a recording's data card lies, if it has one and its reader does not read by a card of its own."""
    return None if "card" in inspect.signature(read).parameters else _card.place(path, cfg.get("card"))


def _options(function, cfg: dict[str, Any]) -> dict[str, Any]:
    """What the config says of the options that a reader's function takes."""
    known = inspect.signature(function).parameters
    return {k: cfg[k] for k in OPTIONS if k in known and cfg.get(k) is not None}


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    read = reader(cfg["format"])
    options = _options(read, cfg)
    env = _inputs.open_env(cfg, 1)
    corpus = run.store.corpus(create=True)
    rows, quarantined, added, duplicates, refused = [], [], [], [], []
    replayed: list[dict[str, Any]] = []
    tally = Counter()
    for path in matches(cfg["source"]):
        before, bad = tally["good"], len(quarantined)
        episodes = accepted(_carded(read, path, options, cfg), path, options, env, run, quarantined, tally)
        if cfg.get("check") == "replay":
            episodes = list(episodes)
            replayed += back(env, episodes, cfg)
        done = corpus.append(episodes, message=f"ingest {path.name}", author=run.name, restore=bool(cfg.get("restore")))
        added += done.added
        duplicates += done.duplicates
        refused += done.refused
        good, bad = tally["good"] - before, len(quarantined) - bad
        rows.append((path.name, good + bad, len(done.added), len(done.duplicates), len(done.refused), bad))
    env.close()
    say(f"  {'file':40} episodes  added  duplicate  tombstoned  quarantined")
    for name, *counts in rows:
        say(f"  {name:40} " + "  ".join(f"{c:>{w}}" for c, w in zip(counts, (8, 5, 9, 10, 11), strict=True)))
    for hash_, message in refused:
        say(f"  {hash_[:12]} was removed before ({message}); restore=true brings it back")
    if clipped := tally["clipped"]:
        say(f"  {clipped} action values lay outside the range: clipped in `action`, kept in extras['recorded_action']")
    metrics: dict[str, Any] = {"added": len(added), "duplicates": len(duplicates), "quarantined": len(quarantined)}
    metrics |= {"refused": len(refused), "clipped_values": clipped}
    if replayed:
        metrics["replay"] = told(replayed)
    files.write_json(run.out / "quarantine.json", quarantined, indent=1)
    if replayed:
        files.write_json(run.out / "replay.json", replayed, indent=1)
    run.log("ingest", **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
    outputs = {"corpus": corpus.head}
    return {
        "outputs": outputs,
        "metrics": metrics,
        "content": {"episodes": added + duplicates, "quarantined": quarantined},
    }


def accepted(carded, path: Path, options: dict[str, Any], env, run, quarantined: list, tally: Counter):
    """The episodes of a recording that may enter the corpus, one at a time; the others are quarantined. `tally` counts."""
    for number, (found, card) in enumerate(carded):
        where = f"{path.name}, episode {number}"
        try:
            if isinstance(found, EpisodeError):
                raise found
            found = card.check(found, options.get("obs_keys"), where) if card else found
            episode, outside = sound(found.replace(task=env.task), env, where)
        except EpisodeError as error:
            quarantined.append({"file": path.name, "episode": number, "reason": str(error)})
            keep(found, run.out / "quarantine" / f"{path.stem}-{number}.npz")
            say(f"  quarantined {where}: {error}")
            continue
        tally += Counter(good=1, clipped=outside)
        yield episode


def _all(read, path: Path, options: dict[str, Any]):
    """What a reader yields; what it raises becomes the last thing it yields."""
    try:
        yield from read(path, **options)
    except (EpisodeError, OSError, KeyError, ValueError) as error:
        yield error if isinstance(error, EpisodeError) else EpisodeError(f"{path}: {error!r}")


def _carded(read, path: Path, options: dict[str, Any], cfg: dict[str, Any]):
    """(what a reader yields, the recording's card or None)."""
    card = None
    try:
        if place := _card_of(read, path, cfg):
            card = _card.Card(place, cfg["format"], units(cfg["task"]["name"]))
    except EpisodeError as error:
        yield error, None
        return
    for found in _all(read, path, card.options(read, options) if card else options):
        yield found, card


def sound(episode: Episode, env, where: str) -> tuple[Episode, int]:
    """The episode as it may enter the corpus, and how many action values had to be clipped; EpisodeError if it may not."""
    check(episode, where)
    width = episode.obs["state"].shape[1] if "state" in episode.obs else None
    if width is not None and width != env.obs_dim:
        raise EpisodeError(
            f"{where}: obs['state'] is [T+1, {width}]; expected {env.obs_dim} numbers, as {env.task} gives"
        )
    if episode.action.shape[1] != env.action_dim:
        raise EpisodeError(
            f"{where}: action is [T, {episode.action.shape[1]}]; expected [T, {env.action_dim}] of {env.task}"
        )
    low, high = np.float32(env.action_low), np.float32(env.action_high)
    reach = np.maximum(np.abs(low), np.abs(high))
    median = np.median(np.abs(episode.action), axis=0)
    if (median > 2 * reach).any():
        column = int(np.argmax(median / reach))
        raise EpisodeError(
            f"{where}: the median of |action[{column}]| is {median[column]:.3g}, over twice the range [{low[column]:.3g}, "
            f"{high[column]:.3g}] of {env.task}; are these other units (degrees, millimetres)?"
        )
    same = (
        (episode.obs["state"][1:] == episode.obs["state"][:-1]).all(axis=1) if width else np.zeros(len(episode), bool)
    )
    moving = np.r_[False, (episode.action[1:] != episode.action[:-1]).any(axis=1)]
    longest = streak(same & moving)
    if longest >= FROZEN:
        raise EpisodeError(
            f"{where}: the observation is bit-equal for {longest} steps while the action changes; expected < {FROZEN}"
        )
    outside = int(((episode.action < low) | (episode.action > high)).sum())
    extras = {**episode.extras, "recorded_action": episode.action}
    return episode.replace(action=np.clip(episode.action, low, high), extras=extras), outside


def units(task: str) -> dict[str, str]:
    """{key: unit} of what a task of sim/ observes; nothing for others."""
    import flywheel_sim

    keys = flywheel_sim.load(task).obs_keys if task in flywheel_sim.tasks() else {}
    return {key: unit for key, (_, unit) in keys.items()}


def streak(flags: np.ndarray) -> int:
    """The longest run of True; flags [T] bool."""
    longest = now = 0
    for flag in flags:
        now = now + 1 if flag else 0
        longest = max(longest, now)
    return longest


def keep(found: Any, path: Path) -> None:
    """Keep a quarantined episode's arrays beside the reason: nothing is lost."""
    if isinstance(found, Episode):
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"obs.{k}": v for k, v in found.obs.items()} | {"action": found.action, "reward": found.reward}
        kept = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray) and v.dtype != object}
        np.savez_compressed(path, **kept)  # encoded frames stay where they are, in the source


def back(env, episodes: list[Episode], cfg: dict[str, Any]) -> list[dict[str, Any]]:
    """Replay each episode open-loop; how far it strays, by the task's `compare` (default: all columns, in their std)."""
    from flywheel.replay import replay

    rows = []
    with progress("replay", len(episodes)) as tick:
        for episode in episodes:
            seen, told_ = replay(env, episode), episode.obs["state"]
            row: dict[str, Any] = {
                "episode": episode.hash[:12],
                "demo": episode.meta.get("demo"),
                "success": seen.success,
            }
            for item in cfg["task"].get("compare") or [
                {"name": "state", "obs": list(range(told_.shape[1])), "std": True}
            ]:
                columns = item["obs"] if isinstance(item["obs"], list) else [item["obs"]]
                scale = np.maximum(told_[:, columns].std(0), 1e-3) if item.get("std") else 1.0
                if item.get("peak"):
                    gap = np.abs(seen.obs[:, columns].max(0) - told_[:, columns].max(0)).max()
                    row[f"{item['name']} peak error"] = float(gap)
                else:
                    gap = np.linalg.norm((seen.obs[:, columns] - told_[:, columns]) / scale, axis=1)
                    row[f"{item['name']} median error"] = float(np.median(gap))
                    row[f"{item['name']} largest error"] = float(gap.max())
            rows.append(row)
            tick()
    return rows


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print how closely the recordings came back; the worst and the middle of each figure."""
    out: dict[str, Any] = {"episodes": len(rows), "success": Counter(bool(r["success"]) for r in rows)[True]}
    say(f"  replayed {len(rows)} open-loop; {out['success']} succeed")
    for name in rows[0]:
        if name.endswith("error"):
            values = np.array([r[name] for r in rows])
            out[name] = {"median": float(np.median(values)), "worst": float(values.max()), "all": values.tolist()}
            say(f"  {name:28} median {np.median(values):.3g}, worst {values.max():.3g}")
    return out
