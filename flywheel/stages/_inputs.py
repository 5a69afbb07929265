"""What stages read: the demonstrations of a task in a corpus version, checkpoints, and blocks of seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel import gym_names, names
from flywheel.log import progress

BLOCKS = {"collect": 0, "gate": 100_000_000, "report": 200_000_000, "question": 300_000_000}
MASKS = ("obs.state.mask", "action.mask")
NIGHT = 10_000  # seeds a night in each block
CURVE = 5_000  # within the gate's: where the seeds that choose a checkpoint on its training curve begin
SCORING = 7_500  # where those begin that watch retraining, and choose among the points of an online run
FINAL = 8_750  # and those on which what was chosen so is scored once
LEARNS = {
    "pretrain": "learns offline",
    "distil": "learns offline",
    "retrain": "collects with the best of N and keeps what it saw",
    "online": "collects by the policy itself",
}


def belongs(stage: str, algorithm: dict[str, Any]) -> None:
    """ValueError, with what would do, where an algorithm's data is not what `stage` learns from, or nothing is there to improve."""
    source, act = algorithm["source"], algorithm.get("act")
    if algorithm["cadence"]["improve"] and not algorithm.get("improve"):
        raise ValueError(
            f"algorithm.cadence.improve={algorithm['cadence']['improve']}: the table of algorithm {algorithm.get('name')} improves "
            "nothing, for its policy is the argmax of its critic; take 0"
        )
    home = "pretrain" if source == "offline" else "retrain" if act else "online"
    if LEARNS[stage] != LEARNS[home]:
        raise ValueError(
            f"{stage} {LEARNS[stage]}; algorithm {algorithm.get('name')} asks for source {source}"
            f"{' and the best of N' if act else ''}: that is `flywheel {home}`"
        )


def seeds(block: str, cfg: dict[str, Any], first: int, count: int) -> list[int]:
    """`count` environment seeds of a block, from its `first` on, for this night and this training seed.

    Blocks never meet: collection from 0, gate from 100,000,000, report from 200,000,000; each night moves on by 10,000,
    each training seed (mod 10) by 10,000,000. ValueError beyond 1,000 nights or 10,000 seeds a night.
    """
    night = int(cfg.get("night") or 0)
    if not 0 <= night < 1000 or first + count > NIGHT:
        raise ValueError(
            f"seeds: night {night}, seeds {first} to {first + count}; there are 1,000 nights of {NIGHT} each"
        )
    begin = BLOCKS[block] + (int(cfg.get("seed") or 0) % 10 * 1000 + night) * NIGHT + first
    return list(range(begin, begin + count))


def questioned(cfg: dict[str, Any], first: int, count: int) -> list[int]:
    """The environment seeds of a question to the gate: `count` from `first` on, which the ledger gave to this question alone.

    ValueError once a store has asked its ten million.
    """
    most = 1000 * NIGHT
    if first + count > most:
        raise ValueError(
            f"seeds: this store has asked the gate for {first:,} episodes; there are {most:,}. Begin a new store"
        )
    begin = BLOCKS["question"] + int(cfg.get("seed") or 0) % 10 * most + first
    return list(range(begin, begin + count))


def title(cfg: dict[str, Any]) -> str:
    """The task's name as episodes carry it: another one for other options of its environment."""
    task = cfg["task"]
    return (
        task["name"] if task["name"] != "gym" else gym_names.title(task["id"], task.get("kwargs"), task.get("obs_keys"))
    )


def name_of(cfg: dict[str, Any]) -> str:
    """The name that checkpoints of this task get: `name=`, or policy/TASK, without the module and the namespace of an id."""
    return names.checked(cfg["name"]) if cfg.get("name") else f"policy/{gym_names.short(title(cfg))}"


def kept_name(cfg: dict[str, Any], store) -> str | None:
    """The name that a store of an older flywheel (policy/MODULE-ID) knows this task by, where it has none by today's: it is gone on with."""
    task = cfg.get("task") or {}
    if cfg.get("name") or task.get("name") != "gym" or title(cfg) != task["id"]:
        return None
    known, old = store.names.names(), f"policy/{task['id'].replace(':', '-')}"
    return old if old in known and name_of(cfg) not in known else None


