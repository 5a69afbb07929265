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
from flywheel.log import progress, say
from flywheel.stages import _inputs
from flywheel.stages._backward import Backward
from flywheel.stages.evaluate import score
from flywheel.stages.pretrain import learner


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    return {
        "corpus": _inputs.describe(_episodes(cfg, store)[0]),
        "checkpoint": _inputs.checkpoint(cfg["checkpoint"] or _inputs.name_of(cfg), store),
    }


def _episodes(cfg: dict[str, Any], store):
    """The input episodes: demonstrations and, with `prior`, earlier rollouts; and which of them are demonstrations."""
    demos = _inputs.demonstrations(cfg, store)
    if not cfg.get("prior"):
        return demos, demos
    own = demos.corpus.at(demos.number).select(task=_inputs.title(cfg), origin="policy:*")
    own = own.select(~np.isin(own.rows, demos.rows)).canonical()
    return type(demos)(demos.corpus, demos.number, np.concatenate([demos.rows, own.rows])), demos


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    import torch

    from flywheel.policy import base
    from flywheel.policy.best_of_n import BestOfN
    from flywheel.rl.fit import At, Cadence, fit
    from flywheel.rl.source import OffPolicy

    algorithm, collect = cfg["algorithm"], cfg["collect"]
    if algorithm["source"] != "off_policy":
        raise ValueError(
            f"retrain collects and keeps what it saw; algorithm {algorithm.get('name')} asks for source "
            f"{algorithm['source']}. With source off_policy there are: rounds, recap, rlpd, sac, td3, ddpg"
        )
    torch.manual_seed(int(cfg["seed"]))
    cadence = Cadence(**{**algorithm["cadence"], **({"rounds": int(cfg["rounds"])} if cfg.get("rounds") else {})})
    corpus = run.store.corpus()
    everything, demos = _episodes(cfg, run.store)
    inputs = everything.hashes
    record = run.store.checkpoint(run.inputs["checkpoint"]["ref"])
    loaded = base.load(record["file"])
    critic = None
    if isinstance(loaded, BestOfN):
        loaded, critic = loaded.base, loaded.critic
    anchor = copy.deepcopy(loaded).to(_inputs.device(cfg)).eval()
    policy = loaded.train().requires_grad_(True)
    learning = learner(
        algorithm, policy, cfg, nets={"q": critic} if critic else {}, restart=cfg.get("restart") == "anchor"
    )  # fmt: skip
    best = algorithm["act"] == "best_of_n"
    acting, judging = learning.nets["policy.lag" if best else "policy"], learning.nets.get("q.lag")
    env = _inputs.open_env(cfg)
    memory: dict[str, Any] = {"round": 0, "episodes": [], "steps": 0, "window": None, "backward": None, "history": []}
    origin = f"policy:{record['id']}"

    def actor(explore: float):
        """Whoever acts now: the plain policy until there are critics that have learnt."""
        if not best:
            acting.spec["greedy"], acting.explore = explore == 0, explore
            return acting
        if memory["round"] == 0 and critic is None:
            return anchor
        made = BestOfN.of(acting, judging, anchor, n=int(collect["n"]), k=float(collect["k"]))
        made.explore = explore
        return made.eval()

    def pools():
        """Windows over inputs and own episodes, and which are which; in an order that only this run decides."""
        version = corpus.at("latest")
        where = {h: i for i, h in enumerate(version.hashes)}
        order = [*inputs, *memory["episodes"]]
        chosen = version.select(np.array([where[h] for h in order]))
        won = np.asarray(chosen.table["success"]) == 1
        index = np.arange(len(order))
        is_demo = np.isin(np.array(order), np.array(demos.hashes))
        return corpus.windows(chosen, cache=run.store.cache), {
            "demos": index[is_demo],
            "own": index[~is_demo & won],
            "rollouts": index[~is_demo],
            "all": index,
        }

    def gather_round(learning, memory):
        n = int(collect["episodes"])
        done, counts = _collect(cfg, run, env, actor(float(collect["explore"])), memory, backward.starts(n), origin)
        added = corpus.append(done, message=f"{run.name} round {memory['round']}", author=run.name)
        note = _remember(memory, done, {h for h, _ in added.refused}, counts, backward)
        run.log("round", **note)
        words = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in note.items() if v is not None)
        say("  " + ", ".join(words))
        return pools()

    scoring = _inputs.seeds("gate", cfg, _inputs.SCORING, int(cfg["score_episodes"]))
    backward = Backward(collect["back"], int(cfg["seed"]), demos, env, memory)
    tried = record.get("tried") or {}
    backward.decide(tried.get("success", 0), tried.get("n", 0))
    source = OffPolicy(
        *pools(), dict(algorithm["mixture"]),
        obs_steps=policy.obs_steps, action_steps=policy.action_steps, batch_size=int(cfg["batch_size"]),
        gamma=float(cfg["gamma"]), seed=int(cfg["seed"]), gather_round=gather_round, memory=memory,
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

    def each(round: int) -> bool:
        run.log("learned", round=round, **learning.metrics())
        if cfg["score_every"] and (round + 1) % int(cfg["score_every"]) == 0:
            scored = score(actor(0.0), env, scoring, what=f"after round {round}", stop_at_success=True)
            memory["history"][-1]["scored"] = stats.rate(scored["success"])
            run.log("scored", round=round, steps=memory["steps"], **memory["history"][-1]["scored"])
            say(f"  after {memory['steps']:,} steps: success {scored['success'].mean():.3f} from the task's own reset")
        return over()

    def over() -> bool:
        return run.out_of_time() or bool(cfg["max_steps"] and memory["steps"] >= int(cfg["max_steps"]))

    if not (at.round and at.phase == 0 and over()):  # else it was stopped right at its end
        with progress("retrain", total, done_before) as tick:
            fit(learning, source, cadence, at=at, pause=pause, each=each)
    env.close()

    actor(0.0)  # what is kept acts without exploring
    base.save(acting, run.out / "policy.safetensors")
    name = _inputs.name_of(cfg)
    parents = [run.inputs["checkpoint"]["ref"]]
    updates = int(record.get("updates") or 0) + memory["round"] * cadence.improve
    outputs = {"policy": run.publish("policy.safetensors", name, kind="retrained", parents=parents, updates=updates)}
    outputs["checkpoint"] = outputs["policy"]
    if best:
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


def _collect(cfg, run, env, policy, memory, starts, origin):
    """One round's episodes, and the guard's counts."""
    from flywheel.env import rollout

    n = int(cfg["collect"]["episodes"])
    seeds = _inputs.seeds("collect", cfg, memory["round"] * n, n)
    with progress(f"collect round {memory['round']}", n) as tick:
        done, counts = rollout(env, policy, seeds, origin=origin, starts=starts, progress=tick)
    return [e.replace(meta={**e.meta, "round": memory["round"], "run": run.name}) for e in done], counts


def _remember(memory, done, removed, counts, backward) -> dict[str, Any]:
    """Put a round's outcome into `memory`, less what someone has `removed` from the corpus; the line that is logged."""
    own = [e.success for e in done if "start_from" not in e.meta]
    started = [e.success for e in done if "start_from" in e.meta]
    memory["steps"] += sum(len(e) for e in done)
    known = {*memory["episodes"], *removed}
    memory["episodes"] += [e.hash for e in done if e.hash not in known]
    note = {
        "round": memory["round"],
        "episodes": len(done),
        "success": float(np.mean(own)) if own else None,
        "from_demos": float(np.mean(started)) if started else None,
        "window_low": memory["window"] if started else None,
        "steps": memory["steps"],
        "clipped": counts.get("clipped", 0),
        "held": counts.get("held", 0),
    }
    memory["round"] += 1
    if started:
        backward.move(note["from_demos"])
    else:
        backward.decide(sum(own), len(own))
    memory["history"].append(note)
    return note
