"""Two robots in one corpus: known apart, refused in one batch unless aligned, padded or mapped by hand."""

import numpy as np
import pytest
import torch
from corpus_cases import episode
from small import call

from flywheel.corpus import Corpus, CorpusError, compare, quality, query
from flywheel.policy import base
from flywheel.rl.source import Offline

FIELDS = ("obs.state", "action", "reward", "action.mask")


def robots(seed, steps=6):
    """An episode of a robot with 3 observed numbers and 2 of action, and one of another with 5 and 4."""
    small = episode(seed, steps=steps, width=3)
    large = episode(seed + 100, steps=steps, width=5, task="push")
    return small, large.replace(action=np.tile(large.action, 2))


@pytest.fixture
def corpus(tmp_path):
    held = Corpus(tmp_path / "corpus", create=True)
    held.append([one for seed in range(3) for one in robots(seed)])
    return held


def schemas(version):
    """{task: schema} of a version of one robot a task."""
    state = version.corpus.history.state
    segments = [version.corpus.reader.segment(int(part)) for part in state.parts(version.rows)]
    return {task: one.robot for task, one in zip(version.table["task"], segments, strict=True)}


def test_a_robot_is_known_by_its_streams_and_is_a_column(corpus, tmp_path):
    version = corpus.at("latest")
    small, large = robots(9)
    found = schemas(version)
    assert len(found) == 2 and found["lift"] != found["push"]
    measured = quality.measured(version, tmp_path)
    table = query.table(version, measured)
    rows = query.ask(table, "SELECT task, schema, count(*) AS n FROM episodes GROUP BY ALL ORDER BY task").to_pylist()
    assert rows == [{"task": task, "schema": schema, "n": 3} for task, schema in sorted(found.items())]
    assert {row["task"]: row["schema"] for row in compare.stats(version, measured)} == {**found, "*": "*"}
    # what was recorded beside it does not make another robot, another dtype does
    corpus.append(
        [
            small.replace(extras={"proposed": small.action}),
            large.replace(obs={"state": large.obs["state"].astype(float)}),
        ]
    )
    again = schemas(corpus.at(2).select([6, 7]))
    assert again["lift"] == found["lift"] and again["push"] not in found.values()


def test_a_mixture_is_refused_with_both_schemas(corpus, tmp_path):
    version = corpus.at("latest")
    found = schemas(version)
    with pytest.raises(CorpusError) as error:
        corpus.windows(version, cache=tmp_path)
    assert all(f"schema {schema} (task {task}" in str(error.value) for task, schema in found.items())
    assert 'align="pad"' in str(error.value)


def test_a_padded_mixture_has_zeros_and_a_mask(corpus, tmp_path):
    version = corpus.at("latest")
    windows = corpus.windows(version, FIELDS, cache=tmp_path, align="pad")
    assert windows.columns == {
        "obs.state": slice(0, 5),
        "action": slice(5, 9),
        "reward": slice(9, 10),
        "action.mask": slice(10, 14),
    }
    tasks = version.table["task"]
    pools = {task: np.flatnonzero(tasks == task) for task in ("lift", "push")}
    for room in (windows.resident, 0):  # with transitions kept, and without
        windows.resident = room
        source = Offline(
            windows, pools, {"improve": {"lift": 1, "push": 1}}, obs_steps=2, action_steps=3, batch_size=64
        )
        batch = {name: value.numpy() for name, value in source.batch("improve").items()}
        mask = batch["action_mask"]
        assert mask.shape == (64, 4) and (mask[:32] == [1, 1, 0, 0]).all() and (mask[32:] == 1).all()
        assert (batch["action"][:32, :, 2:] == 0).all() and (batch["obs"][:32, :, 3:] == 0).all()
    for one, start in zip(version, windows.start, strict=True):
        rows, own = windows.rows[start : start + len(one)], one.action.shape[1]
        assert (rows[:, 5 : 5 + own] == one.action).all() and (rows[:, 5 + own : 9] == 0).all()
    corpus.append([robots(7)[0]])
    assert windows.extend(corpus.at("latest")).decoded == 1
    with pytest.raises(CorpusError, match="select one of them"):  # the padded cache is another one
        corpus.windows(version, cache=tmp_path)


