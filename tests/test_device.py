"""Everything runs on another device unchanged, and little moves between it and the host: checked without a GPU.

PyTorch's `meta` device has shapes and types but no numbers. Here it stands in for a GPU: `Elsewhere` refuses what a GPU
refuses (an operation on tensors of two devices, random numbers from another device's generator, a shape that depends on
numbers) and counts what is copied. What numbers a GPU's kernels give, and how fast, only a GPU can say."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from small import LITTLE, call, learner, often, rarely, suited
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flywheel import env
from flywheel.cli import algorithms
from flywheel.corpus import Corpus
from flywheel.policy import base
from flywheel.rl import build, packed
from flywheel.rl import learner as learning
from flywheel.rl.source import FIELDS, Offline, OnPolicy

pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
DEVICE = "meta"
TABLES = algorithms.tables()
ANSWERS = {torch.bool: False, torch.int64: 0}  # what a number that is asked for is taken to be; else 1.0
CORRIDOR = ["task=gym", "task.id=toy:Corridor-v0", "task.max_steps=20", "task.reward=env", "checkpoint=none"]


class Generator(torch.Generator):
    """PyTorch makes none for `meta`, which draws no numbers."""

    def __new__(cls, device):
        assert device == DEVICE
        return super().__new__(cls)


class Elsewhere(TorchDispatchMode):
    """While it is on, `meta` is a device of its own: `moved` counts tensors that went "to" it, and tensors and
    numbers that came "back"."""

    def __init__(self):
        super().__init__()
        self.moved = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.moved["back"] += 1
            return ANSWERS.get(args[0].dtype, 1.0)
        if func is torch.ops.aten._to_copy.default:
            return self.copied(func, args[0], kwargs)
        if func is torch.ops.aten.copy_.default:
            into, source = args[:2]
            if into.is_meta != source.is_meta:
                self.moved["to" if into.is_meta else "back"] += 1
                return into
            return func(*args, **kwargs)
        if len({t.device for t in tensors if t.dim()}) > 1:  # a number of the host may go with any kernel
            raise RuntimeError(f"{func}: tensors of two devices, {[(t.device.type, tuple(t.shape)) for t in tensors]}")
        made = func(*args, **kwargs)
        if kwargs.get("generator") is not None and not made.is_meta:  # the only one is the learner's
            raise RuntimeError(f"{func}: the generator of {DEVICE} for a tensor on {made.device}")
        return made

    def copied(self, func, source, kwargs):
        """`source` on another device, or of another type."""
        there = kwargs.get("device") or source.device
        if source.device.type == there.type:
            return func(source, **kwargs)
        if source.is_meta:
            self.moved["back"] += 1
            return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        self.moved["to"] += 1
        return func(source, **kwargs)

    def during(self, what) -> dict[str, int]:
        """What moves while `what()` is done."""
        before = self.moved.copy()
        what()
        return dict(self.moved - before)


@pytest.fixture
def one_by_one(monkeypatch):
    """Batches go there each by itself."""
    monkeypatch.setattr("flywheel.rl.source.PIECE_BYTES", 0)


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(learning, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr("flywheel.policy.nets.LARGE", 0)
    with Elsewhere() as mode:
        yield mode


def task(discrete: bool):
    return env.make(
        {"name": "gym", "id": f"toy:{'Corridor' if discrete else 'Reach'}-v0", "max_steps": 20, "reward": "env"}, 4
    )


def made(name: str):
    """(learner, policy, environments) of a table, as a stage makes them."""
    envs = task(suited(name)["kind"] in ("greedy_q", "categorical"))
    held = learner(name, build.shape(envs), device=DEVICE)
    return held, held.nets["policy"], envs


def drawn_from(name: str, held, policy, envs, folder):
    """A source with some episodes of the policy's own."""
    episodes, _ = env.rollout(envs, policy, range(8), origin="test")
    shape = {"obs_steps": 1, "action_steps": 1, "batch_size": 16, "reward": "env", "device": DEVICE}
    if TABLES[name]["source"] == "on_policy":
        source = OnPolicy(play=lambda held: episodes, **shape)
        source.collect(held)
        return source
    corpus = Corpus(folder / "corpus", create=True)
    corpus.append(episodes, message="its own", author="test")
    windows = corpus.windows(corpus.at("latest"), FIELDS["env"], cache=folder / "cache")
    mixture = {act: {"all": 0.5, "first": 0.5} for act in ("evaluate", "improve")}
    return Offline(windows, {"all": np.arange(len(windows)), "first": np.arange(1)}, mixture, **shape)


@pytest.mark.parametrize("name", often(TABLES, "sac", "ppo", "ogpo", "rl100_offline"))
def test_of_every_table_an_index_goes_there_a_batch_and_a_number_comes_back_for_each_net(
    elsewhere, one_by_one, tmp_path, name
):
    held, policy, envs = made(name)
    source = drawn_from(name, held, policy, envs, tmp_path)
    stops = str(TABLES[name].get("improve")).count("target_kl")
    held.begin_improve()
    for act in ("evaluate", "improve"):
        nets = len(TABLES[name].get(act) or {})
        for _ in range(2 if nets else 0):
            count = elsewhere.during(lambda act=act: held.act(act, source.batch(act)))
            assert count == {"to": 1, "back": nets + stops * (act == "improve")}, act
    held.load_state(held.state())
    assert all(p.is_meta for net in held.nets.values() for p in (*net.parameters(), *net.buffers()))


