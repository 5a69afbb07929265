"""Faults on purpose: what notices them, after how long, what they cost, and what is handed over; with the guard and
without it.

    python benchmarks/guarding.py                        # lift from its first 20 demonstrations; about 25 minutes on a core
    python benchmarks/guarding.py --small                # a minute: to see that it runs
    python benchmarks/guarding.py nan rate               # only these

Each fault is put into rounds of retraining (or into an environment) from one and the same checkpoint. Success handed
over is that of the best of N on 300 report seeds, the base beside it. Finished rows are kept in
benchmarks/results/guarding/."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results" / "guarding"
ROUNDS, EPISODES = 6, 64
LIES = 200  # episodes in which success is not told


class Faults:
    """What goes wrong: a function of the learner and the number of its updates, or of the practice."""

    def nan(self, learner, update: int) -> None:
        """Half of the policy's weights become NaN, once."""
        if update == 4000:
            for name in ("policy", "policy.lag"):
                for p in learner.flat[name].params:
                    p.data.view(-1)[::2] = float("nan")
                learner.flat[name].refresh()

    def critic(self, learner, update: int) -> None:
        """The critics' last layer grows by 2 % an update, 400 times: values explode."""
        if 3000 <= update < 3400:
            for name in ("q", "q.lag"):
                learner.flat[name].values *= 1.02

    def rate(self, learner, update: int) -> None:
        """The policy's learning rate is a hundred times what it should be, from the first update on."""
        if update == 1:
            learner.rates["policy"] *= 100
            learner.optim["policy"].lr *= 100

    def reward(self, learner, update: int) -> None:
        """For 200 episodes no success is told (in `lying`)."""

    def none(self, learner, update: int) -> None:
        """Nothing."""


TOLD = {
    "none": "nothing (to compare with)",
    "nan": "half of the policy's weights become NaN",
    "critic": "critics explode: 2 % an update, 400 times",
    "rate": "learning rate of the policy x 100",
    "reward": "for 200 episodes no success is told",
}


def flywheel(*words: str) -> dict:
    """Call the command line in this process; its last line as JSON."""
    from flywheel.cli import app

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app.main([*words, "--json"])
    return json.loads(out.getvalue().splitlines()[-1])


@contextlib.contextmanager
def faulty(kind: str):
    """Put a fault into whatever learns meanwhile; the updates made are counted."""
    from flywheel.rl import learner as learning
    from flywheel.rl import practice

    act, play, count = learning.Learner.act, practice.Practice.play, [0]

    def acting(self, *given):
        count[0] += 1
        getattr(Faults(), kind)(self, count[0])
        return act(self, *given)

    def lying(self, *given, **options):
        if kind != "reward" or not 64 <= self.memory.begun < 64 + LIES:
            return play(self, *given, **options)
        step = self.env.step

        def silent(*given):
            obs, reward, ended, cut, info = step(*given)
            return obs, reward, ended & False, cut, {**info, "success": np.zeros_like(info["success"])}

        self.env.step = silent
        try:
            return play(self, *given, **options)
        finally:
            self.env.step = step

    learning.Learner.act, practice.Practice.play = acting, lying
    try:
        yield count
    finally:
        learning.Learner.act, practice.Practice.play = act, play


def scenario(kind: str, guard: str, base: str, store: Path, small: bool) -> dict:
    """Rounds of retraining with a fault in them; its row."""
    place = store.with_name(f"{store.name}-{kind}-{guard}")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(store, place)
    cadence = ["rounds=2", "collect.episodes=8"] if small else [f"rounds={ROUNDS}", f"collect.episodes={EPISODES}"]
    began = time.monotonic()
    with faulty(kind):
        out = flywheel(
            "retrain", f"store={place}", "demos.first=20", f"checkpoint={base}", f"guard={guard}", "threads=1", *cadence
        )
    row = {"fault": kind, "guard": guard, "status": out["status"], "error": out.get("error"), "events": []}
    row["seconds"] = round(time.monotonic() - began)
    if out["status"] == "failed":
        return row
    from flywheel.runs.run import Store

    done = Store(place).find(out["run"])
    row |= {"events": done["content"]["guard"], "history": done["content"]["history"], **out["metrics"]}
    lines = [json.loads(line) for line in (place / "runs" / out["run"] / "log.jsonl").open()]
    row["noticed"] = [line for line in lines if line["kind"] == "guard"]
    again = flywheel(
        "evaluate", f"store={place}", f"checkpoint={out['outputs']['checkpoint']}", "threads=1",
        f"episodes={8 if small else 300}",
    )  # fmt: skip
    row["after"] = {k: again["metrics"][k] for k in ("success", "ci95", "n")}
    return row


