"""refit: the statistics that a checkpoint normalises with, fitted anew on a corpus version; its weights stay as they
are.

Training never does this: a normaliser is frozen with the weights that learnt behind it. So the policy acts differently
from now on, and how much is told: the columns whose mean or spread moved, and how far its actions did on the same
observations. Train on from it (`flywheel pretrain checkpoint=...`) or score it; the name moves only through the gate.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from flywheel import env as envs
from flywheel import selection
from flywheel.args import Acting, Demos, arg
from flywheel.log import say
from flywheel.rl import build

MOVED = 0.01  # of a column's spread: less is not told
COMPARED = 1024  # observations on which the actions before and after are compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Acting):
    """The statistics that a checkpoint normalises with, fitted anew on a corpus version."""

    corpus: str = arg("latest", "a version, a tag or a view", typed=True)
    data: dict[str, float] | None = arg(
        None, "instead of corpus and demos: views and their shares; all of their steps count alike"
    )
    align: Any = arg(None, "of a policy that learnt from several robots: as in pretrain")
    checkpoint: str | None = arg(None, "default: name@production, else the newest", typed=True)
    name: str | None = arg(None, "of the checkpoint that is made; default: policy/TASK", typed=True)
    demos: Demos = arg(Demos, "whose steps are counted")
    num_envs: int = arg(1, "environments, asked for their shapes", least=1, most=100_000)


def inputs(args: Args, store) -> dict[str, Any]:
    name = selection.name_of(args)  # refused before anything begins
    return {
        "corpus": selection.describe(selection.pools(args, store)[0]),
        "checkpoint": selection.checkpoint(args.checkpoint or name, store),
    }


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    from flywheel.policy import base, nets

    record, policy = (look(inputs["checkpoint"]["ref"]) for look in (run.store.checkpoint, run.store.load))
    before = copy.deepcopy(policy)
    version, _, _ = selection.pools(args, run.store)
    windows, env = selection.windows(run.store.corpus(), version, args, run.store), envs.opened(args, 1)
    selection.one_robot(args, policy)
    build.suits(policy, env)
    build.fit_rows(policy, env, windows)
    env.close()
    for part in policy.modules():  # of a best-of-N: its policies and its critics, which share one normaliser
        if isinstance(part, nets.Normalised) and part is not policy:
            part.like(policy)
    columns = moved(before, policy)
    change = compared(before, policy, windows)
    for row in columns:
        say(
            f"  {row['field']}[{row['column']}]: mean {row['mean'][0]:.4g} -> {row['mean'][1]:.4g}, std "
            f"{row['std'][0]:.4g} -> {row['std'][1]:.4g}"
        )
    say(f"  {len(columns)} columns moved; actions move by {change:.3g} half ranges (root mean square)")
    base.save(policy, run.out / "policy.safetensors")
    made = run.publish(
        "policy.safetensors", selection.name_of(args), kind="refitted", parents=[inputs["checkpoint"]["ref"]],
        updates=int(record.get("updates") or 0),
    )  # fmt: skip
    metrics = {"demonstrations": len(version), "moved": len(columns), "action_change": change}
    return {"outputs": {"checkpoint": made}, "metrics": metrics, "content": {"columns": columns}}


def moved(before, after) -> list[dict[str, Any]]:
    """The columns whose mean moved, or spread changed, by more than MOVED of the old spread: {"field", "column",
    "mean", "std"}."""
    rows = []
    for field, of in (("obs.state", lambda p: p.encoder.norm), ("action", lambda p: p.action_norm)):
        old, new = of(before), of(after)
        mean, std = ([part.double().numpy() for part in pair] for pair in ((old.mean, new.mean), (old.std, new.std)))
        far = np.maximum(np.abs(mean[1] - mean[0]), np.abs(std[1] - std[0])) > MOVED * std[0]
        for column in np.flatnonzero(far).tolist():
            told = {kind: [float(part[column]) for part in pair] for kind, pair in (("mean", mean), ("std", std))}
            rows.append({"field": field, "column": column, **told})
    return rows


def compared(before, after, windows) -> float:
    """Root mean square of the change of the actions on the same observations and noise, in half action ranges."""
    import torch

    at = np.linspace(0, int(windows.length.sum()) - 1, COMPARED).astype(np.int64)
    episode = np.searchsorted(np.cumsum(windows.length), at, side="right")
    first = windows.start[episode]
    here = first + at - (np.cumsum(windows.length) - windows.length)[episode]
    stack = windows.gather(here, np.arange(1 - after.obs_steps, 1), first, here, columns=windows.columns["obs.state"])
    noise = torch.randn(len(stack), *after.noise_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = (policy.sample(torch.from_numpy(stack), noise) for policy in (before, after))
    return float(((new - old) / after.half_range.clamp_min(1e-6)).square().mean().sqrt())
