"""online: reinforcement learning in the simulator, from a checkpoint or from scratch; how is the algorithm's table.

    off_policy    each round makes `algorithm.collect.steps` steps in whole episodes, then learns from all that there is
    on_policy     then learns from this round's episodes only

Every episode goes into the corpus. What is handed over is the best of the score curve on gate seeds, the checkpoint that it began
from included (score_every=0: of the first and the last point), and is then scored once on other seeds: that is the success told. A
run that nothing came of is refused, and its start handed over. From scratch, a warm-up of random actions comes first; it sets the normaliser, for good.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from flywheel.ending import OutOfTime
from flywheel.log import progress, say
from flywheel.stages import _inputs, _rounds
from flywheel.stages.evaluate import rate, score
from flywheel.stages.pretrain import fit_normaliser, learner

SCRATCH = "none"
ENOUGH = 50  # episodes without a success: then the reward will not be found by chance


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    _inputs.name_of(cfg)  # refused before anything begins
    _inputs.belongs("online", cfg["algorithm"])
    found = {}
    if _with_demos(cfg["algorithm"]):
        found["corpus"] = _inputs.describe(_inputs.pools(cfg, store)[0])
    if cfg["checkpoint"] != SCRATCH:
        found["checkpoint"] = _inputs.checkpoint(cfg["checkpoint"] or _inputs.name_of(cfg), store)
    return found


def _with_demos(algorithm: dict[str, Any]) -> bool:
    return any("demos" in shares for shares in (algorithm.get("mixture") or {}).values())


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    import torch

    from flywheel.env import rollout
    from flywheel.policy import base
    from flywheel.rl.fit import At, Cadence, fit
    from flywheel.rl.source import OffPolicy, OnPolicy

    algorithm = cfg["algorithm"]
    name, source_kind, acting = algorithm.get("name"), algorithm["source"], algorithm.get("collect")
    cadence = Cadence(**{**algorithm["cadence"], **({"rounds": int(cfg["rounds"])} if cfg.get("rounds") else {})})
    cfg = {**cfg, "device": _inputs.device(cfg)}  # refused here if it is not there
    torch.manual_seed(int(cfg["seed"]))
    corpus, env = run.store.corpus(create=True), _inputs.open_env(cfg)
    demos, parts, shares = None, {"demos": []}, {"demos": 1.0}
    if _with_demos(algorithm):
        demos, parts, shares = _inputs.pools(cfg, run.store)
        parts = _rounds.named(demos, parts)
    elif cfg.get("data"):
        raise ValueError(
            f"data={cfg['data']}: algorithm {name} draws from no demonstrations; take algorithm=rlpd, or leave data out"
        )
    record = run.store.checkpoint(run.inputs["checkpoint"]["ref"]) if "checkpoint" in run.inputs else {}
    _refuse_hopeless(cfg, record, demos)
    memory = {**_rounds.memory(), "best": None}
    first, hashes = [], demos.hashes if demos is not None else []
    saved = run.load()
    if record:
        policy = run.store.load(run.inputs["checkpoint"]["ref"]).requires_grad_(True)
        _inputs.suits(policy, env)
    else:
        policy = base.build({**cfg["policy"], **_inputs.shape(env)})
        _inputs.suits(policy, env)
        first = _warm_up(cfg, env, policy)
        seen = [*(e for e in first if "cause" not in e.meta), *(demos or [])]
        obs, action = ([e.obs["state"] for e in seen], [e.action for e in seen])
        fit_normaliser(policy, env, np.concatenate(obs), np.concatenate(action))
    if acting.get("learn_noise"):
        policy.learn_noise()
    learning = learner(algorithm, policy.train(), cfg)
    policy = learning.nets["policy"]
    origin = f"policy:{record.get('id') or run.name}"

    def explore() -> float:
        """From `explore_from` to `explore`, in a line that ends at `explore_until` of all rounds."""
        last, begin = float(acting["explore"]), acting.get("explore_from")
        if begin is None:
            return last
        return last + (float(begin) - last) * max(0.0, 1 - memory["round"] / (cadence.rounds * acting["explore_until"]))

    def gather_round(learning, memory):
        done, counts = first if memory["round"] == 0 else [], {}
        if not done or source_kind == "on_policy":
            begin = memory["begun"]
            seeds = _inputs.seeds("collect", cfg, begin, min(int(acting["steps"]), _inputs.NIGHT - begin))
            policy.explores(explore())
            done, counts = rollout(env, policy, seeds, origin=origin, steps=int(acting["steps"]))
        more = {"success": float(np.mean([e.success for e in done]))}
        if env.reward == "env":
            more["return"] = float(np.mean([e.extras["env_reward"].sum() for e in done]))
        _rounds.keep(run, corpus, memory, done, counts, **more)
        return done if source_kind == "on_policy" else pools()

    def pools():
        return _rounds.pools(cfg, run, corpus, memory, list(hashes), parts)

    drawn = {**_inputs.drawn(cfg, policy), "gather_round": gather_round, "memory": memory}
    if source_kind == "on_policy":
        source = OnPolicy(**drawn)
    else:
        source = OffPolicy(None, {}, _inputs.mixed(algorithm["mixture"], shares, int(cfg["batch_size"])), **drawn)
    policy.explores(explore())
    learning.try_all({act: _example(policy, source_kind) for act in ("evaluate", "improve")})

    at = At()
    if saved:
        learning.load_state({k: v for k, v in saved[0].items() if not k.startswith("data/")})
        data = {k.removeprefix("data/"): v for k, v in saved[0].items() if k.startswith("data/")}
        source.load_state(saved[1]["source"], *([data] if source_kind == "on_policy" else []))
        if source_kind == "off_policy" and memory["episodes"]:
            source.use(*pools())
        at = At(**saved[1]["at"])
        say(f"  going on in round {at.round}, at {memory['steps']:,} steps")
    scoring = _inputs.seeds("gate", cfg, _inputs.SCORING, int(cfg["score_episodes"]))

    def pause(at: At) -> None:
        if run.due():
            data = {f"data/{k}": v for k, v in source.data.items()} if source_kind == "on_policy" else {}
            run.save(learning.state() | data, {"source": source.state(), "at": vars(at)})
            run.stop_if_asked()
        if at.round and run.out_of_time([at.round, at.phase, at.step]):
            raise OutOfTime

    def each(round: int) -> bool:
        note = memory["history"][-1]
        run.log("learned", round=round, **learning.metrics())
        tick(
            note=f"{memory['steps']:,} steps, "
            + ", ".join(f"{k} {note[k]:.3g}" for k in ("return", "success") if k in note)
        )
        if cfg["score_every"] and (round + 1) % int(cfg["score_every"]) == 0:
            note["scored"] = scored = scored_now(f"after round {round}")
            say(
                f"  after {memory['steps']:,} steps: "
                + ", ".join(f"{k} {scored[k]:.3f}" for k in ("return", "success") if k in scored)
            )
        return over()

    def scored_now(what: str) -> dict[str, Any]:
        """How the policy does on the gate seeds; the best so far is kept, of equal ones the last."""
        scored = rate(score(policy.explores(0.0), env, scoring, what=what, stop_at_success=True)) if scoring else {}
        run.log("scored", round=memory["round"] - 1, steps=memory["steps"], **scored)
        if not memory["best"] or _worth(scored) >= _worth(memory["best"]):
            memory["best"] = {**scored, "steps": memory["steps"]}
            kept = copy.deepcopy(policy)
            if acting.get("learn_noise"):
                kept.noise_net = None  # noise is for exploring
            base.save(kept, run.out / "policy.safetensors")
        return scored

    def over() -> bool:
        full = memory["begun"] >= _inputs.NIGHT
        if full:
            say(f"  this night's {_inputs.NIGHT:,} collect seeds are used up; go on with night={int(cfg['night']) + 1}")
        return full or bool(cfg["max_steps"] and memory["steps"] >= int(cfg["max_steps"]))

    if record and scoring and not saved:
        scored_now("as it begins")
    if not (at.round and at.phase == 0 and over()):  # else it was stopped right at its end
        with (
            progress("online", cadence.rounds, at.round) as tick,
            run.ended_early(lambda: [at.round, at.phase, at.step]),
        ):
            fit(learning, source, cadence, at=at, pause=pause, each=each)
    last = scored_now("at the end")
    kept = memory["best"]
    told = {
        "kept_at": kept["steps"],
        "rounds": memory["round"],
        "steps": memory["steps"],
        "episodes": len(memory["episodes"]),
    }
    told |= {f"{k}_at_the_end": last[k] for k in ("success", "return") if k in last}
    content = {"episodes": memory["episodes"], "history": memory["history"]}
    if record and scoring and kept["steps"] == 0 and memory["steps"]:
        env.close()
        why = (
            f"no point of the curve was as good as the start: {_words(kept)} before, {_words(last)} after {memory['steps']:,} steps; "
            "the start is handed over. A smaller algorithm.lr, or another algorithm, may keep what it has"
        )
        say(f"  refused: {why}")
        return {
            "status": "refused",
            "outputs": {"checkpoint": run.inputs["checkpoint"]["ref"], "corpus": corpus.head},
            "metrics": told,
            "content": {**content, "reason": why},
        }
    best = base.load(run.out / "policy.safetensors", cfg["device"])
    final = _inputs.seeds("gate", cfg, _inputs.FINAL, int(cfg["score_episodes"]))
    result = rate(score(best, env, final, what="what is handed over", stop_at_success=True)) if final else {}
    env.close()
    parents = [run.inputs["checkpoint"]["ref"]] if record else []
    updates = int(record.get("updates") or 0) + memory["round"] * cadence.improve
    tried = {k: result[k] for k in ("success", "n") if k in result}
    published = run.publish(
        "policy.safetensors", _inputs.name_of(cfg), kind="online", parents=parents, updates=updates, tried=tried
    )
    return {
        "outputs": {"checkpoint": published, "corpus": corpus.head},
        "metrics": {**result, **told},
        "content": content,
    }


def _words(scored: dict[str, Any]) -> str:
    return ", ".join(f"{k} {scored[k]:.3g}" for k in ("success", "return") if k in scored)


def _worth(scored: dict[str, Any]) -> tuple[float, float]:
    """By what a policy is kept: success, then return."""
    return scored.get("success", 0.0), scored.get("return", 0.0)


def _refuse_hopeless(cfg: dict[str, Any], record: dict[str, Any], demos) -> None:
    """ValueError where the reward is success and nobody has ever had one: no method finds it by chance."""
    tried = record.get("tried") or {}
    never = not record or (tried.get("n", 0) >= ENOUGH and tried.get("success") == 0)
    if never and demos is None and (cfg["task"].get("reward") or "success") == "success":
        found = f"{tried['n']} episodes without a success" if tried else "no checkpoint to begin from"
        raise ValueError(
            f"online: {found}, so success, the only reward, would never be seen. Begin from a policy that sometimes succeeds "
            "(flywheel pretrain; flywheel retrain starts along demonstrations), learn from demonstrations as well "
            "(algorithm=rlpd), or from the environment's own reward (task.reward=env)"
        )


def _warm_up(cfg: dict[str, Any], env, policy):
    """Episodes of random actions that make `warmup` steps; what they were is the same in every resumed run."""
    from flywheel.env import rollout
    from flywheel.policy._uniform import Uniform

    steps = int(cfg["warmup"])
    random = Uniform(
        **_inputs.shape(env), obs_steps=policy.obs_steps, action_steps=policy.action_steps, discrete=policy.discrete
    )
    return rollout(
        env, random, _inputs.seeds("collect", cfg, 0, min(steps, _inputs.NIGHT)), origin="random", steps=steps
    )[0]


def _example(policy, source: str):
    """A batch of two rows of zeros, to try every loss on."""
    import torch

    obs = torch.zeros(2, policy.obs_steps, policy.obs_dim, device=policy.device)
    action, number = obs.new_zeros(2, policy.action_steps, policy.action_dim), obs.new_zeros(2)
    batch = {"obs": obs, "next_obs": obs, "action": action, "next_action": action}
    batch |= {"reward": number, "discount": number, "return": number}
    if source == "on_policy":
        with torch.no_grad():
            chain = policy.chain(obs, obs.new_zeros(2, *policy.noise_shape))
            batch |= {"chain": chain, "log_prob": policy.chain_log_prob(obs, chain)[0], "advantage": number}
    return batch
