"""choose: the best of some checkpoints, by successive halving on the same seeds; which classes of policy a night begins
from.

All play the first seeds; the better half goes on to as many new ones as were played so far, until one is left or the
seeds are used up (Karnin et al., ICML 2013). These seeds are no one else's, and what is chosen is reported on others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from flywheel import env as envs
from flywheel import selection
from flywheel.args import Bounded, UsageError, arg
from flywheel.env.scoring import scored
from flywheel.log import say
from flywheel.rl import build
from flywheel.seeds import seeds

OFFSET = {"base": 0, "candidate": 2500}  # within the night's gate block, apart from those of curves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Bounded):
    """The best of some checkpoints, by successive halving on the same seeds."""

    checkpoints: list[Any] = arg(help="[NAME@ID, NAME@ID, ...]")
    what: str = arg("base", "which of the night's seeds are used", choices=tuple(OFFSET))
    episodes: int = arg(500, "the last two play so many", least=1, most=2500)

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise UsageError(f"checkpoints={self.checkpoints}; expected some, as in '[NAME@ID, NAME@ID]'")


def inputs(args: Args, store) -> dict[str, Any]:
    refs = list(
        {ref["id"]: ref for ref in (selection.checkpoint(ref, store) for ref in reversed(args.checkpoints))}.values()
    )[::-1]  # of equal weights the first
    return {"checkpoints": {"id": " ".join(ref["id"] for ref in refs), "refs": [ref["ref"] for ref in refs]}}


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    env, refs = envs.opened(args), inputs["checkpoints"]["refs"]
    chosen = seeds("gate", args, OFFSET[args.what], args.episodes)
    policies = {ref: run.store.load(ref, build.device(args.device)) for ref in refs}
    won: dict[str, np.ndarray] = {ref: np.zeros(0, bool) for ref in refs}
    alive, played = list(refs), 0
    while played < len(chosen) and len(alive) > 1 and not run.stopped:
        until = len(chosen) if len(alive) == 2 else max(len(chosen) // 2 ** (len(refs) - 1).bit_length(), 2 * played, 1)
        who = {ref: policies[ref] for ref in alive}
        results = scored(
            run, env, who, chosen[played:until], {ref: ref for ref in alive}, played=played, stop_at_success=True
        )
        for ref, result in results.items():
            won[ref] = np.concatenate([won[ref], result["success"]])
        played += len(next(iter(results.values()))["success"])
        alive = better(alive, won)
    env.close()
    best = alive[0]
    if len(refs) == 1:
        say(f"  {best} is the only one: nothing was played")
        return {"outputs": {"checkpoint": best}}
    table = [{"checkpoint": r, "success": float(won[r].mean()), "n": len(won[r]), "chosen": r == best} for r in refs]
    for row in table:
        say(f"  {row['checkpoint']}: {row['success']:.3f} of {row['n']}{', chosen' if row['chosen'] else ''}")
    return {"outputs": {"checkpoint": best}, "metrics": {"table": table}, "content": {"table": table}}


def better(alive: list[str], won: dict[str, np.ndarray]) -> list[str]:
    """The better half by successes on the seeds that all of them played, of equal ones the first; best first."""
    order = sorted(alive, key=lambda ref: (-int(won[ref].sum()), alive.index(ref)))
    return order[: max(1, (len(order) + 1) // 2)]
