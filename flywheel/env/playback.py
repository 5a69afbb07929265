"""Demonstrations replayed open-loop in the simulator: how closely they come back, and states to start episodes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel import success
from flywheel.env.faults import Fault, Lost
from flywheel.env.trust import keeps_state
from flywheel.episode import Episode, EpisodeError
from flywheel.obs import PRIVILEGED

COMES_BACK = 2e-3  # of what a robot knows of itself, in m or without unit: then the frames show what was recorded


@dataclass(frozen=True)
class Replay:
    """What came back: `obs` [T+1, Do] beside the recorded one, `success`, and the simulator's state before each
    step."""

    obs: np.ndarray
    success: bool
    states: list[dict[str, np.ndarray]]
    film: dict[str, np.ndarray]  # {camera: [T+1, H, W, 3]}, where there are any
    known: np.ndarray | None = None  # what only the simulator knows, [T+1, Dp]; where there are cameras


def replay(env, episode: Episode, keep_states: bool = False) -> Replay:
    """Set environment 0 of `env` to the episode's start and execute its actions; success is as `env.success` counts it.

    A start without velocities that were measured (`qpos_next`, see `solve_velocity`) is completed first. ValueError
    where the episode has no start and no seed, where a state of the environment cannot be set again, or where it is at
    fault."""
    name = f"episode {episode.hash[:12]} ({episode.meta})"
    if not episode.start and episode.seed is None:
        raise ValueError(f"{name} holds neither a start state nor a seed: it cannot be replayed")
    if (episode.start or keep_states) and not (kept := keeps_state(env))[0]:
        raise ValueError(f"{name}: {env.task} cannot be put back to a state: {kept[1]}")
    bare = episode.replace(obs={}, extras={})
    try:
        if hasattr(env, "run"):  # its environments live in another process
            return env.run(_replay, bare, keep_states)
        return _replay(env, bare, keep_states)
    except (Fault, Lost) as error:
        raise ValueError(f"{name} cannot be replayed: {error}") from error


def _replay(env, episode: Episode, keep_states: bool) -> Replay:
    start = solve_velocity(env, episode) if "qpos_next" in episode.start else dict(episode.start)
    obs = env.reset_at(0, episode.seed or 0, start or None)
    seen, states, flags, film, known = [obs], [], [], [_look(env)], [_known(env)]
    action = np.zeros((env.num_envs, env.action_dim), np.float32)
    for a in np.clip(episode.action, env.action_low, env.action_high):
        if keep_states:
            states.append(env.get_state(0))
        action[0] = a
        new, _, _, _, info = env.step(action, [0])
        seen.append(new[0].copy())
        film.append(_look(env))
        known.append(_known(env))
        flags.append(bool(info["success"][0]))
        if cause := (info.get("faults") or {}).get(0):
            raise Fault(cause)
    at = success.recorded(np.array(flags, bool), getattr(env, "success", "any"), label=episode.success)
    frames = {name: np.stack([one[name] for one in film]) for name in film[0]}
    return Replay(np.stack(seen), at is not None, states, frames, np.stack(known) if known[0] is not None else None)


def _look(env) -> dict[str, np.ndarray]:
    """What the cameras of environment 0 see now, {camera: [H, W, 3]}."""
    return {name: frames[0] for name, frames in env.look([0]).items()} if getattr(env, "cameras", None) else {}


def _known(env) -> np.ndarray | None:
    return env.privileged([0])[0] if getattr(env, "privileged_dim", 0) else None


def filmed(env, episode: Episode, where: str) -> Episode:
    """The episode as the cameras of `env` saw it: replayed, which has to come back to what was recorded of the robot.
    EpisodeError where it does not, or cannot be replayed."""
    try:
        back = replay(env, episode)
    except ValueError as error:
        raise EpisodeError(f"{where}: {error}: its frames cannot be drawn") from error
    told = episode.obs["state"][:, env.seen] if episode.obs["state"].shape[1] != env.obs_dim else episode.obs["state"]
    apart = np.abs(back.obs - told).max(0)
    if (apart > COMES_BACK).any():
        worst = int(apart.argmax())
        raise EpisodeError(
            f"{where}: replayed, {env.obs_names[worst]} is up to {apart[worst]:.3g} from what was recorded: its frames "
            f"would show something else; expected at most {COMES_BACK}"
        )
    known = {} if back.known is None else {PRIVILEGED: back.known}
    return episode.replace(obs={"state": told, **back.film}, extras={**episode.extras, **known})


def solve_velocity(env, episode: Episode, iterations: int = 8) -> dict[str, np.ndarray]:
    """The episode's start with the velocity that leads to what was recorded one control step later (single shooting).

    start["qpos_next"] [nq] and start["site_next.NAME"] [3] are that record; entries of qpos_next that were not observed
    are NaN and follow from the site. Recordings rarely begin at rest: with zero velocity the Adroit door's come back
    within 5 mm, with this one within 1 um (median).
    """
    import mujoco

    start = dict(episode.start)
    after = start.pop("qpos_next")
    sites = {key.removeprefix("site_next."): start.pop(key) for key in list(start) if key.startswith("site_next.")}
    unknown = np.flatnonzero(np.isnan(after))
    known = np.flatnonzero(~np.isnan(after))
    action = np.zeros((env.num_envs, env.action_dim), np.float32)
    action[0] = np.clip(episode.action[0], env.action_low, env.action_high)
    velocity = start["qvel"].copy()
    for _ in range(iterations):
        start["qvel"] = velocity.copy()
        env.reset_at(0, 0, start)
        env.step(action, [0])
        model, data = env.physics(0)
        miss = np.zeros(model.nv)
        miss[known] = after[known] - data.qpos[known]
        for name, position in sites.items():
            site = model.site(name).id
            jacobian = np.zeros((3, model.nv))
            mujoco.mj_jacSite(model, data, jacobian, None, site)
            rest = position - data.site_xpos[site] - jacobian[:, known] @ miss[known]
            miss[unknown] = np.linalg.lstsq(jacobian[:, unknown], rest, rcond=None)[0]
        velocity += miss * env.fps
    return start
