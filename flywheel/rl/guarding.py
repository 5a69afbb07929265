"""The guard's second level: what is learnt is looked at, and undone where it went wrong.

A guard is a file of rl/guards/; `guard.update` names those that look, {guard: arguments}:

    def guard(seen, *, most=0.3) -> reason          # empty where nothing is wrong; seen: what it may know (Seen)

After `guard.every` updates each looks. Where one gives a reason, the learner goes back to the look before, whole, at
half its learning rates; after `guard.trips` of them in a round, the round's updates end."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flywheel.args import Guard
from flywheel.env.guard import named
from flywheel.log import say
from flywheel.rl import guards
from flywheel.rl.evaluate import noise_like
from flywheel.rl.learner import look


@dataclass
class Seen:
    """What a guard may know of a look: the learner, a batch, the policy of the look before."""

    learner: Any
    batch: dict[str, Any]
    before: dict[str, Tensor]  # the learner's state, one look ago
    memory: dict[str, float]  # numbers that guards keep
    anchored: bool  # did the policy begin from a checkpoint?
    reward: str  # what is learnt from: success, or env

    @property
    def nets(self) -> dict[str, Any]:
        """All nets of the learner."""
        return self.learner.nets

    @functools.cached_property
    def ensemble(self) -> Tensor:
        """Q of the batch's actions, [E, B]."""
        with torch.no_grad():
            return self.nets["q"](self.batch["obs"], self.batch["action"])

    def values(self) -> Tensor:
        """Their mean, [B]."""
        return self.ensemble.mean(0)

    def possible(self) -> tuple[float, float]:
        """The least and the largest return that the rewards seen so far allow."""
        if self.reward == "success":
            return 0.0, 1.0
        reward, discount = self.batch["reward"], self.batch["discount"]
        low = self.memory["least"] = min(self.memory.get("least", 0.0), float(reward.min()))
        high = self.memory["most"] = max(self.memory.get("most", 0.0), float(reward.max()))
        far = self.memory["discount"] = max(self.memory.get("discount", 0.0), float(discount.max()))
        return low / max(1e-3, 1 - far), high / max(1e-3, 1 - far)

    def moved(self) -> float:
        """How far the policy's actions moved since the look before, from the same noise: root mean square, in half
        action ranges."""
        policy, obs = self.nets["policy"], self.batch["obs"]
        noise = noise_like(policy, {"obs": obs, "rng": torch.Generator(obs.device).manual_seed(0)})
        old = copy.deepcopy(policy)
        old.load_state_dict({k.removeprefix("nets/policy/"): v for k, v in self.before.items() if _of(k, "policy")})
        with torch.no_grad():
            step = (policy.sample(obs, noise) - old.sample(obs, noise)) / policy.half_range
        return float(step.square().mean().sqrt())

    def logged(self, key: str) -> float | None:
        """The mean of what a loss logged since the round began; None where it did not."""
        return self.learner.mean(key)


def _of(key: str, net: str) -> bool:
    return key.startswith(f"nets/{net}/")


class Guarding:
    """Looks at a learner's updates. `anchored`: did its policy begin from a checkpoint? FloatingPointError where not
    one look passed, and the trips of a round are used up: nothing was learnt."""

    def __init__(self, learner, guard: Guard, run, anchored: bool, reward: str):
        self.learner, self.guard, self.run = learner, guard, run
        self.anchored, self.reward = anchored, reward
        told = {name: args for name, args in guard.update.items() if args is not None}
        self.checks = {name: named(guards, name, args, 1, "guard.update") for name, args in told.items()}
        self.since = self.trips = self.passed = 0
        self.crossed = False  # did improvement begin since the last look?
        self.scale, self.memory, self.kept, self.events = 1.0, {}, {}, []
        self.before = learner.snapshot() if self.checks else {}

    def act(self, act: str, batch: dict[str, Tensor]) -> bool:
        """An update, and perhaps a look; True where this act is over for this round."""
        if self.trips >= self.guard.trips:
            return True
        if not self.checks:
            return self.learner.act(act, batch)
        try:
            enough = self.learner.act(act, batch)
        except FloatingPointError as error:
            if "finite" not in self.checks or not self.passed:
                raise  # there is no look to go back to
            return self.undo("finite", str(error))
        self.since += 1
        if self.since < self.guard.every:
            return enough
        return self.look(act, batch) or enough

    def look(self, act: str, batch: dict[str, Tensor]) -> bool:
        """Let every guard look; the first that gives a reason undoes what was learnt since the last look."""
        told = {k: v.to(self.learner.device) for k, v in batch.items()}
        look(told)
        seen = Seen(self.learner, told, self.before, self.memory, self.anchored, self.reward)
        for name, check in self.checks.items():
            if reason := self.learner.peers.first(functools.partial(check, seen)):
                return self.undo(name, reason)
        self.passed += 1
        self.trust()
        return False

    def trust(self) -> None:
        """Take the learner as it is for what an undo goes back to."""
        if self.checks:
            self.since, self.before, self.kept = 0, self.learner.snapshot(), dict(self.memory)
            self.crossed = False

    def begin_improve(self) -> None:
        """The policy is where its improvement begins (`policy.old`, an anchor): an undo that reaches back across this
        begins it again."""
        self.crossed = True

    def undo(self, name: str, reason: str) -> bool:
        """Go back to the last look at half the rates; True where the round's trips are used up."""
        self.learner.load_state(self.before)
        if self.crossed:
            self.learner.begin_improve()
        self.slow()
        self.since, self.trips, self.memory = 0, self.trips + 1, dict(self.kept)
        over = self.trips >= self.guard.trips
        self.tell("update", name, f"{reason}: undone, rates x {self.scale:g}{'; the round ends' if over else ''}")
        if over and not self.passed:
            raise FloatingPointError(
                f"the guard undid all that was learnt, {self.trips} times, at last because {reason}. Take a smaller "
                f"algorithm.lr, look at the data (`flywheel corpus stats`), or leave the guard out: "
                f"guard.update.{name}=null"
            )
        return over

    def back(self, state: dict[str, Tensor], name: str, reason: str, slower: bool) -> None:
        """Go back to a state of before, at half the rates if `slower`: what acted since was worse."""
        self.learner.load_state(state)
        if slower:
            self.slow()
        self.memory = dict(self.kept)
        self.trust()
        self.tell("acting", name, reason)

    def slow(self) -> None:
        """Halve all learning rates, for good."""
        self.scale /= 2
        self.learner.scale_rates(0.5)

    def tell(self, level: str, name: str, reason: str) -> None:
        """Log an event, and say it."""
        event = {"level": level, "guard": name, "reason": reason, "rates": self.scale}
        self.events.append(event)
        self.run.log("guard", **event)
        say(f"  guard: {name}: {reason}")

    def end_round(self) -> None:
        """No further update in this round."""
        self.trips = self.guard.trips

    def begin_round(self) -> None:
        """A round has trips of its own."""
        self.trips = 0

    def state(self) -> dict[str, Any]:
        """What it remembers, as JSON; the state of the last look beside it: `before`."""
        return {
            k: getattr(self, k) for k in ("since", "trips", "passed", "scale", "memory", "kept", "crossed", "events")
        }

    def load_state(self, state: dict[str, Any], before: dict[str, Tensor]) -> None:
        """Take over what `state` returned, and the tensors of the last look."""
        self.learner.scale_rates(state["scale"] / self.scale)
        for name, value in state.items():
            setattr(self, name, value)
        self.before = before
