"""Who acts where critics choose: the best of N over the policy that learns, the frozen anchor that it began from, and
the critics. And what a run begins from, where that is such a best of N itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Start:
    """A checkpoint as learning takes it: the `policy` that learns, its frozen copy (`anchor`), the checkpoint as it is
    (`whole`), which has to be beaten, and the nets that it brought ({"q"} of a best of N)."""

    policy: Any
    anchor: Any
    whole: Any
    nets: dict[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """Was there a critic from the beginning?"""
        return "q" in self.nets


def taken_apart(loaded, device: str) -> Start:
    """What is learnt from a checkpoint: of a best of N its base and its critic."""
    from flywheel.policy.best_of_n import BestOfN

    policy, nets = (loaded.base, {"q": loaded.critic}) if isinstance(loaded, BestOfN) else (loaded, {})
    whole = copy.deepcopy(loaded).to(device).eval().requires_grad_(False)
    anchor = whole.base if nets else whole
    return Start(policy, anchor, whole, nets)


def best_of_n(nets: dict[str, Any], anchor, collect, explore: float, *, judged: bool, guarded: bool = False):
    """Who acts now: by itself the anchor, until there are critics that have learnt (`judged`); then the best of
    `collect.n` candidates, half of them the anchor's, by the critics' mean less `collect.k` deviations.

    `explore` is the noise of collection, on every second candidate; a policy that knows no chance keeps
    `collect.explore`, or there would be nothing to choose among."""
    from flywheel.policy.best_of_n import BestOfN

    if not judged:
        return anchor.collecting(explore) if explore else anchor
    acting = nets.get("policy.lag", nets["policy"])
    jitter = collect.explore if acting.fixed else 0.0
    beside = anchor if collect.anchored else None
    made = BestOfN.of(acting, nets["q.lag"], beside, n=collect.n, k=collect.k, jitter=jitter, guarded=guarded)
    made.explore = explore
    return made.eval()
