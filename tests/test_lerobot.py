"""LeRobot's policies as one more kind: what is learnt, what an episode depends on, and what LeRobot's own commands make
of what is exported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import call

from flywheel import env as envs
from flywheel.args import Task, build
from flywheel.cli.algorithms import tables
from flywheel.env import rollout
from flywheel.policy import base
from flywheel.policy._lerobot import ByRow, parts, wants_other_transformers
from flywheel.policy._uniform import Uniform
from flywheel.policy.lerobot import Averages, seeds, statistics
from flywheel.rl.build import learns, shape
from flywheel.rl.table import Algorithm
from flywheel.rl.taught import Teaching
from flywheel.runs.run import Store

ACT = {"chunk_size": 8, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16, "n_encoder_layers": 1,
       "n_vae_encoder_layers": 1, "latent_dim": 4}  # fmt: skip
UNET = {"horizon": 8, "down_dims": [8, 16], "n_groups": 4, "diffusion_step_embed_dim": 8, "num_train_timesteps": 10,
        "num_inference_steps": 3}  # fmt: skip
SHAPE = {"obs": [["state", [3]]], "action_dim": 2}


def made(type="act", settings=ACT, **more):
    torch.manual_seed(0)
    policy = base.build({"kind": "lerobot", "type": type, "settings": settings, **SHAPE, "action_steps": 4, **more})
    rows = np.random.default_rng(0).normal(2.0, 3.0, (100, 5))
    policy.fit_normaliser(rows[:, :3], rows[:, 3:])
    return policy.eval()


@pytest.mark.parametrize("count", [4, 8])
def test_chance_of_a_row_is_its_own(count):
    """In a batch or alone a row draws the same numbers, whatever function draws them."""

    def drawn(rows):
        with ByRow(rows, torch.device("cpu")):
            n = len(rows)
            return [
                torch.randn(n, 3), torch.rand(size=(n, 2)), torch.normal(mean=0.0, std=1.0, size=(n, 2)),
                torch.randn_like(torch.zeros(n, 2)), torch.multinomial(torch.ones(2 * n, 9), 1).view(n, 2),
                torch.zeros(n, 2).normal_(), torch.bernoulli(torch.full((n, 5), 0.5)),
            ]  # fmt: skip

    whole = drawn(range(count))
    for row in range(count):
        assert all(torch.equal(a[0], b[row]) for a, b in zip(drawn([row]), whole, strict=True))
    with pytest.raises(ValueError, match="expected some for each row"), ByRow([1, 2], torch.device("cpu")):
        torch.randn(3)


def test_a_seed_follows_from_the_noise_of_its_row():
    noise = torch.randn(5, 4, 2)
    assert len(set(seeds(noise))) == 5 and seeds(noise[2:3]) == seeds(noise)[2:3]
    assert seeds(torch.zeros(2, 4, 2)) == [0, 0]


def test_statistics_by_hand():
    rows = np.stack([np.arange(101.0), np.full(101, 7.0)], 1)
    found = statistics(rows, floor=0.02)
    np.testing.assert_allclose(found[:, 0], [0, 100, 50, np.sqrt(850), 1, 10, 50, 90, 99], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], [7, 7, 7, 0.02, 7, 7, 7, 7, 7], rtol=1e-6)


# -- what needs LeRobot itself: on one worker, where it is imported once ---------------------------------------------


def typed(config):
    """policy.settings= as it is typed."""
    return f"policy.settings={json.dumps(config)}".replace('"', "")


LEROBOT = pytest.mark.xdist_group("lerobot")
TINY = [
    "policy=lerobot",
    "policy.action_steps=4",
    typed(ACT),
    "batch_size=16",
    "score_every=4",
    "score_episodes=4",
]


@LEROBOT
def test_a_loss_follows_from_its_generator_alone():
    """Dropout, the VAE and whatever else draws: nobody else's random numbers are used up, or change it."""
    policy, obs, action = made(), torch.randn(6, 1, 3), torch.randn(6, 8, 2)
    pad = torch.zeros(6, 8)
    found = []
    for other in (1, 2):
        torch.manual_seed(other)
        before = torch.random.get_rng_state()
        found.append(policy.bc_loss(obs, action, torch.Generator().manual_seed(7), pad=pad))
        assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(*found) and len(found[0]) == 6
    outside = pad.clone()
    outside[:, 4:] = 1
    far = torch.cat([action[:, :4], action[:, 4:] + 100], 1)
    policy = made(settings={**ACT, "use_vae": False, "dropout": 0.0})
    one, two = (policy.bc_loss(obs, a, torch.Generator().manual_seed(7), pad=outside) for a in (action, far))
    assert torch.equal(one, two), "what is outside the episode does not count"


