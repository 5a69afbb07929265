"""Environments in batches, and the one rollout that makes episodes: collection, gate, report and tests all use it.

A batch (a task of sim/, or `GymBatch` around any Gymnasium environment) offers: num_envs, obs_dim, action_dim,
action_low, action_high, max_steps, fps, reset_at(i, seed, state=None) -> obs [Do], step(action [N, Da]) -> obs, reward,
terminated, truncated, info["success"] [N], get_state(i), set_state(i, state), frame(i, width, height), close(). What a task is learnt from is its
`reward`: "success" (1 at the first success) or "env" (the environment's own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flywheel.episode import Episode
from flywheel.guard import Guard
from flywheel.gym_task import GymBatch

MEASURED = ("also", "within", "compare")  # keys of a task's config that say what to measure, not what to make


def make(task: dict[str, Any], num_envs: int = 32, threads: int = 2):
    """The batch for a task's config: {"name": "lift"}, or {"name": "gym", "id": ..., "max_steps": ...}.

    With `reward: env` the return that counts as success may be given as `solved`.
    """
    options = {k: v for k, v in task.items() if k not in ("name", "reward", "solved", *MEASURED)}
    reward, solved = task.get("reward") or "success", task.get("solved")
    if reward not in ("success", "env") or (solved is not None and reward != "env"):
        raise ValueError(
            f"task.reward={reward} task.solved={solved}; expected reward success (1 at the first success), or env (the "
            "environment's own), and solved, a return, only with env"
        )
    if task["name"] == "gym":
        batch = GymBatch(num_envs=num_envs, threads=threads, **options)
    else:
        import flywheel_sim

        batch = flywheel_sim.make_batch(task["name"], num_envs, threads, **options)
    batch.reward, batch.solved = reward, solved
    return batch


def rollout(
    env,
    policy,
    seeds: Sequence[int],
    *,
    origin: str,
    starts: Sequence[dict[str, Any] | None] | None = None,
    stop_at_success: bool = True,
    steps: int | None = None,
    fps: float | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[int, np.ndarray], None] | None = None,
) -> tuple[list[Episode], dict[str, int]]:
    """One episode for each seed, in the order of the seeds, and the guard's counts.

    Every episode counts, whenever it ends (no bias to short ones). reward is 1 at the first success, which terminates
    the episode for the learner; `stop_at_success=False` goes on to the time limit to see whether success lasts
    (meta["success_at_end"]). The environment's own reward is kept in extras["env_reward"]; where that is learnt from, an
    episode ends, and is `terminated`, only where the environment says so. `starts[k]`: {"state": ..., "meta": ...} to begin at a state, not at a reset. With `steps` no episode is begun
    once so many steps were made in all: every one that was begun is finished and returned.
    `watch(k, obs)` is called before each step of the first environment's first episode.
    """
    own = getattr(env, "reward", "success") == "env"
    n = min(env.num_envs, len(seeds), *([max(1, steps // env.max_steps)] if steps else []))
    low, high = np.asarray(env.action_low, np.float32), np.asarray(env.action_high, np.float32)
    guard = Guard(low, high, env.num_envs)
    obs = np.zeros((env.num_envs, env.obs_dim), np.float32)
    all_obs = np.zeros((n, env.max_steps + 1, env.obs_dim), np.float32)
    executed = np.zeros((n, env.max_steps, env.action_dim), np.float32)
    proposed = np.zeros_like(executed)
    own_reward = np.zeros((n, env.max_steps), np.float32)
    success = np.zeros((n, env.max_steps), bool)
    episode_of, step_of = np.full(n, -1), np.zeros(n, int)
    done: list[Episode | None] = [None] * len(seeds)
    waiting, made = iter(range(len(seeds))), 0

    def begin(slot: int) -> None:
        k = -1 if steps and made >= steps else next(waiting, -1)
        episode_of[slot], step_of[slot] = k, 0
        if k >= 0:
            start = starts[k] if starts else None
            obs[slot] = env.reset_at(slot, seeds[k], start["state"] if start else None)
            all_obs[slot, 0] = obs[slot]
            policy.reset([slot], [seeds[k]])

    def finish(slot: int) -> None:
        k, length = episode_of[slot], step_of[slot]
        won = success[slot, :length]
        if own and env.solved is not None:
            won[-1] = own_reward[slot, :length].sum() >= env.solved
        reached, reward = bool(won.any()), np.zeros(length, np.float32)
        reward[won.argmax()] = reached
        start = starts[k] if starts else None
        done[k] = Episode(
            task=env.task,
            obs={"state": all_obs[slot, : length + 1].copy()},
            action=executed[slot, :length].copy(),
            reward=reward,
            terminated=bool(ended[slot]) if own else reached and stop_at_success,
            success=reached,
            origin=origin,
            seed=int(seeds[k]),
            fps=env.fps if fps is None else fps,
            extras={"proposed": proposed[slot, :length].copy(), "env_reward": own_reward[slot, :length].copy()},
            meta={"success_at_end": bool(won[-1]), **((start or {}).get("meta") or {})},
        )
        if progress:
            progress(1)
        begin(slot)

    for slot in range(n):
        begin(slot)
    action = np.zeros((env.num_envs, env.action_dim), np.float32)
    while (episode_of >= 0).any():
        active = np.flatnonzero(episode_of >= 0)
        if watch and episode_of[0] == 0:
            watch(int(step_of[0]), obs[0])
        wish = policy.act(obs[active], active)
        action[active] = guard(wish, active)
        t = step_of[active]
        proposed[active, t], executed[active, t] = wish, action[active]
        new, reward, ended, truncated, info = env.step(action, active)
        obs[active] = new[active]
        own_reward[active, t], success[active, t] = reward[active], info["success"][active]
        step_of[active] += 1
        made += len(active)
        all_obs[active, t + 1] = new[active]
        over = truncated[active] | ended[active] | (step_of[active] >= env.max_steps)
        if stop_at_success and not own:
            over |= success[active, t]
        for slot in active[over]:
            finish(slot)
    return [episode for episode in done if episode is not None], dict(guard.count)
