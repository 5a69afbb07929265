"""The one loop. Pretraining, offline RL, retraining rounds, online RL and distillation are this with other tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from flywheel.args import Guard
from flywheel.ending import OutOfTime
from flywheel.log import progress, say
from flywheel.rl.table import Cadence

__all__ = ["PHASES", "At", "Cadence", "Watch", "fit", "loop"]

PHASES = ("collect", "evaluate", "improve", "gate")
# (snapshot of the learner before the round, learner) -> why the round is undone
Gate = Callable[[Any, Any], str | None]


@dataclass
class At:
    """Where the loop is: the round, the phase in it (an index into PHASES), updates done in the phase."""

    round: int = 0
    phase: int = 0
    step: int = 0

    @property
    def place(self) -> list[int]:
        """[round, phase, step], which grows."""
        return [self.round, self.phase, self.step]

    def improved(self, cadence: Cadence) -> int:
        """Updates of the policy so far."""
        return self.round * cadence.improve + (self.step if self.phase == 2 else 0)

    def updated(self, cadence: Cadence) -> int:
        """Updates of critics and policy so far."""
        within = {0: 0, 1: self.step, 2: cadence.evaluate + self.step}.get(
            self.phase, cadence.evaluate + cadence.improve
        )
        return self.round * (cadence.evaluate + cadence.improve) + within


class Enough(Exception):
    """A watch says that no more comes of it."""


class Watch:
    """What a stage does beside learning: it remembers (as JSON), looks on, and may end the loop."""

    def state(self) -> dict[str, Any]:
        """What it remembers."""
        return {}

    def tensors(self) -> dict[str, Any]:
        """What it remembers in tensors."""
        return {}

    def load_state(self, state: dict[str, Any], tensors: Mapping[str, Any] = {}) -> None:
        """Go on from what was remembered."""

    def begin(self, at: At) -> None:
        """Called before the loop begins, or goes on."""

    def after_update(self, at: At) -> None:
        """Called after each update; may raise Enough."""

    def after_round(self, round: int) -> None:
        """Called after each round."""

    def over(self) -> bool:
        """Is nothing left to do, whatever rounds there are?"""
        return False

    def ended(self) -> None:
        """Called after the loop."""

    def note(self) -> str:
        """A few words for the progress bar."""
        return ""


def loop(
    learner,
    source,
    cadence: Cadence,
    gates: Sequence[Gate] = (),
    *,
    act: Callable[[str, Any], bool] | None = None,
    mark: Callable[[], None] = lambda: None,
    trust: Callable[[], None] = lambda: None,
    at: At | None = None,
    pause: Callable[[At], None] = lambda at: None,
    each: Callable[[int], bool | None] = lambda round: None,
) -> None:
    """Collect, evaluate, improve, `cadence.rounds` times; the first of the gates that gives a reason undoes the round.
    An act ends early where a loss says that it is enough. A guard takes the place of the learner's `act`, is told where
    improvement begins (`mark`), and that what a gate went back to may be trusted (`trust`).

    `pause(at)` is called where the loop can be left and entered again (`at`); `each(round)` after each round: if it
    returns True the loop ends there (a time budget).
    """
    at, act = at or At(), act or learner.act
    while at.round < cadence.rounds:
        if at.phase == 0:
            source.collect(learner)
            at.phase, at.step = 1, 0
            pause(at)
        before = learner.snapshot() if gates else None  # collecting may have sent a fallen policy back
        if at.phase == 1:
            while at.step < cadence.evaluate:
                if act("evaluate", source.batch("evaluate")):
                    break
                at.step += 1
                pause(at)
            at.phase, at.step = 2, 0
        if at.phase == 2:
            if at.step == 0:
                learner.begin_improve()
                mark()
            while at.step < cadence.improve and at.round >= cadence.warmup:
                if act("improve", source.batch("improve")):
                    break
                at.step += 1
                pause(at)
            at.phase, at.step = 3, 0
        if reason := next((why for gate in gates if (why := gate(before, learner))), None):
            learner.restore(before, reason)
            trust()
        at.round, at.phase, at.step = at.round + 1, 0, 0
        stop = each(at.round - 1)
        pause(at)
        if stop:
            return


def fit(learner, source, cadence: Cadence, run, watch: Watch, gates: Sequence[Gate] = (), guard=None) -> At:
    """The loop as a run does it: it goes on where the run was left, saves, stops when asked to, and ends when its time
    is up.

    Within a round that a gate may undo nothing is saved: only the round's begin remembers what it would go back to.
    Before there is anything to hand over (a round where a policy collects, an update where none does) no budget ends
    it. A `guard` (rl/guarding.py) looks at the updates. Returns where it ended."""
    from flywheel.rl.guarding import Guarding

    guard = guard or Guarding(learner, Guard(update={}), run, anchored=False, reward="success")
    going = _Going(learner, source, cadence, run, watch, guard, gated=bool(gates))
    at = going.resume()
    if at.round and at.phase == 0 and watch.over():  # it was stopped right at its end
        return at
    watch.begin(at)
    total = cadence.rounds * (cadence.evaluate + cadence.improve)
    ticks = progress(run.stage, total, at.updated(cadence))
    with ticks as going.tick, run.ended_early(lambda: at.place), suppress(Enough):
        loop(
            learner,
            source,
            cadence,
            gates,
            act=guard.act,
            mark=guard.begin_improve,
            trust=guard.trust,
            at=at,
            pause=going.pause,
            each=going.each,
        )
    watch.ended()
    return at


@dataclass
class _Going:
    """A loop that can be left and entered again: what it saves, and what it looks at on its way."""

    learner: Any
    source: Any
    cadence: Cadence
    run: Any
    watch: Watch
    guard: Any
    gated: bool  # may a round be undone?
    tick: Any = None
    at: At = field(default_factory=At)

    def save(self) -> None:
        if self.gated and self.at.phase:
            return
        kept = {"data": self.source.data, "guard": self.guard.before, "watch": self.watch.tensors()}
        tensors = {f"{part}/{key}": value for part, held in kept.items() for key, value in held.items()}
        parts = {"source": self.source, "watch": self.watch, "guard": self.guard}
        state = {name: part.state() for name, part in parts.items()}
        self.run.save(self.learner.state() | tensors, {**state, "at": asdict(self.at)})

    def pause(self, at: At) -> None:
        """Where the loop can be left: look on, save, stop where that was asked for, or the time is up."""
        if at.step:
            self.watch.after_update(at)
        if self.run.due():
            self.save()
            self.run.stop_if_asked()
        self.tick(at.updated(self.cadence) - self.tick.done, note=self.watch.note)
        if (at.round or (not self.source.collects and at.step)) and self.run.out_of_time(at.place):
            raise OutOfTime

    def each(self, round: int) -> bool:
        """After a round: is nothing left to do?"""
        self.watch.after_round(round)
        self.guard.begin_round()
        return self.at.round < self.cadence.rounds and self.watch.over()

    def resume(self) -> At:
        """Load what the run has saved, if it has; where the loop goes on."""
        if not (saved := self.run.load()):
            return self.at
        tensors, state = saved
        parts: dict[str, dict[str, Any]] = {"data": {}, "guard": {}, "watch": {}, "": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part if part in parts else ""][name if part in parts else key] = value
        self.learner.load_state(parts[""])
        self.watch.load_state(state["watch"], parts["watch"])
        self.source.load_state(state["source"], parts["data"])
        self.guard.load_state(state["guard"], parts["guard"])
        self.at = At(**state["at"])
        say(f"  going on in round {self.at.round}, phase {PHASES[self.at.phase]}, update {self.at.step}")
        return self.at
