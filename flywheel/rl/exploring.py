"""Rounds of online RL: how the policy begins, explores and is scored; which of its points is kept."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from flywheel.args import Task
from flywheel.env.scoring import rate, score
from flywheel.obs import PRIVILEGED
from flywheel.rl import build
from flywheel.rl.acting import Start, best_of_n, taken_apart
from flywheel.rl.practice import Practice
from flywheel.rl.table import Cadence
from flywheel.seeds import NIGHT, seeds

ENOUGH = 50  # episodes without a success: then the reward will not be found by chance


class Exploring:
    """A policy that collects by itself or, where the table says so, the best of N of its samples and of what it began
    from. `first` are episodes that are there before the first round (a warm-up)."""

    def __init__(self, args, practice: Practice, cadence: Cadence, first: list, origin: str, start: Start | None):
        self.args, self.practice, self.cadence, self.first, self.origin = args, practice, cadence, first, origin
        self.nets, self.start = practice.learner.nets, start
        self.policy = self.nets["policy"]
        self.on_policy, self.scoring = args.algorithm.source == "on_policy", []
        self.explore()

    def explore(self) -> float:
        """Let the policy act with this round's noise; how much that is."""
        amount = self.args.algorithm.collect.noise(self.practice.memory.round, self.cadence.rounds)
        for name in ("policy", "policy.old"):
            if name in self.nets:
                self.nets[name].explores(amount)
        return amount

    def actor(self, explore: float = 0.0, collecting: bool = False):
        """Who acts now, with so much noise."""
        algorithm, how = self.args.algorithm, self.args.algorithm.collect
        if not algorithm.act:
            return self.policy.explores(explore)
        judged = self.start.judged or self.practice.memory.round >= max(1, self.cadence.warmup)
        spread = self.practice.spread(collecting, judged)
        return best_of_n(self.nets, self.start.anchor, how, explore, judged=judged, spread=spread, guarded=how.guarded)

    def source(self, mixture: dict[str, dict[str, float]], drawn: dict[str, Any]):
        """Where the learner's batches come from."""
        from flywheel.rl.source import OffPolicy, OnPolicy

        if self.on_policy:
            return OnPolicy(play=self.collect, **drawn)
        practice = self.practice
        return OffPolicy(mixture, play=self.collect, held=practice.held, looked=practice.looked, **drawn)

    def collect(self, learner) -> list:
        """Play a round; the episodes to learn from."""
        memory, steps = self.practice.memory, self.args.algorithm.collect.steps
        first = self.first if memory.round == 0 else []
        if first and not self.on_policy:
            return self.practice.keep(first, {}, self.rates(first))
        n = min(steps, NIGHT - memory.begun)  # from the night's last seed down: retraining takes the first ones
        chosen = seeds("collect", self.args, NIGHT - memory.begun - n, n)[::-1]
        chosen = self.practice.with_failed(chosen, memory.history[-1]["episodes"] if memory.history else 0)
        acts = self.actor(self.explore(), collecting=True)
        done, new = self.practice.play(acts, chosen, self.origin, self.rates, steps=steps)
        return done if self.on_policy else new

    def rates(self, episodes: list) -> dict[str, float]:
        """How a round's episodes went."""
        won = [e.success for e in episodes if "retry" not in e.meta]
        found = {"success": float(np.mean(won)) if won else None}
        if self.practice.env.reward == "env":
            found["return"] = float(np.mean([e.extras["env_reward"].sum() for e in episodes]))
        return found

    def score(self, what: str) -> dict[str, Any]:
        """How the policy does on the gate seeds, at first the checkpoint as it is; the best so far is kept, of equal
        ones the last."""
        from flywheel.policy import base

        memory, run, env = self.practice.memory, self.practice.run, self.practice.env
        policy = self.start.whole if self.start and memory.round == 0 else self.actor()
        found = rate(score(policy, env, self.scoring, what=what, stop_at_success=True)) if self.scoring else {}
        run.log("scored", round=memory.round - 1, steps=memory.steps, **found)
        if not memory.steps:
            self.practice.began_at(found.get("success"), found.get("n", 0))
        if not memory.best or worth(found) >= worth(memory.best):
            memory.best = {**found, "steps": memory.steps}
            kept = copy.deepcopy(policy)
            if self.args.algorithm.collect.learn_noise:
                kept.noise_net = None  # noise is for exploring
            base.save(kept, run.out / "policy.safetensors")
        return found


