"""evaluate: how often does a checkpoint succeed, on seeds that no other stage touches?

Success is what the task says (task.success: at any step, at the last, or held for so many); the rate at the last step is printed beside it.
An episode that the environment spoilt (flywheel.faults) counts as a failure, and says why.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel import stats
from flywheel.log import progress, say
from flywheel.stages import _inputs

READS = True  # nothing of the store but its own folder is written: it may run beside other stages


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    found = {"checkpoint": _inputs.checkpoint(cfg["checkpoint"], store)}
    if cfg.get("against"):
        found["against"] = _inputs.checkpoint(cfg["against"], store)
    return found


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    from flywheel.env import honours_seeds
    from flywheel.stages._paired import scored

    env = _inputs.open_env(cfg)
    block = cfg.get("block") or "report"
    chosen = _inputs.seeds(block, cfg, int(cfg.get("first") or 0), int(cfg["episodes"]))
    what = {kind: run.inputs[kind]["ref"] for kind in ("checkpoint", "against") if kind in run.inputs}
    policies = {kind: run.store.load(ref, _inputs.device(cfg)) for kind, ref in what.items()}
    results = scored(run, env, policies, chosen, what, also=cfg["task"].get("also"))
    for kind, result in results.items():
        np.savez(run.out / f"{kind}.npz", **result)
    seeded, _ = honours_seeds(env)
    metrics = summary(results["checkpoint"], cfg)
    if "against" in results:
        metrics["against"] = summary(results["against"], cfg)
        test, how = (stats.mcnemar, "paired") if seeded else (stats.fisher, "unpaired")
        metrics[how] = test(results["checkpoint"]["success"], results["against"]["success"])
    run.log("evaluate", **metrics)
    if cfg.get("video") and film(policies["checkpoint"], env, chosen[0], cfg["video"]):
        run.log.media("rollout", cfg["video"])
    env.close()
    content = {"obs_names": list(getattr(env, "obs_names", None) or []), "seeded": seeded}
    return {"outputs": {}, "metrics": metrics, "content": content}


def score(policy, env, seeds, *, what: str, stop_at_success: bool = False, also=None) -> dict[str, np.ndarray]:
    """Run one episode a seed through `policy.act`: seed, success, success_at_end, steps (until success is decided, or all), first
    observation and, where the environment's own reward is learnt from, return; where an environment was at fault, cause ("" for the others);
    each [n]. `also` [{name, obs, above}]: did column `obs` ever pass `above`, as also.NAME."""
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


def rate(scored: dict[str, np.ndarray]) -> dict[str, Any]:
    """Success with its interval and, where the environment's own reward is learnt from, the mean return."""
    returns = (
        {"return": float(scored["return"].mean()), "return_std": float(scored["return"].std())}
        if "return" in scored
        else {}
    )
    return {**stats.rate(scored["success"]), **returns}


def summary(result: dict[str, np.ndarray], cfg: dict[str, Any]) -> dict[str, Any]:
    """Rates with Wilson intervals: success, at the last step, and, for each of `within` (steps), by then."""
    out = rate(result)
    out["success_at_end"] = float(result["success_at_end"].mean())
    out["environment_steps"] = int(result["length"].sum())
    if "cause" in result:
        spoilt = np.flatnonzero(result["cause"] != "")
        out["faults"] = [f"seed {result['seed'][i]}: {result['cause'][i]}" for i in spoilt]
    won = result["success"]
    out["steps_to_success"] = float(result["steps"][won].mean()) if won.any() else None
    for limit in cfg["task"].get("within") or []:
        out[f"success_within_{limit}"] = stats.rate(won & (result["steps"] <= limit))
        for key, at in result.items():
            if key.startswith("also."):
                out[f"{key.removeprefix('also.')}_within_{limit}"] = stats.rate((at >= 0) & (at <= limit))
    return out


def film(policy, env, seed: int, path: str, every: int = 2) -> int:
    """Write one episode as a video (mp4) of what the environment draws; the number of frames, 0 where nothing can draw."""
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

    [] where nothing can draw. H and W are even, and the environment's own where it draws itself (render_mode rgb_array).
    """
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
