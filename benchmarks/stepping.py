"""How much of mujoco's own speed is left: three ratios in one run, each the median of interleaved repetitions.

    batch / raw     `flywheel_sim.Batch` with auto-resets against bare `mujoco.rollout` of the same model from the same states
                    with the same controls, again; what observation, control, reward and resets cost
    batch / sync    against gymnasium's SyncVectorEnv over the Gymnasium form of the same task
    mj_step share   of the Gymnasium form's own time: a slow opponent would make the second ratio worthless

The policy is excluded: actions are random and drawn before. Episodes start out of step, so that every control step
resets a few."""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from statistics import median

import flywheel_sim
import gymnasium
import mujoco
import numpy as np
from flywheel_sim._batch import CONTROL
from mujoco import rollout


def seconds(act) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def play(batch, actions: np.ndarray, recorded: list) -> None:
    """Play `actions` [T, N, Da], keeping what rollout is given at each step; the copies are charged to the batch."""
    for action in actions:
        before = batch._physics.copy()
        batch.step(action)
        recorded.append((before, batch._control.copy()))


def raw(task, recorded: list[tuple[np.ndarray, np.ndarray]], pool, threads) -> None:
    """Bare rollout of the recorded (states [N, nx], controls [N, fs, nc])."""
    count = len(recorded[0][0])
    states = np.empty((count, task.frame_skip, recorded[0][0].shape[1]))
    readings = np.empty((count, task.frame_skip, task.model.nsensordata))
    models = [task.model] * count
    for state, control in recorded:
        pool.rollout(
            models,
            threads,
            state,
            control,
            control_spec=CONTROL,
            skip_checks=True,
            nstep=task.frame_skip,
            state=states,
            sensordata=readings,
        )


def mj_step_share(env, actions: np.ndarray) -> float:
    """Share of the Gymnasium form's processor time that mj_step takes, over actions [T, Da] with resets."""
    inside, plain = 0.0, mujoco.mj_step

    def timed(*args, **kwargs):
        nonlocal inside
        start = time.thread_time()
        plain(*args, **kwargs)
        inside += time.thread_time() - start

    mujoco.mj_step = timed
    try:
        start = time.thread_time()
        for action in actions:
            if env.step(action)[3]:
                env.reset()
        total = time.thread_time() - start
    finally:
        mujoco.mj_step = plain
    return inside / total


def measure(name: str = "lift", num_envs: int = 32, steps: int = 100, repetitions: int = 5, nthread: int = 2) -> dict:
    """Run it; `steps` control steps a repetition. Returns the ratios and control steps a second."""
    task = flywheel_sim.load(name)
    rng = np.random.default_rng(0)
    batch = flywheel_sim.Batch(name, num_envs, nthread=nthread, seeds=range(num_envs))
    batch._steps[:] = rng.integers(0, task.max_steps, num_envs)  # out of step: resets are spread as in a long run
    sync = gymnasium.vector.SyncVectorEnv(
        [lambda: flywheel_sim.TaskEnv(name)] * num_envs, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    sync.reset(seed=0)
    for env in sync.envs:
        env._steps = int(rng.integers(0, task.max_steps))
    single = flywheel_sim.TaskEnv(name)
    single.reset(seed=0)
    pool = rollout.Rollout(nthread=nthread if nthread > 1 else 0)
    threads = [mujoco.MjData(task.model) for _ in range(max(1, nthread))]

    times = {"batch": [], "raw": [], "sync": [], "share": []}
    for repetition in range(repetitions + 1):
        actions = rng.uniform(-1, 1, (steps, num_envs, task.action_dim)).astype(np.float32)
        recorded = []
        took = {
            "batch": seconds(partial(play, batch, actions, recorded)) / steps,
            "raw": seconds(partial(raw, task, recorded, pool, threads)) / steps,
            "sync": seconds(lambda: [sync.step(action) for action in actions[:20]]) / len(actions[:20]),  # noqa: B023
            "share": mj_step_share(single, actions[:, 0]),
        }
        if repetition:  # the first one warms up
            for key, value in took.items():
                times[key].append(value)
    batch.close()
    sync.close()
    pool.close()
    ratio = [[r / b, s / b] for r, b, s in zip(times["raw"], times["batch"], times["sync"], strict=True)]
    return {
        "task": name,
        "num_envs": num_envs,
        "nthread": nthread,
        "batch_over_raw": median(pair[0] for pair in ratio),
        "batch_over_sync": median(pair[1] for pair in ratio),
        "mj_step_share": median(times["share"]),
        "batch_steps_per_second": num_envs / median(times["batch"]),
        "raw_steps_per_second": num_envs / median(times["raw"]),
        "sync_steps_per_second": num_envs / median(times["sync"]),
    }


TARGETS = {"batch_over_raw": 0.8, "batch_over_sync": 1.5, "mj_step_share": 0.6}


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help=f"any of {', '.join(flywheel_sim.tasks())}; default all"
    )
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100, help="control steps a repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object a task")
    options = parser.parse_args(arguments)
    results = []
    for name in options.tasks or flywheel_sim.tasks():
        result = measure(name, options.num_envs, options.steps, options.repetitions, options.threads)
        results.append(result)
        if options.json:
            print(json.dumps(result), flush=True)
            continue
        print(
            f"{name}: {result['batch_steps_per_second']:,.0f} control steps a second in batches of {options.num_envs}"
        )
        for key, target in TARGETS.items():
            print(f"    {key:16} {result[key]:5.2f}   target at least {target}", flush=True)
    return results


if __name__ == "__main__":
    main()
