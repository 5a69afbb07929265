"""A small nightly on the toy task, and how tests call the command line."""

import json

import toy

from flywheel import app

SMALL = [
    "debug=tiny", "policy.width=32", "policy.depth=1", "policy.steps=4", "num_envs=8", "threads=1",
    "retrain.batch_size=32", "pretrain.batch_size=32", "ingest.obs_keys=[position,goal]",
    "retrain.algorithm.critic.width=16", "retrain.algorithm.critic.members=2",
]  # fmt: skip


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
