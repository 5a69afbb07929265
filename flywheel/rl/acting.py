"""Who acts where critics choose: the best of N over the policy that learns, the frozen anchor that it began from, and
the critics. And what a run begins from, where that is such a best of N itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flywheel.corpus.rows import Rows
from flywheel.env.playback import filmed
from flywheel.log import progress
from flywheel.selection import SEEN


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
    for net in (policy, *nets.values()):
        if net.encoder.eyes is not None:
            net.encoder.eyes.requires_grad_(False)
    whole = copy.deepcopy(loaded).to(device).eval().requires_grad_(False)
    anchor = whole.base if nets else whole
    return Start(policy, anchor, whole, nets)


def eyes(learner):
    """The frozen eyes of who practises, or None: what they see is worked out once for each frame. Where the policy's
    learn they are the critics'."""
    if not learner:
        return None
    nets = [learner.nets[name] for name in ("q", "policy") if name in learner.nets]
    return next((net.encoder.eyes for net in nets if net.encoder.eyes is not None and not net.encoder.eyes.move), None)


def seen(eyes, episode, env, film: Mapping[str, Any] | None = None):
    """The episode with what frozen `eyes` made of its frames; those that were not kept are drawn again, unless the
    `film` {camera: [T+1, H, W, 3]} is still there."""
    if film is None and (film := episode.obs).keys().isdisjoint(eyes.each):
        film = filmed(env, episode, f"episode {episode.hash[:12]}").obs
    made = eyes.seen(film, next(eyes.parameters()).device).cpu().numpy()
    return episode.replace(extras={**episode.extras, SEEN: made})


def rows_seen(eyes, version, env, fields: tuple[str, ...]) -> Rows:
    """The rows of a version with what frozen `eyes` made of each frame, in memory."""
    episodes = []
    with progress("look", len(version)) as tick:
        for episode in version:
            episodes.append(seen(eyes, episode, env))
            tick()
    return Rows(episodes, (*fields, f"extras.{SEEN}"))


def best_of_n(
    nets: dict[str, Any], anchor, collect, explore: float, *, judged: bool, spread=1.0, guarded: bool = False
):
    """Who acts now: by itself the anchor, until there are critics that have learnt (`judged`); then the best of
    `collect.n` candidates, half of them the anchor's, by the critics' mean less `collect.k` deviations.

    `explore` is the noise of collection, on every second candidate. `collect.jitter` of it stays where it is scored and
    used; by default that is none, but a policy that knows no chance keeps `collect.explore`, or there would be nothing
    to choose among. It is `guarded` (policy/best_of_n.py) always, or by `collect.guarded_in_use` where it is scored and
    used alone. `spread` is how far candidates scatter, or, to collect, each episode's (rl/spread.py)."""
    from flywheel.policy.best_of_n import BestOfN

    collecting = not isinstance(spread, float)
    if not judged:
        made = anchor.collecting(explore) if collecting else anchor
        made.spreads = spread if collecting else None
        return made
    acting = nets.get("policy.lag", nets["policy"])
    if not collecting and nets["q.lag"].spec.get("knows"):  # where it is used nobody knows what the critic does
        return copy.deepcopy(acting).eval()
    jitter = collect.jitter
    if jitter is None:
        jitter = collect.explore if acting.fixed else 0.0
    beside = anchor if collect.anchored else None
    guarded = guarded or (collect.guarded_in_use and not collecting)
    options = {"n": collect.n, "k": collect.k, "jitter": jitter, "guarded": guarded}
    made = BestOfN.of(acting, nets["q.lag"], beside, spread=1.0 if collecting else spread, **options)
    made.explore, made.spreads = explore, spread if collecting else None
    return made.eval()
