"""Every policy with every algorithm that suits it, once, in small; what does not suit is refused."""

import numpy as np
import pytest
from small import LITTLE, call

from flywheel import app

CELLS = [(p, a) for p in ("gaussian", "diffusion", "flow") for a in ("bc", "iql")] + [
    ("tanh_gaussian", "cql"), ("tanh_gaussian", "cal_ql"), ("tanh_gaussian", "awac"), ("tanh_gaussian", "bc"), ("deterministic", "td3_bc"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "algorithm"), CELLS)
def test_every_policy_pretrains_with_the_offline_algorithms_that_suit_it(copied, capsys, policy, algorithm):
    _, at = copied
    cadence = "algorithm.cadence={rounds: 10, evaluate: 1, improve: 2}"
    code, out = call("pretrain", f"policy={policy}", f"algorithm={algorithm}", cadence, *LITTLE, *at, capsys=capsys)
    assert (code, out["status"], out["metrics"]["n"]) == (0, "done", 4)


def test_a_cell_that_makes_no_sense_is_refused_before_it_learns(copied, capsys):
    _, at = copied
    code, out = call("pretrain", "policy=flow", "algorithm=cql", *LITTLE, *at, capsys=capsys)
    assert code == 1 and "a flow policy has no log pi(a): SAC and CQL need policy=tanh_gaussian" in out["error"]


def test_pretrain_from_a_version_or_a_tag_of_the_corpus(copied, capsys):
    copy, at = copied
    assert app.main(["corpus", "tag", "first", "1", at[3]]) == 0
    cadence = "algorithm.cadence.improve=20"
    one, two, three = (
        call("pretrain", f"corpus={ref}", cadence, *LITTLE, *at, capsys=capsys)[1] for ref in ("1", "first", "latest")
    )
    # the demonstrations are the same at all three: the second and third find the first's run
    assert (one["status"], two["status"], three["status"]) == ("done", "noop", "noop")
    assert one["inputs"]["corpus"] == 1 and one["outputs"] == two["outputs"]
    episode = copy.corpus().at("latest").select(origin="scripted:*").hashes[0]
    assert app.main(["corpus", "tombstone", episode[:10], "message=bad gripper", at[3]]) == 0
    _code, out = call("pretrain", "corpus=latest", cadence, *LITTLE, *at, capsys=capsys)
    assert out["status"] == "done" and out["outputs"] != one["outputs"]
    assert call("pretrain", "corpus=first", cadence, *LITTLE, *at, capsys=capsys)[1]["status"] == "noop"


def test_retrain_on_advantage_conditioned_data_from_the_anchor(copied, capsys):
    _, at = copied
    made = call(
        "pretrain",
        "policy.condition=true",
        "name=policy/told",
        "algorithm.cadence.improve=10",
        *LITTLE,
        *at,
        capsys=capsys,
    )[1]
    few = [
        "algorithm.cadence.evaluate=5",
        "algorithm.cadence.improve=5",
        "collect.episodes=4",
        "collect.n=2",
        "batch_size=16",
    ]
    words = ["retrain", "algorithm=recap", "rounds=2", "restart=anchor", "name=policy/told", *few, *at]
    code, out = call(*words, f"checkpoint={made['outputs']['checkpoint']}", capsys=capsys)
    assert (code, out["status"], out["metrics"]["rounds"]) == (0, "done", 2)
    assert out["outputs"]["checkpoint"].startswith("policy/told@")
    code, out = call("retrain", "algorithm=bc", *at, capsys=capsys)
    assert code == 1 and "algorithm bc asks for source offline" in out["error"]


OFF_POLICY = [("tanh_gaussian", "sac"), ("tanh_gaussian", "rlpd"), ("deterministic", "td3"), ("deterministic", "ddpg")]


@pytest.mark.parametrize(("policy", "algorithm"), OFF_POLICY)
def test_from_offline_to_off_policy_by_changing_one_word(copied, capsys, policy, algorithm):
    copy, at = copied
    kept = [f"policy={policy}", "name=policy/moved", "algorithm.cadence.improve=10", *LITTLE, *at]
    made = call("pretrain", *kept, capsys=capsys)[1]
    few = [
        "algorithm.cadence={rounds: 2, evaluate: 5, improve: 5}",
        "algorithm.critic.width=16",
        "collect.episodes=4",
        "batch_size=16",
    ]
    words = ["retrain", f"algorithm={algorithm}", "name=policy/moved", "score_every=2", "score_episodes=4", *few, *at]
    code, out = call(*words, f"checkpoint={made['outputs']['checkpoint']}", capsys=capsys)
    assert (code, out["status"], out["metrics"]["rounds"]) == (0, "done", 2)
    import flywheel

    policy = flywheel.load(out["outputs"]["checkpoint"], store=str(copy.root))
    actions = []
    for seed in (1, 2):
        policy.reset([0], [seed])
        actions.append(policy.act(np.ones(4, np.float32)))
    assert np.array_equal(*actions)  # what is kept acts without noise
