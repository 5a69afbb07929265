"""What an episode must be to enter the corpus of a task: shapes, numbers that can be, a choice as one-hot, sensors that
live.

Far values are looked for over all episodes of an ingest: |value - centre| beyond 30 times how far the column usually
goes (the median over the episodes, a tenth of the ninth decile, or a thirtieth of 1 + |centre|, whichever is most).
They are told, not kept out: an unusual demonstration is no error. Kept out is what no sensor says: beyond 1e18 (its
square is no float32)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flywheel import obs as observed
from flywheel import success
from flywheel.corpus.segment import prepare
from flywheel.episode import Episode, EpisodeError, check

FROZEN = 25  # steps of bit-equal observation under a changing action: a sensor that hangs
IMPOSSIBLE = 1e18
FAR, FEW = 30.0, 5  # times the usual reach; episodes below which nothing is usual


def sound(episode: Episode, env, where: str) -> tuple[Episode, int]:
    """The episode as it may enter the corpus, and how many action values had to be clipped; EpisodeError if it may
    not."""
    check(episode, where)
    episode = _without_nonsense(_choices(_packed(episode, env, where), env, where))
    width = episode.obs["state"].shape[1] if "state" in episode.obs else None
    if width is not None and width != env.obs_dim:
        raise EpisodeError(
            f"{where}: obs['state'] is [T+1, {width}]; expected {env.obs_dim} numbers, as {env.task} gives"
        )
    if episode.action.shape[1] != env.action_dim:
        raise EpisodeError(
            f"{where}: action is [T, {episode.action.shape[1]}]; expected [T, {env.action_dim}] of {env.task}"
        )
    _possible(episode, where)
    low, high = np.float32(env.action_low), np.float32(env.action_high)
    reach = np.maximum(np.abs(low), np.abs(high))
    median = np.median(np.abs(episode.action), axis=0)
    if (median > 2 * reach).any():
        column = int(np.argmax(median / np.maximum(reach, 1e-9)))
        raise EpisodeError(
            f"{where}: the median of |action[{column}]| is {median[column]:.3g}, over twice the range "
            f"[{low[column]:.3g}, {high[column]:.3g}] of {env.task}; are these other units (degrees, millimetres)?"
        )
    _alive(episode, where)
    outside = int(((episode.action < low) | (episode.action > high)).sum())
    extras = {**episode.extras, "recorded_action": episode.action}
    episode = decided(episode, env).replace(action=np.clip(episode.action, low, high), extras=extras)
    return prepare(episode, where), outside


def decided(episode: Episode, env) -> Episode:
    """The episode with its reward where the task's mode decides, if each step's flag was recorded and some step does.
    What the recording calls a success stays one: its flags may be a reward that was given once, or end too early."""
    flags, mode = episode.extras.get("success"), getattr(env, "success", None)
    at = None if flags is None else success.decide(flags, mode)
    if at is None:
        return episode
    reward = np.zeros_like(episode.reward)
    reward[at] = 1.0
    return episode.replace(reward=reward)


def _packed(episode: Episode, env, where: str) -> Episode:
    """Put the numbers of a Dict observation into `state`, in the environment's order; meta["obs_shapes"] keeps keys and
    shapes.

    They are found by name: as streams of their own, or in a `state` of which the reader told the keys in
    meta["obs_shapes"]."""
    shapes, told = env.obs_shapes, episode.meta.get("obs_shapes")
    meta = {key: value for key, value in episode.meta.items() if key != "obs_shapes"}
    if list(shapes) == [observed.STATE]:
        return episode.replace(meta=meta)
    obs = dict(episode.obs)
    if shapes.keys() <= obs.keys():
        try:
            column = {key: obs[key][:, None] if obs[key].ndim == 1 else obs[key] for key in shapes}
            state, _ = observed.pack(column, shapes)
        except ValueError as error:
            raise EpisodeError(f"{where}: {error}, as {env.task} gives") from error
        obs = {observed.STATE: state, **{key: value for key, value in obs.items() if key not in shapes}}
    elif told and observed.STATE in obs:
        obs[observed.STATE] = _in_order(obs[observed.STATE], told, env, where)
    return episode.replace(obs=obs, meta={**meta, "obs_shapes": observed.spec(shapes)})


def _in_order(state: np.ndarray, told: Any, env, where: str) -> np.ndarray:
    """Take the task's keys from `state` [T+1, D], in the task's order; all as it is where the recording has other
    names."""
    try:
        shapes = observed.read(told)
        known = env.obs_shapes.keys() <= shapes.keys() and observed.size(shapes) == state.shape[1]
    except (TypeError, ValueError) as error:
        raise EpisodeError(f"{where}: meta.obs_shapes is {str(told)[:200]}; expected [[key, shape]]") from error
    if not known:
        return state
    try:
        picked = observed.picked(env.obs_shapes, shapes)
    except ValueError as error:
        wanted = observed.listed(env.obs_shapes)
        raise EpisodeError(
            f"{where}: the recording has {observed.listed(shapes)}; expected {wanted}, as {env.task} gives"
        ) from error
    return state if picked is None else np.ascontiguousarray(state[:, picked])


def _choices(episode: Episode, env, where: str) -> Episode:
    """Whole numbers as what the task takes: one-hot float32 for a Discrete action or observation, else plain
    float32."""
    space, seen, action = getattr(env, "discrete", None), getattr(env, "one_hot", None), episode.action
    if space is not None and action.shape[1] == 1 and env.action_dim != 1:
        action = one_hot(action, int(space.start), env.action_dim, f"{where}: action", env.task)
    state = episode.obs.get("state")
    if seen is not None and state is not None and state.shape[1:] == (1,) and env.obs_dim != 1:
        state = one_hot(state, int(seen.start), env.obs_dim, f"{where}: obs['state']", env.task)
        episode = episode.replace(obs={**episode.obs, "state": state})
    return episode.replace(action=np.asarray(action, np.float32))


def one_hot(chosen: np.ndarray, start: int, count: int, where: str, task: str) -> np.ndarray:
    """[N, 1] whole numbers from `start` on -> [N, count] float32; EpisodeError for numbers that are no choice."""
    number = chosen[:, 0].astype(np.float64) - start
    if wrong := [float(n + start) for n in number if n != int(n) or not 0 <= n < count]:
        raise EpisodeError(
            f"{where} has {wrong[0]:g}; expected a whole number from {start} to {start + count - 1}, of the {count} "
            f"choices of {task}"
        )
    return (np.arange(count) == number[:, None]).astype(np.float32)


def _without_nonsense(episode: Episode) -> Episode:
    """Less what only its own user needs: an own reward that is not finite, and such numbers in meta; meta.dropped
    says so."""
    meta, own = _finite(episode.meta), episode.extras.get("env_reward")
    dropped = [] if meta == episode.meta else ["numbers in meta that are not finite"]
    extras = episode.extras
    if own is not None and not (own.dtype.kind in "biuf" and np.isfinite(own).all()):
        extras = {key: value for key, value in extras.items() if key != "env_reward"}
        dropped.append("env_reward: not finite")
    if dropped:
        meta = {**meta, "dropped": "; ".join(filter(None, [meta.get("dropped"), *dropped]))}
    return episode.replace(extras=extras, meta=meta)


def _finite(value: Any) -> Any:
    """JSON values with None in the place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _possible(episode: Episode, where: str) -> None:
    """EpisodeError for numbers that no sensor says."""
    for name, value in {"action": episode.action, **{f"obs[{k!r}]": v for k, v in episode.obs.items()}}.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and (np.abs(value) >= IMPOSSIBLE).any():
            row = int(np.argwhere((np.abs(value.reshape(len(value), -1)) >= IMPOSSIBLE).any(axis=1))[0, 0])
            raise EpisodeError(
                f"{where}: {name} has a number beyond {IMPOSSIBLE:g} at row {row}; expected what a sensor says"
            )


