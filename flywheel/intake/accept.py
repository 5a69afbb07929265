"""What of a recording may enter the corpus, and what is set aside with its reason: nothing is lost, and one bad
episode stops no other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from flywheel.env.playback import filmed
from flywheel.episode import Episode, EpisodeError, as_error, passing
from flywheel.intake import card
from flywheel.intake.recordings import card_of
from flywheel.intake.screen import Far, sound
from flywheel.log import say

LETTERS, LISTED = 2000, 10_000  # of a reason; reasons that are kept


def failure(tally: Counter, quarantined: list[dict[str, Any]], source: str) -> str | None:
    """Why an ingest is no final result, in one sentence: something could not be read now, or nothing was taken."""
    waiting = [one for one in quarantined if one.get("passing")]
    if waiting:
        names = ", ".join(dict.fromkeys(one["file"] for one in waiting))[:500]
        return (
            f"ingest: {names} could not be read now ({waiting[0]['reason'][:300]}); {tally['good']} episodes were "
            "taken. Nothing is decided about it: run the same again when it can be read"
        )
    if tally["good"]:
        return None
    return (
        f"ingest: nothing was taken, all {tally['bad']} episodes of {source} were quarantined; the first because "
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
            f"  {tally['clipped']} action values lay outside the range: clipped in `action`, kept in "
            "extras['recorded_action']"
        )
    if tally["dropped"]:
        say(f"  {tally['dropped']} episodes: a seed or a reward that is none was dropped; meta.dropped says what")
    for one in strange[:5]:
        say(
            f"  WARNING {one['file']}, episode {one['episode']}: {one['stream']}[row {one['row']}, column "
            f"{one['column']}] is {one['value']:.4g}; the others stay within {one['usual']:.3g} of "
            f"{one['centre']:.3g}. Taken: `flywheel "
            "corpus tombstone` removes it if it is an error"
        )
    if len(strange) > 5:
        say(f"  WARNING and {len(strange) - 5} more far values; far.json of the run has them all")


def accepted(recording, name: str, options: dict[str, Any], env, run, quarantined: list, tally: Counter, far: Far):
    """The episodes of a recording that may enter the corpus, one at a time; the others are quarantined. `tally`
    counts."""
    for number, (found, own) in enumerate(recording):
        where = f"{name}, episode {number}"
        try:
            if isinstance(found, EpisodeError):
                raise found
            found = own.check(found, options.get("obs_keys"), where) if own else found
            found = found.replace(task=env.task)
            episode, outside = (_of_a_robot if env.made.recorded else _of_an_environment)(found, env, where)
        except Exception as error:  # one bad episode never stops the others
            aside(
                error if isinstance(error, EpisodeError) else as_error(error, where), name, number, quarantined, tally
            )
            keep(found, run.out / "quarantine" / f"{Path(name).stem}-{number}.npz")
            continue
        tally += Counter(good=1, clipped=outside, dropped=int("dropped" in episode.meta))
        far.add(episode, {"file": name, "episode": number})
        yield episode


def _of_an_environment(found: Episode, env, where: str) -> tuple[Episode, int]:
    """An episode of what can be played, seen by the cameras that the task has; and how many values were clipped."""
    if getattr(env, "cameras", None) and not env.cameras.keys() <= found.obs.keys():
        found = filmed(env, found, where)
    return sound(found, env, where)


def _of_a_robot(found: Episode, env, where: str) -> tuple[Episode, int]:
    """An episode of a robot that only its recordings describe; of a trial that is an outcome and no more, that."""
    if found.meta.get("trial_only"):
        return found, 0
    if missing := sorted(env.cameras.keys() - found.obs.keys()):
        raise EpisodeError(
            f"{where}: there is no camera {', '.join(missing)}; the recording has {', '.join(found.obs)}. Take it out "
            "of the task's cameras, or record it"
        )
    env.meet(found)
    episode, outside = sound(found, env, where)
    if (steps := int(np.sum(episode.extras.get("intervention", 0)))) and "interventions" not in episode.meta:
        episode = episode.replace(meta={**episode.meta, "interventions": steps})
    return episode, outside


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


def carded(read, path: Path, options: dict[str, Any], args):
    """(what a reader yields, the recording's card or None)."""
    own = None
    try:
        if place := card_of(read, path, args):
            own = card.Card(place, args.format, units(args.task.name))
    except Exception as error:
        yield as_error(error, str(path)), None
        return
    for found in _all(read, path, own.options(read, options) if own else options):
        yield found, own


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