def demonstrations(cfg: dict[str, Any], store):
    """The episodes to imitate: of this task, at `corpus=`, by `demos.origin` (default: all that no policy made), with
    failed ones only if `demos.failures`; in an order that does not depend on when they came. ValueError that says which of these
    filters left nothing."""
    corpus = store.corpus()
    version = corpus.at(cfg.get("corpus") or "latest")
    demos = cfg.get("demos") or {}
    left = [f"{len(version)} episodes"]

    def keep(chosen, what: str):
        left.append(f"{len(chosen)} {what}")
        return chosen

    chosen = keep(sound(version.select(task=title(cfg))), f"of {title(cfg)}")
    if demos.get("origin"):
        chosen = keep(chosen.select(origin=demos["origin"]), f"of origin {demos['origin']}")
    else:
        made = np.char.startswith(chosen.table["origin"].astype(str), "policy:")
        chosen = keep(chosen.select(~made), "that no policy made")
    if not demos.get("failures"):
        chosen = keep(
            chosen.select(success=[True, None]),
            "that are not known to have failed (demos.failures=true takes those too)",
        )
    if not len(chosen):
        here = ", ".join(f"{t} ({n})" for t, n in version.summary()["task"].items()) or "nothing"
        raise ValueError(
            f"no demonstrations to learn from: corpus@{version.number} has {', of these '.join(left)}. By task it holds: {here}. Add "
            "some with `flywheel ingest source=... format=... task=...`"
        )
    return chosen.canonical()


def pools(cfg: dict[str, Any], store):
    """What is imitated: (episodes, {pool: positions among them}, {pool: share}).

    One pool "demos" of `demonstrations`, or with `data={VIEW: share, ...}` one of each view's episodes as they are: of this task
    or, with `align`, of all tasks and robots. An episode in two views is in both pools. ValueError for a view without any.
    """
    if not cfg.get("data"):
        if cfg.get("align"):
            raise ValueError("align= joins the robots of several views; name them: data={so100: 0.5, panda: 0.5}")
        demos = demonstrations(cfg, store)
        return demos, {"demos": np.arange(len(demos))}, {"demos": 1.0}
    if not isinstance(cfg["data"], dict):
        raise ValueError(
            f"data={cfg['data']!r}; expected views and shares, such as data={{door_human: 0.6, rollouts: 0.4}}"
        )
    corpus, shares = store.corpus(), {f"view {name}": float(share) for name, share in cfg["data"].items()}
    parts = {pool: _view(cfg, corpus, str(name)) for pool, name in zip(shares, cfg["data"], strict=True)}
    rows = np.unique(np.concatenate([part.rows for part in parts.values()]))
    ref = " + ".join(f"{share:g} {name}" for name, share in cfg["data"].items())
    whole = corpus.at(max(part.number for part in parts.values()))
    whole = type(whole)(corpus, whole.number, rows, ref).canonical()
    return whole, {name: np.flatnonzero(np.isin(whole.rows, part.rows)) for name, part in parts.items()}, shares


def _view(cfg: dict[str, Any], corpus, name: str):
    """The episodes of a view that this stage may learn from."""
    part = whole = sound(corpus.at(name))
    if not cfg.get("align"):
        part = whole.select(task=title(cfg))
    if not len(part):
        here = ", ".join(f"{task} ({n})" for task, n in whole.summary()["task"].items()) or "nothing"
        raise ValueError(
            f"data: {name} has no episode of {title(cfg)}, it holds {here}; leave it out or name another view. (`flywheel "
            "pretrain` learns from several tasks and robots with align=pad)"
        )
    return part


def mixed(table: dict[str, dict[str, float]], shares: dict[str, float], batch_size: int) -> dict[str, dict[str, float]]:
    """A mixture {act: {pool: share}} with the pools of `shares` in the place of "demos".

    ValueError where a pool would give nothing to a batch.
    """
    total = sum(shares.values()) or 1
    parts = {pool: share / total for pool, share in shares.items()}
    out: dict[str, dict[str, float]] = {act: {} for act in table}
    for act, row in table.items():
        for pool, share in row.items():
            out[act] |= {one: share * part for one, part in parts.items()} if pool == "demos" else {pool: share}
        drawn = {one: out[act][one] * batch_size / (sum(row.values()) or 1) for one in parts if one in out[act]}
        for one, rows in drawn.items() if len(parts) > 1 else ():
            if rows < len(parts):  # what is rounded off goes to the last
                raise ValueError(
                    f"data: the share of {one} in {shares} is {rows:.3g} of a batch of {batch_size}; expected at least "
                    f"{len(parts)}: give it a larger share, or a larger batch_size"
                )
    return out


def describe(version) -> dict[str, Any]:
    """How inputs.json names a selection of episodes: by content, with a word on where it came from."""
    table = version.table
    origins = {str(o): int((table["origin"] == o).sum()) for o in np.unique(table["origin"])}
    files = sorted({str(m["file"]) for m in table["meta"] if "file" in m})
    entry = version.corpus.history.entry
    by = sorted({entry(int(added))["author"] for added in np.unique(table["added"])})  # the runs that added them
    return {
        "id": version.id, "version": version.ref, "ref": version.ref,
        "episodes": len(version), "origins": origins, "files": files, "by": by,
    }  # fmt: skip


