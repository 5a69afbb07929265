"""Two processes that train one policy: the weights of one process, whoever is killed, and whoever goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flywheel.cli import config
from flywheel.parallel import ALONE, Peers, refuse
from flywheel.policy import base
from flywheel.rl.build import table_nets
from flywheel.rl.learner import Learner
from flywheel.rl.shares import Shares

HERE = Path(__file__).parent
SMALL = ["policy.width=32", "policy.depth=2", "batch_size=64", "score_episodes=0", "score_every=500"]


def started(size: int, folder: Path, *words: str) -> list[subprocess.Popen]:
    """As torchrun starts them, but that they meet at a file: nobody listens."""
    meet = folder / "meet"
    meet.unlink(missing_ok=True)
    told = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(size), "FLYWHEEL_RENDEZVOUS": f"file://{meet}"}
    told |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "FLYWHEEL_CONF": ""}
    command = [sys.executable, "-m", "flywheel.cli.app", *words, "--json"]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    return [subprocess.Popen(command, env=os.environ | told | rank, **pipes) for rank in ranks]


def trained(size: int, folder: Path, *words: str) -> dict:
    """The result of the first process; the others say nothing."""
    ends = [(one, *one.communicate()) for one in started(size, folder, *words)]
    assert all(one.returncode == 0 for one, *_ in ends), [err[-1500:] for *_, err in ends]
    assert not any("flywheel" in out + err or "{" in out + err for _, out, err in ends[1:]), ends
    return json.loads(ends[0][1].splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with demonstrations of the toy task."""
    import toy

    folder = tmp_path_factory.mktemp("parallel")
    toy.demonstrations(folder / "demos.hdf5", 12)
    words = ["ingest", "source=demos.hdf5", "obs_keys=[position,goal]", "store=one", *toy.TASK]
    trained(1, folder, *words)
    subprocess.run(["cp", "-r", folder / "one", folder / "two"], check=True)
    return folder


def distance(one: Path, other: Path) -> float:
    """The largest difference of two files of weights."""
    a, b = load_file(one), load_file(other)
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a if a[key].numel())


def weights(folder: Path, result: dict, updates: int = 500) -> Path:
    return folder / "runs" / result["run"] / "out" / f"at_{updates}.safetensors"


@pytest.mark.slow
def test_two_processes_learn_what_one_does(place):
    """To 1e-6, in float32, after 500 updates; what is done is looked up by both."""
    import toy

    words = ["pretrain", *SMALL, "algorithm.cadence.improve=500", *toy.TASK]
    one = trained(1, place, *words, "store=one")
    two = trained(2, place, *words, "store=two")
    assert one["run"] == two["run"], "how many train decides nothing"
    files = [place / store / "runs" / one["run"] / "out" / "at_500.safetensors" for store in ("one", "two")]
    assert distance(*files) < 1e-6


@pytest.mark.slow
def test_slices_are_summed_in_one_order_whoever_has_them(place):
    """Critics in float32, to the bit: their weights by Adam differ by 6e-4 where the order of a sum does."""
    import toy

    words = [
        "pretrain",
        *SMALL,
        "algorithm=iql",
        "algorithm.cadence.rounds=250",
        "slices=4",
        *toy.TASK,
    ]
    results = [trained(size, place, *words, f"store={store}") for size, store in ((1, "one"), (2, "two"))]
    assert results[0]["run"] == results[1]["run"]
    folders = [place / store / "runs" / results[0]["run"] / "out" for store in ("one", "two")]
    names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in folders]
    assert names[0] == names[1] and len(names[0]) > 0
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_the_shares_of_processes_are_disjoint_and_whole(tmp_path):
    """By segment; a pool of parts of episodes goes along."""
    import numpy as np
    from corpus_cases import episode

    from flywheel.corpus import Corpus
    from flywheel.parallel import share

    corpus = Corpus(tmp_path / "corpus", create=True)
    for first in range(0, 20, 4):
        corpus.append([episode(seed, steps=5 + seed) for seed in range(first, first + 4)])
    version = corpus.at("latest").canonical()
    rows = np.asarray([[position, 2, 3] for position in range(0, 20, 2)])
    pools = {"demos": np.arange(20), "parts": rows}
    found = [share(Peers(rank, 3), version, pools) for rank in range(3)]
    assert sorted(h for mine, _ in found for h in mine.hashes) == sorted(version.hashes)
    assert [len(mine.segments()) for mine, _ in found] == [2, 2, 1]
    for mine, kept in found:
        assert [mine.hashes[at] for at in kept["demos"]] == list(mine.hashes)
        assert {mine.hashes[at] for at in kept["parts"][:, 0]} == {version.hashes[at] for at in rows[:, 0]} & {
            *mine.hashes
        }
    with pytest.raises(ValueError, match=r"process 5 of 6 has no episode of demos: 5 segments hold them all"):
        share(Peers(0, 6), version, pools)