@LEROBOT
def test_the_optimiser_is_the_preset_of_the_type():
    from flywheel.rl.learner import Flat
    from flywheel.rl.optimiser import Grouped

    pytest.importorskip("diffusers", reason="an extra of LeRobot from 0.6 on")
    policy = made("diffusion", {**UNET, "scheduler_warmup_steps": 10, "optimizer_lr": 0.01}).train()
    flat = Flat(policy)
    optim = Grouped(flat, *policy.optimiser(100))
    assert (
        type(optim.made).__name__ == "Adam"
        and optim.made.param_groups[0]["betas"] == (0.95, 0.999)
        and optim.clip == 10
    )
    flat.take([[torch.ones_like(p) for p in flat.params]])
    rates = []
    for _ in range(100):
        optim.step()
        rates.append(optim.made.param_groups[0]["lr"])
    assert rates[0] == 0 and rates[5] == pytest.approx(0.005) and rates[10] == pytest.approx(0.01) and rates[-1] < 1e-5
    before = flat.values.clone()
    flat.take([[None] * len(flat.params)])
    optim.slots["updates"].fill_(10)
    optim.step()
    assert torch.equal(before, flat.values), "what has no part in a loss does not move"
    policy = made("vqbet", None, cameras={"top": [96, 96, 3]}, obs_steps=1, action_steps=None)
    assert [group["weight_decay"] for group in policy.optimiser(9)[0].param_groups] == [1e-6, 1e-4, 0.0]


