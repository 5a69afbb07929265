"""retrain: rounds of collect, evaluate, improve from a checkpoint. N rounds are one `fit` with rounds = N.

    collect    episodes by best-of-N over (policy, anchor) with a little noise; appended to the corpus, failures too
    evaluate   critics of action chunks on everything seen
    improve    the policy on demonstrations and own successes, half and half (or whatever the algorithm's table says)

Where the base never succeeds, episodes start along replayed demonstrations, and the start moves backwards.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from flywheel import stats
from flywheel.ending import OutOfTime
from flywheel.log import progress, say
from flywheel.stages import _inputs, _rounds
from flywheel.stages._backward import Backward
from flywheel.stages.evaluate import score
from flywheel.stages.pretrain import learner


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    _inputs.name_of(cfg)  # refused before anything begins
    _inputs.belongs("retrain", cfg["algorithm"])
    return {
        "corpus": _inputs.describe(_episodes(cfg, store, _inputs.pools(cfg, store)[0])),
        "checkpoint": _inputs.checkpoint(cfg["checkpoint"] or _inputs.name_of(cfg), store),
    }


def _episodes(cfg: dict[str, Any], store, demos):
    """The input episodes: what is imitated and, with `prior`, earlier rollouts of the same version."""
    if not cfg.get("prior"):
        return demos
    own = demos.corpus.at(demos.number if cfg.get("data") else demos.ref).select(
        task=_inputs.title(cfg), origin="policy:*"
    )
    own = _inputs.sound(own.select(~np.isin(own.rows, demos.rows))).canonical()
    return type(demos)(demos.corpus, demos.number, np.concatenate([demos.rows, own.rows]), demos.ref)


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    import torch

    from flywheel.env import rollout
    from flywheel.policy import base
    from flywheel.policy.best_of_n import BestOfN
    from flywheel.rl.fit import At, Cadence, fit
    from flywheel.rl.source import OffPolicy

    algorithm, collect = cfg["algorithm"], cfg["collect"]
    torch.manual_seed(int(cfg["seed"]))
    cadence = Cadence(**{**algorithm["cadence"], **({"rounds": int(cfg["rounds"])} if cfg.get("rounds") else {})})
    corpus = run.store.corpus()
    demos, parts, shares = _inputs.pools(cfg, run.store)
    inputs, parts = _episodes(cfg, run.store, demos).hashes, _rounds.named(demos, parts)
    record = run.store.checkpoint(run.inputs["checkpoint"]["ref"])
    loaded = run.store.load(run.inputs["checkpoint"]["ref"])
    critic = None
    if isinstance(loaded, BestOfN):
        loaded, critic = loaded.base, loaded.critic
    anchor = copy.deepcopy(loaded).to(_inputs.device(cfg)).eval()
    policy = loaded.train().requires_grad_(True)
    learning = learner(
        algorithm, policy, cfg, nets={"q": critic} if critic else {}, restart=cfg.get("restart") == "anchor"
    )  # fmt: skip
    acting, judging = learning.nets["policy.lag"], learning.nets["q.lag"]
    env = _inputs.open_env(cfg)
    memory = {**_rounds.memory(), "window": None, "backward": None}
    origin = f"policy:{record['id']}"

    def actor(explore: float):
        """Whoever acts now: the plain policy until there are critics that have learnt."""
        if memory["round"] == 0 and critic is None:
            return anchor.collecting(explore) if explore else anchor
        n, k, fixed = int(collect["n"]), float(collect["k"]), acting.fixed
        made = BestOfN.of(acting, judging, anchor, n=n, k=k, jitter=float(collect["explore"]) if fixed else 0.0)
        made.explore = explore
        return made.eval()

    def pools():
        return _rounds.pools(cfg, run, corpus, memory, inputs, parts)

    def late(k: int) -> bool:
        """Is the budget spent before this round's episode k? The first round is always whole."""
        return memory["round"] > 0 and run.out_of_time([memory["round"], 0, k])

    def gather_round(learning, memory):
        n = int(collect["episodes"])
        starts, low = backward.starts(n), memory["window"]
        chosen = _inputs.seeds("collect", cfg, memory["round"] * n, n)
        with progress(f"collect round {memory['round']}", n) as tick:
            acts = actor(float(collect["explore"]))
            done, counts = rollout(env, acts, chosen, origin=origin, starts=starts, progress=tick, late=late)
        own = [e.success for e in done if "start_from" not in e.meta]
        started = [e.success for e in done if "start_from" in e.meta]
        more = {
            "success": float(np.mean(own)) if own else None,
            "from_demos": float(np.mean(started)) if started else None,
            "window_low": low if started else None,
        }
        _rounds.tell(_rounds.keep(run, corpus, memory, done, counts, **more))
        if started:
            backward.move(more["from_demos"])
        else:
            backward.decide(sum(own), len(own))
        return pools()

    scoring = _inputs.seeds("gate", cfg, _inputs.SCORING, int(cfg["score_episodes"]))
    backward = Backward(collect["back"], int(cfg["seed"]), demos, env, memory)
    tried = record.get("tried") or {}
    backward.decide(tried.get("success", 0), tried.get("n", 0))
    source = OffPolicy(
        *pools(), _inputs.mixed(algorithm["mixture"], shares, int(cfg["batch_size"])),
        **_inputs.drawn(cfg, policy), gather_round=gather_round, memory=memory,
    )  # fmt: skip
    tiny = source.draw({"all": 1.0}, 2)
    learning.try_all({"evaluate": tiny, "improve": tiny})
    source.rng = np.random.default_rng(int(cfg["seed"]))
    at = At()
    if saved := run.load():
        learning.load_state(saved[0])
        source.load_state(saved[1]["source"])
        source.use(*pools())
        at = At(**saved[1]["at"])
        phase = ("collect", "evaluate", "improve", "gate")[at.phase]
        say(f"  going on in round {at.round}, phase {phase}, update {at.step}")

    total = cadence.rounds * (cadence.evaluate + cadence.improve)
    done_before = at.round * (cadence.evaluate + cadence.improve) + (at.phase == 2) * cadence.evaluate + at.step

    def pause(at: At) -> None:
        if at.step:
            tick(note=f"round {at.round}")
        if run.due():
            run.save(learning.state(), {"source": source.state(), "at": vars(at)})
            run.stop_if_asked()
        if at.round and run.out_of_time([at.round, at.phase, at.step]):
            raise OutOfTime

    def each(round: int) -> bool:
        run.log("learned", round=round, **learning.metrics())
        if cfg["score_every"] and (round + 1) % int(cfg["score_every"]) == 0:
            scored = score(actor(0.0), env, scoring, what=f"after round {round}", stop_at_success=True)
            memory["history"][-1]["scored"] = stats.rate(scored["success"])
            run.log("scored", round=round, steps=memory["steps"], **memory["history"][-1]["scored"])
            say(f"  after {memory['steps']:,} steps: success {scored['success'].mean():.3f} from the task's own reset")
        return over()

    def over() -> bool:
        full = (memory["round"] + 1) * int(collect["episodes"]) > _inputs.NIGHT
        if full and memory["round"] < cadence.rounds:
            say(f"  this night's {_inputs.NIGHT:,} collect seeds are used up; go on with night={int(cfg['night']) + 1}")
        return full or bool(cfg["max_steps"] and memory["steps"] >= int(cfg["max_steps"]))

    if not (at.round and at.phase == 0 and over()):  # else it was stopped right at its end
        with progress("retrain", total, done_before) as tick, run.ended_early(lambda: [at.round, at.phase, at.step]):
            fit(learning, source, cadence, at=at, pause=pause, each=each)
    env.close()

    base.save(acting, run.out / "policy.safetensors")
    name = _inputs.name_of(cfg)
    parents = [run.inputs["checkpoint"]["ref"]]
    updates = int(record.get("updates") or 0) + memory["round"] * cadence.improve
    outputs = {"policy": run.publish("policy.safetensors", name, kind="retrained", parents=parents, updates=updates)}
    base.save(actor(0.0), run.out / "best.safetensors")
    more = {"kind": "best-of-N", "parents": parents, "updates": updates}
    outputs["checkpoint"] = run.publish("best.safetensors", name, **more)
    outputs["corpus"] = corpus.head
    return {
        "outputs": outputs,
        "metrics": {
            "rounds": memory["round"],
            "steps": memory["steps"],
            "episodes": len(memory["episodes"]),
            "updates": updates,
        },
        "content": {"episodes": memory["episodes"], "history": memory["history"]},
    }
