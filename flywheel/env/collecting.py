"""Episodes of practice by the batch's executor: equal to the bit to those of this process.

An episode depends on weights and seed alone, so it may be played anywhere; which are begun depends on how others went
(a bound of steps, an alarm). `Rehearsal` decides that here: a rollout in which nothing is stepped, which knows of an
episode only how long it took, and asks for more as it comes to them. In a bounded round all slots are busy until the
bound is reached, so each end before it is followed by a beginning: what it asks for ahead is used, unless an alarm
ends the round."""

from __future__ import annotations

import atexit
import dataclasses
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from flywheel import executors
from flywheel.args import Guard, Task, build, plain

_kept: dict[str, Any] = {}  # a worker's environments, of the task that it played last


def play(env, policy, seeds: Sequence[int], **options: Any) -> tuple[list, dict[str, int]]:
    """What `rollout` returns, made by the executor where its workers are there already; arguments as there."""
    from flywheel.env.rollout import rollout, slots

    there = executors.stays(getattr(env, "executor", "local"), getattr(env, "resources", {}))
    pays = there and slots(env, seeds, options.get("steps")) > 1
    return (collected if pays else rollout)(env, policy, seeds, **options)


def collected(
    env,
    policy,
    seeds: Sequence[int],
    *,
    origin: str,
    starts: Sequence[dict[str, Any] | None] | None = None,
    steps: int | None = None,
    progress: Callable[[int], None] | None = None,
    late: Callable[[int], bool] | None = None,
    each: Callable[[Any], Any] | None = None,
    film: bool = False,
) -> tuple[list, dict[str, int]]:
    """What `rollout` returns, made by the executor; arguments as there."""
    import torch

    from flywheel.env.rollout import slots, summed

    buffer = io.BytesIO()
    torch.save(policy, buffer)
    weights = buffer.getvalue()
    task = dataclasses.replace(env.made, faults=1.0)  # faults are counted over all, here
    told = json.dumps(plain({"task": task, "guard": env.guard}))
    do, workers = executors.bound(env.executor, env.workers, env.resources), env.workers or os.cpu_count() or 1
    going = Rehearsal(slots(env, seeds, steps), len(seeds), steps, late, each, env.tally, progress)
    while asked := going.on():
        size = -(-len(asked) // workers)
        parts = [asked[k : k + size] for k in range(0, len(asked), size)]
        tasks = [
            (weights, told, [seeds[k] for k in part], starts and [starts[k] for k in part], origin, film)
            for part in parts
        ]
        for part, found in zip(parts, do(played, tasks), strict=True):
            going.known.update(zip(part, found, strict=True))
    begun = [going.known[k] for k in range(going.count)]
    return [episode for episode, _ in begun], summed(counts for _, counts in begun)


class Rehearsal:
    """What `rollout` does with `most` seeds in `slots` slots, without a step of it.

    known    {k: (episode, its counts)} of those that were played
    count    so many were begun, the first ones
    """

    def __init__(self, slots: int, most: int, steps: int | None, late, each, tally, progress):
        self.most, self.steps, self.late, self.each = most, steps or float("inf"), late, each
        self.tally, self.progress = tally, progress
        self.known: dict[int, tuple[Any, Counter]] = {}
        self.count, self.told, self.over = 0, 0, set[int]()
        self.turn, self.made = 0, 0  # turns so far, and steps of all slots
        self.under: dict[int, tuple[int, int]] = {}  # slot: (episode, the turn at which it began)
        self.due = list(range(slots))

    def on(self) -> list[int]:
        """Go on as far as what is known allows: the episodes that have to be played next, [] where all are over."""
        while True:
            while self.due:
                self.begin(self.due.pop(0))
            if lacking := [k for k, _ in self.under.values() if k not in self.known]:
                return [*lacking, *self.ahead()]
            if not self.under:
                return []
            self.end()

    def begin(self, slot: int) -> None:
        """The slot's next episode, if there is one."""
        if self.made >= self.steps or self.count == self.most:
            return
        if self.count and self.late and self.late(self.count):
            self.most = self.count
            return
        self.under[slot] = self.count, self.turn
        self.count += 1
        self.tally.begun += 1

    def ends(self) -> dict[int, int]:
        """{slot: the turn at which its episode is over} of those that are known."""
        return {slot: self.known[k][1]["steps"] + began for slot, (k, began) in self.under.items() if k in self.known}

    def ahead(self) -> range:
        """The episodes that surely follow those under way: one on each end before the bound is reached."""
        busy = len(self.under)
        follow = sum(self.made + (turn - self.turn) * busy < self.steps for turn in self.ends().values())
        first = next(k for k in range(self.count, self.most + 1) if k not in self.known)
        return range(first, max(first, min(self.count + follow, self.most)))

    def end(self) -> None:
        """The turn at which the next episodes are over, heard in the order of the seeds."""
        ends = self.ends()
        now = min(ends.values())
        self.made += (now - self.turn) * len(self.under)
        self.turn = now
        for slot in sorted(slot for slot, turn in ends.items() if turn == now):
            k, _ = self.under.pop(slot)
            self.over.add(k)
            self.due.append(slot)
            if self.progress:
                self.progress(1)
            while self.each and self.told in self.over:
                self.told += 1
                self.each(self.known[self.told - 1][0])
            if cause := self.known[k][0].meta.get("cause"):
                self.tally.add(self.known[k][0].seed, cause)


def played(policy: bytes, told: str, seeds: list[int], starts, origin: str, film: bool) -> list[tuple[Any, Counter]]:
    """(episode, its counts) of some seeds, in whatever process: a policy, in environments of its own."""
    import torch

    from flywheel.env.rollout import apart

    actor = torch.load(io.BytesIO(policy), None if torch.cuda.is_available() else "cpu", weights_only=False)
    return apart(_environments(told, len(seeds)), actor, seeds, origin=origin, starts=starts, film=film)


def _environments(told: str, count: int):
    """At least so many of a task; those that this process played in last, if they will do."""
    from flywheel import env as envs

    if told not in _kept or _kept[told].num_envs < count:
        _leave()
        task, guard = (json.loads(told)[part] for part in ("task", "guard"))
        _kept[told] = envs.make(build(Task, task), count, 1)
        _kept[told].guard = build(Guard, guard)
    return _kept[told]


@atexit.register
def _leave() -> None:
    while _kept:
        _kept.popitem()[1].close()
