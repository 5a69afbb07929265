"""The scores of docs/results.md: each algorithm on a task that a CPU can run, several seeds; finished rows are kept and
committed.

    python benchmarks/scores.py                        run what has no row yet, then write docs/results.md
    python benchmarks/scores.py pendulum-sac ...       only these jobs;  --seeds 1 2: only these seeds;  --page: only the page
    python benchmarks/scores.py --list                 the jobs, with the minutes that their rows took

A run that was killed goes on where it stopped (its store is kept under stores/scores/). Training seeds are 1, 2, ...;
the evaluation's episodes are on report seeds, which no training touches."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from results import machine, rate

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results" / "scores"

CARTPOLE = [
    "task=gym",
    "task.id=CartPole-v1",
    "task.reward=env",
    "task.solved=475",
    "policy.obs_steps=1",
    "threads=1",
    "score_episodes=20",
]
PENDULUM = [
    "task=gym",
    "task.id=Pendulum-v1",
    "task.reward=env",
    "task.solved=-200",
    "policy.obs_steps=1",
    "policy.action_steps=1",
    "threads=1",
    "score_episodes=20",
    "score_every=20",
]
SCRATCH = ["checkpoint=none"]
PUSH = ["task=push", "gamma=0.97", "threads=1"]


def pendulum(algorithm: str, policy: str, *more: str) -> list[list[str]]:
    """20,000 steps, 1,000 of them random, and as many updates; the learning rate of the published settings."""
    words = [f"algorithm={algorithm}", f"policy={policy}", "max_steps=20000", "algorithm.lr=0.001", *more]
    return [["online", *PENDULUM, *SCRATCH, *words]]


def cartpole(algorithm: str) -> list[list[str]]:
    words = [f"algorithm={algorithm}", "policy=greedy_q", "batch_size=128", "max_steps=50000", "score_every=20"]
    return [["online", *CARTPOLE, *SCRATCH, *words]]


def push(policy: str, *stages: list[str], base: bool = True) -> list[list[str]]:
    """The shipped demonstrations, our own imitation of them where there is a `base`, then what is to be better than
    it."""
    imitate = ["pretrain", *PUSH, *policy.split(), "algorithm=bc"]
    learn = ([*stage[:1], *PUSH, *([] if base else policy.split()), *stage[1:]] for stage in stages)
    return [["ingest", "source=datasets/push_demos.hdf5", "task=push"], *([imitate] if base else []), *learn]


FROM_BC = [
    "max_steps=200000",
    "algorithm.collect.steps=8000",
    "algorithm.lr={policy: 0.00001, v: 0.001}",
    "+algorithm.cadence.warmup=2",
]


# name: (seeds, the stages, what others report)
JOBS: dict[str, tuple[int, list[list[str]], str]] = {
    "cartpole-dqn": (5, cartpole("dqn"), "500 in 50k steps (SB3 zoo), 488.7 +- 16.1 in 500k (cleanrl)"),
    "cartpole-double_dqn": (5, cartpole("double_dqn"), ""),
    "cartpole-ppo": (
        5,
        [["online", *CARTPOLE, *SCRATCH, "algorithm=ppo", "policy=categorical", "max_steps=100000", "gamma=0.98", "score_every=5"]],
        "500 +- 0 in 100k steps (SB3 zoo)",
    ),
    "pendulum-ddpg": (5, pendulum("ddpg", "deterministic"), "-152 +- 94 (SB3 zoo)"),
    "pendulum-td3": (5, pendulum("td3", "deterministic"), "-152 +- 90 (SB3 zoo)"),
    "pendulum-sac": (5, pendulum("sac", "tanh_gaussian"), "-157 +- 89 (SB3 zoo)"),
    "pendulum-ppo": (
        5,
        [["online", *PENDULUM, *SCRATCH, "algorithm=ppo", "policy=gaussian", "policy.log_std=0", "max_steps=100000", "gamma=0.9", "algorithm.lr={policy: 0.001, v: 0.003}", "batch_size=64", "algorithm.cadence.evaluate=320", "algorithm.cadence.improve=320", "algorithm.improve.policy.clipped_surrogate.target_kl=null"]],
        "-172 +- 104, with state-dependent exploration (SB3 zoo)",
    ),
    "push-bc": (3, push("policy=tanh_gaussian"), ""),
    "push-iql": (3, push("policy=tanh_gaussian", ["pretrain", "algorithm=iql", "score_every=6000"], base=False), ""),
    "push-cql": (3, push("policy=tanh_gaussian", ["pretrain", "algorithm=cql", "algorithm.cadence.rounds=6000", "score_every=6000"], base=False), ""),
    "push-rlpd": (3, push("policy=tanh_gaussian", ["online", "algorithm=rlpd", "checkpoint=none", "max_steps=40000", "score_every=25"], base=False), ""),
    "push-ppo": (3, push("policy=tanh_gaussian", ["online", "algorithm=ppo", *FROM_BC]), ""),
    "push-sac": (
        3,
        push("policy=tanh_gaussian", ["online", "algorithm=sac", "task.reward=env", "checkpoint=none", "max_steps=100000", "score_every=25"], base=False),
        "",
    ),
    "push-td3": (
        3,
        push("policy=deterministic", ["online", "algorithm=td3", "task.reward=env", "checkpoint=none", "max_steps=100000", "score_every=25"], base=False),
        "",
    ),
    "push-bc-flow": (3, push("policy=flow"), ""),
    "push-distil": (3, push("policy=flow", ["distil", "algorithm.cadence.improve=6000", "score_every=6000"]), ""),
    "push-dppo": (3, push("policy=flow", ["online", "algorithm=dppo", "max_steps=200000", "score_every=5"]), ""),
}  # fmt: skip


def run(job: str, seed: int) -> dict:
    """Run a job's stages in a store of its own, then evaluate what the last one made; its row."""
    place = ROOT / "stores" / "scores" / f"{job}-{seed}"
    began, done = time.monotonic(), None
    for stage in JOBS[job][1]:
        done = call(*stage, *([] if stage[0] == "ingest" else [f"seed={seed}"]), place=place)
    task = [word for word in stage if word.startswith("task")]
    scored = call(
        "evaluate", *task, f"checkpoint={done['outputs']['checkpoint']}", "episodes=100", f"seed={seed}", place=place
    )
    return {
        "job": job, "seed": seed, "commands": [" ".join(["flywheel", *stage]) for stage in JOBS[job][1]],
        "minutes": round((time.monotonic() - began) / 60, 1), "steps": done["metrics"].get("steps", 0),
        **{k: scored["metrics"][k] for k in ("success", "n", "ci95", "return", "return_std") if k in scored["metrics"]},
        "machine": machine(),
    }  # fmt: skip


