"""Every policy with every algorithm that suits it, once, in small; what does not suit is refused."""

import contextlib
import json
import re

import numpy as np
import pytest
import torch
from small import LITTLE, call, often

import flywheel
from flywheel.args import Task
from flywheel.cli import app
from flywheel.rl import exploring
from flywheel.runs import run

CELLS = [(p, a) for p in ("gaussian", "diffusion", "flow") for a in ("bc", "iql")] + [
    ("tanh_gaussian", "cql"), ("tanh_gaussian", "cal_ql"), ("tanh_gaussian", "awac"), ("tanh_gaussian", "bc"), ("deterministic", "td3_bc"),
    ("flow", "iql_one_step"), ("diffusion", "idql"), ("one_step", "fql"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "algorithm"), CELLS)
def test_every_policy_pretrains_with_the_offline_algorithms_that_suit_it(copied, capsys, policy, algorithm):
    _, at = copied
    cadence = "algorithm.cadence={rounds: 10, evaluate: 1, improve: 2}"
    code, out = call("pretrain", f"policy={policy}", f"algorithm={algorithm}", cadence, *LITTLE, *at, capsys=capsys)
    assert (code, out["status"], out["metrics"]["n"]) == (0, "done", 4)


@pytest.mark.parametrize("policy", often(["diffusion", "gaussian"], "diffusion"))
def test_rl100_offline_keeps_a_round_only_if_the_model_says_that_it_is_better(copied, capsys, policy):
    copy, at = copied
    made = call("pretrain", f"policy={policy}", "algorithm.cadence.improve=10", *LITTLE, *at, capsys=capsys)[1]
    words = [
        "algorithm=rl100_offline",
        "algorithm.cadence={rounds: 2, evaluate: 3, improve: 2}",
        "name=policy/better",
        *LITTLE,
        *at,
    ]
    code, out = call("pretrain", *words, f"checkpoint={made['outputs']['checkpoint']}", "score_every=2", capsys=capsys)
    assert (code, out["status"], out["metrics"]["n"]) == (0, "done", 4), out
    log = [json.loads(line) for line in (copy.root / "runs" / out["run"] / "log.jsonl").read_text().splitlines()]
    gates = [line for line in log if line["kind"] == "gate"]
    assert len(gates) == 2 and all(not g["refused"] or "the model says J = " in g["refused"] for g in gates)
    assert {"gain", "error", "truth"} <= gates[0].keys() and gates[0]["truth"]["after"] is not None


def test_a_gated_run_that_stopped_in_a_round_ends_as_if_it_had_not(copied, capsys, monkeypatch):
    """What a refused round goes back to is how it began, however often it was begun."""
    _, at = copied
    made = call("pretrain", "policy=diffusion", "algorithm.cadence.improve=10", *LITTLE, *at, capsys=capsys)[1]
    cadence, gate = (
        "algorithm.cadence={rounds: 3, evaluate: 4, improve: 4}",
        "algorithm.gate.ope.margin=100.0",
    )  # refuses all
    words = ["pretrain", "algorithm=rl100_offline", cadence, gate, *LITTLE, "score_every=2", *at]
    words += [f"checkpoint={made['outputs']['checkpoint']}"]
    monkeypatch.setattr(run.Run.due, "__defaults__", (0.0,))
    asked, save = [], run.Run.stop_if_asked

    def stop(self):
        asked.append(1)
        if len(asked) in (3, 11):
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "stop_if_asked", stop)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            call(*words, "name=policy/g", capsys=capsys)
    monkeypatch.setattr(run.Run, "stop_if_asked", save)
    code, out = call(*words, "name=policy/g", capsys=capsys)
    assert code == 0 and len(asked) >= 11
    whole = call(*words, "name=policy/whole", capsys=capsys)[1]
    assert out["outputs"]["checkpoint"].split("@")[1] == whole["outputs"]["checkpoint"].split("@")[1]
    assert copied[0].find(out["run"])["content"] == copied[0].find(whole["run"])["content"]