@LEROBOT
def test_what_is_asked_of_a_type_that_it_has_not_got():
    for words, more in (
        ("act of LeRobot has no policy.settings.dim_modell; did you mean policy.settings.dim_model=", {"settings": {"dim_modell": 3}}),
        ("LeRobot has no such policy here. There are: act, diffusion", {"type": "atc"}),
        ("policy.type=tdmpc learns a world model", {"type": "tdmpc"}),
        ("n_action_steps` must be 1 when using temporal ensembling", {"settings": {"temporal_ensemble_coeff": 0.01}}),
        ("n_obs_steps=2 with cameras", {"type": "diffusion", "settings": UNET, "cameras": {"top": [32, 32, 3]}}),
        ("takes no condition", {"condition": True}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(words)):
            made(**more)


@LEROBOT
@pytest.mark.parametrize("coefficient", [0.01, -0.3])
def test_chunks_are_averaged_as_lerobot_does_it_each_slot_by_itself(coefficient):
    settings = {**ACT, "temporal_ensemble_coeff": coefficient}
    policy, rng = made(settings=settings, action_steps=1), np.random.default_rng(0)
    obs = rng.normal(2.0, 3.0, (3, 20, 3)).astype(np.float32)  # of three episodes
    alone = []
    for episode in obs:
        policy.net.reset()
        before, after = policy.around()
        with torch.no_grad():
            batches = [before(policy.batch(torch.from_numpy(row)[None, None])) for row in episode]
            alone.append([after(policy.net.select_action({k: v for k, v in b.items() if k != "action"}))[0].numpy() for b in batches])  # fmt: skip
    found = [[], [], []]
    policy.reset([0, 1], [5, 6])
    for t in range(20):  # the third begins where the first was, later
        if t == 10:
            policy.reset([0], [7])
        seen = [obs[0, t] if t < 10 else obs[2, t - 10], obs[1, t]]
        for k, action in zip((0 if t < 10 else 2, 1), policy.act(np.stack(seen), [0, 1]), strict=True):
            found[k].append(action)
    for mine, its in zip(found, alone, strict=True):
        np.testing.assert_allclose(mine, its[: len(mine)], atol=2e-6)
    with pytest.raises(ValueError, match="executes averages of its chunks"):
        learns(policy, build(Algorithm, tables()["rounds"]))
    with pytest.raises(ValueError, match="executes averages of its chunks"):
        Teaching(None, None, policy).student(None, None)
    assert learns(policy, build(Algorithm, tables()["bc"])) is policy


def test_averages_by_hand():
    averages = Averages(np.log(2.0), 3)  # weights 1, 1/2, 1/4, the oldest first
    chunks = [
        torch.tensor([[1.0], [2.0], [3.0]]),
        torch.tensor([[5.0], [6.0], [7.0]]),
        torch.tensor([[9.0], [9.0], [9.0]]),
    ]
    done = [float(averages.next(0, chunk, k == 0)) for k, chunk in enumerate(chunks)]
    np.testing.assert_allclose(done, [1, (2 + 5 / 2) / 1.5, (3 + 6 / 2 + 9 / 4) / 1.75], rtol=1e-6)
    assert float(averages.next(1, chunks[2], True)) == 9 and float(averages.next(0, chunks[0], True)) == 1


@LEROBOT
def test_a_type_whose_files_are_on_a_hub_says_so():
    pytest.importorskip("transformers", reason="needs the extra vla")
    with pytest.raises(ValueError, match="is built from files of the Hugging Face hub, and nothing is downloaded here"):
        made("smolvla", {}, cameras={"top": [32, 32, 3]}, action_steps=None)
    if wants_other_transformers(parts("pi0")[1]):
        with pytest.raises(ValueError, match="policy.type=pi0 of this LeRobot needs a changed transformers"):
            made("pi0", {}, cameras={"top": [32, 32, 3]}, action_steps=None)


SMOL = {"chunk_size": 8, "n_action_steps": 4, "num_vlm_layers": 2, "resize_imgs_with_padding": [32, 32], "num_steps": 3,
        "tokenizer_max_length": 8, "max_state_dim": 8, "max_action_dim": 8}  # fmt: skip


LITTLE = ["batch_size=4", "num_envs=2", "score_every=3", "score_episodes=2", "algorithm.cadence.improve=3"]


def filmed(root: Path) -> tuple[Store, list[str]]:
    """A store of six filmed episodes, and what commands about it are told."""
    task = {"name": "gym", "id": "odd:Camera-v0", "max_steps": 4}
    env, store = envs.make(task, 4, 1), Store(root)
    random = Uniform(**shape(env), obs_steps=1, action_steps=1, discrete=False)
    store.corpus(create=True).append(rollout(env, random, range(6), origin="human", film=True)[0])
    env.close()
    at = ["task=gym", "task.id=odd:Camera-v0", "task.max_steps=4", f"store={root}", "demos.failures=true"]
    return store, at


@LEROBOT
def test_a_smolvla_of_random_weights_reads_looks_learns_and_is_handed_back(tmp_path, capsys):
    """What it is built on lies in a folder; its words, its pictures and its chance are a row's own."""
    for package in ("transformers", "num2words"):
        pytest.importorskip(package, reason="SmolVLA needs the extra vla: pip install 'robot-flywheel[vla]'")
    import tiny_vla

    folder, rng = tiny_vla.write(tmp_path / "vlm"), np.random.default_rng(0)
    store, at = filmed(tmp_path / "store")
    words = [
        "policy=lerobot",
        "policy.type=smolvla",
        "policy.instruction=pick up the cube",
        typed(SMOL | {"vlm_model_name": str(folder)}),
        *LITTLE,
    ]
    code, out = call("pretrain", *words, *at, capsys=capsys)
    assert code == 0, out
    assert call("replay", out["run"], at[3], capsys=capsys)[0] == 0
    ref = out["outputs"]["checkpoint"]
    policy = store.load(ref)
    assert policy.by_row and policy.window == (0, 7) and policy.noise_shape == (8, 2)
    numbers = rng.normal(size=(3, policy.obs_dim)).astype(np.float32)
    frames = {"pixels": rng.integers(0, 256, (3, 96, 96, 3)).astype(np.uint8)}
    policy.reset(range(3), range(3))
    together = policy.act(numbers, frames=frames)
    for i in range(3):
        policy.reset([0], [i])
        alone = policy.act(numbers[i], frames={"pixels": frames["pixels"][i]})
        np.testing.assert_allclose(alone, together[i], atol=1e-6)
    policy.reset(range(3), range(3))
    assert np.abs(policy.act(numbers, frames={"pixels": 255 - frames["pixels"]}) - together).max() > 1e-4
    policy.spec["instruction"] = "the cube </s>"
    policy.reset(range(3), range(3))
    assert np.abs(policy.act(numbers, frames=frames) - together).max() > 1e-5, "it does not read"
    code, made = call("export", f"checkpoint={ref}", "format=lerobot_policy", f"out={tmp_path / 'out'}", *at[:4], capsys=capsys)  # fmt: skip
    assert code == 0 and made["metrics"]["difference"] <= 1e-5, made
    for stage, more in (("retrain", ["rounds=1"]), ("online", ["algorithm=residual"])):
        code, made = call(stage, f"checkpoint={ref}", *more, *at, capsys=capsys)
        assert code == 1 and "sees pixels: its pictures go through its own net, and whoever" in made["error"], made
    code, made = call("pretrain", *words[:3], typed(SMOL), *words[4:], *at, capsys=capsys)
    assert code == 1 and "nothing is downloaded here" in made["error"] and "vlm_model_name=FOLDER" in made["error"]


PI = {"chunk_size": 8, "n_action_steps": 4, "image_resolution": [28, 28], "num_inference_steps": 3,
      "tokenizer_max_length": 8, "max_state_dim": 8, "max_action_dim": 8}  # fmt: skip


@LEROBOT
def test_a_pi0_of_random_weights_learns_is_replayed_and_handed_back(tmp_path):
    """As SmolVLA above, in a process of its own, where pi0 is small (tiny_pi0.py)."""
    pytest.importorskip("transformers", reason="pi0 needs the extra vla: pip install 'robot-flywheel[vla]'")
    if wants_other_transformers(parts("pi0")[1]):
        pytest.skip("pi0 of this LeRobot needs a changed transformers")
    _, at = filmed(tmp_path / "store")

    def flywheel(*words):
        command = [sys.executable, Path(__file__).with_name("tiny_pi0.py"), tmp_path / "cache", *words, "--json"]
        out = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)})  # fmt: skip
        assert out.returncode == 0, out.stdout + out.stderr
        return json.loads(out.stdout.splitlines()[-1])

    words = ["policy=lerobot", "policy.type=pi0", "policy.instruction=pick up the cube", typed(PI)]
    out = flywheel("pretrain", *words, *LITTLE, *at)
    flywheel("replay", out["run"], at[3])  # exits with 0 only if every hash is equal
    ref = out["outputs"]["checkpoint"]
    more = [f"checkpoint={ref}", "format=lerobot_policy", f"out={tmp_path / 'out'}"]
    assert flywheel("export", *more, *at[:4])["metrics"]["difference"] <= 1e-5


