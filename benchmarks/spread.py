"""How far candidates scatter: rounds of retraining with one spread, and with all of which the best is found.

    python benchmarks/spread.py                # lift from its first 20 demonstrations, assemble; some 40 minutes on a core
    python benchmarks/spread.py assemble       # only this
    python benchmarks/spread.py --small        # a minute, to see that it runs

The same flow policy begins each time. Success of 200 episodes on gate seeds, which nothing was learnt or chosen from,
after each round; beside it, what the rounds collected. A run that is finished in stores/spread/ is not made again."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import results

TASKS = {"lift": ["demos.first=20"], "assemble": []}
SPREADS = ("[1.0]", "[0.5]", "[0.25]", "[0.0]", "[1.0, 0.5, 0.25, 0.1]")
ROUNDS = ["collect.episodes=96", "rounds=4", "algorithm.cadence.evaluate=1500", "algorithm.cadence.improve=1000"]
SMALL = ["collect.episodes=4", "rounds=2", "algorithm.cadence.evaluate=5", "algorithm.cadence.improve=5"]


def flywheel(stage: str, store: Path, *words: str) -> tuple[dict, dict]:
    """Run a stage in a process of its own; its result, and its record."""
    command = [sys.executable, "-m", "flywheel.cli.app", stage, f"store={store}", "seed=1", *words, "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=results.ROOT)
    told = json.loads(out.stdout.splitlines()[-1])
    if told["status"] == "failed":
        sys.exit(f"{stage} {' '.join(words)}: {told['error']}")
    return told, json.loads((store / "runs" / told["run"] / "_DONE.json").read_text())


def rounds(task: str, place: Path, small: bool) -> dict[str, list[dict]]:
    """{spreads: a line a round} of one task."""
    from flywheel.runs.run import Store

    more, told = ["threads=1", f"task={task}"], TASKS[task]
    flywheel("ingest", place, f"source=datasets/{task}_demos.hdf5", "format=robomimic_hdf5", f"task={task}")
    size = ["algorithm.cadence.improve=20", "score_episodes=4"] if small else []
    made, _ = flywheel("pretrain", place, *more, *told, "policy=flow", "policy.ahead=2", *size)
    base, scores = made["outputs"]["checkpoint"], ["score_every=1", f"score_episodes={4 if small else 200}"]
    print(f"{task}: base {Store(place).checkpoint(base).get('tried')} on its curve")
    found = {}
    for spreads in SPREADS:
        words = [*more, *told, f"checkpoint={base}", f"collect.spreads={spreads}", *(SMALL if small else ROUNDS)]
        found[spreads] = flywheel("retrain", place, *words, *scores)[1]["content"]["history"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []])
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for task in args.tasks or TASKS:
            place = Path(folder) / task if args.small else results.ROOT / "stores" / "spread" / task
            found = rounds(task, place, args.small)
            count = range(1, 1 + max(map(len, found.values())))
            print(f"| `{task}`: spreads | " + " | ".join(f"round {k}: collected, then scored" for k in count) + " |")
            print("|---" * (1 + len(count)) + "|")
            for spreads, history in found.items():
                cells = [f"{line['success']:.2f}, {line['scored']['success']:.3f}" for line in history]
                print(f"| {spreads} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
