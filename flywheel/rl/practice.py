"""Rounds of practice: what a policy does in an environment, kept in the corpus, remembered, and drawn from.

    play       a round's episodes, remembered by hash; with each save they are appended to the corpus, failures too
    held       windows over the input episodes and the run's own, and which are which
    over       are the steps, or this night's seeds, used up?

Retraining and online RL differ in who acts, where episodes start, and what is handed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flywheel import selection
from flywheel.env.trust import honours_seeds
from flywheel.log import say
from flywheel.obs import PRIVILEGED, STATE
from flywheel.regret import WINDOW, summary
from flywheel.rl import acting, hindsight, retry
from flywheel.rl.fit import Watch
from flywheel.rl.plateau import decayed
from flywheel.rl.slump import KNOWN, Slump
from flywheel.rl.spread import Shares, Spreads, by_spread
from flywheel.rl.table import SPREADS
from flywheel.seeds import NIGHT
from flywheel.stats import wilson

BLOCK = 32  # episodes that are played with the same shares of spreads


@dataclass
class Memory:
    """What a run of rounds remembers."""

    round: int = 0
    begun: int = 0  # episodes
    steps: int = 0
    interventions: int = 0  # steps at which a guard stepped in
    episodes: list[str] = field(default_factory=list)  # hashes of its own, less what an environment spoilt
    history: list[dict[str, Any]] = field(default_factory=list)  # a line a round
    backward: bool | None = None  # do episodes start along demonstrations? None: not decided
    window: float | None = None  # and from which share of these on
    best: dict[str, Any] | None = None  # the best score so far
    outcomes: str = ""  # "1101": successes of its own episodes that began at the task's own reset
    tried: int = 0  # on how many episodes `base` was measured
    base: float | None = None  # the success of who began, as it was measured before, else that of its first episodes
    acted: float | None = None  # the same as it explores: no more than its first episodes show; what the alarm is of
    evidence: list[float] = field(default_factory=list)  # that the acting policy fell below it
    failed: list[int] = field(default_factory=list)  # seeds at which it failed, to be tried again
    spreads: list[list[float]] = field(default_factory=list)  # of candidates: [won, lost] of each
    judged: bool = False  # did critics choose then?
    rate: float = 1.0  # of the policy in this round, as a share of its own (schedule=decay)
    back_at: int | None = None  # the outcome at which it went back to the last good policy, which did not do well since


class Practice(Watch):
    """`inputs` are the hashes of the episodes that are there from the beginning, `demos` {pool: hashes} those of them
    that are imitated.

    `score(what)`, each `score_every` rounds (0: never), says how it does; `max_steps` ends it.
    """

    def __init__(self, args, run, env, learner, inputs: list[str], demos: dict[str, list[str]]):
        self.args, self.run, self.env, self.learner = args, run, env, learner
        self.inputs, self.demos = list(inputs), demos
        self.corpus, self.memory = run.store.corpus(create=True), Memory()
        self.known: set[str] = set()  # the hashes of memory.episodes
        self.waiting: list = []  # episodes that are not in the corpus yet
        self.score: Callable[[str], dict[str, Any]] = lambda what: {}
        self.full: Callable[[], bool] = lambda: self.memory.begun >= NIGHT  # are there no seeds for the next round?
        self.eyes = acting.eyes(learner)
        self.scores_start = False
        self.guard: Any = None  # rl/guarding.py
        self.slump = Slump(args.guard.below, args.guard.false_alarm)
        self.good: dict[str, Any] = {}  # the learner as it was when it last acted well
        how = getattr(args, "collect", None) or args.algorithm.collect
        self.spreads = Spreads(how.spreads if how else SPREADS, args.seed, args.guard.below)
        self.share, self.again = how.retry if how else 0.0, set[int]()  # of a round; the seeds of this one
        self.goals = hindsight.goals(how.hindsight, env, args.task.learns) if how and how.hindsight else None

    def state(self) -> dict[str, Any]:
        self.settle()
        self.memory.evidence = self.slump.evidence.tolist()
        self.memory.spreads = self.spreads.counts
        return dict(vars(self.memory))

    def tensors(self) -> dict[str, Any]:
        return self.good

    def load_state(self, state: dict[str, Any], tensors: Mapping[str, Any] = {}) -> None:
        for name, value in state.items():  # in place: others look at the same memory
            setattr(self.memory, name, value)
        self.known = set(self.memory.episodes)
        self.slump.base, self.slump.evidence = self.memory.acted, np.array(self.memory.evidence)
        self.spreads.counts = self.memory.spreads or self.spreads.counts
        self.good = dict(tensors)

    def began_at(self, success: float | None, n: int = 0) -> None:
        """Say how the policy does that this practice begins with; what was tried too seldom is not known."""
        if success is not None and n >= KNOWN and self.memory.base is None:
            self.memory.base, self.memory.tried = success, n

    def scattered(self, counts: dict[str, list[float]] | None) -> None:
        """Take over what an earlier run saw of spreads {spread: [won, lost]}, whose critics choose here too."""
        self.memory.judged = bool(counts)
        for arm, spread in zip(self.spreads.counts, self.spreads.spreads, strict=True):
            arm[:] = (counts or {}).get(f"{spread:g}", arm)

    def spread(self, collecting: bool, judged: bool) -> float | Shares:
        """How far candidates scatter now: as it was best so far or, to collect, each episode in its own way."""
        memory = self.memory
        if not collecting:
            return self.spreads.best(memory.base)
        if judged != memory.judged:  # from now on others act
            memory.judged = judged
            self.spreads.fade()
        return self.spreads.shares(memory.base, memory.round)

    def with_failed(self, new: list[int], count: int) -> list[int]:
        """The seeds of a round of some `count` episodes: new ones and, where seeds decide, some that failed before."""
        self.again = set()
        if not (self.share and self.memory.failed and honours_seeds(self.env)[0]):
            return new
        chosen, self.again = retry.with_failed(new, self.memory.failed, self.share, count)
        return chosen

    def begin(self, at) -> None:
        if self.args.algorithm.schedule == "decay":
            self.learner.slow(self.memory.rate)
        if self.scores_start and self.memory.best is None:
            self.score("as it begins")

    def play(
        self, actor, seeds: list[int], origin: str, more: Callable[[list], dict], **options: Any
    ) -> tuple[list, list]:
        """An episode a seed by `actor`, kept: (all of them, those to learn from besides). `more(episodes)` is added
        to the round's line."""
        if not self.good and self.memory.acted is None and self.slump.below is not None:
            self.good = self.learner.snapshot()  # who begins
        done, counts = self._played(actor, seeds, origin=origin, **options)
        scattered = [e for e in done if "spread" in e.meta]
        told = {"spreads": by_spread(scattered)} if scattered else {}
        told |= {"retried": found} if (found := retry.words(done)) else {}
        new = self.keep(done, counts, more(done) | told)
        self.memory.failed = retry.waiting(self.memory.failed, done) if self.share else []
        self.watch_over()
        return done, new

    def _played(
        self, actor, seeds: list[int], *, starts=None, steps=None, late=None, **options
    ) -> tuple[list, Counter]:
        """The episodes, and the guard's counts. Where spreads are to be found they are played BLOCK at a time, and each
        block's shares know what became of those before."""
        from flywheel.env.collecting import play

        spreads, done, counts, made = getattr(actor, "spreads", None), [], Counter(), 0
        block = BLOCK if spreads else max(1, len(seeds))
        for begin in range(0, len(seeds), block):
            if begin and (self.slump.tripped or (steps and made >= steps) or (late and late(begin))):
                break
            if spreads:
                actor.spreads = self.spreads.shares(self.memory.base, self.memory.round, begin)
            chosen = seeds[begin : begin + block]
            part, n = play(
                self.env, actor, chosen, film=True, **options, steps=steps - made if steps else None,
                starts=starts[begin : begin + block] if starts else None,
                each=lambda e: e.seed not in self.again and own(e) and self.slump.saw(bool(e.success)),
                late=lambda k: self.slump.tripped or bool(late and late(begin + k)),  # noqa: B023
            )  # fmt: skip
            part = [e.replace(meta={**e.meta, "retry": True}) if e.seed in self.again else e for e in part]
            if spreads:
                part = [e.replace(meta={**e.meta, "spread": actor.spreads.of(e.seed)}) for e in part]
                self.spreads.saw([e for e in part if "retry" not in e.meta])
            done, counts = done + part, counts + Counter(n)
            made += sum(map(len, part))
        return done, counts

    def watch_over(self) -> None:
        """After a round: remember the learner that acted well, or go back to the one that did."""
        memory, slump = self.memory, self.slump
        if memory.acted is None and (len(memory.outcomes) >= KNOWN or memory.base is not None):
            found = memory.outcomes.count("1") / max(1, len(memory.outcomes))
            if memory.base is None:
                memory.base, memory.tried = found, len(memory.outcomes)
            learnt = memory.round > 1 or len(memory.outcomes) < KNOWN  # then they say little of who began
            memory.acted = slump.base = memory.base if learnt else min(found, memory.base)
        if not slump.watches or self.guard is None:
            return
        if slump.tripped:
            self.back()
        elif slump.quiet:
            self.good, memory.back_at = self.learner.snapshot(), None

    def back(self) -> None:
        """Go back to the learner that last acted well, at half its rates. Where that one does no better, it was told
        too high: then its success is at most what its own episodes allow."""
        memory, slump = self.memory, self.slump
        again = memory.back_at is not None
        recent = memory.outcomes[memory.back_at :] if again else memory.outcomes[-WINDOW:]
        won = recent.count("1")
        why = f"{won} of the last {len(recent)} episodes succeeded, of the start's {slump.base:.3f}"
        if again:
            memory.acted = slump.base = min(slump.base, wilson(won, len(recent))[1])
            why += f"; that is the last good policy itself: at most {slump.base:.3f} from now on"
        else:
            memory.back_at = len(memory.outcomes)
            why += ": back to the last good policy, at half its rates"
        self.guard.back(self.good, "slump", why, slower=not again)
        slump.again()
        self.guard.end_round()  # what acts next is the one that it went back to: its own episodes say how good it is

    def keep(self, done: list, counts: dict[str, int], more: dict[str, Any]) -> list:
        """Remember a round's episodes, for the corpus too; which of them are to be learnt from: not what someone has
        removed from the corpus, what is known already, or what an environment spoilt."""
        memory, run = self.memory, self.run
        done = [e.replace(meta={**e.meta, "round": memory.round, "run": run.name}) for e in done]
        films: dict[str, Any] = {}
        if not self.args.task.keep_frames:
            done, films = bare(done)
        played = [e for e in done if "cause" not in e.meta]
        copies = hindsight.relabelled(played, *self.goals, self.env.success) if self.goals else []
        self.waiting += done + copies
        memory.steps += sum(len(e) for e in done)
        memory.outcomes += "".join("01"[bool(e.success)] for e in done if counts_for(e))
        memory.begun += len(done)
        gone = self.corpus.refused([e.hash for e in played + copies])
        films |= {e.hash: films[e.meta["of"]] for e in copies if e.meta["of"] in films}
        sound = [e for e in played + copies if e.hash not in self.known and not gone & {e.hash, e.meta.get("of")}]
        fresh = {e.hash: e for e in reversed(sound)}
        new = list(fresh.values())[::-1]
        self.known.update(fresh)
        memory.episodes += [e.hash for e in new]
        line = {"round": memory.round, "episodes": len(done), **more, "steps": memory.steps}
        if recent := memory.outcomes[-WINDOW:]:
            line["window"] = recent.count("1") / len(recent)
        if copies:
            line["hindsight"] = len(copies)
        if guarded := {name: n for name, n in counts.items() if name not in ("steps", "faults", "interventions")}:
            line["guard"] = guarded  # steps at which each guard stepped in
        memory.interventions += counts.get("interventions", 0)
        if faults := [f"seed {e.seed}: {e.meta['cause']}" for e in done if "cause" in e.meta]:
            line["faults"] = faults
        memory.round += 1
        memory.history.append(line)
        run.log("round", **line)
        return [self.seen(e, films.get(e.hash)) for e in new]

    def seen(self, episode, film=None):
        """The episode with what the policy's frozen eyes made of its frames, where it has any; frames that were not
        kept are drawn again, unless the `film` is still there."""
        return acting.seen(self.eyes, episode, self.env, film) if self.eyes else episode

    def told(self) -> dict[str, Any]:
        """What practice cost (regret.py), and how often the guard had to undo it: for the result of a stage."""
        events = self.guard.events if self.guard else []
        return {
            **summary(self.memory.outcomes, self.memory.base, self.memory.tried),
            **({"guard": len(events)} if events else {}),
        }

    def content(self) -> dict[str, Any]:
        """What a stage's record keeps of it: episodes, a line a round, outcomes, and the guard's events."""
        memory = self.memory
        events = self.guard.events if self.guard else []
        kept = {"episodes": memory.episodes, "history": memory.history, "outcomes": memory.outcomes}
        return kept | {"guard": events}

    def settle(self) -> None:
        """Append what waits to the corpus, as one version."""
        if self.waiting:
            first, last = (self.waiting[i].meta["round"] for i in (0, -1))
            rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
            self.corpus.append(self.waiting, message=f"{self.run.name} {rounds}", author=self.run.name)
            self.waiting = []

    def held(self, hashes: list[str] | None = None, windows=None) -> tuple:
        """(windows, {pool: positions}, cameras) of these episodes, by default of the input episodes and the run's own,
        in an order that only this run decides; it costs what they cost where `windows` are open already. (None, {}, ())
        of none.

        What is in none of the pools of what is imitated is a rollout.
        """
        self.settle()
        demos = {} if hashes is not None else self.demos
        hashes = [*self.inputs, *self.memory.episodes] if hashes is None else hashes
        if not hashes:
            return None, {}, ()
        version = self.corpus.holding(hashes)
        won, index = np.asarray(version.table["success"]) == 1, np.arange(len(hashes))
        parts = {pool: np.isin(np.array(hashes), np.array(part, dtype=str)) for pool, part in demos.items()}
        is_demo = np.any([*parts.values(), np.zeros(len(hashes), bool)], axis=0)
        return (
            self._opened(version, windows),
            {
                **{pool: index[part] for pool, part in parts.items()},
                "own": index[~is_demo & hindsight.imitated(hashes, won, version.table["meta"])],
                "rollouts": index[~is_demo],
                "all": index,
            },
            self.cameras(version),
        )

    def cameras(self, version) -> list:
        """The frames that the policy's eyes learn from; none where they are frozen."""
        policy = self.learner.nets["policy"] if self.learner else None
        if policy is None or not policy.cameras or not policy.encoder.eyes.move:
            return []
        if not self.args.task.keep_frames:
            raise ValueError(
                "algorithm.encoder=learn draws frames of the corpus, and task.keep_frames=false leaves those of "
                "rollouts out; take one or the other"
            )
        return selection.cameras(self.corpus, version, policy, self.args, self.run.store)

    def looked(self, episodes: list) -> list:
        """The same of a round's episodes, which are in the corpus from now on."""
        if not self.learner.nets["policy"].cameras or not self.learner.nets["policy"].encoder.eyes.move:
            return []
        self.settle()
        return self.cameras(self.corpus.holding([e.hash for e in episodes]))

    def _opened(self, version, windows):
        """Windows over the episodes; of a policy that sees, rows in memory."""
        critic = self.learner.nets.get("q") if self.learner else None
        known = (f"extras.{PRIVILEGED}",) if getattr(critic, "spec", {}).get("knows") else ()
        if not self.eyes:
            found = windows.extend(version) if windows else None
            return found or selection.windows(self.corpus, version, self.args, self.run.store, known)
        if windows:
            raise ValueError(
                "there is no room for more transitions of a policy that sees: end this run, and begin another"
            )
        fields = (*selection.FIELDS[self.args.task.learns], *known)
        return acting.rows_seen(self.eyes, version, self.env, fields)

    def decay(self) -> None:
        """With schedule=decay: the policy's rate for the round to come, by the share of rounds or steps that is behind,
        whichever is more."""
        if self.args.algorithm.schedule == "decay":
            done = self.memory.round / (self.args.rounds or self.args.algorithm.cadence.rounds)
            if self.args.max_steps:
                done = max(done, self.memory.steps / self.args.max_steps)
            self.memory.rate = decayed(done)
            self.learner.slow(self.memory.rate)

    def after_round(self, round: int) -> None:
        self.decay()
        self.run.log("learned", round=round, **self.learner.metrics())
        every = self.args.score_every
        if every and (round + 1) % every == 0:
            scored = self.memory.history[-1]["scored"] = self.score(f"after round {round}")
            words = ", ".join(f"{key} {scored[key]:.3f}" for key in ("return", "success") if key in scored)
            say(f"  after {self.memory.steps:,} steps: {words} from the task's own reset")

    def over(self) -> bool:
        full = self.full()
        if full:
            say(f"  this night's {NIGHT:,} collect seeds are used up; go on with night={self.args.night + 1}")
        spent = bool(self.args.guard.in_all and self.memory.interventions >= self.args.guard.in_all)
        if spent:
            say(f"  guards stepped in at {self.memory.interventions:,} steps: that is guard.in_all, the end")
        return bool(full or spent or (self.args.max_steps and self.memory.steps >= self.args.max_steps))

    def ended(self) -> None:
        self.settle()

    def note(self) -> str:
        line = self.memory.history[-1] if self.memory.history else {}
        told = ", ".join(f"{key} {line[key]:.3g}" for key in ("return", "success") if line.get(key) is not None)
        return f"round {self.memory.round}, {self.memory.steps:,} steps{', ' if told else ''}{told}"


def own(episode) -> bool:
    """Did it begin at the task's own reset, and was no environment at fault?"""
    return "cause" not in episode.meta and "start_from" not in episode.meta


def counts_for(episode) -> bool:
    """Does it say how practice does on the task's own starts?"""
    return own(episode) and "retry" not in episode.meta


def bare(episodes: list) -> tuple[list, dict[str, Any]]:
    """Episodes without the frames that can be drawn again, from the seed and the actions, and these {hash: obs}."""
    made = [e.replace(obs={STATE: e.obs[STATE]}) if own(e) else e for e in episodes]
    return made, {one.hash: whole.obs for one, whole in zip(made, episodes, strict=True)}


def named(version, pools: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """{pool: hashes} of positions among a version's episodes."""
    return {pool: [version.hashes[i] for i in which] for pool, which in pools.items()}


def tell(line: dict[str, Any]) -> None:
    """A round's line, for people."""
    words = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items() if v is not None)
    say("  " + ", ".join(words))
