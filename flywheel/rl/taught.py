"""A teacher beside a student that acts: the student goes wrong in its own way, and is told what to do there (DAgger,
arXiv 1011.0686). In simulation the teacher may know what only the simulator does, and the student sees pictures."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flywheel import selection
from flywheel.env.collecting import play
from flywheel.log import progress, say
from flywheel.obs import PRIVILEGED
from flywheel.policy import base
from flywheel.rl import build
from flywheel.rl.labelled import Labelled
from flywheel.seeds import seeds


class Taught(Labelled):
    """As Labelled; before each round's updates but the first's the student plays `stage.practice.episodes` in `env`,
    which are appended to the corpus and labelled beside what was there."""

    collects = True

    def __init__(self, *args: Any, env, stage, run, **labelled: Any):
        self.env, self.stage, self.run = env, stage, run
        self.hashes: list[str] = []
        self.round = 0
        super().__init__(*args, **labelled)

    def collect(self, learner) -> None:
        """Play a round."""
        if self.round:
            policy = copy.deepcopy(learner.nets.get("policy.lag", learner.nets["policy"])).eval()
            n = self.stage.practice.episodes
            chosen, origin = seeds("collect", self.stage, (self.round - 1) * n, n), f"policy:{self.run.name}"
            with progress(f"collect round {self.round}", n) as tick:
                done, _ = play(self.env, policy, chosen, origin=origin, film=True, progress=tick)
            won = float(np.mean([bool(e.success) for e in done]))
            self.run.log("round", round=self.round, episodes=n, success=won, steps=sum(map(len, done)))
            say(f"  round {self.round}, episodes {n}, success {won:.3f}")
            self.take([e for e in done if "cause" not in e.meta])
        self.round += 1

    def take(self, episodes: list) -> None:
        """Keep these in the corpus, and draw from them too."""
        corpus = self.run.store.corpus()
        episodes = [e.replace(meta={**e.meta, "round": self.round, "run": self.run.name}) for e in episodes]
        corpus.append(episodes, message=f"{self.run.name} round {self.round}", author=self.run.name)
        self.hold([e.hash for e in episodes])

    def hold(self, hashes: list[str]) -> None:
        """Draw from these episodes of the corpus too, in this order."""
        known = set(self.hashes)
        fresh = [one for one in dict.fromkeys(hashes) if one not in known]
        if not fresh:
            return
        self.hashes += fresh
        version = self.run.store.corpus().holding(fresh)
        seen = [camera.extend(version) for camera, _ in self.cameras.values()]
        self.add(self.rows.extend(version), {pool: np.arange(len(fresh)) for pool in list(self.pools)[:1]}, seen)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "hashes": self.hashes, "round": self.round}

    def load_state(self, state: dict[str, Any], data: dict[str, torch.Tensor] | None = None) -> None:
        self.hold(state["hashes"])
        self.round = state["round"]
        super().load_state(state, data)


@dataclass
class Teaching:
    """A teacher and how it teaches: who the student is, and where its labels come from."""

    args: Any
    run: Any
    teacher: Any

    @property
    def apart(self) -> bool:
        """Does the teacher know what only the simulator does, and the student see?"""
        return bool(self.args.task.cameras) and not self.teacher.cameras

    @property
    def fields(self) -> tuple[str, ...]:
        """What the teacher takes of the corpus beside what the student does."""
        return (f"extras.{PRIVILEGED}",) if self.apart else ()

    def student(self, env, windows):
        """A new policy: of the teacher's shape and normaliser, or one that sees."""
        teacher = self.teacher
        if getattr(teacher, "averages", None):
            raise ValueError(
                "the teacher executes averages of its chunks, which what it saw before decides too, and a student "
                "learns what to do in a state; teach from a policy with policy.settings.temporal_ensemble_coeff=null"
            )
        if self.apart:
            return self._seeing(env, windows)
        build.suits(teacher, env)
        shape = {"ahead": 1} | {  # a best of N says nothing of the chunk after the next
            k: teacher.spec[k] for k in (*base.SHAPE, "ahead") if k in teacher.spec
        }
        made = base.build({**self.args.policy, **shape, "condition": teacher.condition})
        build.suits(made, env)
        return made.like(teacher)

    def _seeing(self, env, windows):
        names, teacher = getattr(env, "privileged_dim", 0), self.teacher
        if not names or teacher.obs_dim != names:
            raise ValueError(
                f"the teacher takes {teacher.obs_dim} numbers, and {selection.title(self.args.task)} shows "
                f"{env.obs_dim}, of {names} that the simulator knows; expected a teacher of the same task without "
                "cameras, or one that sees what the student does"
            )
        own = {**self.args.policy, "ahead": 1, "action_steps": teacher.action_steps}
        return build.new_policy(own, self.args.task, env, windows)

    def labels(self, student, device: str, env):
        """What the teacher does in each state, where it is of no use to give student and teacher the same noise."""
        told = {"teacher": self.teacher.to(device), "draws": self.args.draws}
        if self.args.practice.rounds:
            return Taught, {**told, "env": env, "stage": self.args, "run": self.run}
        same = student.noise_shape == self.teacher.noise_shape and not (student.fixed or student.discrete)
        return None if same and not self.apart else (Labelled, told)
