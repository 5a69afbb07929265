"""What stages read: the demonstrations of a task in a corpus version, checkpoints, and blocks of seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCKS = {"collect": 0, "gate": 100_000_000, "report": 200_000_000}
NIGHT = 10_000  # seeds a night in each block
CURVE = 5_000  # within the gate's: where the seeds that choose a checkpoint on its training curve begin
SCORING = 7_500  # and where those that only watch retraining begin


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


def title(cfg: dict[str, Any]) -> str:
    """The task's name as episodes carry it."""
    task = cfg["task"]
    return task["id"] if task["name"] == "gym" else task["name"]


def name_of(cfg: dict[str, Any]) -> str:
    """The name that checkpoints of this task get: `name=`, or policy/TASK."""
    return cfg.get("name") or f"policy/{title(cfg).replace(':', '-')}"


def demonstrations(cfg: dict[str, Any], store):
    """The episodes to imitate: of this task, at `corpus=`, by `demos.origin` (default: all that no policy made), with
    failed ones only if `demos.failures`; in an order that does not depend on when they came."""
    corpus = store.corpus()
    version = corpus.at(cfg.get("corpus") or "latest")
    demos = cfg.get("demos") or {}
    chosen = version.select(task=title(cfg))
    table = chosen.table
    if demos.get("origin"):
        chosen = chosen.select(origin=demos["origin"])
    else:
        chosen = chosen.select(~np.char.startswith(table["origin"].astype(str), "policy:"))
    if not demos.get("failures"):
        chosen = chosen.select(success=[True, None])
    if not len(chosen):
        here = ", ".join(f"{t} ({n})" for t, n in version.summary()["task"].items()) or "nothing"
        raise ValueError(
            f"corpus@{version.number} has no demonstrations of {title(cfg)} that pass {demos or 'origin: not a policy'}. "
            f"It holds: {here}. Add some with `flywheel ingest source=... format=... task=...`"
        )
    return chosen.canonical()


def pools(cfg: dict[str, Any], store):
    """What pretraining draws from: (episodes, {pool: positions among them}, {pool: share}).

    One pool of `demonstrations`, or with `data={VIEW: share, ...}` one of each view's episodes of this task, as they are;
    an episode in two views is in both pools. ValueError for a share or a view that gives nothing to a batch.
    """
    if not cfg.get("data"):
        demos = demonstrations(cfg, store)
        return demos, {"demos": np.arange(len(demos))}, {"demos": 1.0}
    if not isinstance(cfg["data"], dict):
        raise ValueError(
            f"data={cfg['data']!r}; expected views and shares, such as data={{door_human: 0.6, rollouts: 0.4}}"
        )
    corpus, shares = store.corpus(), {str(name): float(share) for name, share in cfg["data"].items()}
    parts = {name: corpus.at(name).select(task=title(cfg)) for name in shares}
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"data: {name} has no episode of {title(cfg)}; leave it out or name another view")
        drawn = int(cfg["batch_size"]) * shares[name] / (sum(shares.values()) or 1)
        if drawn < len(shares):  # what is rounded off goes to the last
            raise ValueError(
                f"data: the share of {name} in {shares} is {drawn:.3g} of a batch of {cfg['batch_size']}; expected at least "
                f"{len(shares)}: give it a larger share, or a larger batch_size"
            )
    number = max(part.number for part in parts.values())
    rows = np.unique(np.concatenate([part.rows for part in parts.values()]))
    whole = type(part)(
        corpus, number, rows, " + ".join(f"{share:g} {name}" for name, share in shares.items())
    ).canonical()
    return whole, {name: np.flatnonzero(np.isin(whole.rows, part.rows)) for name, part in parts.items()}, shares


def describe(version) -> dict[str, Any]:
    """How inputs.json names a selection of episodes: by content, with a word on where it came from."""
    table = version.table
    origins = {str(o): int((table["origin"] == o).sum()) for o in np.unique(table["origin"])}
    files = sorted({str(m["file"]) for m in table["meta"] if "file" in m})
    return {
        "id": version.id, "version": version.ref, "ref": version.ref,
        "episodes": len(version), "origins": origins, "files": files,
    }  # fmt: skip


def checkpoint(ref: str, store) -> dict[str, Any]:
    """How inputs.json names a checkpoint: by the sha256 of its weights."""
    record = store.checkpoint(ref)
    return {"id": record["sha256"], "ref": f"{record['name']}@{record['id']}", "run": record["run"]}


def device(cfg: dict[str, Any]) -> str:
    """`device=auto` is a GPU where there is one."""
    wanted = cfg.get("device") or "auto"
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def windows(corpus, version, cfg: dict[str, Any], store):
    """The rows of a version that this task is learnt from: with its success, or (task.reward=env) with the environment's reward."""
    from flywheel.rl.source import FIELDS

    return corpus.windows(version, FIELDS[cfg["task"].get("reward") or "success"], cache=store.cache)


def drawn(cfg: dict[str, Any], policy) -> dict[str, Any]:
    """What every source asks for: horizons, batch size, gamma, seed, which reward."""
    return {
        "obs_steps": policy.obs_steps, "action_steps": policy.action_steps, "batch_size": int(cfg["batch_size"]),
        "gamma": float(cfg["gamma"]), "seed": int(cfg["seed"]), "reward": cfg["task"].get("reward") or "success",
    }  # fmt: skip


def shape(env) -> dict[str, Any]:
    """What a task gives to the spec of a policy."""
    bounds = {"action_low": env.action_low.tolist(), "action_high": env.action_high.tolist()}
    return {"obs_dim": env.obs_dim, "action_dim": env.action_dim, **bounds}


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

    return env.make(cfg["task"], num_envs or int(cfg.get("num_envs") or 32), int(cfg.get("threads") or 2))