@LEROBOT
def test_act_is_pretrained_practises_and_is_replayed(copied, capsys, tmp_path):
    """From a corpus to a policy, rounds of a best of N over it, to the bit again; and from a folder of LeRobot's."""
    copy, at = copied
    words = ["algorithm.cadence.improve=8", "name=policy/act", *TINY, *at]
    code, out = call("pretrain", *words, capsys=capsys)
    assert (code, out["status"]) == (0, "done"), out
    assert call("replay", out["run"], at[3], capsys=capsys)[0] == 0
    ref = out["outputs"]["checkpoint"]
    policy = copy.load(ref)
    assert policy.spec["type"] == "act" and policy.window == (0, 7) and policy.fixed
    little = [
        "algorithm.cadence.evaluate=3",
        "algorithm.cadence.improve=3",
        "batch_size=16",
        "collect.episodes=2",
        "collect.n=2",
    ]
    code, made = call("retrain", f"checkpoint={ref}", "rounds=1", "name=policy/act", *little, *at, capsys=capsys)
    assert code == 0 and copy.load(made["outputs"]["checkpoint"]).base.spec["type"] == "act", made
    for algorithm, said in (
        ("iql", "LeRobot says its loss of a whole batch"),
        ("td3_bc", "has no gradient with respect to policy"),
    ):
        code, made = call("pretrain", f"algorithm={algorithm}", *TINY, *at, capsys=capsys)
        assert code == 1 and said in made["error"], made
    code, made = call("online", f"checkpoint={ref}", "algorithm=ppo", "name=policy/act", *at, capsys=capsys)
    assert code == 1 and "take algorithm=rounds or residual" in made["error"], made
    folder = tmp_path / "pretrained_model"
    code, made = call("export", f"checkpoint={ref}", "format=lerobot_policy", f"out={folder}", *at[:4], capsys=capsys)
    assert code == 0 and made["metrics"]["difference"] == 0, made
    code, made = call(
        "pretrain",
        f"checkpoint={folder}",
        "name=policy/theirs",
        "algorithm.cadence.improve=4",
        *TINY[3:],
        *at,
        capsys=capsys,
    )
    assert code == 0, made
    (theirs,) = [entry["id"] for entry in copy.names.log("policy/theirs") if entry.get("kind") == "lerobot"]
    adopted = copy.load(f"policy/theirs@{theirs}")
    for row in np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32):
        for one in (policy, adopted):
            one.reset()
        assert np.array_equal(policy.act(row), adopted.act(row))
    (folder / "config.json").unlink()
    code, made = call("pretrain", f"checkpoint={folder}", *TINY[3:], *at, capsys=capsys)
    assert code == 1 and "a folder without config.json" in made["error"]