def test_a_map_puts_each_number_where_it_belongs(corpus, tmp_path):
    version = corpus.at("latest")
    found = schemas(version)
    align = {found["lift"][:5]: {"action": [3, 0]}}
    windows = corpus.windows(version, FIELDS, cache=tmp_path, align=align)
    lift = version.read(0)
    rows = windows.rows[windows.start[0] : windows.start[0] + len(lift), windows.columns["action"]]
    assert (rows[:, [3, 0]] == lift.action).all() and (rows[:, [1, 2]] == 0).all()
    assert windows.rows[windows.start[0], windows.columns["action.mask"]].tolist() == [1, 0, 0, 1]
    for wrong, told in [
        ({"feed": {"action": [0, 1]}}, "'feed' is no schema of these episodes"),
        ({found["lift"]: {"action": [0, 0]}}, r"mapped to \[0, 0\].*has 2 numbers"),
        ({found["lift"]: {"action": [0, 1, 2]}}, "has 2 numbers"),
        ({found["lift"]: {"gripper": [0]}}, "no such field among obs.state, action"),
        ("stretch", "expected pad"),
    ]:
        with pytest.raises(CorpusError, match=told):
            corpus.windows(version, FIELDS, cache=tmp_path, align=wrong)


@pytest.mark.parametrize("kind", ["flow", "diffusion", "deterministic"])
def test_what_a_robot_has_not_got_does_not_count(kind):
    torch.manual_seed(0)
    robot = {"obs": [0, 1, 2], "action": [0, 2]}
    spec = {"kind": kind, "obs_dim": 5, "action_dim": 4, "action_steps": 3, "robot": robot, "width": 16, "depth": 1}
    policy = base.build(spec)
    obs, mask = torch.randn(8, 2, 5), torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat(8, 1)
    action = torch.randn(8, 3, 4)
    other = action.clone()
    other[..., [1, 3]] += 5.0
    losses = [policy.bc_loss(obs, a, torch.Generator().manual_seed(1), None, mask=mask) for a in (action, other)]
    assert losses[0].shape == (8,) and torch.equal(*losses)
    full = [
        policy.bc_loss(obs, action, torch.Generator().manual_seed(1), None, **m)
        for m in ({}, {"mask": torch.ones(8, 4)})
    ]
    torch.testing.assert_close(*full)
    policy.eval().reset(seeds=[3])
    assert policy.act(np.zeros(3, np.float32)).shape == (2,)
    with pytest.raises(ValueError, match="observation has 5 numbers, this policy was trained on 3"):
        policy.act(np.zeros(5, np.float32))


def test_a_normaliser_counts_only_what_is_there():
    policy = base.build({"kind": "flow", "obs_dim": 2, "action_dim": 3})
    rows, mask = torch.tensor([[1.0, 2, 0], [3, 0, 0]]), torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    policy.action_norm.fit(rows, mask)
    assert policy.action_norm.mean.tolist() == [2, 2, 0] and policy.action_norm.std.tolist() == pytest.approx(
        [1, 0.02, 1]
    )


def test_pretraining_draws_from_two_robots(copied, capsys):
    copy, at = copied
    held = copy.corpus()
    own = held.at("latest").select(success=True)
    one = own.read(0)
    wide = np.random.default_rng(0).normal(size=(10, one.obs["state"].shape[1] + 2)).astype(np.float32)
    other = one.replace(
        task="arm", obs={"state": wide}, action=np.zeros((9, 3), np.float32), reward=np.zeros(9, np.float32)
    )
    held.append([other])
    for name, where in (("mine", "success AND task <> 'arm'"), ("arm", "task = 'arm'")):
        assert call("corpus", "view", name, where, at[3], capsys=capsys)[0] == 0
    words = ["pretrain", "data={mine: 0.5, arm: 0.5}", "batch_size=8", "score_episodes=4", "score_every=4"]
    words += ["algorithm.cadence.improve=4", *at]
    code, out = call(*words, capsys=capsys)
    assert code == 1 and "arm has no episode of" in out["error"] and "align=pad" in out["error"]
    code, out = call(*words, "align=pad", capsys=capsys)
    assert code == 0, out
    policy = base.load(copy.checkpoint(out["outputs"]["checkpoint"])["file"])
    assert (policy.obs_dim, policy.action_dim) == (wide.shape[1], 3) and len(policy.robot["obs"]) == wide.shape[1] - 2
    assert out["metrics"]["n"] == 4  # it acts in the task, with its own columns
    again = ["pretrain", f"checkpoint={out['outputs']['checkpoint']}", *words[1:], "align=pad"]
    assert call(*again, capsys=capsys)[1]["status"] == "done"
    code, refused = call("retrain", f"checkpoint={out['outputs']['checkpoint']}", "rounds=1", *at, capsys=capsys)
    assert code == 1 and "learnt from several robots" in refused["error"]
    code, refused = call(*words, "align=pad", "policy=gaussian", capsys=capsys)
    assert code == 1 and "a gaussian policy cannot leave out" in refused["error"]
