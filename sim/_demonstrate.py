"""Make the default demonstrations of a task again: `python -m flywheel_sim._demonstrate lift`.

Writes DIR/lift_demos.hdf5 in robomimic's layout and DIR/lift_demos.yaml, its data card. The same code, seeds and
libraries give the same episodes. An episode ends `AFTER` steps after the task's success is decided (its `SUCCESS`: held
for so many steps) or at the task's `max_steps`; failures stay in, labelled.

    data/demo_0/actions          [T, Da] float32
    data/demo_0/obs/<key>        [T+1, d] float32, the last row is the final observation, which next_obs would hold;
                                 concatenated in the order of data.attrs["obs_keys"] they are the flat observation
    data/demo_0/rewards, dones   [T], 1 at the step that decided success
    data/demo_0/states           [1, nx] float64, the physics at the start; group `start` names all that a replay sets
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path

import flywheel_sim
import h5py
import numpy as np
import yaml
from flywheel_sim._demonstrator import Demonstrator

FIRST_SEED = 900_000_000  # above those of collection (0 ...), gate (100,000,000 ...) and report (200,000,000 ...)
AFTER = 2  # steps that are recorded after success is decided
HERE = Path(__file__).parent.parent / "datasets"


def play(name: str, episodes: int | None = None) -> list[dict]:
    """Demonstrate: one dict an episode, with obs [T+1, Do], action [T, Da], start, seed, success and outcome."""
    task = flywheel_sim.load(name)
    episodes = episodes or task.module.DEMOS
    batch = flywheel_sim.make_batch(name, episodes)
    seeds = [FIRST_SEED + k for k in range(episodes)]
    people = [Demonstrator(task, seed) for seed in seeds]
    now = batch.reset(seeds)
    starts = [batch.get_state(i) for i in range(episodes)]
    obs, actions = [[row] for row in now], [[] for _ in seeds]
    streak, decided = np.zeros(episodes, int), np.full(episodes, -1)
    active, needed = np.arange(episodes), needs(task.success)
    for t in range(task.max_steps):
        action = np.zeros((episodes, task.action_dim), np.float32)
        for i in active:
            action[i] = people[i].act(obs[i][-1])
        now, _, _, _, info = batch.step(action, active)
        for i in active:
            actions[i].append(action[i])
            obs[i].append(now[i])
        streak = np.where(info["success"], streak + 1, 0)
        decided[(streak >= needed) & (decided < 0)] = t
        active = active[(decided[active] < 0) | (t < decided[active] + AFTER)]
        if not len(active):
            break
    batch.close()
    return [
        {
            "obs": np.stack(obs[i]),
            "action": np.stack(actions[i]),
            "start": {key: starts[i][key] for key in ("physics", "mocap")},
            "seed": seeds[i],
            "decided": int(decided[i]),  # the step, -1 for none
            "success": bool(decided[i] >= 0),
            "outcome": people[i].outcome(bool(decided[i] >= 0)),
        }
        for i in range(episodes)
    ]


def needs(success: str) -> int:
    """How many steps in a row a task's success must be true: "held:10" -> 10, "any" -> 1."""
    return int(success.partition(":")[2] or 1)


def write_hdf5(path: Path, name: str, episodes: list[dict]) -> None:
    """The episodes in robomimic's layout; written aside, then renamed."""
    task = flywheel_sim.load(name)
    aside = path.with_suffix(".partial")
    with h5py.File(aside, "w", libver="latest") as file:
        data = file.create_group("data")
        env = f"flywheel/{name.title()}-v0"
        data.attrs["env_args"] = json.dumps({"env_name": env, "type": 2, "env_kwargs": {}})  # type 2: Gymnasium
        data.attrs["total"] = sum(len(episode["action"]) for episode in episodes)
        data.attrs["obs_keys"] = list(task.obs_keys)
        data.attrs["task"], data.attrs["origin"], data.attrs["fps"] = name, f"scripted:{name}", task.fps
        for k, episode in enumerate(episodes):
            _write_demo(data.create_group(f"demo_{k}"), episode, task)
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)


