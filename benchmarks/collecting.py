"""Collection of on-policy data, steps a second: `env.rollout` against the loop of cleanrl's PPO over a vector
environment.

An episode of the same task in each of as many environments, by the same net (256 x 2, one action a step, noise on it),
taking turns; median of the ratios. Environments of others are stepped in processes of their own; beside them the same
in this process (`task.step_seconds=0`), which nothing could end if it hung. The peers are cleanrl's own vector
environment (its `make_env`, from the checkout that CLEANRL_DIR names: Gymnasium's SyncVectorEnv of environments that
clip, count and normalise) and a bare SyncVectorEnv. Ours makes episodes, with the guard, the proposed action and the
environment's reward kept, and normalises observations in the policy; the loop fills buffers."""

from __future__ import annotations

import argparse
import time
from statistics import median

import _peers
import numpy as np

TASKS = {
    "push": ({"name": "push"}, "flywheel/Push-v0"),
    "AdroitHandDoor-v1": ({"name": "gym", "id": "AdroitHandDoor-v1", "max_steps": 200}, "AdroitHandDoor-v1"),
    "HalfCheetah-v5": ({"name": "gym", "id": "HalfCheetah-v5", "reward": "env", "max_steps": 200}, "HalfCheetah-v5"),
}


def ours(batch, policy, seeds: range) -> float:
    """Steps a second of one episode a seed."""
    from flywheel.env import rollout

    began = time.perf_counter()
    done, _ = rollout(batch, policy, seeds, origin="benchmark")
    return sum(len(e) for e in done) / (time.perf_counter() - began)


def theirs(vector, policy, low: np.ndarray, high: np.ndarray, seed: int, steps: int) -> float:
    """Steps a second of the loop that fills observations, actions and rewards [steps, N, ...], from a reset on."""
    import torch

    count, wide = vector.num_envs, vector.single_observation_space.shape[0]
    seen = np.zeros((steps, count, wide), np.float32)
    acted, rewards = np.zeros((steps, count, len(low)), np.float32), np.zeros((steps, count), np.float32)
    began = time.perf_counter()
    now, _ = vector.reset(seed=seed)
    for t in range(steps):
        seen[t] = now
        with torch.no_grad():
            acted[t] = policy.sample(torch.from_numpy(seen[t])[:, None], torch.randn(count, 1, len(low)))[:, 0].numpy()
        now, rewards[t], _, _, _ = vector.step(np.clip(acted[t], low, high))
    return steps * count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"any of {', '.join(TASKS)}; default all")
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    import gymnasium as gym
    import torch

    from flywheel import env as envs
    from flywheel.env.ids import find
    from flywheel.policy import base
    from flywheel.rl import build

    torch.set_num_threads(1)
    for name in args.tasks or TASKS:
        task, id = TASKS[name]
        find(id)  # ours are made in a process of their own
        batch = envs.make(task, args.envs, threads=2)
        spec = {"kind": "gaussian", "obs_steps": 1, "action_steps": 1, "depth": 2, **build.shape(batch)}
        policy = base.build(spec).eval().explores(1.0)
        options = {"max_episode_steps": task["max_steps"]} if "max_steps" in task else {}
        vectors = {"SyncVectorEnv": gym.make_vec(id, args.envs, vectorization_mode="sync", **options)}
        if _peers.folder("CLEANRL_DIR"):
            vectors["cleanrl's"] = _peers.cleanrl_envs(id, args.envs)
        here = envs.make({**task, "step_seconds": 0}, args.envs, threads=2) if task["name"] == "gym" else None
        rates = {side: [] for side in ("ours", *(["ours in this process"] if here else []), *vectors)}
        for turn in range(args.turns + 1):
            seeds = range(1000 * turn, 1000 * turn + args.envs)
            rates["ours"].append(ours(batch, policy, seeds))
            if here:
                rates["ours in this process"].append(ours(here, policy, seeds))
            for side, vector in vectors.items():
                rates[side].append(theirs(vector, policy, batch.action_low, batch.action_high, turn, batch.max_steps))
        for side in list(rates)[1:]:
            ratio = median(a / b for a, b in zip(rates["ours"][1:], rates[side][1:], strict=True))
            print(
                f"{name:16} ours {median(rates['ours'][1:]):8,.0f} steps/s, {side} {median(rates[side][1:]):8,.0f}, "
                f"ratio {ratio:.2f}" + (" (target 2)" if side == "cleanrl's" else ""),
                flush=True,
            )
        for made in (*vectors.values(), batch, *([here] if here else [])):
            made.close()


if __name__ == "__main__":
    main()