def words(scored: dict[str, Any]) -> str:
    """A score, for people."""
    return ", ".join(f"{key} {scored[key]:.3g}" for key in ("success", "return") if key in scored)


def worth(scored: dict[str, Any]) -> tuple[float, float]:
    """By what a policy is kept: success, then return."""
    return scored.get("success", 0.0), scored.get("return", 0.0)


def begin(args, loaded, env, demos) -> tuple[Any, list, Start | None]:
    """The policy that online RL begins with, the episodes that were played to make it (none, or from scratch a
    warm-up), and the checkpoint that it is of."""
    from flywheel.policy import base

    first: list = []
    start = taken_apart(loaded, build.device(args.device)) if loaded is not None else None
    if args.algorithm.act and not start:
        raise ValueError(
            f"online: algorithm {args.algorithm.name} acts by the best of its own samples and those of the checkpoint "
            "that it began from; name one with checkpoint="
        )
    if start:
        policy = build.learns(start.policy, args.algorithm)
        build.suits(policy, env)
    else:
        policy = base.build({**args.policy, **build.shape(env)})
        build.suits(policy, env)
        build.blind(policy, "online")
        first = warm_up(args, env, policy)
        known = [*(e for e in first if "cause" not in e.meta), *(demos or [])]
        obs, action = ([e.obs["state"] for e in known], [e.action for e in known])
        build.fit_normaliser(policy, env, np.concatenate(obs), np.concatenate(action))
    if args.algorithm.collect.learn_noise:
        policy.learn_noise()
    return policy, first, start


def warm_up(args, env, policy) -> list:
    """Episodes of random actions that make `warmup` steps; what they were is the same in every resumed run."""
    from flywheel.env.collecting import play
    from flywheel.policy._uniform import Uniform

    shape = {**build.shape(env), "obs_steps": policy.obs_steps, "action_steps": policy.action_steps}
    chosen = seeds("collect", args, 0, min(args.warmup, NIGHT))
    chance = Uniform(**shape, discrete=policy.discrete)
    return play(env, chance, chosen, origin="random", steps=args.warmup, film=True)[0]


def refuse_hopeless(task: Task, record: dict[str, Any], demos) -> None:
    """ValueError where the reward is success and nobody has ever had one: no method finds it by chance."""
    tried = record.get("tried") or {}
    never = not record or (tried.get("n", 0) >= ENOUGH and tried.get("success") == 0)
    if never and demos is None and task.learns == "success":
        found = f"{tried['n']} episodes without a success" if tried else "no checkpoint to begin from"
        raise ValueError(
            f"online: {found}, so success, the only reward, would never be seen. Begin from a policy that sometimes "
            "succeeds (flywheel pretrain; flywheel retrain starts along demonstrations), learn from demonstrations as "
            "well (algorithm=rlpd), or from the environment's own reward (task.reward=env)"
        )


def example(nets: dict[str, Any], source: str):
    """A batch of two rows of zeros, to try every loss on."""
    import torch

    policy = nets["policy"]
    obs = policy.encoder.zeros(2)
    if "q" in nets and (knows := nets["q"].spec.get("knows")):
        obs.frames[PRIVILEGED] = obs.new_zeros(2, knows)
    action, number = obs.new_zeros(2, policy.action_steps, policy.action_dim), obs.new_zeros(2)
    batch = {"obs": obs, "next_obs": obs, "action": action, "next_action": action}
    batch |= {"reward": number, "discount": number, "return": number}
    if source == "on_policy":
        with torch.no_grad():
            chain = policy.chain(obs, obs.new_zeros(2, *policy.noise_shape))
            batch |= {"chain": chain, "log_prob": policy.chain_log_prob(obs, chain)[0], "advantage": number}
    return batch