def _write_demo(demo: h5py.Group, episode: dict, task) -> None:
    steps = len(episode["action"])
    for key in ("seed", "success", "outcome"):
        demo.attrs[key] = episode[key]
    demo.attrs["num_samples"] = steps

    # groups are made by name: those that HDF5 makes on the way carry the time of day, and no two files are equal
    obs, start = demo.create_group("obs"), demo.create_group("start")

    def put(group: h5py.Group, key: str, value: np.ndarray) -> None:
        group.create_dataset(key, data=value, chunks=value.shape, compression="gzip", compression_opts=9, shuffle=True)

    put(demo, "actions", episode["action"])
    for key, value in task.split(episode["obs"]).items():
        put(obs, key, value)
    done = np.zeros(steps, np.uint8)
    if episode["success"]:
        done[episode["decided"]] = 1
    demo["dones"] = done
    demo["rewards"] = demo["dones"]
    demo["states"] = episode["start"]["physics"][None]
    start["physics"] = demo["states"]  # the same bytes under both names
    if episode["start"]["mocap"].size:
        start["mocap"] = episode["start"]["mocap"]


def card(name: str, episodes: list[dict]) -> dict:
    """What the data card says: all counts come from the episodes."""
    task = flywheel_sim.load(name)
    won = Counter(e["outcome"] for e in episodes if e["success"])
    lost = Counter(e["outcome"] for e in episodes if not e["success"])
    return {
        "name": f"{name}_demos",
        "task": name,
        "file": f"{name}_demos.hdf5",
        "format": "robomimic_hdf5",
        "origin": f"scripted:{name}",
        "about": " ".join(task.module.__doc__.split()),
        "rate_hz": task.fps,
        "obs_keys": {key: {"size": size, "unit": unit} for key, (size, unit) in task.obs_keys.items()},
        "action": dict(zip(task.action_names, map(_meaning, task.action_names), strict=True)),
        "episodes": len(episodes),
        "steps": sum(len(e["action"]) for e in episodes),
        "successes": sum(won.values()),
        "of_which": {"clean": won["clean"], "dawdles": won["dawdles"], "recovers": won["recovers"]},
        "failures": sum(lost.values()),
        "failures_by_kind": dict(sorted(lost.items())),
        "seeds": [episodes[0]["seed"], episodes[-1]["seed"]],
        "notes": [
            "obs has one row more than actions: the final observation, which others keep in next_obs.",
            f"Success is {task.success}; an episode ends {AFTER} steps after that is decided, or at the task's step "
            "limit; failures are kept, attrs say which and why.",
            "rewards and dones are 1 at the deciding step; states has one row, the start, which is what a replay "
            "needs.",
            "The operator is a script: its noise, pauses and mistakes are drawn from the seed, not recorded from a "
            "person.",
        ],
        "regenerate": f"python -m flywheel_sim._demonstrate {name}",
        "licence": "Apache-2.0",
    }


def _meaning(name: str) -> str:
    from flywheel_sim._control import STEP, TURN

    if name == "gripper":
        return "-1 opens to 4 cm a finger, +1 closes"
    if name == "dyaw":
        return f"-1..1, {np.degrees(2 * np.arctan(TURN)):.1f} degrees a step of the goal at 1"
    return f"-1..1, {100 * STEP:g} cm a step of the goal at 1"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m flywheel_sim._demonstrate", description=__doc__.split("\n")[0])
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help=f"any of {', '.join(flywheel_sim.tasks())}; default all"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    options = parser.parse_args(arguments)
    for name in options.tasks or flywheel_sim.tasks():
        episodes = play(name)
        path = options.out / f"{name}_demos.hdf5"
        write_hdf5(path, name, episodes)
        text = yaml.safe_dump(card(name, episodes), sort_keys=False, width=118, allow_unicode=True)
        path.with_suffix(".yaml").write_text(text)
        failed = np.mean([not e["success"] for e in episodes])
        dawdled = np.mean([e["outcome"] == "dawdles" for e in episodes])
        size = path.stat().st_size
        print(f"{path}: {len(episodes)} episodes, {failed:.0%} fail, {dawdled:.0%} dawdle, {size:,} bytes")


if __name__ == "__main__":
    main()
