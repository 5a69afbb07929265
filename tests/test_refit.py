"""refit: only the normaliser moves, to the statistics of the named version; what moved is told, and the run is one
like others."""

import numpy as np
import torch
from small import call

import flywheel
from flywheel.stages import refit


def test_only_the_normaliser_moves_and_it_is_told(copied, capsys):
    copy, at = copied
    held = copy.corpus()
    demos = held.at(1).select(success=[True, None])
    away = [one.replace(obs={"state": one.obs["state"] + np.float32([2, 0, 0, 0])}, task=one.task) for one in demos]
    held.append(away)
    name = "policy/Reach-v0"
    ref = call("lineage", name, at[3], capsys=capsys)[1]["lineage"][0]["what"]
    code, out = call("refit", f"checkpoint={ref}", "corpus=1", *at, capsys=capsys)
    assert code == 0 and out["metrics"]["moved"] == 0 and out["metrics"]["action_change"] == 0.0

    code, out = call("refit", f"checkpoint={ref}", "corpus=latest", *at, capsys=capsys)
    assert code == 0 and out["metrics"]["moved"] == 1 and out["metrics"]["action_change"] > 0.01
    (column,) = copy.find(out["run"])["content"]["columns"]
    assert (column["field"], column["column"]) == ("obs.state", 0)
    old, new = (flywheel.load(one, store=str(copy.root)) for one in (ref, out["outputs"]["checkpoint"]))
    seen = [one for one in held.at("latest") if not one.origin.startswith("policy:") and one.success is not False]
    assert len(seen) == 2 * len(demos)
    rows = np.concatenate([one.obs["state"][:-1] for one in seen])
    np.testing.assert_allclose(new.encoder.norm.mean, rows.mean(0), rtol=1e-4, atol=1e-6)
    changed = {key for key, value in new.state_dict().items() if not torch.equal(value, old.state_dict()[key])}
    assert changed and all(".encoder.norm." in f".{key}" for key in changed)

    assert call("refit", f"checkpoint={ref}", "corpus=latest", *at, capsys=capsys)[1]["status"] == "noop"
    assert call("replay", out["run"], at[3], capsys=capsys)[1]["metrics"]["different"] == 0
    lines = [line["what"] for line in call("lineage", out["outputs"]["checkpoint"], at[3], capsys=capsys)[1]["lineage"]]
    assert lines[0] == out["outputs"]["checkpoint"] and ref in lines
    assert call("report", at[3], capsys=capsys)[0] == 0
    code, out = call("pretrain", f"checkpoint={out['outputs']['checkpoint']}", "score_episodes=0", "algorithm.cadence.improve=4",
                     "score_every=4", *at, capsys=capsys)  # fmt: skip
    assert code == 0
    assert torch.equal(
        flywheel.load(out["outputs"]["checkpoint"], store=str(copy.root)).encoder.norm.mean, new.encoder.norm.mean
    )


def test_all_parts_of_a_best_of_n_move_together(copied, capsys):
    copy, at = copied
    held = copy.corpus()
    held.append(
        [one.replace(obs={"state": one.obs["state"] + np.float32(2)}) for one in held.at(1).select(success=True)]
    )
    (ref,) = {r["result"]["outputs"]["checkpoint"] for r in copy.runs("retrain")}
    out = call("refit", f"checkpoint={ref}", *at, capsys=capsys)[1]
    policy = flywheel.load(out["outputs"]["checkpoint"], store=str(copy.root))
    for part in (policy.base, policy.anchor, policy.critic):
        assert torch.equal(part.encoder.norm.mean, policy.encoder.norm.mean)
    assert out["metrics"]["moved"] >= 4


def test_what_moved_by_hand():
    a, b = (flywheel.policy.base.build({"kind": "flow", "obs_dim": 2, "action_dim": 1}) for _ in range(2))
    b.encoder.norm.mean[1], b.action_norm.std[0] = 0.02, 0.995
    assert [(row["field"], row["column"]) for row in refit.moved(a, b)] == [("obs.state", 1)]
