"""From a policy to a file of any format, and what whoever runs it has to know."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flywheel import exports
from flywheel import obs as observed
from flywheel.policy.base import Policy
from flywheel.policy.eyes import Eyes, Seen

TOLERANCE = 1e-5  # in the environment's units, of a range of 2
ROWS, SEEN = 64, 8  # random observations that a file is compared on, and of one that sees
NUDGE = 1e-5  # a relative change of the observation that decides nothing, unless two choices are equally good


class Acting(nn.Module):
    """What a file holds: what the robot observes, the noise and what each camera shows -> what is executed."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy, robot = policy, policy.robot or {}
        self.seen, self.done = robot.get("obs"), robot.get("action")

    def forward(self, obs: Tensor, noise: Tensor, *frames: Tensor) -> Tensor:
        """obs [1, To, Do of the robot], noise [1, *noise_shape], of each camera [1, H, W, 3] uint8 -> [1, Ta, Da of the
        robot]."""
        if self.seen is not None:
            wide = torch.zeros(1, self.policy.obs_steps, self.policy.obs_dim)
            obs = wide.index_copy(2, torch.tensor(self.seen), obs)
        if frames:
            obs = Seen(obs, dict(zip(self.policy.cameras, frames, strict=True)))
        action = self.policy.bounded(self.policy.sample(obs, noise))
        return action if self.done is None else action[..., self.done]


def write(policy: Policy, format: str, path: Path) -> dict[str, Any]:
    """Write a policy, and compare the file with it; {"difference", "compared", "undecided"}. ValueError where the
    format cannot hold this kind, or the file does something else."""
    kind, maker = policy.spec["kind"], exports.named(format)
    _refused(policy, format, maker.SUFFIX)
    acting = Acting(copy.deepcopy(policy).cpu()).eval().requires_grad_(False)
    given = drawn(acting.policy, SEEN if policy.cameras else ROWS)
    try:
        maker.write(alone(acting, *(x[:1] for x in given)), tuple(x[:1] for x in given), path)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        words = str(error).strip().splitlines()[0]
        raise ValueError(f"a {kind} policy cannot be written as {format}: {words}; take another format=") from error
    found = compared(acting, maker.load(path), *given)
    if not found["compared"] or found["difference"] > TOLERANCE:
        raise ValueError(
            f"{path.name}: it differs from the {kind} policy by {found['difference']:.2g} on "
            f"{found['compared']} observations; expected at most {TOLERANCE:g}"
        )
    return found


def _refused(policy: Policy, format: str, suffix: str) -> None:
    """ValueError for what no file of this format can hold, or could be used for."""
    if policy.spec["kind"] == "lerobot" and suffix:
        raise ValueError(f"a policy of LeRobot is exported as format=lerobot_policy, not as {format}")
    if policy.knows:
        raise ValueError(
            f"this {policy.spec['kind']} policy asks for {policy.knows} numbers that only the simulator knows; export "
            "the policy that was improved by it: the same run's outputs.policy"
        )
    if taken := {"obs", "noise", "action"} & policy.cameras.keys():
        raise ValueError(
            f"camera {taken.pop()!r} is also what an input or output of the file is called; name it otherwise in the "
            "corpus (ingest cameras=), and train again"
        )


@torch.no_grad()
def alone(acting: Acting, *given: Tensor) -> Acting:
    """A copy that looks at the frames of one robot only; where policies act, some rows are made for each (eyes.py)."""
    made = copy.deepcopy(acting)
    for net in made.modules():
        if isinstance(net, Eyes):
            net.fewest = 1
    made(*given)  # what nets find out at their first use is no part of a graph
    return made


def drawn(policy: Policy, count: int) -> tuple[Tensor, ...]:
    """Random observations as the policy is used to, [count, To, Do of the robot], noise [count, *noise_shape], and
    frames of each camera [count, H, W, 3]."""
    rng = torch.Generator().manual_seed(0)
    norm = policy.encoder.norm
    obs = norm.mean + norm.std * torch.randn(count, policy.obs_steps, policy.obs_dim, generator=rng)
    obs = obs[..., policy.robot["obs"]] if policy.robot else obs
    noise = torch.randn(count, *policy.noise_shape, generator=rng)
    frames = [torch.randint(256, (count, *shape), generator=rng).byte() for shape in policy.cameras.values()]
    return obs, noise * (0 if policy.greedy else 1), *frames


@torch.no_grad()
def compared(acting: Acting, file: Callable, *given: Tensor) -> dict[str, Any]:
    """How far a file is from the policy, row by row of `given`: observations, noise, frames. Where a nudge of the
    observation moves the policy itself to another choice (of candidates, of a discrete action) nothing is compared:
    such rows are counted as undecided."""
    difference, undecided, count = 0.0, 0, len(given[0])
    for obs, *others in zip(*(x.split(1) for x in given), strict=True):
        own = acting(obs, *others)
        nudged = [acting(obs * (1 + sign * NUDGE), *others) for sign in (-1, 1)]
        if max(float((own - other).abs().max()) for other in nudged) > 100 * TOLERANCE:
            undecided += 1
            continue
        found = file(*(x.numpy() for x in (obs, *others)))
        difference = max(difference, float(np.abs(found - own.numpy()).max()))
    return {"difference": difference, "compared": count - undecided, "undecided": undecided}


def about(policy: Policy) -> dict[str, Any]:
    """What whoever runs the file has to know, as JSON values."""
    own = policy.robot["action"] if policy.robot else range(policy.action_dim)
    return {
        "kind": policy.spec["kind"],
        "obs": [{"key": key, "shape": list(shape)} for key, shape in policy.obs_shapes.items()],
        "cameras": list(policy.cameras),
        "obs_steps": policy.obs_steps,
        "action_steps": policy.action_steps,
        "action_low": [policy.spec["action_low"][i] for i in own],
        "action_high": [policy.spec["action_high"][i] for i in own],
        "inputs": {
            "obs": [1, policy.obs_steps, observed.size(policy.obs_shapes)],
            "noise": [1, *policy.noise_shape],
            **{name: [1, *shape] for name, shape in policy.cameras.items()},
        },
        "outputs": {"action": [1, policy.action_steps, len(own)]},
        "noise": "zeros" if policy.greedy or policy.fixed else "standard normal, drawn anew for each chunk",
        "use": "obs: the keys in their order, flat, side by side; of the last obs_steps observations, the newest last, "
        "before the first one the first again. Of each of the cameras, in their order, the newest frame: uint8, red "
        "first. Execute the chunk's actions one a step, then ask again.",
    }


def played(policy: Policy, file: Callable) -> Policy:
    """A policy that acts as `policy` does, by the arithmetic of a file, a row at a time."""

    def sample(self, obs: Tensor | Seen, noise: Tensor) -> Tensor:
        given = [obs, noise]
        if isinstance(obs, Seen):  # rows that only fill up a batch share frames
            given = [obs.numbers, noise, *(obs.frames[name][obs.rows] for name in policy.cameras)]
        rows = zip(*(x.split(1) for x in given), strict=True)
        return torch.from_numpy(np.concatenate([file(*(x.numpy() for x in row)) for row in rows]))

    made = copy.deepcopy(policy)
    made.__class__ = type("Played", (type(policy),), {"sample": sample, "fewest": 1})
    return made
