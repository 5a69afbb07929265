"""The whole wheel with 200,000 steps of practice, on an easy and on a hard task of ours and on two of others; each a job,
finished rows are kept and committed.

    python benchmarks/wheel.py                      run the jobs that have no row yet, then write docs/results.md
    python benchmarks/wheel.py assemble-1 ...       only these jobs;  --again: even if there is a row;  --page: only the page
    python benchmarks/wheel.py --small              each setting at toy size, to see that it runs; keeps nothing

A job is one `flywheel nightly experiment=wheel` from a fresh store (conf/experiment/wheel.yaml; FETCH for both of Fetch):
demonstrations, imitation, rounds, online, gate, and each policy once on report seeds. One that was killed goes on where
it stopped (its store is kept under stores/wheel/)."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import results

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results" / "wheel"
SEEDS = (1, 2, 3)
TARGETS = {  # success by environment steps of practice
    "lift": {200_000: 0.99},
    "assemble": {50_000: 0.80, 100_000: 0.90, 200_000: 0.97},
    "push": {200_000: 0.95},
    "pick": {200_000: 0.95},
}

FETCH = [
    "task=gym", "task.max_steps=50", "task.success=last:10", "retrain.collect.hindsight={}", "retrain.collect.episodes=48",
    "retrain.algorithm.cadence={rounds: 100, evaluate: 1000, improve: 600}", "retrain.algorithm.schedule=decay",
    "retrain.score_every=5", "retrain.max_steps=200000", "online=null", "policy.action_steps=2", "policy.width=512",
]  # fmt: skip
KEYS = "ingest.obs_keys=[achieved_goal,desired_goal,observation]"  # as Gymnasium sorts them
SETTINGS: dict[str, list[str]] = {
    "lift": ["task=lift", "distil={}"],
    "assemble": ["task=assemble", "retrain.score_every=1"],
    "push": [*FETCH, "task.id=FetchPush-v4", KEYS],
    "pick": [*FETCH, "task.id=FetchPickAndPlace-v4", KEYS],
}
ABOUT = {
    "lift": "Ours, and easy: from all shipped demonstrations, with a student at the end.",
    "assemble": "Ours: a square nut onto a square post, from the shipped demonstrations; seed 3 is of before the rounds "
    "imitated nine own successes for each demonstration.",
    "push": "gymnasium-robotics' FetchPush-v4, from 40 scripted demonstrations (benchmarks/fetch.py). The words of both Fetch "
    "tasks were chosen on seed 1 of this one, the last of them by its report episodes too; "
    "seeds 2 and 3 had no part in that. All steps are taken in rounds: online RL gained nothing here.",
    "pick": "gymnasium-robotics' FetchPickAndPlace-v4, from 10 scripted demonstrations (benchmarks/fetch.py); seed 3 is of "
    "before the two Fetch tasks shared these words.",
}
JOBS = {f"{setting}-{seed}": (setting, seed) for seed in SEEDS for setting in SETTINGS}
SMALL = [
    "debug=tiny", "retrain.algorithm.cadence.rounds=1", "online.rounds=1", "online.score_episodes=4",
    "retrain.score_episodes=4", "retrain.collect.episodes=4", "evaluate.episodes=4",
]  # fmt: skip


def words(setting: str, seed: int, place: Path) -> list[str]:
    """What a nightly is told; of Fetch, the demonstrations are recorded first, unless they are there."""
    told = ["experiment=wheel", *SETTINGS[setting], f"seed={seed}"]
    if "task=gym" not in told:
        return told
    path = place / f"{setting}_demos.hdf5"
    if not path.exists():
        subprocess.run([sys.executable, Path(__file__).with_name("fetch.py"), setting, path], check=True)
    return [*told, f"source={path}"]


def run(job: str) -> dict:
    """One job's row: as benchmarks/results.py has it, and success by the environment steps that practice had taken."""
    setting, seed = JOBS[job]
    told = words(setting, seed, ROOT / "stores" / "wheel")
    row = results.run(job, [*told, "threads=1"], ROOT / "stores" / "wheel" / job)
    row["command"] = "flywheel nightly " + " ".join(w for w in told if not w.startswith("source="))
    return row | {"by_steps": by_steps(row)}


