"""Scripted demonstrations of two tasks of gymnasium-robotics on which nothing here was tuned, in robomimic's layout.

    python benchmarks/fetch.py push FILE.hdf5                  40 episodes of FetchPush-v4
    python benchmarks/fetch.py pick FILE.hdf5 --episodes 40    of FetchPickAndPlace-v4; by default 10

Imitation of so many ends at about a half; of 40 of pick, at 0.96 (a flow policy, 100 seeds to choose by).

The operator sees what a policy sees: where gripper, object and goal are. Its hand wavers, and in one episode of four it
makes a mistake; failures stay in, labelled by `info["is_success"]` at the last step, which is how these tasks are scored.
The same libraries and seeds give the same episodes."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import gymnasium_robotics  # noqa: F401  registers the environments
import h5py
import numpy as np

STEPS = 50
FLAWED = 0.25  # share of episodes with a mistake
WAVER, MEMORY = 0.15, 0.8  # size (of full action) and autocorrelation of the hand's noise
GAIN = 10.0  # actions of 1 move the hand by up to 5 cm a step
FIRST_SEED = 900_000_000  # above all that a policy collects, is chosen or scored on


def _towards(see: dict[str, np.ndarray], point: np.ndarray, speed: float, grip: float) -> np.ndarray:
    """The action [4] that moves the hand to `point` (m)."""
    way = GAIN * (point - see["observation"][:3])
    return np.append(way * min(1.0, speed / max(float(np.abs(way).max()), 1e-9)), grip)


def push(see: dict[str, np.ndarray], rng: np.random.Generator, flawed: bool) -> Iterator[np.ndarray]:
    """Up, above the object's far side, down, and along the line to the goal, for as long as it is not there; once the
    hand is not behind the object any more, or that lies past the goal, the same again. `see` is the newest observation.
    The mistake: it first pushes beside the middle, and the object turns away."""
    speed, depth = rng.uniform(0.7, 1.0), float(see["achieved_goal"][2])
    aside = rng.choice([-1, 1]) * rng.uniform(0.025, 0.035) if flawed else rng.normal(0, 0.003)

    def line() -> tuple[np.ndarray, np.ndarray, float]:
        """The direction from object to goal, the one across, both in the table's plane, and how far it is (m)."""
        way = (see["desired_goal"] - see["achieved_goal"]) * [1, 1, 0]
        left = float(np.hypot(*way[:2]))
        along = way / max(left, 1e-6)
        return along, np.array([-along[1], along[0], 0.0]), left

    def behind() -> tuple[float, float]:
        """How far the hand is behind the object, and beside the line (m)."""
        along, across, _ = line()
        back = see["achieved_goal"] - see["observation"][:3]
        return float(back @ along), abs(float(back @ across) + aside)

    for attempt in itertools.count():
        if attempt:
            aside = rng.normal(0, 0.003)
        raised = see["observation"][:3] * [1, 1, 0] + [0, 0, depth + 0.09]
        while raised[2] - see["observation"][2] > 0.03:
            yield _towards(see, raised, speed, 0.0)
        for height, near in ((0.08, 0.02), (0.0, 0.015)):
            for _ in range(18):
                along, across, _ = line()
                point = see["achieved_goal"] - 0.07 * along + aside * across + [0, 0, height]
                yield _towards(see, point, speed, 0.0)
                if np.abs(point - see["observation"][:3]).max() < near:
                    break
        while line()[2] > 0.015 and behind()[0] > 0.02:
            along, across, left = line()
            ahead = min(0.08, 0.03 + 0.6 * left) if behind()[1] < 0.012 else -0.015  # m, beyond where it is touched
            point = see["achieved_goal"] + (ahead - 0.045) * along + aside * across
            point[2] = depth
            yield _towards(see, point, speed, 0.0)
        there = see["observation"][:3].copy()
        for wait in itertools.count():
            if wait > 1 and line()[2] > 0.03:
                break
            yield _towards(see, there, speed, 0.0)


