"""evaluate: how often does a checkpoint succeed, on seeds that no other stage touches?

Success is what the task says (task.success: at any step, at the last, or held for so many); the rate at the last step
is printed beside it. An episode that the environment spoilt (flywheel.faults) counts as a failure, and says why. With
`against=` the gate's test says so far: better, worse, undecided, and by how much; it spends nothing and moves nothing,
and more `episodes` may be asked for whenever one likes. eval_info.json in the run's folder has LeRobot's keys. Of a
robot without a simulator the recorded trials are counted."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from flywheel import env as envs
from flywheel import evalues, selection, stats, unpaired
from flywheel import store as files
from flywheel.args import Bounded, arg
from flywheel.env import trials
from flywheel.env.scoring import eval_info, film, scored, summary
from flywheel.log import say
from flywheel.rl import build
from flywheel.seeds import seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Bounded):
    """How often does a checkpoint succeed, on seeds that nothing else touches?"""

    checkpoint: str = arg(help="NAME or NAME@ID", typed=True)
    against: str | None = arg(None, "another, on the same seeds", typed=True)
    episodes: int = arg(200, "one a seed", least=1, most=1e6)
    first: int = arg(0, "of the block's seeds of this night", least=0, most=1e7)
    block: str = arg("report", "of seeds", choices=("gate", "report", "collect"))
    video: str | None = arg(None, "FILE.mp4: film the first episode", typed=True)


def inputs(args: Args, store) -> dict[str, Any]:
    refs = {"checkpoint": args.checkpoint, "against": args.against}
    found = {kind: selection.checkpoint(ref, store) for kind, ref in refs.items() if ref}
    if not args.task.recorded:
        return found
    return {**found, "trials": trials.known(store, args.task, [one["ref"] for one in found.values()])}


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    if args.task.recorded:
        return _of_trials(args, inputs, run)
    env = envs.opened(args)
    chosen = seeds(args.block, args, args.first, args.episodes)
    what = {kind: inputs[kind]["ref"] for kind in ("checkpoint", "against") if kind in inputs}
    policies, began = {k: run.store.load(ref, build.device(args.device)) for k, ref in what.items()}, time.monotonic()
    results = scored(run, env, policies, chosen, what, also=args.task.also)
    for kind, result in results.items():
        np.savez(run.out / f"{kind}.npz", **result)
    seeded, _ = envs.honours_seeds(env)
    seconds = time.monotonic() - began  # no output of the run, as all that is in out/ is
    files.write_json(run.dir / "eval_info.json", eval_info(results["checkpoint"], env.task, seconds), indent=1)
    metrics = summary(results["checkpoint"], args.task)
    if "against" in results:
        metrics["against"] = summary(results["against"], args.task)
        pair = results["checkpoint"]["success"], results["against"]["success"]
        test, how = (stats.mcnemar, "paired") if seeded else (stats.fisher, "unpaired")
        metrics[how] = test(*pair)
        metrics["so_far"] = evalues.so_far(*pair)
        say(f"  so far: {metrics['so_far']['words']}")
    run.log("evaluate", **metrics)
    run.log.table("episodes", {k: results["checkpoint"][k] for k in ("seed", "success", "success_at_end", "steps")})
    if args.video and film(policies["checkpoint"], env, chosen[0], args.video):
        run.log.media("rollout", args.video)
    env.close()
    content = {"obs_names": list(env.obs_names), "obs_units": list(env.obs_units), "seeded": seeded}
    return {"outputs": {}, "metrics": metrics, "content": content}


def _of_trials(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    """The trials that were recorded of each policy, counted. ValueError where there are none."""
    results, names = {}, []
    for kind in [kind for kind in ("checkpoint", "against") if kind in inputs]:
        some = trials.of(run.store, args.task, inputs[kind]["ref"], inputs["trials"]["version"])
        if not len(some):
            raise ValueError(
                f"{inputs[kind]['ref']} has no recorded trial of {selection.title(args.task)}: drive it, and ingest "
                "what came of it with origin=policy:ID, or as format=trials_csv (docs/robot.md)"
            )
        results[kind], names = trials.columns(some)
        np.savez(run.out / f"{kind}.npz", **results[kind])
    metrics = summary(results["checkpoint"], args.task)
    metrics["environment_steps"] = 0
    if "against" in results:
        pair = [results[kind]["success"] for kind in ("checkpoint", "against")]
        metrics |= {"against": summary(results["against"], args.task), "unpaired": stats.fisher(*pair)}
        metrics["so_far"] = unpaired.told(unpaired.Counts.of(*pair), 0.05)
    run.log("evaluate", **metrics)
    return {"outputs": {}, "metrics": metrics, "content": {"obs_names": names, "obs_units": [], "seeded": False}}
