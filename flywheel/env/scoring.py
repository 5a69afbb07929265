"""How good is a policy? One episode a seed; several policies on the same seeds; what a rollout looks like."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import executors, stats
from flywheel.args import Guard, Task, build, plain
from flywheel.log import progress, say

Columns = dict[str, np.ndarray]
BLOCK = 32  # seeds that another process plays at once


def score(policy, env, seeds, *, what: str, stop_at_success: bool = False, also=None) -> Columns:
    """Run one episode a seed through `policy.act`: seed, success, success_at_end, steps (until success is decided,
    or all), first observation and, where the environment's own reward is learnt from, return; where an environment
    was at fault, cause ("" for the others); each [n]. `also` [{name, obs, above}]: did column `obs` ever pass
    `above`, as also.NAME.

    An executor other than local plays blocks of seeds of one size, whatever its workers: an episode depends on weights
    and seed alone."""
    if getattr(env, "executor", "local") != "local":
        return _elsewhere(policy, env, list(seeds), stop_at_success, also)
    from flywheel.env import rollout

    with progress(f"evaluate {what}", len(seeds)) as tick:
        episodes, _ = rollout(env, policy, seeds, origin="evaluation", stop_at_success=stop_at_success, progress=tick)
    first = [int(e.reward.argmax()) + 1 if e.success else len(e) for e in episodes]
    columns = {
        "seed": np.array([e.seed for e in episodes], np.int64),
        "success": np.array([e.success for e in episodes], bool),
        "success_at_end": np.array([e.meta["success_at_end"] for e in episodes], bool),
        "steps": np.array(first, np.int64),
        "length": np.array([len(e) for e in episodes], np.int64),
        "obs0": np.stack([e.obs["state"][0] for e in episodes]),
    }
    if getattr(env, "reward", "success") == "env":
        columns["return"] = np.array([e.extras["env_reward"].sum() for e in episodes], np.float64)
    if any("cause" in e.meta for e in episodes):
        columns["cause"] = np.array([e.meta.get("cause", "") for e in episodes], str)
    for extra in also or []:
        seen = [np.flatnonzero(e.obs["state"][:, extra["obs"]] > extra["above"]) for e in episodes]
        columns[f"also.{extra['name']}"] = np.array([int(s[0]) if len(s) else -1 for s in seen])
    return columns


def _elsewhere(policy, env, seeds: list[int], stop_at_success: bool, also) -> Columns:
    """`score` by the batch's executor: weights go as bytes, all else as plain data; no folder is shared."""
    from flywheel.policy import base

    with tempfile.TemporaryDirectory() as folder:
        if getattr(policy, "noise_net", None) is not None:  # noise is for exploring
            policy = copy.deepcopy(policy)
            policy.noise_net = None
        base.save(policy, Path(folder) / "policy.safetensors")
        weights = (Path(folder) / "policy.safetensors").read_bytes()
    task = dataclasses.replace(env.made, faults=1.0)  # faults are counted over all blocks, below
    told = plain({"task": task, "guard": env.guard, "num_envs": env.num_envs})
    blocks = [seeds[i : i + BLOCK] for i in range(0, len(seeds), BLOCK)]
    tasks = [(weights, str(policy.device), told, part, stop_at_success, also) for part in blocks]
    parts = executors.bound(env.executor, env.workers, getattr(env, "resources", {}))(block, tasks)
    parts = [{"cause": np.full(len(part["seed"]), ""), **part} for part in parts]
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for seed, cause in zip(whole["seed"].tolist(), whole["cause"].tolist(), strict=True):
        env.tally.begun += 1
        if cause:
            env.tally.add(seed, cause)
    return whole if (whole["cause"] != "").any() else {k: v for k, v in whole.items() if k != "cause"}