@pytest.mark.parametrize("teacher", often(["flow", "diffusion"], "flow"))
def test_a_chain_is_distilled_into_one_step(copied, capsys, teacher):
    copy, at = copied
    made = call(
        "pretrain",
        f"policy={teacher}",
        "name=policy/chain",
        "algorithm.cadence.improve=100",
        *LITTLE,
        *at,
        capsys=capsys,
    )[1]
    words = [
        "distil",
        f"checkpoint={made['outputs']['checkpoint']}",
        "algorithm.cadence.improve=300",
        *LITTLE,
        "name=policy/quick",
        *at,
    ]
    words += ["policy.width=64", "algorithm.lag.policy=0.1"]
    code, out = call(*words, capsys=capsys)
    assert (code, out["status"]) == (0, "done"), out
    student, chain = (flywheel.load(o["outputs"]["checkpoint"], store=str(copy.root)) for o in (out, made))
    obs, noise = (2 * torch.rand(200, 1, 4) - 1).expand(-1, 2, -1), torch.randn(200, *student.noise_shape)
    with torch.no_grad():
        apart = (student.sample(obs, noise) - chain.sample(obs, noise)).square().mean()
        spread = chain.sample(obs, noise).var()
    assert apart < 0.3 * spread
    code, out = call(
        "distil", f"checkpoint={out['outputs']['checkpoint']}", "policy=categorical", *LITTLE, *at, capsys=capsys
    )
    assert code == 1 and "a categorical policy makes one-hot actions" in out["error"]


@pytest.mark.parametrize("student", often(["one_step", "deterministic"], "deterministic"))
def test_the_student_of_a_best_of_n_imitates_what_it_chooses(copied, capsys, student):
    copy, at = copied
    made = copy.runs("retrain")[-1]["result"]
    words = ["distil", f"checkpoint={made['outputs']['checkpoint']}", "demos.origin=*", "algorithm.lag.policy=0.1"]
    words += [
        "algorithm.cadence.improve=400",
        f"policy={student}",
        "policy.width=64",
        "name=policy/student",
        *LITTLE,
        *at,
    ]
    code, out = call(*words, capsys=capsys)
    assert (code, out["status"]) == (0, "done"), out
    assert out["metrics"]["demonstrations"] > 12  # the rollouts too
    pupil, best = (flywheel.load(o["outputs"]["checkpoint"], store=str(copy.root)) for o in (out, made))
    state = np.concatenate([episode.obs["state"] for episode in copy.corpus().at("latest")])
    obs = torch.from_numpy(state)[:, None].expand(-1, 2, -1)
    with torch.no_grad():
        drawn = torch.stack([best.sample(obs, torch.randn(len(obs), *best.noise_shape)) for _ in range(64)])
        mean, given = drawn.mean(0), pupil.sample(obs, torch.zeros(len(obs), *pupil.noise_shape))  # [N, Ta, Da]
    apart, spread = (given - mean).square().mean(), mean.var()
    assert apart < 0.5 * spread


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


FEW = [
    "algorithm.cadence.rounds=2", "algorithm.cadence.evaluate=3", "batch_size=16", "score_every=2",
    "score_episodes=4", "num_envs=4", "warmup=40",
]  # fmt: skip