def test_a_run_goes_on_only_on_the_kind_of_device_that_it_was_begun_on(elsewhere):
    held = made("sac")[0]
    state = held.state() | {"rng": torch.zeros(16, dtype=torch.uint8)}  # as large as a GPU's
    with pytest.raises(ValueError, match="begun on another kind of device than meta.*device="):
        held.load_state(state)


def test_a_batch_that_is_not_kept_there_goes_there_at_once(elsewhere, one_by_one, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "ROOM", 0)
    held, policy, envs = made("iql")
    source = drawn_from("iql", held, policy, envs, tmp_path)
    assert source.kept is None
    assert elsewhere.during(lambda: source.batch("evaluate")) == {"to": 1}
    assert elsewhere.during(lambda: held.act("evaluate", source.batch("evaluate"))) == {"to": 1, "back": 2}


WRAP = ("best_of_n", "residual", "lerobot")  # others' nets, which move what they like


@pytest.mark.parametrize("kind", [kind for kind in base.names() if kind not in WRAP])
def test_to_act_is_observation_and_noise_there_and_a_chunk_back(elsewhere, kind):
    envs = task(kind in ("greedy_q", "categorical"))
    policy = base.build({"kind": kind, "obs_steps": 1, "action_steps": 1, **build.shape(envs)}).to(DEVICE)
    policy.explores(0.5)
    obs = np.zeros((4, envs.obs_dim), np.float32)
    policy.act(obs)
    assert elsewhere.during(lambda: policy.act(obs)) == {"to": 2, "back": 1}


def test_a_device_that_is_not_there_is_refused_with_what_would_work(tmp_path, capsys):
    there = f"cuda:{torch.cuda.device_count()}"
    code, out = call(
        "online", *CORRIDOR, "algorithm=dqn", "policy=greedy_q", f"store={tmp_path}", f"device={there}", capsys=capsys
    )
    assert code == 1 and re.fullmatch(
        f"device={there}: PyTorch says: .*Take device=cpu, or auto: a GPU where there is one", out["error"]
    )


ROUNDS = ["rounds=2", "algorithm.cadence.evaluate=3", "algorithm.cadence.improve=3", "batch_size=16", "score_every=1",
          "score_episodes=4"]  # fmt: skip
ROUND = [*ROUNDS, "algorithm.collect.steps=60", "num_envs=4", "warmup=40"]
FEW = "algorithm.cadence={rounds: 2, evaluate: 2, improve: 2}"
BC = "algorithm.cadence.improve=4"


@pytest.mark.parametrize("room", [0, packed.ROOM])
def test_several_batches_go_there_in_one(elsewhere, tmp_path, monkeypatch, room):
    monkeypatch.setattr(packed, "ROOM", room)
    held, policy, envs = made("iql")
    source = drawn_from("iql", held, policy, envs, tmp_path)
    source.piece = 3
    counts = [elsewhere.during(lambda: source.batch("evaluate")) for _ in range(6)]
    assert counts == [{"to": 1}, {}, {}] * 2


def test_a_stage_moves_nothing_else_for_an_update(copied, elsewhere, one_by_one, capsys, monkeypatch):
    _, at = copied
    monkeypatch.setattr("flywheel.log.BEAT", 1e9)  # a heartbeat looks at the loss, too
    moved = []
    for updates in (10, 30):
        words = ["policy=flow", f"algorithm.cadence.improve={updates}", "score_every=30", f"device={DEVICE}"]
        moved.append(elsewhere.during(lambda words=words: call("pretrain", *at, *LITTLE[1:], *words, capsys=capsys)))
    assert {way: moved[1][way] - moved[0][way] for way in moved[1]} == {"to": 20, "back": 20}


@pytest.mark.parametrize(
    "stages",
    [
        (["pretrain", "policy=tanh_gaussian", "algorithm=cql", FEW],),
        rarely((["pretrain", "policy=diffusion", BC], ["pretrain", "algorithm=rl100_offline", FEW])),
        rarely((["pretrain", "policy=flow", BC], ["distil", BC])),
        rarely((["pretrain", "policy=flow", BC], ["online", "algorithm=reinflow", *ROUND])),
        (["online", "policy=greedy_q", "algorithm=dqn", *ROUND, "algorithm.cadence.improve=0", *CORRIDOR],),
        (["online", "policy=tanh_gaussian", "algorithm=sac", *ROUND, *CORRIDOR[3:]],),
        rarely((["pretrain", "policy=flow", BC], ["retrain", "collect.episodes=4", "collect.n=4", *ROUNDS], ["evaluate"])),
    ],
    ids=lambda stages: " ".join(words[0] for words in stages),
)  # fmt: skip
def test_whole_stages_run_there(copied, elsewhere, capsys, stages):
    _, at = copied
    checkpoint = []
    for stage, *words in stages:
        little = [] if stage in ("evaluate", "retrain") else LITTLE
        name = [] if stage == "evaluate" else [f"name=policy/{stage}"]
        code, out = call(stage, *checkpoint, *at, *little, *words, *name, f"device={DEVICE}", capsys=capsys)
        assert (code, out["status"]) == (0, "done"), out
        checkpoint = [f"checkpoint={out['outputs']['checkpoint']}"] if out["outputs"] else []
    assert elsewhere.moved["to"] and elsewhere.moved["back"]
