"""Updates a second of our learner against CORL, cleanrl and our own plain reference: equal nets, equal batches, one
run.

An update is one of the critic with its share of the policy's, drawing the batch included: ours through the window cache
and `Learner.act` with the tables of conf/algorithm/, the peer's through its own buffer and update. Each side is a
process of its own; the two take turns, and the ratio of each turn counts (median). CORL_DIR and CLEANRL_DIR name
checkouts; a peer that is not there is left out, with a word. Nets: 256 x 2 (CQL's policy x 3, as CORL's), ReLU, no
LayerNorm, batch 256; CORL's cases have 39 observations and 28 actions, cleanrl's 17 and 6. DQN: 100 x 2, as many
weights as cleanrl's 120 and 84, batch 128. PPO: 64 x 2. RLPD: our own nets (LayerNorm, SiLU) on both sides, against the
SAC of tests/reference with 10 critics in a loop, four critic updates to one of the policy. With one thread the clock is
the processor's, so that a busy neighbour does not count. DQN has a second line: ours with `compile=true`.

    --compile  such a line for every case
    --gpu      ours alone, on a GPU; skipped without one
    --against DIR   ours of another checkout, set up there, in place of every peer: what a change cost
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import _peers
import numpy as np

TENSOR_CORES = "amx_bf16" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
PLAIN = {"activation": "relu", "norm": False}
# policy, its depth, peer, targets without and with AMX, observations, actions, width, batch
CASES = {
    "iql": ("gaussian", 2, "corl", (1.7, 3.0), (39, 28, 256, 256)),
    "td3_bc": ("deterministic", 2, "corl", (1.7, 3.0), (39, 28, 256, 256)),
    "cql": ("tanh_gaussian", 3, "corl", (1.7, 3.0), (39, 28, 256, 256)),
    "sac": ("tanh_gaussian", 2, "cleanrl", (2.0, 2.0), (17, 6, 256, 256)),
    "td3": ("deterministic", 2, "cleanrl", (2.0, 2.0), (17, 6, 256, 256)),
    "dqn": ("greedy_q", 2, "cleanrl", (1.5, 1.5), (4, 2, 100, 128)),
    "ppo": ("gaussian", 2, "cleanrl", (1.5, 1.5), (17, 6, 64, 256)),
    "rlpd": ("tanh_gaussian", 2, "reference", (3.0, 3.0), (17, 6, 256, 256)),
}
NEEDS = {"corl": "CORL_DIR", "cleanrl": "CLEANRL_DIR"}
SCRIPTS = {"sac": "sac_continuous_action", "td3": "td3_continuous_action", "dqn": "dqn", "ppo": "ppo_continuous_action"}
CORPORA = tempfile.TemporaryDirectory()  # gone with the process
ROUND = 8  # updates of PPO in one pass through its batch


def random_rows(obs_dim: int, action_dim: int, steps: int = 50_000) -> dict[str, np.ndarray]:
    """Transitions that mean nothing, in the layout of D4RL."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=(steps, *shape)).astype(np.float32)  # noqa: E731
    return {
        "observations": draw(obs_dim), "next_observations": draw(obs_dim), "actions": np.tanh(draw(action_dim)),
        "rewards": draw(), "terminals": np.zeros(steps, np.float32),
    }  # fmt: skip


def table(name: str) -> dict:
    import yaml

    from flywheel.cli import config

    return yaml.safe_load((config.folder() / "algorithm" / f"{name}.yaml").read_text())


def parts(case: str):
    """The table of a case and its nets, as a stage would make them."""
    import torch

    from flywheel.args import build
    from flywheel.policy import base
    from flywheel.rl.build import table_nets
    from flywheel.rl.table import Algorithm

    kind, depth, side, _, (obs_dim, action_dim, width, _) = CASES[case]
    algorithm, own = table(case), {} if side == "reference" else PLAIN
    members = {"dqn": 1, "rlpd": 10}.get(case, 2)
    algorithm["critic"] = {"members": members, "width": width, "depth": 2, **own}
    if case == "iql":
        algorithm["lag"].pop("policy")  # CORL keeps no slow copy of it
    shape = {
        "obs_dim": obs_dim,
        "action_dim": action_dim,
        "obs_steps": 1,
        "action_steps": 1,
        "width": width,
        "depth": depth,
    }
    shape |= {"members": 1} if case == "dqn" else {}
    torch.manual_seed(0)
    policy = base.build({"kind": kind, **shape, **{k: v for k, v in own.items() if k == "activation" or case == "dqn"}})
    return algorithm, table_nets(build(Algorithm, algorithm), policy)