@LEROBOT
def test_what_lerobot_asks_of_an_environment_it_has():
    """LeRobot 0.6 asks for both texts, in processes of their own, and ends where one of them is not there."""
    from lerobot_policy_flywheel.env_flywheel import Playing

    env = Playing({"name": "gym", "id": "toy:Reach-v0", "max_steps": 20, "step_seconds": 0})
    env.reset(seed=210000000)
    assert env.task == env.task_description == "toy:Reach-v0, seed 210000000" and env._max_episode_steps == 20
    env.close()


EVAL = """
import json, sys
from lerobot.scripts import lerobot_eval
words, folders = json.loads(sys.argv[1]), sys.argv[2:]
for folder in folders:
    sys.argv = ["lerobot-eval", *words, f"--policy.path={folder}", f"--output_dir={folder}/eval"]
    lerobot_eval.eval_main()
"""


@LEROBOT
@pytest.mark.slow
def test_lerobot_eval_plays_the_episodes_that_flywheel_evaluate_plays(copied, capsys, tmp_path):
    """ACT as it is, a flow and a best of N by the plugin: the same seeds, each success the same."""
    copy, at = copied
    call("pretrain", "algorithm.cadence.improve=150", "algorithm.lag.policy=0.1", "name=policy/act", *TINY[:-1], "score_episodes=0",
         typed({**ACT, "use_vae": False, "optimizer_lr": 0.003}), *at, capsys=capsys)  # fmt: skip
    best, flow = (copy.runs(stage)[0]["result"]["outputs"]["checkpoint"] for stage in ("retrain", "pretrain"))
    refs, count = {"act": "policy/act", "best": best, "flow": flow}, 12
    for kind, ref in refs.items():
        out = f"out={tmp_path / kind}"
        assert call("export", f"checkpoint={ref}", "format=lerobot_policy", out, *at[:4], capsys=capsys)[0] == 0
    told = {"name": "gym", "id": "toy:Reach-v0", "max_steps": 20, "step_seconds": 0}
    words = [
        "--env.discover_packages_path=lerobot_policy_flywheel", "--env.type=flywheel", "--env.task=gym", "--env.render=false",
        f"--env.options={json.dumps(told)}", "--policy.device=cpu", f"--eval.batch_size={count}", f"--eval.n_episodes={count}",
        "--seed=210000000", "--eval.use_async_envs=false",  # newer LeRobots: in processes, each of which imports torch
    ]  # fmt: skip
    folders = [str(tmp_path / kind) for kind in refs]
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", EVAL, json.dumps(words), *folders], env=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    env = envs.make(Task(name="gym", id="toy:Reach-v0", max_steps=20, step_seconds=0), count, 1)
    for kind, ref in refs.items():
        code, out = call(
            "evaluate", f"checkpoint={ref}", f"episodes={count}", "num_envs=12", *at[:4], "threads=1", capsys=capsys
        )
        assert code == 0, out
        run = copy.root / "runs" / out["run"]
        theirs = json.loads((tmp_path / kind / "eval" / "eval_info.json").read_text())
        ours = json.loads((run / "eval_info.json").read_text())
        mine, other = (info["per_task"][0]["metrics"] for info in (ours, theirs))
        assert mine["successes"] == other["successes"] and mine["seeds"][0] == 210000000
        played, _ = rollout(env, copy.load(ref), mine["seeds"], origin="evaluation")
        for episode, earned, won in zip(played, other["sum_rewards"], other["successes"], strict=True):
            assert won or earned == pytest.approx(episode.extras["env_reward"].sum(), abs=1e-4), "another episode"
        newer = {"predicted_video_paths"}  # of LeRobot 0.6: of world models
        assert set(theirs["overall"]) - newer < set(ours["overall"]) and set(
            theirs["per_task"][0]["metrics"]
        ) - newer < set(mine)
        assert ours["overall"]["pc_success"] == theirs["overall"]["pc_success"]
        low, high = ours["overall"]["pc_success_ci95"]
        assert low <= ours["overall"]["pc_success"] <= high
