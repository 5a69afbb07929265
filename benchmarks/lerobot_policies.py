"""ACT on lift, trained by flywheel from its corpus and by LeRobot's own lerobot-train on what `flywheel export` writes.

    python benchmarks/lerobot_policies.py             both, training seeds 1, 2, 3; what is measured is kept
    python benchmarks/lerobot_policies.py --seeds 1   one of them;  --again: measure anew

The same network (conf/policy/act.yaml), batch and number of updates; all act at every step by the average of their
chunks (temporal ensembling), newer ones counting more, by a coefficient that was chosen on other seeds. 200 episodes on
gate seeds that chose nothing. Time is that of the processor, of the whole command; memory is the most that it held."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS, STORES = ROOT / "benchmarks" / "results" / "lerobot", ROOT / "stores" / "lerobot"
UPDATES, BATCH, FIRST, EPISODES = 1000, 128, 9_500, 200
AVERAGED = {"temporal_ensemble_coeff": -0.5}
OURS = [
    f"algorithm.cadence.improve={2 * UPDATES}",
    f"batch_size={BATCH}",
    "algorithm.lag.policy=0.005",
    "algorithm.improve.policy.imitate.noise=0.2",
    f"score_every={UPDATES // 2}",
    "score_episodes=100",
]
PLAIN = [  # as lerobot-train goes about it: what is handed over is the last of so many updates at one rate
    f"algorithm.cadence.improve={UPDATES}", f"batch_size={BATCH}", "algorithm.lag.policy=1.0", "algorithm.schedule=null",
    "algorithm.improve.policy.imitate.noise=0.0", f"score_every={UPDATES}", "score_episodes=0",
]  # fmt: skip
WHO = {"flywheel": "`flywheel pretrain`", "plain": "`flywheel pretrain`, plain", "lerobot": "`lerobot-train`"}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
}


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Run a command on one thread; its processor time in s and its peak of memory in MB."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT, cwd=ROOT
        )
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: it failed; {log} says why:\n{log.read_text()[-2000:]}")
    return {"cpu_s": round(used.ru_utime + used.ru_stime, 1), "peak_mb": round(used.ru_maxrss / 1024)}


def flywheel(*words: str, log: Path) -> tuple[dict, dict[str, float]]:
    """Run a command of flywheel; its result, and what it took."""
    took = measured([sys.executable, "-m", "flywheel.cli.app", *words, "--json"], log)
    return json.loads(log.read_text().splitlines()[-1]), took


def doubled(folder: Path) -> None:
    """Give a data set of states what LeRobot's ACT asks for where no camera is: observation.environment_state, here the
    same numbers."""
    import pyarrow.parquet as pq

    state, env = "observation.state", "observation.environment_state"
    for path in (folder / "data").glob("*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column(env, table.column(state)), path)
    for path in (folder / "meta" / "episodes").glob("*/*.parquet"):
        table = pq.read_table(path)
        for name in [name for name in table.column_names if name.startswith(f"stats/{state}/")]:
            table = table.append_column(name.replace(state, env), table.column(name))
        pq.write_table(table, path)
    for name, part in (("info.json", "features"), ("stats.json", None)):
        path = folder / "meta" / name
        told = json.loads(path.read_text())
        held = told[part] if part else told
        held[env] = held[state]
        path.write_text(json.dumps(told))


def ours(seed: int, at: list[str], logs: Path, how: list[str] = OURS) -> tuple[str, dict]:
    """Train by flywheel; the checkpoint, and what that took (with the scores along its curve)."""
    own = [f"policy.settings.{key}={value}" for key, value in AVERAGED.items()]
    words = ["policy=act", "policy.action_steps=1", *own, *how, f"seed={seed}", "name=policy/ours"]
    made, took = flywheel("pretrain", *at, *words, log=logs / "pretrain.log")
    return made["outputs"]["checkpoint"], {**took, "updates": made["metrics"]["updates"]}


def plain(seed: int, at: list[str], logs: Path) -> tuple[str, dict]:
    """The same as lerobot-train goes about it."""
    return ours(seed, at, logs, PLAIN)


def theirs(seed: int, at: list[str], logs: Path) -> tuple[str, dict]:
    """Train by lerobot-train on the exported demonstrations; the checkpoint's name here, and what that took."""
    import yaml

    data, out = logs / "data", logs / "lerobot"
    for folder in (data, out):
        shutil.rmtree(folder, ignore_errors=True)
    flywheel("export", *at, f"out={data}", "format=lerobot_v3", "corpus=demos", log=logs / "export.log")
    doubled(data)
    config = yaml.safe_load((ROOT / "conf" / "policy" / "act.yaml").read_text())
    told = config["settings"] | AVERAGED | {"n_action_steps": 1, "device": "cpu", "push_to_hub": "false"}
    mapping = json.dumps(dict.fromkeys(("STATE", "ENV", "ACTION"), "MEAN_STD"))
    words = [
        "--dataset.repo_id=flywheel/lift", f"--dataset.root={data}", "--policy.type=act", f"--steps={UPDATES}",
        f"--batch_size={BATCH}", f"--seed={seed}", f"--output_dir={out}", f"--save_freq={UPDATES}", "--num_workers=0",
        f"--policy.normalization_mapping={mapping}", "--wandb.enable=false", f"--log_freq={UPDATES // 5}",
        *(f"--policy.{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in told.items()),
    ]  # fmt: skip
    took = measured([sys.executable, "-m", "lerobot.scripts.lerobot_train", *words], logs / "lerobot.log")
    folder = out / "checkpoints" / "last" / "pretrained_model"
    words = [
        f"checkpoint={folder.resolve()}",
        "algorithm.cadence.improve=1",
        "score_episodes=0",
        "name=policy/theirs",
        "threads=1",
    ]
    flywheel("pretrain", *at, *words, f"batch_size={BATCH}", log=logs / "adopt.log")
    from flywheel.runs.run import Store

    store = Store(at[0].removeprefix("store="))
    made = [entry for entry in store.names.log("policy/theirs") if entry.get("kind") == "lerobot"]
    return f"policy/theirs@{made[-1]['id']}", took


def row(who: str, seed: int) -> dict:
    """Train, and play the seeds once: {"success", "n", "ci95", "cpu_s", "peak_mb"}."""
    store, logs = STORES / f"{who}-{seed}" / "store", STORES / f"{who}-{seed}" / "logs"
    at = [f"store={store}", "task=lift"]
    flywheel("ingest", *at, f"source={ROOT / 'datasets' / 'lift_demos.hdf5'}", log=logs / "ingest.log")
    command = [sys.executable, "-m", "flywheel.cli.app", "corpus", "view", "demos", "success", at[0]]
    measured(command, logs / "view.log")
    checkpoint, took = {"flywheel": ours, "plain": plain, "lerobot": theirs}[who](seed, at, logs)
    played = [
        f"checkpoint={checkpoint}",
        f"episodes={EPISODES}",
        f"first={FIRST}",
        "block=gate",
        "threads=1",
        f"seed={seed}",
    ]
    scored = flywheel("evaluate", *at, *played, log=logs / "evaluate.log")[0]["metrics"]
    return {**{key: scored[key] for key in ("success", "n", "ci95")}, "updates": UPDATES, "batch": BATCH, **took}


def section(rows: dict[str, dict]) -> list[str]:
    """The part of docs/results.md."""
    if not rows:
        return []
    lines = [
        "## LeRobot's ACT", "",
        "`python benchmarks/lerobot_policies.py`: ACT (`policy=act`) on `lift` from 85 demonstrations, numbers only, "
        f"updates of {BATCH}, all executing averages of their chunks ({AVERAGED}); {EPISODES} gate seeds that chose nothing. Processor time of the whole command, on one "
        "thread, imports included. `flywheel pretrain` as one would use it: noise on what is observed, a slow copy, a rate that "
        f"falls, the best of the curve of at most {2 * UPDATES:,} updates, whose scores are in the time; plain: none of that, the last of {UPDATES:,} updates, as `lerobot-train`.", "",
        "| trained by | training seed | updates | success | 95 % interval | processor, min | memory, MB |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, one in sorted(rows.items()):
        who, _, seed = name.rpartition("-")
        low, high = one["ci95"]
        lines.append(
            f"| {WHO[who]} | {seed} | {one['updates']:,} | {one['success']:.3f} | [{low:.3f}, {high:.3f}] | {one['cpu_s'] / 60:.1f} | {one['peak_mb']} |"
        )
    return [*lines, ""]


def kept() -> dict[str, dict]:
    """The rows that are measured, {WHO-SEED: row}."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--who", nargs="*", default=list(WHO), choices=WHO)
    parser.add_argument("--again", action="store_true", help="measure what is there anew")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for who in args.who:
            path = RESULTS / f"{who}-{seed}.json"
            if args.again or not path.exists():
                path.write_text(json.dumps(row(who, seed), indent=1) + "\n")
    print("\n".join(section(kept())))


if __name__ == "__main__":
    main()
