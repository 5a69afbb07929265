"""drive: a checkpoint acts on a robot, or on a simulation in real time, through the guard, at a fixed rate; what it did
is an episode of the corpus, by policy:ID.

Nothing of it is looked up or replayed: a robot that moved has moved. Ctrl-C ends the episode, which is kept."""

from __future__ import annotations

import dataclasses
from typing import Any

from flywheel import selection
from flywheel.args import Common, Guard, arg
from flywheel.log import say

GROUPS = {"guard": "real"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Common):
    """A checkpoint acts on a robot, guarded, at a fixed rate."""

    checkpoint: str = arg(help="NAME or NAME@ID", typed=True)
    driver: str = arg("loopback", "module:Class (docs/robot.md), or the task's simulation in real time", typed=True)
    driver_args: dict[str, Any] | None = arg(None, "given to the driver when it is made: '{port: 3}'")
    hz: float = arg(50.0, "actions a second", least=0.1, most=10_000)
    seconds: float = arg(10.0, "of an episode, at most", least=0.01, most=86_400)
    record: bool = arg(True, "append the episode to the corpus")
    guard: Guard = arg(Guard, "what steps in before an action is written")


def inputs(args: Args, store) -> dict[str, Any]:
    count = len(store.begun("drive"))
    return {"checkpoint": selection.checkpoint(args.checkpoint, store), "drive": {"id": f"drive {count + 1}"}}


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    from flywheel.env import loopback
    from flywheel.env.drive import drive

    if run.recorded:
        raise ValueError("drive: a robot is not driven by a replay; give the command again")
    ref = inputs["checkpoint"]["ref"]
    policy = run.store.load(ref)
    robot = loopback.driver(args.driver, args.task, args.driver_args or {})
    steps = max(1, round(args.seconds * args.hz))
    how = {"hz": args.hz, "steps": steps, "seed": args.seed, "film": args.record}
    made = drive(robot, policy, args.guard, **how, stopping=lambda: run.stopping)
    if not made.executed:
        raise ValueError(f"drive: not one action was executed: {made.ended}") from made.error
    timing = made.timing()
    say(f"  {len(made.executed)} actions at {args.hz:g} Hz, ended by {made.ended}; {timing['missed']} came too late")
    for what in ("late", "jitter", "act"):
        p50, p99, worst = (timing[f"{what}_{part}_ms"] for part in ("p50", "p99", "worst"))
        say(f"  {what:7} p50 {p50:8.3f} ms   p99 {p99:8.3f} ms   worst {worst:8.3f} ms")
    say(f"  the guard stepped in: {', '.join(f'{k} {n}' for k, n in made.stepped_in.items()) or 'never'}")
    metrics = {"steps": len(made.executed), "success": made.outcome, **timing, "guard": made.stepped_in}
    run.log("drive", **metrics)
    if not args.record:
        _refuse_an_error(made, "were not to be kept (record=false)")
        return {"outputs": {}, "metrics": metrics, "content": {"ended": made.ended}}
    origin, task = f"policy:{ref.partition('@')[2]}", selection.title(args.task)
    episode = made.episode(task, policy.obs_shapes, origin=origin, seed=args.seed, fps=args.hz)
    added = run.store.corpus(create=True).append([episode], message=f"{run.name} {args.driver}", author=run.name)
    _refuse_an_error(made, f"are episode {episode.hash[:12]} of corpus@{added.version}")
    return {
        "outputs": {"corpus": added.version, "episode": episode.hash},
        "metrics": metrics,
        "content": {"ended": made.ended},
    }


def _refuse_an_error(made, kept: str) -> None:
    """RuntimeError where driver or policy raised; what was done until then is said to be `kept`."""
    if made.error:
        raise RuntimeError(f"drive: {made.ended}; the {len(made.executed)} actions before {kept}") from made.error
