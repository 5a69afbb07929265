"""What the last question to the gate turned on: episodes that only one of the two policies won, as filmstrips with the
actions of both under them. Of a robot, whose trials have no partner: the candidate's newest successes and failures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from flywheel.log import say
from flywheel.report import charts

SHOWN = 2  # episodes of each kind
FRAMES = 6  # of a strip
SIZE = (160, 120)
TRACES = 3  # numbers of the action that are drawn: those that move most


class Strip(NamedTuple):
    """One policy's episode: who, whether it succeeded, and frames as data URIs."""

    who: str
    success: bool
    steps: int
    frames: list[Markup]


class Flip(NamedTuple):
    """An episode that was won or lost: its title, the strips, and the actions over time."""

    kind: str
    title: str
    strips: list[Strip]
    chart: charts.Chart


def last(place, runs: list[dict[str, Any]], name: str | None) -> dict[str, Any] | None:
    """The newest question about `name` with figures: {"candidate", "incumbent" NAME@ID, "task", "run"}; None before the
    first."""
    for run in reversed(runs):
        over = run["content"].get("over")
        ref = (run.get("inputs", {}).get("checkpoint") or {}).get("ref", "")
        if run["stage"] == "promote" and over and "figures" in run["content"] and ref.partition("@")[0] == name:
            task = run["identity"]["config"].get("task") or {}
            return {"candidate": ref, "incumbent": f"{name}@{over}", "task": task, "run": run}
    return None


def flips(place, asked: dict[str, Any]) -> list[Flip]:
    """What the question turned on, won ones first; nothing where no episode differs or nothing can be played again."""
    if asked["task"].get("name") == "robot":
        return _trials(place, asked)
    try:
        columns = [dict(np.load(place.dir(asked["run"]) / "out" / f"{k}.npz")) for k in ("candidate", "incumbent")]
        return _played(place, asked, *columns)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        say(f"  no filmstrips: {error}")
        return []


def _played(place, asked: dict[str, Any], mine: dict[str, np.ndarray], its: dict[str, np.ndarray]) -> list[Flip]:
    """Play what differs again, both policies on each seed, in one environment."""
    import flywheel_sim  # noqa: F401 (tells MuJoCo how to draw without a screen, before it is imported)

    from flywheel.env import drawn, make

    n = min(len(mine["seed"]), len(its["seed"]))
    won, lost = (np.flatnonzero(a["success"][:n] & ~b["success"][:n]) for a, b in ((mine, its), (its, mine)))
    if not len(won) and not len(lost):
        return []
    env = plain = make(asked["task"], num_envs=1, threads=1)
    pictures = True
    try:
        env = drawn(plain)
        env.reset_at(0, int(mine["seed"][0]))
        env.frame(0, *SIZE)
    except (RuntimeError, ValueError) as error:
        say(f"  strips without pictures: {error}")
        env, pictures = plain, False
    policies = {kind: place.load(asked[kind]) for kind in ("candidate", "incumbent")}
    found = []
    try:
        for kind, which in (("won", won), ("lost", lost)):
            for seed in mine["seed"][which[:SHOWN]].tolist():
                made = {who: _episode(env, policy, seed, pictures) for who, policy in policies.items()}
                found.append(_flip(kind, f"seed {seed}", made))
    finally:
        env.close()
    return found


def _episode(env, policy, seed: int, pictures: bool) -> tuple[Any, list[np.ndarray]]:
    """One episode, and FRAMES pictures of it. It is played twice: a picture takes longer than all steps of an episode,
    and which ones are shown is known at its end."""
    from flywheel.env import rollout

    (episode,), _ = rollout(env, policy, [seed], origin="evaluation")
    shown, frames = set(spread(range(len(episode)))) if pictures else set(), {}

    def watch(step: int, obs: np.ndarray) -> None:
        if not step:
            frames.clear()  # it began anew
        if step in shown:
            frames[step] = np.array(env.frame(0, *SIZE))

    if shown:
        (episode,), _ = rollout(env, policy, [seed], origin="evaluation", watch=watch)
    return episode, list(frames.values())


def _trials(place, asked: dict[str, Any]) -> list[Flip]:
    """The newest trials of a robot's candidate, as its own cameras saw them."""
    from flywheel.args import Task, build
    from flywheel.env import trials

    some, found = trials.of(place, build(Task, asked["task"], "task."), asked["candidate"]), []
    won = trials.succeeded(some)
    for kind, which in (("won", np.flatnonzero(won)), ("lost", np.flatnonzero(~won))):
        for index in which[::-1][:SHOWN].tolist():
            episode = some.read(index)
            if not episode.meta.get("trial_only"):
                cameras = [v for v in episode.obs.values() if len(v.shape) == 4]
                frames = list(np.asarray(cameras[0])) if cameras else []
                found.append(_flip(kind, f"trial {episode.hash[:12]}", {"candidate": (episode, frames)}))
    return found


def _flip(kind: str, title: str, made: dict[str, tuple[Any, list[np.ndarray]]]) -> Flip:
    strips = [
        Strip(who, bool(episode.success), len(episode), [picture(one) for one in spread(frames)])
        for who, (episode, frames) in made.items()
    ]
    name = f"flip-{kind}-{title}".replace(" ", "-")
    actions = {who: episode.action for who, (episode, _) in made.items()}
    return Flip(kind, title, strips, charts.actions(name, f"Actions of {title}, {kind}", actions, TRACES))


def spread(frames: Sequence[Any], count: int = FRAMES) -> list[Any]:
    """Choose `count` of them, from first to last."""
    if not len(frames):
        return []
    return [frames[i] for i in np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]


def picture(frame: np.ndarray) -> Markup:
    """A frame [H, W, 3] uint8 as a data URI, at most SIZE."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail(SIZE)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=60)
    return Markup("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode())
