"""Offline learning side by side with CORL: the same transitions, nets, hyper-parameters and number of updates; its own
code.

    python benchmarks/offline.py                 make the data, run the jobs that have no row yet (results/offline.json)
    python benchmarks/offline.py iql-ours-1 ...  only these jobs

The data is a half-trained SAC's whole life on HalfCheetah-v5, from random actions on, made and kept by `flywheel
online`. Ours learns by `flywheel pretrain` from the corpus; CORL's trainer (a checkout that CORL_DIR names) from the
same rows in D4RL's layout. Where CORL's defaults differ from our tables, its value is given to ours: nets of ReLU
without LayerNorm, plain Adam, no clipping; for CQL also how its policy begins (a small last layer, the standard
deviation and how fast that moves) and a backup without entropy. Both are scored by their mean action on the same report
seeds, which nothing was learnt or chosen from."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import _peers
import numpy as np

ROOT = Path(__file__).parent.parent
STORE, ROWS = ROOT / "stores" / "offline", ROOT / "benchmarks" / "results" / "offline.json"
TASK = ["task=gym", "task.id=HalfCheetah-v5", "task.max_steps=1000", "task.reward=env"]
SEEDS, EPISODES = (1, 2, 3), 10
DATA = [
    "online", *TASK, "algorithm=sac", "policy=tanh_gaussian", "policy.obs_steps=1", "policy.action_steps=1", "checkpoint=none",
    "warmup=5000", "rounds=30", "algorithm.collect.steps=1000", "algorithm.cadence.evaluate=1000",
    "algorithm.cadence.improve=1000", "num_envs=1", "score_episodes=10",
]  # fmt: skip
PLAIN = ["+policy.activation=relu", "+algorithm.critic.activation=relu", "+algorithm.critic.norm=false"]
ADAM = ["+algorithm.weight_decay=0.0", "+algorithm.clip=1e9", "policy.obs_steps=1", "policy.action_steps=1"]
#         updates  policy           what CORL has otherwise than our table
CASES = {
    "iql": (20_000, "gaussian", ["algorithm.critic.members=2", "policy.depth=2", "algorithm.lr=0.0003"]),
    "td3_bc": (20_000, "deterministic", []),
    "awac": (20_000, "tanh_gaussian", ["algorithm.critic.depth=3", "policy.depth=3"]),
    "cql": (3_000, "tanh_gaussian", ["algorithm.critic.depth=3", "policy.depth=3",
                                     "algorithm.lr={q: 0.0003, policy: 0.00003, alpha: 0.00003}",
                                     "policy.last_scale=0.01", "policy.log_std=-1.0", "policy.log_std_span=1.0",
                                     "algorithm.evaluate.q.td.next_value={soft: {alpha: 0.0}}"]),
}  # fmt: skip
JOBS = [f"{case}-{side}-{seed}" for seed in SEEDS for case in CASES for side in ("corl", "ours")]


def flywheel(*words: str) -> dict:
    """A stage's result, from a process of its own."""
    command = [sys.executable, "-m", "flywheel.cli.app", *words, f"store={STORE}", "threads=1", "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if out.returncode:
        sys.exit(f"{' '.join(words)} failed: {out.stdout}")
    return json.loads(out.stdout.splitlines()[-1])


def data() -> dict:
    """What describes the data."""
    from flywheel.runs.run import Store

    version, windows = transitions()
    (made,) = Store(STORE).runs("online")
    rows, reward = windows.rows, windows.columns["extras.env_reward"]
    returns = [float(rows[s : s + n, reward].sum()) for s, n in zip(windows.start, windows.length, strict=True)]
    return {
        "command": "flywheel " + " ".join(DATA), "id": version.id, "episodes": len(version),
        "steps": int(sum(windows.length)), "returns": [round(r) for r in returns], "behaviour": made["result"]["metrics"],
    }  # fmt: skip


def transitions():
    """The version of the corpus that is learnt from, and its rows; made if it is not there."""
    from flywheel.rl.source import FIELDS
    from flywheel.runs.run import Store

    store = Store(STORE)
    if not store.runs("online"):  # made once, whatever changes in the code afterwards
        flywheel(*DATA)
    corpus = store.corpus()
    version = corpus.at("latest").select(task="HalfCheetah-v5").canonical()
    return version, corpus.windows(version, FIELDS["env"], cache=store.cache)


def rows() -> dict[str, np.ndarray]:
    """The data in D4RL's layout; the end of an episode by its time limit is no terminal."""
    _, windows = transitions()
    spans = [np.arange(s, s + n) for s, n in zip(windows.start, windows.length, strict=True)]
    here, columns = np.concatenate(spans), windows.columns
    return {
        "observations": windows.rows[here, columns["obs.state"]],
        "next_observations": windows.rows[here + 1, columns["obs.state"]],
        "actions": windows.rows[here, columns["action"]],
        "rewards": windows.rows[here, columns["extras.env_reward"]].ravel(),
        "terminals": np.zeros(len(here), np.float32),
    }


def corl(case: str, seed: int) -> dict:
    """CORL's trainer on the data, normalised as its `train` does; returns of its mean action."""
    import gymnasium
    import torch

    updates, dataset = CASES[case][0], rows()
    obs, action = dataset["observations"], dataset["actions"]
    module = _peers.corl(case)
    module.set_seed(seed)
    mean, std = module.compute_mean_std(obs, eps=1e-3)
    for key in ("observations", "next_observations"):
        dataset[key] = module.normalize_states(dataset[key], mean, std)
    _, trainer, actor = _peers.corl_trainer(case, obs.shape[1], action.shape[1], updates)
    buffer = _peers.corl_buffer(module, dataset)
    began = time.monotonic()
    for _ in range(updates):
        trainer.train(buffer.sample(256))
    seconds = time.monotonic() - began
    env, returns = gymnasium.make("HalfCheetah-v5", max_episode_steps=1000), []
    actor.eval()
    for episode in report_seeds(seed):
        state, over, total = env.reset(seed=episode)[0], False, 0.0
        while not over:
            with torch.no_grad():
                wish = actor.act(((state - mean) / std).astype(np.float32), "cpu")
            state, reward, terminated, truncated, _ = env.step(np.clip(wish, -1, 1))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return {"returns": returns, "seconds": seconds}


def report_seeds(seed: int) -> list[int]:
    from flywheel.args import Acting
    from flywheel.seeds import seeds

    return seeds("report", Acting(seed=seed), 0, EPISODES)


def ours(case: str, seed: int) -> dict:
    """`flywheel pretrain` on the data; returns on the same seeds."""
    updates, policy, more = CASES[case]
    steps = 2 if case == "td3_bc" else 1  # two critic updates, one of the policy
    words = [*TASK, f"seed={seed}"]
    made = flywheel(
        "pretrain", *words, f"name=policy/{case}-{seed}", f"algorithm={case}", f"policy={policy}", *PLAIN, *ADAM, *more, f"algorithm.cadence.rounds={updates // steps}",
        "demos.origin=*", "demos.failures=true", "score_episodes=0", f"score_every={updates}",
    )  # fmt: skip
    ref = made["outputs"]["checkpoint"]
    scored = flywheel("evaluate", *words, f"checkpoint={ref}", f"episodes={EPISODES}", f"num_envs={EPISODES}")
    from flywheel.runs.run import Store

    folder = Store(STORE).root / "runs" / scored["run"] / "out"
    return {"returns": np.load(folder / "checkpoint.npz")["return"].tolist(), "seconds": made["seconds"]}


def section() -> list[str]:
    """The table of docs/results.md, from the rows there are: mean return over seeds, and the deviation between
    seeds."""
    if not ROWS.exists():
        return []
    found = json.loads(ROWS.read_text())
    data, rows = found["data"], found["rows"]
    lines = [
        "## Offline, side by side with CORL: HalfCheetah-v5", "",
        f"`CORL_DIR=... python benchmarks/offline.py`. The data: the {data['steps']:,} steps that a SAC of ours lived "
        "through, from random",
        f"actions to a return of {data['behaviour']['return']:.0f} ({data['episodes']} episodes, returns "
        f"{min(data['returns'])} to "
        f"{max(data['returns'])}, mean {np.mean(data['returns']):.0f}). Both sides learn from the same transitions",
        "with as many updates and CORL's nets and rates; mean return of the mean action over report seeds, then mean "
        "and deviation",
        "over training seeds. The target: ours no more than one of CORL's deviations below. 3,000 updates of CQL, all "
        "that CORL's code allows on",
        "two cores, are too few for either side: about 0 is a cheetah that stands still, so how a policy begins "
        "decides, and ours is",
        "given CORL's small last layer, its standard deviation, and how fast that moves.", "",
        "| algorithm | updates | CORL | ours | target | seeds, CORL and ours |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for case, (updates, *_) in CASES.items():
        means = {
            side: [rows[job]["mean"] for seed in SEEDS if (job := f"{case}-{side}-{seed}") in rows]
            for side in ("corl", "ours")
        }
        cells = [told(values) for values in means.values()]
        counts = ", ".join(str(len(values)) for values in means.values())
        lines.append(f"| {case} | {updates:,} | {' | '.join(cells)} | {reached(**means)} | {counts} |")
    return [*lines, ""]


def told(means: list[float]) -> str:
    """Mean and deviation of the seeds' means, as a cell."""
    spread = f" +- {np.std(means, ddof=1):.1f}" if len(means) > 1 else ""
    return f"{np.mean(means):.1f}{spread}" if means else "-"


def reached(corl: list[float], ours: list[float]) -> str:
    """Whether ours is within one of CORL's deviations or better, as a cell."""
    if len(corl) < 2 or not ours:
        return "-"
    missed = np.mean(corl) - np.std(corl, ddof=1) - np.mean(ours)
    return "reached" if missed <= 0 else f"missed by {missed:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of: {', '.join(JOBS)}; default all that have no row")
    parser.add_argument("--here", action="store_true", help="run one job in this process and print its row")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"no job {', '.join(unknown)}; there are: {', '.join(JOBS)}")
    if args.here:
        case, side, seed = args.jobs[0].rsplit("-", 2)
        row = (ours if side == "ours" else corl)(case, int(seed))
        print(json.dumps({**row, "updates": CASES[case][0], "mean": float(np.mean(row["returns"]))}))
        return
    if not _peers.folder("CORL_DIR"):
        sys.exit("CORL_DIR names no checkout of tinkoff-ai/CORL: nothing to compare with")
    from results import machine

    if not ROWS.exists():
        ROWS.write_text(json.dumps({"data": data(), "machine": machine(), "rows": {}}, indent=1) + "\n")
    found = json.loads(ROWS.read_text())
    for job in args.jobs or [job for job in JOBS if job not in found["rows"]]:
        print(f"== {job}", flush=True)
        out = subprocess.run([sys.executable, __file__, job, "--here"], stdout=subprocess.PIPE, text=True)
        if out.returncode:
            sys.exit(f"{job} failed")
        found = json.loads(ROWS.read_text())
        found["rows"][job] = json.loads(out.stdout.splitlines()[-1])
        ROWS.write_text(json.dumps(found, indent=1) + "\n")
        print(f"   mean return {found['rows'][job]['mean']:.0f}, {found['rows'][job]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
