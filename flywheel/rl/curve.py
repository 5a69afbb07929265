"""The curve of a training run: the policy as it was after so many updates, scored on gate seeds; what comes out is
its best: by success where it can be played, by the next-action error of episodes held out where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from flywheel.log import say
from flywheel.rl.fit import At, Enough, Watch
from flywheel.rl.plateau import Plateau, moves
from flywheel.rl.table import Algorithm

Point = dict[str, Any]  # {"updates", "file", "success", "n", "ci95", the learner's means}


class Curve(Watch):
    """A point each `every` updates of the policy and at the end. `actor()` is who is scored and saved,
    `score(policy, what)` says how it does ({} where nothing is scored). With the algorithm's schedule "plateau" it
    decides when training ends, and at which rate it goes."""

    def __init__(self, learner, run, algorithm: Algorithm, every: int, actor: Callable, score: Callable[..., Point]):
        self.learner, self.run, self.cadence, self.every = learner, run, algorithm.cadence, every
        self.actor, self.score, self.points = actor, score, []
        falls = algorithm.schedule == "plateau" and not getattr(learner.optim.get("policy"), "factors", None)
        self.plateau = Plateau(self.cadence.updates) if falls else None  # a policy may bring a schedule of its own
        self.loss = "policy." + next(iter(algorithm.improve["policy"])) if algorithm.improve.get("policy") else None

    def state(self) -> dict[str, Any]:
        return {"points": self.points, "plateau": asdict(self.plateau) if self.plateau else None}

    def load_state(self, state: dict[str, Any], tensors: Mapping[str, Any] = {}) -> None:
        self.points = state["points"]
        self.plateau = Plateau(**state["plateau"]) if state["plateau"] else None

    def begin(self, at: At) -> None:
        if self.plateau:
            self.learner.slow(self.plateau.rate(at.improved(self.cadence)))

    def after_update(self, at: At) -> None:
        if at.phase != 2:
            return
        updates = at.improved(self.cadence)
        if updates % self.every == 0 or updates == self.cadence.updates:
            self.add(updates)
        if self.plateau:
            if self.plateau.over:
                raise Enough
            self.learner.slow(self.plateau.rate(updates))

    def note(self) -> str:
        mean = self.learner.mean(self.loss) if self.loss else None
        return "" if mean is None else f"loss {mean:.3f}"

    def add(self, updates: int) -> None:
        """Score and save the policy as it is after so many updates, unless that point is there."""
        from flywheel.policy import base

        if self.points and self.points[-1]["updates"] >= updates:
            return
        file = f"at_{updates}.safetensors"

        def scored() -> Point:
            who = self.actor()
            base.save(who, self.run.out / file)
            return self.score(who, f"at {updates} updates")

        point = {"updates": updates, "file": file, **self.learner.metrics(), **self.learner.peers.first(scored)}
        if "success" in point:
            say(f"  {updates} updates: success {point['success']:.2f} on {point['n']} gate seeds")
        if "error" in point:
            say(f"  {updates} updates: next-action error {point['error']:.3f} on {point['n']} episodes held out")
        self.points.append(point)
        self.run.log("curve", **point)
        if self.plateau and "error" in point:
            self.plateau.judge(updates, *moves([p["error_by_episode"] for p in self.points]))
        elif self.plateau:
            self.plateau.saw(updates, [p.get("success", 0.0) for p in self.points], point.get("n", 0))
        self.run.save_soon()

    def best(self, until: int | None = None) -> Point:
        """The best point of the first `until` updates (null: of all; the first, where none is so early), of equal
        ones the last."""
        early = [p for p in self.points if until is None or p["updates"] <= until] or self.points[:1]
        return max(early, key=lambda point: (point.get("success", 0), -point.get("error", 0), point["updates"]))

    def drop_all_but(self, kept: list[Point]) -> None:
        """Remove the files of the other points."""
        for point in self.points:
            if point not in kept:
                (self.run.out / point["file"]).unlink(missing_ok=True)