@pytest.mark.slow
def test_processes_with_segments_of_their_own_learn_one_policy(place):
    """Twice the same; each decodes its own segment alone."""
    import toy

    subprocess.run(["cp", "-r", place / "one", place / "parts"], check=True)  # others train from that one
    for k in (1, 2):
        toy.demonstrations(place / f"more_{k}.hdf5", 8, 800_000_000 + 100 * k)
        trained(1, place, "ingest", f"source=more_{k}.hdf5", "obs_keys=[position,goal]", "store=parts", *toy.TASK)
    words = ["pretrain", *SMALL, "algorithm.cadence.improve=200", "score_every=200", "shards=true", *toy.TASK]
    subprocess.run(["cp", "-r", place / "parts", place / "again"], check=True)
    results = [trained(2, place, *words, f"store={store}") for store in ("parts", "again")]
    assert distance(*(weights(place / s, r, 200) for s, r in zip(("parts", "again"), results, strict=True))) == 0
    with pytest.raises(AssertionError, match="process 3 of 4 has no episode of demos: 3 segments"):
        trained(4, place, *words, "seed=4", "store=parts")


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_stopped(place):
    import toy

    words = ["pretrain", *SMALL, "algorithm.cadence.improve=1000", "algorithm.schedule=null", "seed=2", *toy.TASK]
    words += ["score_every=200", "score_episodes=2", "anchor_until=200"]
    going = started(2, place, *words, "store=two")
    assert any("200 updates: success" in line for line in going[0].stderr)
    for one in going:
        one.send_signal(signal.SIGTERM)
    ends = [(one.communicate(), one.returncode) for one in going]
    assert [code for _, code in ends] == [143, 143], ends
    (one,) = started(1, place, *words, "store=two")
    out, err = one.communicate()
    result = json.loads(out.splitlines()[-1])
    assert one.returncode == 0 and "going on in round 0" in err
    assert trained(1, place, *words, "store=one")["run"] == result["run"]
    early = [place / store / "runs" / result["run"] / "out" / "at_200.safetensors" for store in ("one", "two")]
    assert distance(*early) < 1e-6
    curves = [json.loads((file.parents[1] / "_DONE.json").read_text())["content"]["curve"] for file in early]
    for a, b in zip(*curves, strict=True):
        assert a["updates"] == b["updates"] and abs(a["policy.imitate"] - b["policy.imitate"]) < 1e-3


def learns(rank: int, folder: str, table: str) -> None:
    """A process of two: 50 updates of each act in float64, on its rows of each batch; the first one keeps the nets."""
    peers = ALONE if rank < 0 else Peers(rank, 2)
    if peers.size > 1:
        meet = f"file://{folder}/meet-{table}"
        torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    torch.set_num_threads(1)
    state, told = learnt(table, peers)
    if peers.rank == 0:
        torch.save((state, told), f"{folder}/{table}-{peers.size}.pt")
    if peers.size > 1:
        torch.distributed.destroy_process_group()


def learnt(table: str, peers: Peers = ALONE, slices: int = 1, updates: int = 50) -> tuple[dict, dict]:
    """The state and the metrics of a learner after so many updates of each act."""
    torch.manual_seed(0)
    algorithm = config.table("pretrain", table)
    kind = "tanh_gaussian" if table == "cql" else "flow"
    policy = base.build({"kind": kind, "obs_dim": 4, "action_dim": 2, "width": 16, "depth": 2})
    nets = {name: net.double() for name, net in table_nets(algorithm, policy).items()}
    tables = {key: getattr(algorithm, key) for key in ("evaluate", "improve", "lag", "lr")}
    learner = Learner(nets, **tables, seed=1, peers=peers, slices=slices, precision="float32")
    for act in ("evaluate", "improve"):
        for number in range(updates):
            whole = drawn(policy, number)
            learner.act(act, {key: value[peers.rank :: peers.size].clone() for key, value in whole.items()})
    told = learner.metrics()
    return learner.state(), told