def by_steps(row: dict) -> list[list]:
    """[[steps, success, n, stage]] on seeds to choose by: the base (at the size of its tournament), the rounds, online."""
    base = next((r for r in row["tournament"] if r["policy"] == row["base"]), None)
    found = [[0, base["success"], base["n"], "base"]] if base else []
    for stage, history, before in (
        ("rounds", row["history"], 0),
        ("online", row["online_history"], row["retrain"]["steps"]),
    ):
        for point in history:
            if "scored" in point:
                found.append([before + point["steps"], point["scored"]["success"], point["scored"]["n"], stage])
    return found


def at(curve: list[list], steps: int) -> list | None:
    """The last point of the curve that had not taken more than `steps`, if practice went on until 85 % of them."""
    found = [point for point in curve if point[0] <= steps]
    return found[-1] if found and curve[-1][0] >= 0.85 * steps else None


def section(rows: dict[str, dict]) -> list[str]:
    """The part of docs/results.md."""
    if not rows:
        return []
    lines = [
        "## The whole wheel at 200,000 steps", "",
        "`python benchmarks/wheel.py`: `flywheel nightly experiment=wheel`; the two Fetch tasks share a few words more; rows "
        "in benchmarks/results/wheel/. A setting with fewer than three seeds has not been run with the others yet.",
        "",
    ]  # fmt: skip
    for setting, about in ABOUT.items():
        mine = {job: row for job, row in rows.items() if JOBS[job][0] == setting}
        if not mine:
            continue
        lines += [f"### {setting}", "", about, "", *results.night_table(mine, setting)]
        lines += ["Success on seeds to choose by, by environment steps of practice:", ""]
        for job, row in mine.items():
            points = ", ".join(f"{p[0]:,}: {p[1]:.2f} ({p[3]})" for p in row["by_steps"])
            lines.append(f"* seed {JOBS[job][1]}: {points}.")
        lines += ["", "| steps | target | " + " | ".join(f"seed {JOBS[job][1]}" for job in mine) + " |"]
        lines.append("|---" * (2 + len(mine)) + "|")
        for steps, target in TARGETS[setting].items():
            points = [at(row["by_steps"], steps) for row in mine.values()]
            cells = [f"{p[1]:.2f} at {p[0]:,}" if p else "-" for p in points]
            lines.append(f"| {steps:,} | {target:.2f} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def read() -> dict[str, dict]:
    """The rows there are, by job."""
    return {job: json.loads(path.read_text()) for job in JOBS if (path := ROWS / f"{job}.json").exists()}


def small() -> None:
    """Each setting at toy size in a store that is thrown away."""
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            told = [*words(setting, 1, Path(folder)), *SMALL, "threads=1"]
            row = results.run(setting, told, Path(folder) / "store")
            print(f"{setting}: {row['status']}, {[r['policy'] for r in row['table']]}, {by_steps(row)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help=f"of: {', '.join(JOBS)}")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"no job {', '.join(unknown)}; there are: {', '.join(JOBS)}")
    if args.small:
        small()
        return
    ROWS.mkdir(parents=True, exist_ok=True)
    for job in [] if args.page else args.jobs or list(JOBS):
        path = ROWS / f"{job}.json"
        if args.again or not path.exists():
            print(f"== {job}", flush=True)
            mark = results.begun(path, ROOT / "stores" / "wheel" / job)
            results.write(path, run(job), mark)
    subprocess.run([sys.executable, Path(__file__).with_name("results.py"), "--page"], check=True)


if __name__ == "__main__":
    main()