def call(*words: str, place: Path) -> dict:
    """One stage in a process of its own; what it prints with --json."""
    command = [sys.executable, "-m", "flywheel.cli.app", *words, f"store={place}", "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if out.returncode:
        sys.exit(f"{' '.join(words)} failed: {out.stdout}")
    return json.loads(out.stdout.splitlines()[-1])


def section(rows: list[dict]) -> list[str]:
    """The table of docs/results.md: a line a job, seeds pooled."""
    lines = [
        "## Scores",
        "",
        "`make scores` (benchmarks/scores.py); one line a task and algorithm. Return: mean over seeds of the mean over",
        "100 episodes each, +- the standard deviation between seeds, worst seed; success pooled over seeds, with its "
        "Wilson interval. Success is the",
        "task's own, or a return of at least 475 (CartPole), -200 (Pendulum). A policy is the best of its own score "
        "curve on gate seeds; these episodes",
        "were seen by nobody before. The rows of `push` are gone until `make scores` has made them again: success "
        "there is now held for ten steps, the",
        "demonstrations go on until it is, and imitation, from which several of them began, trains to its plateau and "
        "not for 6,000 updates.",
        "",
    ]
    lines += [
        "| task, algorithm | environment steps | seeds | return | success | published | minutes in all |",
        "|---|---|---|---|---|---|---|",
    ]
    for job, (_, _, published) in JOBS.items():
        mine = [row for row in rows if row["job"] == job]
        if mine:
            lines.append(
                f"| {job.replace('-', ' ', 1)} | {told(mine)} | {published or '-'} | "
                f"{sum(r['minutes'] for r in mine):.0f} |"
            )
    minutes = [row["minutes"] for row in rows]
    lines += [
        "",
        f"{len(rows)} runs, {sum(minutes) / 60:.1f} hours in all beside other work; the longest took "
        f"{max(minutes):.0f} minutes.",
    ]
    return [*lines, ""]


def told(mine: list[dict]) -> str:
    """Steps, seeds, return and success of one job's rows, as cells."""
    from flywheel.stats import wilson

    n, k = sum(r["n"] for r in mine), round(sum(r["success"] * r["n"] for r in mine))
    pooled = rate({"success": k / n, "ci95": wilson(k, n)})
    steps = max(r["steps"] for r in mine)
    returns = "-"
    if "return" in mine[0]:
        each = np.array([r["return"] for r in mine])
        returns = f"{each.mean():.0f} +- {each.std(ddof=min(1, len(each) - 1)):.0f}, worst {each.min():.0f}"
    return f"{steps:,} | {len(mine)} | {returns} | {pooled}"


def read() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(ROWS.glob("*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help=f"of: {', '.join(JOBS)}")
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"no job {', '.join(unknown)}; there are: {', '.join(JOBS)}")
    if args.list:
        for job, (seeds, _, _) in JOBS.items():
            print(f"{job:24} {seeds} seeds  {sum(r['minutes'] for r in read() if r['job'] == job):6.1f} minutes")
        return
    ROWS.mkdir(parents=True, exist_ok=True)
    wanted = [] if args.page else [(j, s) for j in args.jobs or JOBS for s in args.seeds or range(1, JOBS[j][0] + 1)]
    for job, seed in wanted:
        path = ROWS / f"{job}-{seed}.json"
        if not path.exists():
            print(f"== {job}, seed {seed}", flush=True)
            path.write_text(json.dumps(run(job, seed), indent=1) + "\n")
    subprocess.run([sys.executable, Path(__file__).with_name("results.py"), "--page"], check=True)


if __name__ == "__main__":
    main()