def drawn(policy, number: int, size: int = 12) -> dict:
    """A batch of random transitions."""
    rng = torch.Generator().manual_seed(number)

    def normal(*shape: int):
        return torch.randn(size, *shape, generator=rng, dtype=torch.float64)

    obs, action = (policy.obs_steps, 4), (policy.action_steps, 2)
    batch = {"obs": normal(*obs), "action": normal(*action).clamp(-0.9, 0.9), "reward": normal().sign().clamp(min=0)}
    batch |= {"next_obs": normal(*obs), "next_action": normal(*action).clamp(-0.9, 0.9)}
    return batch | {"discount": torch.full((size,), 0.9, dtype=torch.float64), "return": normal().abs().clamp(max=1)}


@pytest.mark.slow
@pytest.mark.parametrize("table", ["iql", "cql"])
def test_the_sum_is_the_same_where_rounding_does_not_hide_it(table, tmp_path):
    """Losses that draw noise, many numbers a row, or for the batch as a whole: equal to 1e-12 in float64."""
    learns(-1, str(tmp_path), table)
    torch.multiprocessing.spawn(learns, (str(tmp_path), table), nprocs=2)
    (one, said), (two, heard) = (torch.load(tmp_path / f"{table}-{size}.pt") for size in (1, 2))
    floats = [key for key, value in one.items() if value.is_floating_point() and not key.startswith(("optim", "sums"))]
    assert floats and all((one[key] - two[key]).abs().max() < 1e-12 for key in floats if one[key].numel())
    assert torch.equal(one["rng"], two["rng"]), "all draw the same numbers"
    assert said.keys() == heard.keys()


@pytest.mark.parametrize("table", ["iql", "cql"])
def test_slices_of_a_batch_are_the_batch(table):
    """Also what they draw: the gradient is the mean of theirs."""
    (one, said), *others = (learnt(table, slices=slices, updates=5) for slices in (1, 2, 4))
    floats = [key for key, value in one.items() if value.is_floating_point() and not key.startswith(("optim", "sums"))]
    for state, heard in others:
        assert floats and all((one[key] - state[key]).abs().max() < 1e-12 for key in floats if one[key].numel())
        assert torch.equal(one["rng"], state["rng"]) and said == pytest.approx(heard, rel=1e-5, abs=1e-6)


def test_a_process_takes_its_rows_of_what_the_whole_batch_draws():
    def draws(rng):
        return [
            torch.randn((6, 3), generator=rng),
            torch.rand(6, generator=rng),
            torch.randint(2, 9, (6,), generator=rng),
            torch.randn(12, 2, generator=rng),
            torch.randperm(5, generator=rng),
            torch.rand((5,), generator=rng),
        ]

    whole = draws(torch.Generator().manual_seed(0))
    for rank in (0, 1, 2):
        rng = torch.Generator().manual_seed(0)
        with Shares(rank, 3, 2):
            mine = [
                torch.randn((2, 3), generator=rng),
                torch.rand(2, generator=rng),
                torch.randint(2, 9, (2,), generator=rng),
                torch.randn(4, 2, generator=rng),
                torch.randperm(5, generator=rng),
                torch.rand((5,), generator=rng),
            ]
        rows = [*(drawn[rank::3] for drawn in whole[:3]), whole[3].view(6, 2, 2)[rank::3].reshape(4, 2), *whole[4:]]
        assert all(torch.equal(a, b) for a, b in zip(mine, rows, strict=True))


def test_what_several_processes_would_learn_otherwise_is_refused():
    two = Peers(0, 2)
    for name in ("bc", "iql", "cql", "idql"):
        refuse(two, config.table("pretrain", name), 64)
    with pytest.raises(ValueError, match=r"algorithm td3_bc: improve\.policy\.maximize_q looks at a batch as a whole"):
        refuse(two, config.table("pretrain", "td3_bc"), 64)
    with pytest.raises(ValueError, match="batch_size=65 of 2 processes; expected a multiple"):
        refuse(two, config.table("pretrain", "bc"), 65)
    refuse(ALONE, config.table("pretrain", "td3_bc"), 65)
    with pytest.raises(ValueError, match=r"slices=3 of batch_size=66 for 2 processes; expected a divisor of the batch"):
        refuse(two, config.table("pretrain", "bc"), 66, 3)
    with pytest.raises(ValueError, match="algorithm td3_bc: .* each of 4 processes or slices has a part"):
        refuse(ALONE, config.table("pretrain", "td3_bc"), 64, 4)


def test_a_stage_that_one_process_does_is_refused_to_two(monkeypatch):
    from flywheel.runs import run

    monkeypatch.setattr(run, "joined", lambda: Peers(1, 2))
    with pytest.raises(run.RunError, match="evaluate: torchrun started 2 processes; expected one, but for pretrain"):
        run.execute("evaluate", None, None)