ONLINE = [
    ("tanh_gaussian", "sac"), ("tanh_gaussian", "rlpd"), ("deterministic", "td3"), ("deterministic", "ddpg"),
    ("gaussian", "ppo"), ("tanh_gaussian", "ppo"), ("diffusion", "dppo"), ("flow", "dppo"), ("flow", "reinflow"), ("diffusion", "rl100_online"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "algorithm"),
    often(ONLINE, ("tanh_gaussian", "sac"), ("tanh_gaussian", "rlpd"), ("deterministic", "td3"), ("gaussian", "ppo"), ("flow", "reinflow"), ("diffusion", "rl100_online")),
)  # fmt: skip
def test_from_offline_to_online_by_changing_one_word(copied, capsys, policy, algorithm):
    copy, at = copied
    kept = [f"policy={policy}", "name=policy/moved", "algorithm.cadence.improve=10", *LITTLE, *at]
    made = call("pretrain", *kept, capsys=capsys)[1]
    checkpoint = f"checkpoint={made['outputs']['checkpoint']}"
    words = [
        "online",
        "algorithm.cadence.improve=3",
        f"algorithm={algorithm}",
        "algorithm.collect.steps=60",
        "name=policy/moved",
        *FEW,
        checkpoint,
        *at,
    ]
    code, out = call(*words, capsys=capsys)
    assert (code, out["status"], out["metrics"]["rounds"]) == (0, "done", 2), out
    assert out["metrics"]["steps"] >= 120
    loaded = flywheel.load(out["outputs"]["checkpoint"], store=str(copy.root))
    assert loaded.spec["kind"] == policy and not any("noise_net" in key for key in loaded.state_dict())
    actions = []
    for seed in (1, 1 if policy in ("diffusion", "flow") else 2):  # the others act without any noise
        loaded.reset([0], [seed])
        actions.append(loaded.act(np.ones(4, np.float32)))
    assert np.array_equal(*actions)
    assert call(*words, capsys=capsys)[1]["status"] == "noop"


@pytest.mark.parametrize(
    ("policy", "algorithm"),
    often(
        [(policy, "ogpo") for policy in ("flow", "diffusion", "gaussian")]
        + [(policy, "residual") for policy in ("flow", "deterministic")],
        ("flow", "ogpo"),
        ("deterministic", "residual"),
    ),
)
def test_off_policy_with_the_best_of_n_from_a_checkpoint_and_again_from_what_came_of_it(
    copied, capsys, policy, algorithm
):
    """What is handed over is a best of N over what learnt, the checkpoint and the critics; a second run goes on from
    there, and one that nothing came of hands that very best of N over."""
    copy, at = copied
    kept = [f"policy={policy}", "name=policy/moved", "algorithm.cadence.improve=10", *LITTLE, *at]
    made = call("pretrain", *kept, capsys=capsys)[1]["outputs"]["checkpoint"]
    table = [f"algorithm={algorithm}", "algorithm.collect.steps=60", "algorithm.collect.n=4", "name=policy/moved"]
    table += [
        "algorithm.cadence={rounds: 2, evaluate: 3, improve: 3, warmup: 1}",
        "algorithm.critic={members: 2, width: 16}",
    ]
    words = ["online", *table, *FEW[2:], *at]
    code, out = call(*words, f"checkpoint={made}", "score_every=1", capsys=capsys)
    assert (code, out["status"], out["metrics"]["rounds"]) == (0, "done", 2), out
    first = flywheel.load(out["outputs"]["checkpoint"], store=str(copy.root))
    began = flywheel.load(made, store=str(copy.root)).state_dict()
    learns = first.base.base if algorithm == "residual" else first.base
    assert first.spec["kind"] == "best_of_n" and first.anchor.spec["kind"] == learns.spec["kind"] == policy
    assert all(torch.equal(value, began[key]) for key, value in first.anchor.state_dict().items())
    whole = learns.state_dict()
    assert all(torch.equal(value, began[key]) for key, value in whole.items()) == (algorithm == "residual")
    code, again = call(*words, f"checkpoint={out['outputs']['checkpoint']}", "score_every=1", capsys=capsys)
    assert (code, again["metrics"]["rounds"]) == (0, 2), again
    assert (again["outputs"]["checkpoint"] == out["outputs"]["checkpoint"]) == (again["status"] == "refused")
    second = flywheel.load(again["outputs"]["checkpoint"], store=str(copy.root))
    assert second.base.spec == first.base.spec and second.critic.spec == first.critic.spec
    assert call(*words, f"checkpoint={made}", "score_every=1", capsys=capsys)[1]["status"] == "noop"


CORRIDOR = ["task=gym", "task.id=toy:Corridor-v0", "task.max_steps=20", "task.reward=env", "task.solved=-4"]


