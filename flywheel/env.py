"""Environments in batches, and the one rollout that makes episodes: collection, gate, report and tests all use it.

A batch (a task of sim/, or `GymBatch` around any Gymnasium environment) offers: num_envs, obs_dim, action_dim,
action_low, action_high, max_steps, fps, reset_at(i, seed, state=None) -> obs [Do], step(action [N, Da]) -> obs, reward,
terminated, truncated, info["success"] [N], get_state(i), set_state(i, state), frame(i, width, height), close().
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
    """The batch for a task's config: {"name": "lift"}, or {"name": "gym", "id": ..., "max_steps": ...}."""
    options = {k: v for k, v in task.items() if k not in ("name", *MEASURED)}
    if task["name"] == "gym":
        return GymBatch(num_envs=num_envs, threads=threads, **options)
    import flywheel_sim

    return flywheel_sim.make_batch(task["name"], num_envs, threads, **options)


def rollout(
    env,
    policy,
    seeds: Sequence[int],
    *,
    origin: str,
    starts: Sequence[dict[str, Any] | None] | None = None,
    stop_at_success: bool = True,
    fps: float | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[int, np.ndarray], None] | None = None,
) -> tuple[list[Episode], dict[str, int]]:
    """One episode for each seed, in the order of the seeds, and the guard's counts.

    Every episode counts, whenever it ends (no bias to short ones). reward is 1 at the first success, which terminates
    the episode for the learner; `stop_at_success=False` goes on to the time limit to see whether success lasts
    (meta["success_at_end"]). `starts[k]`: {"state": ..., "meta": ...} to begin at a state, not at a reset.
    `watch(k, obs)` is called before each step of the first environment's first episode.
    """
    n = min(env.num_envs, len(seeds))
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
    waiting = iter(range(len(seeds)))

    def begin(slot: int) -> None:
        k = next(waiting, -1)
        episode_of[slot], step_of[slot] = k, 0
        if k >= 0:
            start = starts[k] if starts else None
            obs[slot] = env.reset_at(slot, seeds[k], start["state"] if start else None)
            all_obs[slot, 0] = obs[slot]
            policy.reset([slot], [seeds[k]])

    def finish(slot: int) -> None:
        k, steps = episode_of[slot], step_of[slot]
        won = success[slot, :steps]
        reward = np.zeros(steps, np.float32)
        if won.any():
            reward[won.argmax()] = 1.0
        start = starts[k] if starts else None
        done[k] = Episode(
            task=env.task,
            obs={"state": all_obs[slot, : steps + 1].copy()},
            action=executed[slot, :steps].copy(),
            reward=reward,
            terminated=bool(won.any()) and stop_at_success,
            success=bool(won.any()),
            origin=origin,
            seed=int(seeds[k]),
            fps=env.fps if fps is None else fps,
            extras={"proposed": proposed[slot, :steps].copy(), "env_reward": own_reward[slot, :steps].copy()},
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
        new, reward, terminated, truncated, info = env.step(action, active)
        obs[active] = new[active]
        own_reward[active, t], success[active, t] = reward[active], info["success"][active]
        step_of[active] += 1
        all_obs[active, t + 1] = new[active]
        for slot in active:
            won = stop_at_success and success[slot, step_of[slot] - 1]
            if won or truncated[slot] or terminated[slot] or step_of[slot] >= env.max_steps:
                finish(slot)
    return done, dict(guard.count)
