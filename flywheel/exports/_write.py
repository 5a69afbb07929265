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
from flywheel.policy.eyes import Seen

TOLERANCE = 1e-5  # in the environment's units, of a range of 2
ROWS, SEEN = 64, 8  # random observations that a file is compared on, and of one that sees
NUDGE = 1e-5  # a relative change of the observation that decides nothing, unless two choices are equally good


class Acting(nn.Module):
    """What a file holds: what the robot observes and the noise -> what is executed."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy, robot = policy, policy.robot or {}
        self.seen, self.done = robot.get("obs"), robot.get("action")

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """obs [1, To, Do of the robot], noise [1, *noise_shape] -> [1, Ta, Da of the robot]."""
        if self.seen is not None:
            wide = torch.zeros(1, self.policy.obs_steps, self.policy.obs_dim)
            obs = wide.index_copy(2, torch.tensor(self.seen), obs)
        action = self.policy.bounded(self.policy.sample(obs, noise))
        return action if self.done is None else action[..., self.done]


def write(policy: Policy, format: str, path: Path) -> dict[str, Any]:
    """Write a policy, and compare the file with it; {"difference", "compared", "undecided"}. ValueError where the
    format cannot hold this kind, or the file does something else."""
    kind, maker = policy.spec["kind"], exports.named(format)
    if policy.cameras and maker.SUFFIX:
        raise ValueError(
            f"this {kind} policy sees {', '.join(policy.cameras)}; so far policies of numbers are exported as a "
            "file, and these as format=lerobot_policy"
        )
    if kind == "lerobot" and maker.SUFFIX:
        raise ValueError(f"a policy of LeRobot is exported as format=lerobot_policy, not as {format}")
    acting = Acting(copy.deepcopy(policy).cpu()).eval().requires_grad_(False)
    obs, noise = drawn(acting.policy, SEEN if policy.cameras else ROWS)
    try:
        maker.write(acting, (obs[:1], noise[:1]), path)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        words = str(error).strip().splitlines()[0]
        raise ValueError(f"a {kind} policy cannot be written as {format}: {words}; take another format=") from error
    found = compared(acting, maker.load(path), obs, noise)
    if not found["compared"] or found["difference"] > TOLERANCE:
        raise ValueError(
            f"{path.name}: it differs from the {kind} policy by {found['difference']:.2g} on "
            f"{found['compared']} observations; expected at most {TOLERANCE:g}"
        )
    return found


def drawn(policy: Policy, count: int) -> tuple[Tensor, Tensor]:
    """Random observations as the policy is used to, [count, To, Do of the robot], and noise [count, *noise_shape]."""
    rng = torch.Generator().manual_seed(0)
    norm = policy.encoder.norm
    obs = norm.mean + norm.std * torch.randn(count, policy.obs_steps, policy.obs_dim, generator=rng)
    obs = obs[..., policy.robot["obs"]] if policy.robot else obs
    noise = torch.randn(count, *policy.noise_shape, generator=rng)
    if policy.cameras:
        frames = {k: torch.randint(256, (count, *s), generator=rng).byte() for k, s in policy.cameras.items()}
        obs = Seen(obs, frames)
    return obs, noise * (0 if policy.greedy else 1)


@torch.no_grad()
def compared(acting: Acting, file: Callable, obs: Tensor, noise: Tensor) -> dict[str, Any]:
    """How far a file is from the policy, row by row. Where a nudge of the observation moves the policy itself to
    another choice (of candidates, of a discrete action) nothing is compared: such rows are counted as undecided."""
    difference, undecided = 0.0, 0
    for row, z in zip((obs[i : i + 1] for i in range(len(obs))), noise.split(1), strict=True):
        own = acting(row, z)
        nudged = [acting(nudge(row, 1 + sign * NUDGE), z) for sign in (-1, 1)]
        if max(float((own - other).abs().max()) for other in nudged) > 100 * TOLERANCE:
            undecided += 1
            continue
        given = file(row if isinstance(row, Seen) else row.numpy(), z.numpy())
        difference = max(difference, float(np.abs(given - own.numpy()).max()))
    return {"difference": difference, "compared": len(obs) - undecided, "undecided": undecided}


def nudge(row: Tensor | Seen, by: float) -> Tensor | Seen:
    """A row whose numbers are multiplied by nearly 1."""
    return Seen(row.numbers * by, row.frames, row.rows) if isinstance(row, Seen) else row * by


def about(policy: Policy) -> dict[str, Any]:
    """What whoever runs the file has to know, as JSON values."""
    own = policy.robot["action"] if policy.robot else range(policy.action_dim)
    return {
        "kind": policy.spec["kind"],
        "obs": [{"key": key, "shape": list(shape)} for key, shape in policy.obs_shapes.items()],
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
        "before the first one the first again. Execute the chunk's actions one a step, then ask again.",
    }


def played(policy: Policy, file: Callable) -> Policy:
    """A policy that acts as `policy` does, by the arithmetic of a file, a row at a time."""

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        rows = zip(obs.split(1), noise.split(1), strict=True)
        return torch.from_numpy(np.concatenate([file(row.numpy(), z.numpy()) for row, z in rows]))

    made = copy.deepcopy(policy)
    made.__class__ = type("Played", (type(policy),), {"sample": sample, "fewest": 1})
    return made