def ours(case: str, device: str = "cpu", **how):
    """Some updates of ours as a function that returns how many: cadence, table and source as a stage would have
    them."""
    from flywheel.corpus import Corpus
    from flywheel.episode import Episode
    from flywheel.rl.learner import Learner
    from flywheel.rl.source import Offline

    if case == "ppo":
        return on_policy(device, **how)
    obs_dim, action_dim, _, batch = CASES[case][-1]
    folder, rows = Path(tempfile.mkdtemp(dir=CORPORA.name)), random_rows(obs_dim, action_dim)
    if case == "dqn":
        rows["actions"] = np.eye(action_dim, dtype=np.float32)[rows["actions"].argmax(1)]
    episodes = [
        Episode(
            task="random", obs={"state": rows["observations"][i : i + 501]}, action=rows["actions"][i : i + 500],
            reward=np.zeros(500, np.float32), terminated=False, success=False, origin="random", seed=i,
        )
        for i in range(0, len(rows["rewards"]) - 501, 500)
    ]  # fmt: skip
    corpus = Corpus(folder / "corpus", create=True)
    corpus.append(episodes, message="random", author="benchmark")
    windows = corpus.windows(corpus.at("latest"), cache=folder / "cache")
    algorithm, made = parts(case)
    shares = {act: {"all": 1.0} for act in ("evaluate", "improve")}
    drawn = (windows, {"all": np.arange(len(windows))}, shares)
    steps = {"obs_steps": 1, "action_steps": 1, "batch_size": batch}
    source = Offline(*drawn, device=device, **steps)
    learner = Learner(
        made, evaluate=algorithm["evaluate"], improve=algorithm.get("improve") or {}, lag=algorithm["lag"], device=device,
        **how,
    )  # fmt: skip
    cadence = algorithm["cadence"]
    share = cadence["evaluate"] // (cadence["improve"] or cadence["evaluate"])

    def update() -> int:
        for _ in range(share):
            learner.act("evaluate", source.batch("evaluate"))
        if cadence["improve"]:
            learner.act("improve", source.batch("improve"))
        return share

    return update


def on_policy(device: str, **how):
    """A pass of PPO's updates of ours over a round that means nothing."""
    import torch

    from flywheel.rl.learner import Learner
    from flywheel.rl.source import OnPolicy

    algorithm, made = parts("ppo")
    policy, (obs_dim, action_dim, _, batch) = made["policy"].explores(1.0), CASES["ppo"][-1]
    source = OnPolicy(obs_steps=1, action_steps=1, play=None, batch_size=batch, device=device)
    obs, count = torch.randn(ROUND * batch, 1, obs_dim), ROUND * batch
    with torch.no_grad():
        chain = policy.chain(obs, torch.randn(count, 1, action_dim))
        log_prob = policy.chain_log_prob(obs, chain)[0]
    data = {"obs": obs, "action": chain[:, 0], "chain": chain, "log_prob": log_prob}
    source.hold(data | {"advantage": torch.randn(count), "return": torch.randn(count)})
    improve = {"policy": {"clipped_surrogate": {"clip": 0.2}}}
    learner = Learner(
        made, evaluate=algorithm["evaluate"], improve=improve, lag={}, advantage=algorithm["advantage"], device=device,
        clip=0.5, **how,
    )  # fmt: skip

    def update() -> int:
        for act in ("evaluate", "improve"):
            for _ in range(ROUND):
                learner.act(act, source.batch(act))
        return ROUND

    return update


def peer(case: str):
    """Some updates of the peer as a function that returns how many."""
    side, (obs_dim, action_dim, _, _) = CASES[case][2], CASES[case][-1]
    if side == "corl":
        module, trainer, _ = _peers.corl_trainer(case, obs_dim, action_dim, 1_000_000, depth=2)
        buffer = _peers.corl_buffer(module, random_rows(obs_dim, action_dim))
        return lambda: (trainer.train(buffer.sample(256)), 1)[1]
    if side == "cleanrl":
        env, more = ("CartPole-v1", {"train_frequency": 1}) if case == "dqn" else ("HalfCheetah-v5", {})
        if case == "ppo":
            shape = {"num_envs": 8, "num_steps": 256, "num_minibatches": ROUND, "update_epochs": 1}
            step = _peers.cleanrl(SCRIPTS[case], "HalfCheetah-v5", **shape)
            return lambda: (step(), ROUND)[1]
        step = _peers.cleanrl(SCRIPTS[case], env, buffer_size=20_000, learning_starts=0, **more)
        return lambda: (step(), step(), 2)[2]
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from reference import sac

    rows = {
        k: torch.from_numpy(v[: 40 * 256]).unflatten(0, (40, 256)) for k, v in random_rows(obs_dim, action_dim).items()
    }
    batches = [
        {
            "obs": rows["observations"][i, :, None], "action": rows["actions"][i, :, None], "reward": rows["rewards"][i],
            "next_obs": rows["next_observations"][i, :, None], "discount": torch.full((256,), 0.99),
        }
        for i in range(40)
    ]  # fmt: skip
    _, made = parts(case)
    return lambda: (sac.train(made, batches, torch.Generator(), lr=3e-4, rate=0.005, ratio=4), 40)[1]


