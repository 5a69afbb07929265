"""Best of N at decision time: draw candidates from a policy and its anchor, take the one whose value is surest to be
high.

    a* = argmax_i  mean_e Q_e(s, a_i) - k std_e Q_e(s, a_i)         (IDQL, arXiv 2304.10573, with a lower bound)

Where the critics cannot tell the candidates apart the first one is taken: what the policy would do by itself. One that
is `guarded` asks for more: the first is what the anchor would do by itself, and another is taken only if the members
are sure, by the same bound of their differences, that it is better than that:

    a* = argmax_i  mean_e D_e(i) - k std_e D_e(i),   D_e(i) = Q_e(s, a_i) - Q_e(s, a_0),   D_e(0) = 0
"""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.policy.base import FEWEST, SHAPE, Policy, build
from flywheel.policy.critic import Critic
from flywheel.policy.eyes import Seen


class BestOfN(Policy):
    """`n` candidates, the first half from `base`, the second from `anchor` (none: all from `base`).

    `explore` adds N(0, explore^2), in units of half the action range, to every second candidate: for collection; a
    policy that is evaluated or deployed has 0, and its `jitter`, without which a deterministic policy would have
    nothing to choose among. All this noise, and that of the candidates, is `spread` times as large."""

    def __init__(
        self,
        *,
        base: dict,
        critic: dict,
        anchor: dict | None = None,
        n: int = 16,
        k: float = 1.0,
        jitter: float = 0.0,
        guarded: bool = False,
        spread: float = 1.0,
        **shape,
    ):
        more = {name: value for name, value in (("jitter", jitter), ("guarded", guarded)) if value}
        more |= {"spread": spread} if spread != 1 else {}
        super().__init__(base=base, critic=critic, anchor=anchor, n=n, k=k, **more, **shape)
        self.jitter, self.guarded, self.spread = jitter, guarded, spread
        self.base, self.anchor = build(base), build(anchor) if anchor else None
        self.critic = Critic(**critic)
        self.n, self.k, self.explore = n, k, 0.0
        self.alike: bool | None = None  # do all its nets see the same in a picture? None: not compared yet

    @classmethod
    def of(cls, base: Policy, critic: Critic, anchor: Policy | None = None, **how) -> BestOfN:
        """A wrapper around existing nets (shared, not copied); `how`: n, k, jitter, guarded, spread."""
        shape = {key: base.spec[key] for key in (*SHAPE, "robot") if key in base.spec}
        spec = {"base": base.spec, "critic": critic.spec, "anchor": anchor.spec if anchor else None}
        made = cls(**spec, **how, **shape)
        made.to(base.device)  # its own bounds
        made.base, made.critic, made.anchor = base, critic, anchor
        made.encoder, made.action_norm = base.encoder, base.action_norm
        return made

    @property
    def knows(self) -> int:
        """What its critic takes that only the simulator has: it can collect there, and act nowhere else."""
        return self.critic.spec.get("knows", 0)

    @property
    def fewest(self) -> int:
        """Rows at once: each of them is already half of n, at least."""
        return -(-FEWEST // max(1, self.n // 2))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (2, self.n, *self.base.noise_shape)

    def candidates(self, obs: Tensor, noise: Tensor) -> Tensor:
        """obs [B, To, Do], noise [B, n, ...] -> [B, n, Ta, Da]."""
        own = self.n if self.anchor is None else self.n - self.n // 2
        parts, drawn = [], [(self.base, noise[:, :own]), (self.anchor, noise[:, own:])]
        for policy, part in reversed(drawn) if self.guarded else drawn:
            if policy is not None and part.shape[1]:
                if policy.greedy:  # its first candidate is what it would do by itself
                    part = torch.cat([torch.zeros_like(part[:, :1]), part[:, 1:]], 1)
                many = obs.repeat_interleave(part.shape[1], 0)
                parts.append(policy.sample(many, part.flatten(0, 1)).unflatten(0, part.shape[:2]))
        return torch.cat(parts, 1)

    def looked(self, obs: Tensor | Seen) -> Tensor | Seen:
        """Frames looked at once, where policy, anchor and critic see alike."""
        if not isinstance(obs, Seen) or self.critic.encoder.eyes is None or obs.features is not None:
            return obs
        if self.alike is None:
            eyes = [net.encoder.eyes for net in (self.base, self.anchor, self.critic) if net is not None]
            first, *others = [list(eye.state_dict().values()) for eye in eyes]
            same = [all(map(torch.equal, first, other)) for other in others]
            self.alike = all(same) and not any(eye.move for eye in eyes)
        return Seen(obs.numbers, features=self.critic.encoder.eyes(obs)) if self.alike else obs

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        noise, obs = noise * self.spread, self.looked(obs)
        actions = self.candidates(obs, noise[:, 0])
        if amount := max(self.explore, self.jitter):
            jitter = noise[:, 1, ..., : self.action_steps, :] * self.half_range * amount
            jitter[:, ::2] = 0
            actions = actions + jitter
        actions = self.bounded(actions)
        q = self.critic(obs.repeat_interleave(self.n, 0), actions.flatten(0, 1)).view(-1, len(obs), self.n)
        if self.guarded:
            q = q - q[:, :, :1]
        bound = q.mean(0) - self.k * q.std(0, correction=min(1, len(q) - 1))
        return actions[torch.arange(len(obs), device=obs.device), bound.argmax(1)]


make = BestOfN