def pick(see: dict[str, np.ndarray], rng: np.random.Generator, flawed: bool) -> Iterator[np.ndarray]:
    """Above the object, down, close, to the goal, stay. `see` is the newest observation. The mistake: it grasps beside
    the object, or lets go on the way."""
    speed = rng.uniform(0.5, 0.9)
    misses = flawed and rng.random() < 0.5
    miss = rng.choice([-1, 1]) * rng.uniform(0.03, 0.045) * np.eye(3)[0] if misses else [*rng.normal(0, 0.003, 2), 0.0]
    lets_go = rng.integers(3, 8) if flawed and not misses else STEPS
    for height, near in ((0.07, 0.015), (0.0, 0.01)):
        for _ in range(18):
            point = see["achieved_goal"] + miss + [0, 0, height]
            yield _towards(see, point, speed, 1.0)
            if np.abs(point - see["observation"][:3]).max() < near:
                break
    for _ in range(rng.integers(3, 5)):
        yield np.array([0, 0, 0, -1.0])
    for step in itertools.count():
        carried = see["observation"][:3] + see["desired_goal"] - see["achieved_goal"]
        yield _towards(see, carried if step < lets_go else see["desired_goal"], speed, -1.0 if step < lets_go else 1.0)


OPERATORS = {"push": ("FetchPush-v4", push, 40), "pick": ("FetchPickAndPlace-v4", pick, 10)}  # id, script, episodes


def record(name: str, path: Path, episodes: int | None = None) -> float:
    """Write `episodes` demonstrations of OPERATORS[name] to `path`; the share that succeeds."""
    id_, operator, usual = OPERATORS[name]
    env, won = gymnasium.make(id_, max_episode_steps=STEPS), []
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    with h5py.File(aside, "w", libver="latest") as file:
        data = file.create_group("data")
        data.attrs["origin"], data.attrs["fps"] = f"scripted:{name}", float(env.metadata["render_fps"])
        for k in range(episodes or usual):
            seen, actions, flags = _play(env, operator, FIRST_SEED + k)
            won.append(success := bool(flags[-1]))
            demo = data.create_group(f"demo_{k}")
            demo.attrs["success"], demo.attrs["seed"], demo.attrs["num_samples"] = success, FIRST_SEED + k, len(actions)
            demo["actions"], demo["success"] = actions, flags
            obs = demo.create_group("obs")
            for key in seen[0]:
                obs[key] = np.array([one[key] for one in seen], np.float32)
    env.close()
    aside.replace(path)
    return float(np.mean(won))


def _play(env, operator, seed: int) -> tuple[list[dict[str, np.ndarray]], np.ndarray, np.ndarray]:
    """One episode: observations [T+1], actions [T, 4] float32, and at each step whether it is there, [T] bool."""
    rng = np.random.default_rng([seed, 3])
    flawed, noise = rng.random() < FLAWED, np.zeros(3)
    see = dict(env.reset(seed=seed)[0])
    seen, actions, flags, done, script = [dict(see)], [], [], False, operator(see, rng, flawed)
    while not done:
        action = next(script)
        noise = MEMORY * noise + np.sqrt(1 - MEMORY**2) * WAVER * rng.standard_normal(3)
        action[:3] += noise * min(1.0, 0.15 + float(np.abs(action[:3]).max()))  # it wavers when it moves
        actions.append(np.clip(action, -1, 1).astype(np.float32))
        obs, _, _, done, info = env.step(actions[-1])
        see.update(obs)
        seen.append(dict(see))
        flags.append(bool(info["is_success"]))
    return seen, np.array(actions), np.array(flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(OPERATORS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--episodes", type=int)
    args = parser.parse_args()
    print(f"{args.file}: {record(args.task, args.file, args.episodes):.0%} succeed")


if __name__ == "__main__":
    main()
