"""Policies of a store as `lerobot-eval` plays them, episode by episode beside `flywheel evaluate`; docs/lerobot.md shows
the table.

    python benchmarks/lerobot_eval.py store=stores/lerobot flow=policy/flow best_of_n=policy/rounds act=policy/act
    ... --episodes 200 --lerobot ~/venv-3.12/bin/lerobot-eval     another LeRobot than this environment's

Each is exported as a folder (format=lerobot_policy); both commands play the report seeds from 210,000,000 on, twenty
environments beside each other. It ends with 1 if one episode differs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST = 210_000_000  # the first report seed of training seed 1, night 0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(command: list[str], log: Path) -> float:
    """Run a command; its seconds. SystemExit with the end of its log where it failed."""
    begun = time.perf_counter()
    with open(log, "w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT).returncode
    if code:
        sys.exit(f"{' '.join(command)}: it failed:\n{log.read_text()[-3000:]}")
    return time.perf_counter() - begun


def flywheel(*words: str, log: Path) -> tuple[dict, float]:
    """Run a command of flywheel; its result, and its seconds."""
    spent = run([sys.executable, "-m", "flywheel.cli.app", *words, "--json"], log)
    return json.loads(log.read_text().splitlines()[-1]), spent


def compare(ref: str, store: str, asked, folder: Path) -> tuple[list[bool], list[bool], list[float]]:
    """The successes of one policy by either command, and the seconds that export, flywheel and LeRobot took."""
    folder.mkdir()
    at, many = [f"store={store}", f"task={asked.task}"], min(20, asked.episodes)
    out, log = folder / "exported", folder / "log"
    _, wrote = flywheel("export", *at, f"checkpoint={ref}", "format=lerobot_policy", f"out={out}", log=log)
    words = ["evaluate", *at, f"checkpoint={ref}", f"episodes={asked.episodes}", f"num_envs={many}", "threads=1"]
    made, own = flywheel(*words, log=log)
    ours = json.loads((Path(store) / "runs" / made["run"] / "eval_info.json").read_text())
    command = [
        *asked.lerobot, f"--policy.path={out}", "--policy.device=cpu", "--env.discover_packages_path=lerobot_policy_flywheel",
        "--env.type=flywheel", f"--env.task={asked.task}", "--env.render=false", f"--eval.batch_size={many}",
        f"--eval.n_episodes={asked.episodes}", f"--seed={FIRST}", "--eval.use_async_envs=false", f"--output_dir={folder / 'eval'}",
    ]  # fmt: skip
    theirs = run(command, log)
    other = json.loads((folder / "eval" / "eval_info.json").read_text())
    both = [info["per_task"][0]["metrics"] for info in (ours, other)]
    if both[0]["seeds"][0] != FIRST:
        sys.exit(f"flywheel evaluate began at seed {both[0]['seeds'][0]}; expected {FIRST}")
    return *(one["successes"] for one in both), [wrote, own, theirs]


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("policies", nargs="+", help="store=DIR and LABEL=NAME[@ID] ...")
    parse.add_argument("--task", default="lift")
    parse.add_argument("--episodes", type=int, default=200)
    parse.add_argument("--lerobot", nargs="+", default=[sys.executable, "-m", "lerobot.scripts.lerobot_eval"])
    asked, differ = parse.parse_args(), 0
    words = dict(word.split("=", 1) for word in asked.policies)
    store = words.pop("store")
    print("| policy | `flywheel evaluate` | `lerobot-eval` | episodes equal | s: export | evaluate | lerobot-eval |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for label, ref in words.items():
            ours, theirs, spent = compare(ref, store, asked, Path(folder) / label)
            equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
            differ += len(ours) - equal
            took = " | ".join(f"{s:.0f}" for s in spent)
            print(
                f"| {label} | {sum(ours)} of {len(ours)} | {sum(theirs)} | {equal} of {len(ours)} | {took} |",
                flush=True,
            )
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
