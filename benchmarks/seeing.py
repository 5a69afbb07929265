"""`lift` from pictures: two cameras of 64 x 64 pixels and what the robot knows of itself, 85 demonstrations.

    python benchmarks/seeing.py                     run the jobs that have no row yet, then write docs/results.md
    python benchmarks/seeing.py rounds-1 ...        only these;  --again: even if there is a row;  --page: only the page
    python benchmarks/seeing.py --small             each part at toy size, to see that it runs; keeps nothing

A job is a part and a seed. Parts stand on others, which are looked up where they are done: a store a seed, below
stores/seeing/. Each policy is scored once, on 200 report seeds. Finished rows are kept in benchmarks/results/seeing/."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import results
from results import flywheel

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results" / "seeing"
SEEDS = (1, 2, 3)
BOTH = "task.cameras={wrist: 64, top: 64}"
CLONE = ["policy=flow", "algorithm.cadence.improve=8000", "score_every=4000"]
SEE = ["policy=flow", "batch_size=128", "score_every=4000"]  # half a batch costs half
ROUNDS = ["rounds=16", "score_every=4", "score_episodes=96"]
# part: (stage, what its checkpoint comes from, words, in words)
PARTS: dict[str, tuple[str, str | None, list[str], str]] = {
    "state": ("pretrain", None, CLONE, "imitation from the state, for comparison"),
    "teacher": ("retrain", "state", ["rounds=5"], "rounds from the state: the teacher"),
    "clone": ("pretrain", None, [BOTH, *SEE], "imitation"),
    "quick": (
        "pretrain", None, [BOTH, *SEE, "algorithm.cadence.improve=24000", "budget=10m"],
        "imitation, ten minutes of both cores with nothing beside (OMP_NUM_THREADS=2)",
    ),
    "wrist": ("pretrain", None, ["task.cameras={wrist: 64}", *SEE], "imitation, the wrist's camera alone"),
    "top": ("pretrain", None, ["task.cameras={top: 64}", *SEE], "imitation, the upper camera alone"),
    "rounds": ("retrain", "clone", [BOTH, *ROUNDS], "rounds, eyes frozen"),
    "learn": ("retrain", "clone", [BOTH, *ROUNDS, "algorithm.encoder=learn"], "rounds, eyes learning too"),
    "again": ("pretrain", "rounds", [BOTH, *SEE, "demos.origin=*"], "imitation again, of own successes too"),
    "more": ("retrain", "again", [BOTH, "rounds=12", *ROUNDS[1:], "prior=true"], "rounds after that, their own steps"),
    "taught": (
        "distil", "teacher", [
            BOTH, "policy=deterministic", "practice={rounds: 8, episodes: 64}", "algorithm.cadence.improve=12000",
            "score_every=3000", "name=policy/taught",
        ],
        "taught by the teacher on the student's own rollouts",
    ),
}  # fmt: skip
JOBS = {f"{part}-{seed}": (part, seed) for seed in SEEDS for part in PARTS}
SMALL = ["policy.width=16", "policy.depth=1", "batch_size=8", "score_episodes=4", "num_envs=4"]


def small(stage: str) -> list[str]:
    """The words that make a stage tiny."""
    if stage == "retrain":
        little = ["rounds=2", "score_every=2", "collect.episodes=4", "algorithm.cadence.evaluate=3"]
        return [*SMALL[2:], *little, "algorithm.cadence.improve=3", "algorithm.critic.width=16"]
    told = [*SMALL, "algorithm.cadence.improve=6", "score_every=6"]
    return [*told, "practice={rounds: 2, episodes: 4}"] if stage == "distil" else told


def made(part: str, seed: int, store: Path, tiny: bool) -> tuple[dict, list[str]]:
    """The result of the part's stage, and the words that say its task; what it stands on is made first."""
    stage, of, words, _ = PARTS[part]
    task = ["task=lift", *(word for word in words if word.startswith("task.cameras")), f"store={store}"]
    source = ROOT / "datasets" / "lift_demos.hdf5"
    flywheel("ingest", *task, f"source={source}")
    before = made(of, seed, store, tiny)[0]["outputs"] if of else {}
    if stage == "pretrain":  # a new net, of what the corpus held then
        begins = [f"corpus={before['corpus']}"] if of else []
    else:
        begins = [f"checkpoint={before['checkpoint']}"]
    rest = [word for word in words if not word.startswith("task.cameras")]
    return flywheel(stage, *task, *begins, *rest, *(small(stage) if tiny else []), f"seed={seed}"), task