def worker(case: str, side: str, threads: int, **how) -> None:
    """Print a rate for each line on stdin, the number of seconds to run."""
    import torch

    torch.set_num_threads(threads)
    out, sys.stdout = sys.stdout, sys.stderr
    update = ours(case, **how) if side == "ours" else peer(case)
    begin = sum(os.times()[:4])
    for _ in range(3):
        update()
    print("ready", sum(os.times()[:4]) - begin, file=out, flush=True)
    clock = time.process_time if threads == 1 else time.perf_counter  # one thread: a busy neighbour does not count
    for line in sys.stdin:
        begin, done = clock(), 0
        while clock() - begin < float(line):
            done += update()
        print(done / (clock() - begin), file=out, flush=True)


def measure(
    case: str, threads: int, seconds: float, turns: int, precision: str, compile: bool, against: Path | None = None
) -> dict:
    """Both sides of one case, taking turns; what is compiled is compiled anew."""
    sides, began = {}, {}
    cache = tempfile.TemporaryDirectory()
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache.name}
    common = ["--threads", str(threads), "--precision", precision, *(["--compile"] if compile else [])]
    for side in ("ours", "peer"):
        command = [sys.executable, __file__, case, "--worker", side, *common]
        if side == "peer" and against:
            there = against / "benchmarks" / "learning.py"
            command = [str(against / ".venv" / "bin" / "python"), str(there), case, "--worker", "ours", *common]
        sides[side] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        said, _, began[side] = sides[side].stdout.readline().partition(" ")
        if said != "ready":
            sys.exit(f"{case}: {side} did not start; try: {' '.join(command)} </dev/null")
    rates = {side: [] for side in sides}
    for _ in range(turns):
        for side, process in sides.items():
            print(seconds, file=process.stdin, flush=True)
            rates[side].append(float(process.stdout.readline()))
    for process in sides.values():
        process.stdin.close()
        process.wait()
    cache.cleanup()
    ratio = median(a / b for a, b in zip(rates["ours"], rates["peer"], strict=True))
    plain, amx = CASES[case][3]
    return {
        "case": case, "peer": "then" if against else CASES[case][2], "compiled": compile, "threads": threads, "ours": median(rates["ours"]),
        "theirs": median(rates["peer"]), "ratio": ratio, "seconds_to_begin": float(began["ours"]), "target": amx if TENSOR_CORES else plain,
        "target_with_amx": amx, "target_without": plain,
    }  # fmt: skip


def on_gpu(cases: list[str], seconds: float, **how) -> None:
    """Updates a second of ours with nets, random numbers and offline data on the GPU."""
    import torch

    if not torch.cuda.is_available():
        print("there is no GPU here: skipped")
        return
    for case in cases:
        update = ours(case, "cuda", **how)
        for _ in range(10):
            update()
        torch.cuda.synchronize()
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            done += update()
        torch.cuda.synchronize()
        print(
            f"{case:8} {done / (time.perf_counter() - begin):7.1f} updates/s on {torch.cuda.get_device_name()}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of {', '.join(CASES)}; default all")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=1.5, help="a turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compile", action="store_true", help="ours compiled too, as DQN is in any case")
    parser.add_argument("--gpu", action="store_true", help="ours alone, on a GPU")
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout of ours as the peer")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.cases[0], args.worker, args.threads[0], precision=args.precision, compile=args.compile)
    if args.gpu:
        return on_gpu(args.cases or list(CASES), args.seconds, precision=args.precision, compile=args.compile)
    for case in args.cases or CASES:
        needed = None if args.against else NEEDS.get(CASES[case][2])
        if needed and not _peers.folder(needed):
            print(f"{case}: left out, {needed} names no checkout")
            continue
        forms = (False, True) if args.compile or case == "dqn" else (False,)
        for threads, compile in itertools.product(args.threads or (1, 2), forms):
            result = measure(case, threads, args.seconds, args.turns, args.precision, compile, args.against)
            if args.json:
                print(json.dumps(result), flush=True)
                continue
            print(
                f"{case:8} {threads} thread(s){', compiled' * compile}: ours {result['ours']:7.1f} updates/s, "
                f"{result['peer']} {result['theirs']:7.1f}, ratio {result['ratio']:.3f}"
                + (
                    ""
                    if args.against
                    else f"; target {result['target_without']} without AMX, {result['target_with_amx']} with "
                    f"({'with' if TENSOR_CORES else 'without'} applies)"
                )
                + (f"; {result['seconds_to_begin']:.0f} s to compile" if compile else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