def block(weights: bytes, device: str, told: dict[str, Any], seeds: list[int], stop_at_success: bool, also) -> Columns:
    """`score` of a block of seeds, in whatever process: a policy's weights in an environment of its own."""
    from flywheel import env as envs
    from flywheel.policy import base

    env = envs.make(build(Task, told["task"]), told["num_envs"], 1)
    env.guard = build(Guard, told["guard"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "policy.safetensors").write_bytes(weights)
            policy = base.load(Path(folder) / "policy.safetensors", device).eval()
        return score(policy, env, seeds, what="", stop_at_success=stop_at_success, also=also)
    finally:
        env.close()


def rate(scored: Columns) -> dict[str, Any]:
    """Success with its interval and, where the environment's own reward is learnt from, the mean return."""
    returns = (
        {"return": float(scored["return"].mean()), "return_std": float(scored["return"].std())}
        if "return" in scored
        else {}
    )
    return {**stats.rate(scored["success"]), **returns}


def summary(result: Columns, task: Task) -> dict[str, Any]:
    """Rates with Wilson intervals: success, at the last step, and, for each of `within` (steps), by then."""
    out = rate(result)
    out["success_at_end"] = float(result["success_at_end"].mean())
    out["environment_steps"] = int(result["length"].sum())
    if "cause" in result:
        spoilt = np.flatnonzero(result["cause"] != "")
        out["faults"] = [f"seed {result['seed'][i]}: {result['cause'][i]}" for i in spoilt]
    won = result["success"]
    out["steps_to_success"] = float(result["steps"][won].mean()) if won.any() else None
    for limit in task.within or []:
        out[f"success_within_{limit}"] = stats.rate(won & (result["steps"] <= limit))
        for key, at in result.items():
            if key.startswith("also."):
                out[f"{key.removeprefix('also.')}_within_{limit}"] = stats.rate((at >= 0) & (at <= limit))
    return out


def eval_info(result: Columns, task: str, seconds: float) -> dict[str, Any]:
    """What `lerobot-eval` writes of as many episodes, with its keys, and the interval of success beside them in per
    cent. An episode's reward is what is learnt from: the environment's own, or 1 for a success."""
    won = result["success"]
    earned = result.get("return", won.astype(float))
    best = np.maximum(earned, 0.0) if "return" in result else earned
    low, high = stats.rate(won)["ci95"]
    told: dict[str, Any] = {
        "avg_sum_reward": float(earned.mean()),
        "avg_max_reward": float(best.mean()),
        "pc_success": 100 * float(won.mean()),
        "pc_success_ci95": [100 * low, 100 * high],
        "n_episodes": len(won),
    }
    each = {"sum_rewards": earned.tolist(), "max_rewards": best.tolist(), "successes": won.tolist(), "video_paths": []}
    times = {"eval_s": seconds, "eval_ep_s": seconds / max(1, len(won))}
    return {
        "per_task": [{"task_group": task, "task_id": 0, "metrics": each | {"seeds": result["seed"].tolist()}}],
        "per_group": {task: told | {"video_paths": []}},
        "overall": told | times | {"video_paths": []},
    }


def film(policy, env, seed: int, path: str, every: int = 2) -> int:
    """Write one episode as a video (mp4) of what the environment draws; the number of frames, 0 where nothing can
    draw."""
    frames = clip(policy, env, seed, every)
    if not frames:
        return 0
    frames += frames[-1:] * (_rate(env, every) - len(frames))  # a second at least: nobody sees four frames
    import av

    with av.open(path, "w") as file:
        stream = file.add_stream("h264", rate=_rate(env, every))
        stream.height, stream.width = frames[0].shape[0], frames[0].shape[1]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())
    return len(frames)


def clip(policy, env, seed: int, every: int = 2, width: int = 320, height: int = 240) -> list[np.ndarray]:
    """Frames [H, W, 3] uint8 of one episode, every `every` steps.

    [] where nothing can draw. H and W are even, and the environment's own where it draws itself (render_mode
    rgb_array)."""
    from flywheel.env import drawn, rollout

    frames: list[np.ndarray] = []
    shown = None

    def watch(step: int, obs: np.ndarray) -> None:
        if not step:
            frames.clear()  # it began anew
        if step % every == 0:
            picture = shown.frame(0, width, height)
            frames.append(picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2].copy())

    try:
        shown = drawn(env)
        rollout(shown, policy, [seed], origin="evaluation", watch=watch)
    except (
        RuntimeError,
        ValueError,
    ) as error:  # no OpenGL, nothing that draws, or an environment that cannot be made for it
        say(f"  no clip: {error}")
        return []
    finally:
        if shown is not None and shown is not env:
            shown.close()
    return frames


def _rate(env, every: int) -> int:
    """Frames a second."""
    return max(1, round((env.fps or 20) / every))


def scored(
    run, env, policies: dict[str, Any], seeds: list[int], what: dict[str, str], *, played: int = 0, **options
) -> dict[str, Columns]:
    """One episode a seed and policy; {kind: columns [n]}. Once the run's budget is spent no further block of seeds is
    begun, so that n is less than asked for; all policies have the same n, and at least one block. `played` seeds of the
    same question came before.

    An episode depends on weights and seed alone, so blocks change nothing in what comes out.
    """
    bounded = run.deadline is not None or "stopped" in run.recorded
    block = max(1, env.num_envs) if bounded else len(seeds)
    parts: dict[str, list[Columns]] = {kind: [] for kind in policies}
    for begin in range(0, len(seeds), block):
        if begin and run.out_of_time(played + begin):
            break
        for kind, policy in policies.items():
            part = seeds[begin : begin + block]
            parts[kind].append(score(policy, env, part, what=what[kind], **options))
    return {kind: joined(blocks) for kind, blocks in parts.items()}


def joined(blocks: list[Columns]) -> Columns:
    """Blocks of episodes as one; `cause` is a column only of those in which an environment was at fault."""
    if any("cause" in block for block in blocks):
        blocks = [{**block, "cause": block.get("cause", np.full(len(block["seed"]), ""))} for block in blocks]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