@pytest.mark.parametrize(
    ("policy", "algorithm"),
    often(
        [("greedy_q", one) for one in ("dqn", "double_dqn", "q_learning")] + [("categorical", "ppo")],
        ("greedy_q", "dqn"),
        ("categorical", "ppo"),
    ),
)
def test_discrete_actions_from_scratch(tmp_path, capsys, policy, algorithm):
    words = [
        f"policy={policy}",
        f"algorithm={algorithm}",
        "algorithm.collect.steps=60",
        *FEW,
        *CORRIDOR,
        "checkpoint=none",
    ]
    code, out = call("online", *words, "policy.width=16", "policy.depth=1", f"store={tmp_path / 's'}", capsys=capsys)
    assert (code, out["status"]) == (0, "done"), out
    assert {"success", "return", "n"} <= set(out["metrics"])


@pytest.mark.parametrize("algorithm", ["bc", "iql"])
def test_discrete_actions_offline(tmp_path, capsys, algorithm):
    """What was collected is a corpus like any other: imitate it, judge it."""
    at = [*CORRIDOR, f"store={tmp_path / 's'}"]
    words = ["policy=greedy_q", "algorithm=dqn", "algorithm.collect.steps=60", *FEW, "checkpoint=none"]
    assert call("online", *words, *at, capsys=capsys)[0] == 0
    cadence = "algorithm.cadence={rounds: 5, evaluate: 1, improve: 2}"
    every = ["demos.origin=policy:*", "demos.failures=true"]
    code, out = call(
        "pretrain", "policy=categorical", f"algorithm={algorithm}", cadence, *LITTLE, *every, *at, capsys=capsys
    )
    assert (code, out["status"], out["metrics"]["n"]) == (0, "done", 4), out


@pytest.mark.parametrize(
    ("stage", "words", "told"),
    [
        ("online", ["algorithm=bc"], "algorithm bc asks for source offline: that is `flywheel pretrain`"),
        ("online", ["algorithm=rounds"], "asks for source off_policy, act best_of_n: that is `flywheel retrain`"),
        ("online", ["algorithm=sac"], "no checkpoint to begin from.*task.reward=env"),
        ("online", ["algorithm=dqn", "policy=greedy_q", "task.reward=env"], "makes one-hot actions; use policy=flow, diffusion"),
        ("online", ["algorithm=ppo", "policy=deterministic", "task.reward=env"], "a deterministic policy has no log pi of the steps"),
        ("online", ["algorithm=sac", "policy=flow", "task.reward=env"], "a flow policy has no log pi.*policy=tanh_gaussian"),
        ("online", [*CORRIDOR[1:], "algorithm=sac"], "takes one of 2 as an action.*use policy=categorical"),
        ("online", ["algorithm=dqn", "algorithm.cadence.improve=3"], "of algorithm dqn improves nothing.*take 0"),
        ("pretrain", ["algorithm=ppo"], "algorithm ppo asks for source on_policy: that is `flywheel online`"),
        ("pretrain", ["algorithm=rounds"], "that is `flywheel retrain`"),
        ("pretrain", ["algorithm=consistency", "policy=one_step"], "needs the net or batch entry 'teacher'.*flywheel distil"),
        ("retrain", ["algorithm=sac"], "that is `flywheel online`"),
        ("retrain", ["algorithm=ogpo"], "act best_of_n: that is `flywheel online`"),
        ("online", ["algorithm=ogpo", "policy=flow", "task.reward=env"], "the checkpoint that it began from; name one with"),
    ],
)  # fmt: skip
def test_a_meaningless_cell_is_refused_with_what_would_work(copied, capsys, stage, words, told):
    _, at = copied
    code, out = call(stage, *at, *words, *["checkpoint=none"] * (stage == "online"), capsys=capsys)
    assert code == 1 and re.search(told, out["error"], re.S), out


def test_a_base_that_never_succeeds_is_refused_with_the_number():
    task = Task()
    with pytest.raises(ValueError, match="60 episodes without a success"):
        exploring.refuse_hopeless(task, {"tried": {"n": 60, "success": 0.0}}, None)
    exploring.refuse_hopeless(task, {"tried": {"n": 60, "success": 0.05}}, None)
    exploring.refuse_hopeless(Task(reward="env"), {}, None)
