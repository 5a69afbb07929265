"""An algorithm is a table: where its data comes from, how often what is updated, and which loss moves which net. No
torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from flywheel.args import UsageError, arg, number

SPREADS = [1.0, 0.5, 0.25, 0.1]  # of candidates: 0 is what a policy does by itself, 1 what it was trained to


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often: rounds x (evaluate, improve) updates. one-step 1 x (100k, 100k), multi-step 5 x (20k, 2k), iterative
    1M x (1, 1). In the first `warmup` rounds nothing is improved."""

    rounds: int = arg(1, "of collect, evaluate, improve", least=1)
    evaluate: int = arg(0, "updates of critics a round", least=0)
    improve: int = arg(0, "updates of the policy a round", least=0)
    warmup: int = arg(0, "rounds at first in which nothing is improved", least=0)

    @property
    def updates(self) -> int:
        """All updates of the policy."""
        return self.rounds * self.improve


@dataclasses.dataclass(frozen=True)
class Goal:
    """Where observations have a task's goal."""

    achieved: str = arg("achieved_goal", "the key of what is there")
    desired: str = arg("desired_goal", "the key of what is wanted")


@dataclasses.dataclass(frozen=True)
class Choosing:
    """How candidates are made and chosen, and starts tried again, by whatever collects."""

    explore: float = arg(0.0, "noise, in what the policy takes it in; of a best of N on candidates", least=0, most=10)
    jitter: float | None = arg(
        None, "of a best of N: such noise where it is scored and used, too; null: only of a policy without chance",
        least=0, most=10,
    )  # fmt: skip
    guarded_in_use: bool = arg(
        False,
        "of a best of N: scored and used, it does what the anchor does, unless the critics are sure of better",
    )
    n: int = arg(16, "of a best of N: candidates at each decision, half of them the anchor's", least=1, most=100_000)
    k: float = arg(1.0, "of a best of N: lower bound, mean - k std of the critics", least=0, most=100)
    retry: float = arg(0.0, "share of a round, at most, from starts at which it failed before", least=0, most=0.9)
    anchored: bool = arg(True, "of a best of N: is the checkpoint that it began from among the candidates?")
    spreads: list[Any] = arg(SPREADS, "of a best of N: how far candidates scatter; the best is found (rl/spread.py)")
    hindsight: Goal | None = arg(None, "{}: what failed is, as a copy, a success at the goal where it ended (HER)")


@dataclasses.dataclass(frozen=True)
class Collect(Choosing):
    """How a stage that acts by the policy itself collects."""

    steps: int = arg(1000, "environment steps a round, in whole episodes", least=1)
    explore_from: float | None = arg(None, "noise at first", least=0, most=10)
    explore_until: float = arg(1.0, "share of all rounds in which it goes down, in a line", least=0, most=1)
    learn_noise: bool = arg(False, "of a flow: the noise of its steps is a net's (ReinFlow)")
    guarded: bool = arg(False, "of a best of N: what the anchor does, unless the critics are sure of something better")

    def noise(self, round: int, rounds: int) -> float:
        """From `explore_from` to `explore`, in a line that ends at `explore_until` of all rounds."""
        if self.explore_from is None:
            return self.explore
        return self.explore + (self.explore_from - self.explore) * max(0.0, 1 - round / (rounds * self.explore_until))


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """The table. Losses are functions of rl/evaluate.py and rl/improve.py: {net: {loss: {argument: value}}}."""

    name: str | None = arg(None, "what it is called")
    source: str = arg("offline", "where data comes from", choices=("offline", "off_policy", "on_policy"))
    cadence: Cadence = arg(Cadence, "how often what is updated")
    act: str | None = arg(
        None, "who acts: the best of N of its samples, or, also in rounds of retraining, the policy itself",
        choices=(None, "best_of_n", "policy"),
    )  # fmt: skip
    collect: Collect | None = arg(None, "how the policy collects, where it does so itself")
    mixture: dict[str, Any] = arg({}, "shares of a batch: {act: {pool: share}}")
    advantage: dict[str, Any] | None = arg(None, "{name: arguments}, a function of rl/advantage.py")
    evaluate: dict[str, Any] = arg({}, "{net: {loss: arguments}}")
    improve: dict[str, Any] = arg({}, "{net: {loss: arguments}}")
    gate: dict[str, Any] | None = arg(None, "{name: arguments}, a judge of rl/gate.py that may undo a round")
    residual: dict[str, Any] | None = arg(
        None, "what learns is a residual over the checkpoint's policy, which is frozen: {alpha, width, depth}"
    )
    lag: dict[str, float] = arg({}, "{net: rate} of the slow copies")
    explore: float | None = arg(None, "offline: the noise that log-probabilities are of", least=0, most=10)
    encoder: str = arg(
        "frozen", "eyes of a policy that sees, in rounds and online RL: as they are, or learnt with it",
        choices=("frozen", "learn"),
    )  # fmt: skip
    critic: dict[str, Any] = arg({}, "members, width, depth, activation, norm of critics, where they are not the usual")
    lr: Any = arg(3e-4, "one learning rate, or {net: rate}")
    schedule: str | None = arg(
        None,
        "of the policy's rate: it is kept; or falls until the curve is level (plateau: offline), or in the last "
        "third of rounds (decay)",
        choices=(None, "plateau", "decay"),
    )
    clip: float = arg(10.0, "largest norm of a gradient", least=0)
    weight_decay: float = arg(1e-4, "of AdamW", least=0, most=1)
    optimiser: str | None = arg(
        None, "of all nets; null: adamw, or what a policy of LeRobot brings", choices=(None, "adamw", "sgd")
    )
    precision: str = arg(
        "bf16", "of hidden layers in an update, where the processor gains by it", choices=("bf16", "float32")
    )
    compile: bool = arg(False, "each row's loss and gradient as one compiled function")

    def __post_init__(self) -> None:
        for key, most in (("lr", 1e3), ("lag", 1.0)):
            rates = getattr(self, key)
            for net, rate in rates.items() if isinstance(rates, dict) else [("", rates)]:
                number(f"{key}{'.' if net else ''}{net}", rate, float, 1e-12, most)
        if self.schedule and (self.schedule == "plateau") != (self.source == "offline"):
            raise UsageError(
                f"schedule={self.schedule}: algorithm {self.name} has source {self.source}; plateau is for offline, "
                "decay for those that collect. Take the other, or schedule=null"
            )
        if self.source == "on_policy" and self.collect and self.collect.hindsight is not None:
            raise UsageError(
                f"collect.hindsight: algorithm {self.name} learns from what its policy has just done, and its copies "
                "are of other goals; take an off-policy one (ogpo, rounds), or collect.hindsight=null"
            )
        if (seen := self.critic.get("obs")) not in (None, "privileged", ["privileged"], ["state", "privileged"]):
            raise UsageError(f"critic.obs={seen}; expected [state, privileged]: what only the simulator knows")
        known = {"members": (1, 1000), "width": (1, 1e5), "depth": (0, 100)}
        for key, size in self.critic.items():
            if key in ("activation", "norm", "obs", "knows"):
                continue
            if key not in known:
                there = ", ".join(sorted((*known, "activation", "norm", "obs")))
                raise UsageError(f"there is no critic.{key}. There are: {there}")
            number(f"critic.{key}", size, int, *known[key])