class Blinded:
    """A policy before whose eyes something is done to the frames {camera: [N, H, W, 3]}."""

    def __init__(self, policy, change):
        self.policy, self.change = policy, change

    def __getattr__(self, name: str):
        return getattr(self.policy, name)

    def act(self, seen, active, frames):
        return self.policy.act(seen, active, frames={name: self.change(frame) for name, frame in frames.items()})


def deceived(ref: str, store: Path, n: int) -> dict[str, list]:
    """Success with grey pictures, and with those of another episode: [won, n] on gate seeds."""
    from flywheel import env as envs
    from flywheel import seeds
    from flywheel.args import Task
    from flywheel.env import rollout
    from flywheel.runs.run import Store

    env = envs.make(Task(name="lift", cameras={"wrist": 64, "top": 64}), 50, 2)
    policy, found = Store(store).load(ref), {}
    changes = {"blank": lambda frame: np.full_like(frame, 128), "shuffled": lambda frame: np.roll(frame, 1, 0)}
    for name, change in changes.items():
        done, _ = rollout(
            env, Blinded(policy, change), range(seeds.BLOCKS["gate"], seeds.BLOCKS["gate"] + n), origin="benchmark"
        )
        found[name] = [sum(bool(e.success) for e in done), n]
    env.close()
    return found


def job(part: str, seed: int, store: Path, tiny: bool = False) -> dict:
    """A part's row."""
    began, n = time.monotonic(), 4 if tiny else 200
    from flywheel.runs.run import source_commit

    told, task = made(part, seed, store, tiny)
    taken = time.monotonic() - began
    ref = told["outputs"]["checkpoint"]
    scored = flywheel("evaluate", *task, f"checkpoint={ref}", f"episodes={n}", f"seed={seed}")["metrics"]
    row = {"part": part, "seed": seed, "minutes": round(taken / 60, 1), "commit": source_commit()}
    row |= {key: scored[key] for key in ("success", "ci95", "n")} | {"machine": results.machine()}
    row |= {
        key: told["metrics"][key] for key in ("steps", "updates", "regret", "worst_window") if key in told["metrics"]
    }
    return row | (deceived(ref, store, 8 if tiny else 100) if part == "clone" else {})


def section() -> list[str]:
    """The rows, for docs/results.md."""
    rows = [json.loads(path.read_text()) for path in sorted(ROWS.glob("*.json"))]
    if not rows:
        return []
    lines = [
        "## From pictures", "",
        "`python benchmarks/seeing.py`: `lift` from 85 demonstrations, two cameras of 64 x 64 pixels and what the robot "
        "knows of itself; 200 report seeds each. Blank, shuffled: the same policy before grey pictures, or those of "
        "another episode, 100 gate seeds. Minutes on two cores are of one thread beside two or three other jobs, where "
        "nothing else is said.", "",
        "| | seed | success | steps of practice | updates | blank, shuffled | minutes | machine |", "|---" * 8 + "|",
    ]  # fmt: skip
    for part, (*_, words) in PARTS.items():
        for row in (row for row in rows if row["part"] == part):
            lies = ", ".join(f"{row[k][0] / row[k][1]:.2f}" for k in ("blank", "shuffled") if k in row)
            lines.append(
                f"| {words} | {row['seed']} | {results.rate(row)} | {row.get('steps', 0):,} | {row.get('updates', 0):,} | "
                f"{lies} | {row['minutes']} | {row['machine'].get('gpu') or row['machine']['cpu']} |"
            )
    lines.append("")
    for part, (*_, words) in PARTS.items():
        mine = [row for row in rows if row["part"] == part]
        if len(mine) == len(SEEDS):
            lines.append(f"Pooled, {words}: {results.pooled(mine)}.  ")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help="PART-SEED")
    for flag in ("again", "page", "small"):
        parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"no job {', '.join(unknown)}; there are: {', '.join(JOBS)}")
    if args.small:
        with tempfile.TemporaryDirectory() as folder:
            for part in PARTS:
                print(part, job(part, 1, Path(folder), tiny=True), flush=True)
        return
    ROWS.mkdir(parents=True, exist_ok=True)
    for name in [] if args.page else args.jobs or JOBS:
        path = ROWS / f"{name}.json"
        if args.again or not path.exists():
            print(f"== {name}", flush=True)
            part, seed = JOBS[name]
            row = job(part, seed, ROOT / "stores" / "seeing" / str(seed))
            path.write_text(json.dumps(row, indent=1) + "\n")
    subprocess.run([sys.executable, Path(__file__).with_name("results.py"), "--page"], check=True)


if __name__ == "__main__":
    main()
