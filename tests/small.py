"""A small nightly on the toy task, how tests call the command line, and a small learner of any table."""

import json
import re

import pytest
import toy

from flywheel.cli import algorithms, app, config

SMALL = [
    "debug=tiny", "policy=flow", "policy.width=32", "policy.depth=1", "policy.steps=4", "num_envs=8", "threads=1",
    "retrain.batch_size=32", "pretrain.batch_size=32", "ingest.obs_keys=[position,goal]",
    "retrain.algorithm.critic.width=16", "retrain.algorithm.critic.members=2", "online.batch_size=32",
]  # fmt: skip


def rarely(*told):
    """A parameter that runs in `make soak` and in CI's weekly form only."""
    return pytest.param(*told, marks=pytest.mark.slow)


def often(all_of_them, *chosen):
    """Parameters, one each, or a tuple each of which the first is a text; those that are not `chosen` run rarely."""
    assert set(chosen) <= set(all_of_them), chosen
    return [one if one in chosen else rarely(*one) if isinstance(one, tuple) else rarely(one) for one in all_of_them]


def words(folder, *more):
    source = f"source={folder / 'demos.hdf5'}"
    return ["nightly", f"store={folder / 'store'}", source, *toy.TASK, *SMALL, *more]


def call(*words, capsys=None):
    code = app.main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def hashes(place):
    """All that a nightly made, by content: of each run its outputs and files, and where the names point."""
    made = {}
    for done in place.runs():
        outputs = {k: v for k, v in done["result"]["outputs"].items() if k != "corpus"}
        made[f"{done['stage']}/{done['key']}"] = (outputs, done["content"], done["files"])
    names = {name: [(e["op"], e["id"]) for e in place.names.log(name)] for name in place.names.names()}
    return json.loads(json.dumps([made, names, place.corpus().at("latest").id], default=str))


LITTLE = [
    "score_every=10",
    "score_episodes=4",
    "batch_size=16",
    "policy.width=16",
    "policy.depth=1",
]  # for stages that are only to run


def suited(name: str) -> dict:
    """The policy that the first line of an algorithm's table names, small."""
    comment = config.options("algorithm")[name].read_text().splitlines()[0]
    (kind,) = re.findall(r"policy=(\w+)", comment) or ["flow"]
    more = {"condition": True} if "condition=true" in comment else {}
    return {"kind": kind, "obs_steps": 1, "action_steps": 1, "width": 16, "depth": 2, **more}


def learner(name: str, shape: dict, device: str = "cpu", **more):
    """The learner of an algorithm's table, with `more` in the table, as a stage makes it; `shape` is what a task
    gives a policy."""
    from flywheel.args import build as built
    from flywheel.policy import base
    from flywheel.rl import build
    from flywheel.rl.table import Algorithm

    table, spec = algorithms.tables()[name] | more, suited(name) | shape
    policy, acting = base.build(spec), table.get("collect") or table
    policy.explores(float(acting.get("explore", 0.0)))
    if acting.get("learn_noise"):
        policy.learn_noise()
    teacher = {"teacher": base.build({**spec, "kind": "flow"})} if name == "consistency" else {}
    table["critic"] = {**(table.get("critic") or {}), "width": 16}
    return build.learner(built(Algorithm, table), policy, seed=1, device=device, reward="env", nets=teacher)


def outcome(stage: str, cfg, place) -> dict:
    """What a stage answers, also where it says that it failed."""
    from flywheel.ending import Failed
    from flywheel.runs import run

    try:
        return run.execute(stage, cfg, place)
    except Failed as failed:
        return {**failed.result, "status": "failed", "error": str(failed)}