def table() -> list[str]:
    """The rows as docs/guard.md has them."""
    rows = {(kind, guard): ROWS / f"{kind}-{guard}.json" for kind in TOLD for guard in ("default", "none")}
    lines = ["| fault | guard | noticed by, and undone | regret, episodes | worst 50 | handed over |", "|---" * 6 + "|"]
    for (kind, guard), file in rows.items():
        if file.exists():
            row = json.loads(file.read_text())
            names = [event["guard"] for event in row["events"]]
            seen = ", ".join(
                f"{name}{f' ({names.count(name)} times)' if names.count(name) > 1 else ''}"
                for name in dict.fromkeys(names)
            )
            after = row.get("after")
            done = (
                f"{after['success']:.3f} [{after['ci95'][0]:.2f}, {after['ci95'][1]:.2f}]" if after else row["status"]
            )
            cost = (f"{row['regret']:g}", f"{row['worst_window']:.2f}") if "regret" in row else ("-", "-")
            lines.append(f"| {TOLD[kind]} | {guard} | {seen or '-'} | {' | '.join(cost)} | {done} |")
    return lines


def environments() -> list[dict]:
    """Environments that crash, hang or lie: when that is noticed, and what it costs."""
    sys.path.insert(0, str(ROOT / "tests"))
    import odd  # noqa: F401

    from flywheel import env as envs
    from flywheel.policy._uniform import Uniform
    from flywheel.rl.build import shape

    rows = []
    for does in ("raise", "nan", "wait", "hold_lock", "die"):
        kwargs = {"does": does, "at": [3, 11]}
        env = envs.make({"name": "gym", "id": "odd:Odd-v0", "kwargs": kwargs, "step_seconds": 2.0, "faults": 1.0}, 4)
        policy = Uniform(**shape(env), obs_steps=1, action_steps=1, discrete=False)
        began = time.monotonic()
        done, _ = envs.rollout(env, policy, range(20), origin="test")
        causes = {e.seed: e.meta["cause"] for e in done if "cause" in e.meta}
        rows.append(
            {"fault": does, "episodes": len(done), "causes": causes, "seconds": round(time.monotonic() - began, 1)}
        )
        env.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", choices=[*TOLD, []], help="only these")
    parser.add_argument("--small", action="store_true", help="to see that it runs: nothing is kept")
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "guarding" / "base")
    parser.add_argument("--again", action="store_true", help="also where there is a row")
    args = parser.parse_args()
    store = args.store
    flywheel("ingest", f"store={store}", "source=datasets/lift_demos.hdf5", "format=robomimic_hdf5", "task=lift")
    more = ["algorithm.cadence.improve=200", "score_episodes=8"] if args.small else []
    made = flywheel("pretrain", f"store={store}", "demos.first=20", "policy=flow", "policy.ahead=2", "threads=1", *more)
    base = made["outputs"]["checkpoint"]
    print(f"base {base}: {made['metrics']['success']:.3f} of {made['metrics']['n']} on its curve")
    ROWS.mkdir(parents=True, exist_ok=True)
    for kind in args.faults or TOLD:
        for guard in ("default", "none"):
            file = ROWS / f"{kind}-{guard}.json"
            if file.exists() and not (args.again or args.small):
                row = json.loads(file.read_text())
            else:
                row = scenario(kind, guard, base, store, args.small)
                if not args.small:
                    file.write_text(json.dumps(row, indent=1))
            events = "; ".join(f"{e['guard']}: {e['reason']}" for e in row["events"]) or row.get("error") or "-"
            after = f"{row['after']['success']:.3f}" if "after" in row else "-"
            print(
                f"{TOLD[kind]:50} {guard:8} {row['status']:8} after {after} regret {row.get('regret')} {events[:300]}"
            )
    print("\n".join(table()))
    for row in environments():
        print(f"an environment that {row['fault']}s: {row['episodes']} episodes in {row['seconds']} s, {row['causes']}")


if __name__ == "__main__":
    main()