def checkpoint(ref: str, store) -> dict[str, Any]:
    """How inputs.json names a checkpoint: by the sha256 of its weights."""
    record = store.checkpoint(ref)
    return {"id": record["sha256"], "ref": f"{record['name']}@{record['id']}", "run": record["run"]}


def device(cfg: dict[str, Any]) -> str:
    """`device=auto` is a GPU where there is one. ValueError for a device that PyTorch cannot use here."""
    import torch

    wanted = cfg.get("device") or "auto"
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ValueError(
            f"device={wanted}: PyTorch says: {told}. Take device=cpu, or auto: a GPU where there is one"
        ) from error
    return wanted


def windows(corpus, version, cfg: dict[str, Any], store):
    """The rows of a version that this task is learnt from: with its success, or (task.reward=env) with the environment's reward."""
    from flywheel.rl.source import FIELDS

    fields, align = FIELDS[cfg["task"].get("reward") or "success"], cfg.get("align")
    return corpus.windows(
        version, (*fields, *(MASKS if align else ())), cache=store.cache, align=align, progress=progress
    )


def robot(cfg: dict[str, Any], windows, env) -> dict[str, list[int]] | None:
    """Which columns of aligned rows are those of the task's own robot, for a policy; None where all are.

    ValueError where no episode is of the task, or it has other numbers than the task.
    """
    if not windows.layout:
        return None
    version = windows.version
    own = version.select(task=title(cfg))
    if not len(own):
        here = ", ".join(version.summary()["task"])
        raise ValueError(
            f"align: no episode is of {title(cfg)}, on which the policy is scored; there are {here}. Add a view of it"
        )
    corpus = version.corpus
    segment = corpus.reader.segment(int(corpus.history.state.parts(own.rows[:1])[0]))
    places = windows.layout.places[segment.robot]
    found = {"obs": places["obs.state"].tolist(), "action": places["action"].tolist()}
    if (len(found["obs"]), len(found["action"])) != (env.obs_dim, env.action_dim):
        raise ValueError(
            f"align: episodes of {title(cfg)} have {len(found['obs'])} observed numbers and {len(found['action'])} of action; the "
            f"task has {env.obs_dim} and {env.action_dim}"
        )
    return found


def one_robot(cfg: dict[str, Any], policy) -> None:
    """ValueError for a policy that learnt from several robots where rows are those of one."""
    if policy.robot and not cfg.get("align"):
        raise ValueError(
            "this policy learnt from several robots, in rows of their own (align=); it can be evaluated and promoted, and trained "
            "on with `flywheel pretrain checkpoint=... data={...} align=...`, not by other stages"
        )


def drawn(cfg: dict[str, Any], policy) -> dict[str, Any]:
    """What every source asks for: horizons, batch size, gamma, seed, which reward, where to."""
    one_robot(cfg, policy)
    return {
        "obs_steps": policy.obs_steps, "action_steps": policy.action_steps, "batch_size": int(cfg["batch_size"]),
        "gamma": float(cfg["gamma"]), "seed": int(cfg["seed"]), "reward": cfg["task"].get("reward") or "success",
        "device": device(cfg),
    }  # fmt: skip


def shape(env) -> dict[str, Any]:
    """What a task gives to the spec of a policy."""
    bounds = {"action_low": env.action_low.tolist(), "action_high": env.action_high.tolist()}
    keys = {"obs_keys": env.obs_sizes} if getattr(env, "obs_sizes", None) else {}
    return {"obs_dim": env.obs_dim, "action_dim": env.action_dim, **bounds, **keys}


def suits(policy, env) -> None:
    """ValueError unless the policy makes the kind of actions that the task takes."""
    there = bool(getattr(env, "discrete", None))
    if policy.discrete != there:
        kind, takes = policy.spec["kind"], f"one of {env.action_dim}" if there else f"{env.action_dim} numbers"
        fit = "categorical (bc, iql, ppo) or greedy_q (dqn, double_dqn, q_learning)"
        raise ValueError(
            f"task {env.task} takes {takes} as an action, and a {kind} policy makes {'one-hot' if policy.discrete else 'continuous'} "
            f"actions; use policy={fit if there else 'flow, diffusion, gaussian, tanh_gaussian or deterministic'}"
        )


def open_env(cfg: dict[str, Any], num_envs: int | None = None):
    """The task's environments, as many as the config says, stepped by `threads` threads."""
    from flywheel import env

    made = env.make(cfg["task"], num_envs or int(cfg.get("num_envs") or 32), int(cfg.get("threads") or 2))
    if cfg["task"]["name"] == "gym":
        env.honours_seeds(made)  # says it where they do not
    return made


def sound(version):
    """The episodes of a version that no environment spoilt (flywheel.faults): the only ones to learn from."""
    return version.select(np.array(["cause" not in meta for meta in version.table["meta"]], bool))