def _alive(episode: Episode, where: str) -> None:
    """EpisodeError where the observation stands still while the action changes."""
    state = episode.obs.get("state")
    same = np.zeros(len(episode), bool) if state is None or not state.size else (state[1:] == state[:-1]).all(axis=1)
    moving = np.r_[False, (episode.action[1:] != episode.action[:-1]).any(axis=1)]
    longest = streak(same & moving)
    if longest >= FROZEN:
        raise EpisodeError(
            f"{where}: the observation is bit-equal for {longest} steps while the action changes; expected < {FROZEN}"
        )


def streak(flags: np.ndarray) -> int:
    """The longest run of True; flags [T] bool."""
    longest = now = 0
    for flag in flags:
        now = now + 1 if flag else 0
        longest = max(longest, now)
    return longest


@dataclass
class Far:
    """Gathers each episode's extremes and says, at the end, which lie far outside their column's distribution."""

    seen: dict[tuple[str, int], list[tuple[dict[str, Any], np.ndarray]]] = field(default_factory=dict)

    def add(self, episode: Episode, where: dict[str, Any]) -> None:
        """`where` {"file", "episode"} names it."""
        streams = {f"obs.{key}": value for key, value in episode.obs.items()}
        streams["action"] = episode.extras.get("recorded_action", episode.action)
        for name, value in streams.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim > 2 or not value.size:
                continue
            rows = value.reshape(len(value), -1).astype(np.float64)
            low, high = rows.argmin(axis=0), rows.argmax(axis=0)
            at = np.arange(rows.shape[1])
            extremes = np.stack([np.median(rows, axis=0), rows[low, at], rows[high, at], low, high])
            self.seen.setdefault((name, rows.shape[1]), []).append((where, extremes))

    def found(self) -> list[dict[str, Any]]:
        """[{"file", "episode", "stream", "row", "column", "value", "centre", "usual"}], the farthest first."""
        out = []
        for (name, _), several in self.seen.items():
            if len(several) < FEW:
                continue
            middle, low, high, at_low, at_high = np.stack([extremes for _, extremes in several], axis=1)
            centre = np.median(middle, axis=0)
            reach = np.maximum(np.abs(low - centre), np.abs(high - centre))
            usual = np.maximum(np.median(reach, axis=0), 0.1 * np.quantile(reach, 0.9, axis=0))
            usual = np.maximum(usual, (1 + np.abs(centre)) / FAR)
            for number, column in np.argwhere(reach > FAR * usual).tolist():
                up = abs(high[number, column] - centre[column]) >= abs(low[number, column] - centre[column])
                row, value = (at_high, high) if up else (at_low, low)
                about = {"row": int(row[number, column]), "column": column, "value": float(value[number, column])}
                about |= {"centre": float(centre[column]), "usual": float(usual[column])}
                out.append({**several[number][0], "stream": name, **about})
        return sorted(out, key=lambda one: -abs(one["value"] - one["centre"]) / one["usual"])
