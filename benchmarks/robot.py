"""A made-up real robot: a task of ours behind files. Only recordings go in, only trials come out; the store never
sees the simulator.

    python benchmarks/robot.py                    three nights of lift, a few trials by day; about half an hour
    python benchmarks/robot.py --seed 2 --again   another robot's week; what was done is looked up otherwise
    python benchmarks/robot.py --power            how many trials the gate takes, simulated: a minute

By day somebody demonstrates (a LeRobotDataset more), and tries the two policies that the night named, in turn, as often
as it asked for (a LeRobotDataset and a CSV); `flywheel promote` then says whether it has seen enough. By night there is
`flywheel nightly task=robot`. At the end every policy is played 400 times, which the store never learns: that is what
the gate's answers are held against. One more question has the answer no: the first policy against the last."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results" / "robot.json"
DAYS = (15, 25, 45)  # demonstrations that each day brings
TRUTH = 400  # episodes of each policy that only this script plays
MOST = 80  # trials of each policy in a day


class Lab:
    """The robot and who works with it. `episodes` are what an operator will record, in order."""

    def __init__(self, task: dict, episodes: list, folder: Path, seed: int = 1):
        from flywheel import env

        self.env, self.left, self.folder, self.seed = env.make(task, 16, 1), list(episodes), folder, seed
        self.tried, self.sets = 0, 0

    def record(self, count: int) -> Path:
        """Demonstrate; the folder of a LeRobotDataset."""
        some, self.left = self.left[:count], self.left[count:]
        return self._written(some)

    def try_out(self, place, counts: dict[str, int]) -> Path:
        """Try policies {NAME@ID: times} in turn, each from a start of its own; a CSV beside a LeRobotDataset."""
        from flywheel.env import rollout

        refs = [ref for k in range(max(counts.values())) for ref, n in counts.items() if k < n]
        first = 700_000_000 + 100_000 * self.seed + self.tried
        seeds = dict(zip(range(len(refs)), range(first, first + len(refs)), strict=True))
        self.tried += len(refs)
        done = {}
        for ref in counts:
            mine = [k for k, one in enumerate(refs) if one == ref]
            if mine:
                episodes, _ = rollout(self.env, place.load(ref), [seeds[k] for k in mine], origin="lab")
                done |= dict(zip(mine, episodes, strict=True))
        data = self._written([done[k] for k in range(len(refs))])
        table = self.folder / f"trials_{self.sets}.csv"
        with open(table, "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["policy", "success", "episode", "data", *self._start(seeds[0])])
            for k, ref in enumerate(refs):
                start = self._start(seeds[k]).values()
                lines.writerow([ref, int(bool(done[k].success)), k, data.name, *(round(v, 4) for v in start)])
        return table

    def truth(self, policy, episodes: int = TRUTH) -> float:
        """How often a policy succeeds, as only a simulator can tell."""
        from flywheel.env.scoring import score

        seeds = range(800_000_000 + 10_000 * self.seed, 800_000_000 + 10_000 * self.seed + episodes)
        return float(score(policy, self.env, list(seeds), what="truth", stop_at_success=True)["success"].mean())

    def _start(self, seed: int) -> dict[str, float]:
        """What a person would write down of where a trial began."""
        self.env.reset_at(0, seed)
        told = getattr(self.env, "start", None)
        if told is None and (init := getattr(getattr(self.env, "_task", None), "init", None)):
            return init(seed)
        return told(seed) if told else {}

    def _written(self, episodes: list) -> Path:
        """A LeRobotDataset as others write it: nothing in it is flywheel's."""
        import pyarrow.parquet as pq
        from flywheel_datasets import _survey, lerobot_v3

        self.sets += 1
        folder = self.folder / f"set_{self.sets}"
        shutil.rmtree(folder, ignore_errors=True)
        plain = [e.replace(extras={}, meta={}, origin="", seed=None, start={}) for e in episodes]
        lerobot_v3.write(folder, plain, _survey.survey(plain), plain[0].fps or 20.0)
        info = json.loads((folder / "meta" / "info.json").read_text())
        info.pop("flywheel")
        (folder / "meta" / "info.json").write_text(json.dumps(info))
        for path in (folder / "meta" / "episodes").glob("*/*.parquet"):
            table = pq.read_table(path)
            names = [n for n in table.column_names if n != "flywheel" and not n.startswith("final.")]
            pq.write_table(table.select(names), path)
        return folder


def flywheel(*words: str) -> dict:
    """Run a command in a process of its own; its result."""
    command = [sys.executable, "-m", "flywheel.cli.app", *words, "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if out.returncode:
        sys.exit(f"{' '.join(words)}: {out.stdout}")
    return json.loads(out.stdout.splitlines()[-1])


def week(lab: Lab, place, words: list[str], days, call, most: int = MOST) -> list[dict]:
    """Days and nights: a line for each night, and for each question to the gate. `call(*words)` runs a command. What
    was done is kept in week.json, so that a week that was interrupted goes on."""
    kept = lab.folder / "week.json"
    told = json.loads(kept.read_text()) if kept.exists() else []
    at = [f"store={place.root}", "task=robot", "task.id=robot"]
    lab.tried, lab.sets = told[-1]["lab"] if told else (0, 0)
    lab.left = lab.left[sum(days[: sum("night" in line for line in told)]) :]

    def tell(line: dict) -> None:
        told.append({**line, "lab": [lab.tried, lab.sets]})
        kept.write_text(json.dumps(told))

    for number, count in enumerate(days):
        if not any(line.get("night") == number + 1 for line in told):
            call("ingest", *at, f"source={lab.record(count)}", "origin=human:operator")
            made = call("nightly", *at, *words)
            content = place.find(made["run"])["content"]
            night = {"night": number + 1, "production": made["outputs"]["checkpoint"], "next": content["candidate"]}
            tell({**night, "said": content["wanted"]["words"]})
        night = next(line for line in told if line.get("night") == number + 1)
        candidate, standing = night["next"], night["production"]
        if candidate != standing and not any(line.get("after") == number + 1 for line in told):
            tell({"after": number + 1, **asked(lab, place, at, candidate, standing, call, most)})
    return told


def asked(lab: Lab, place, at: list[str], candidate: str, standing: str, call, most: int) -> dict:
    """Try candidate and production, as often as the gate asks for, until it has an answer, or for a day."""
    counts, more = {candidate: 0, standing: 0}, {candidate: 10, standing: 10}
    while True:
        more = {ref: min(n, most - counts[ref]) for ref, n in more.items()}  # a day has its limit
        if any(n > 0 for n in more.values()):
            table = lab.try_out(place, {ref: max(0, n) for ref, n in more.items()})
            call("ingest", *at, f"source={table}", "format=trials_csv")
            counts = {ref: counts[ref] + max(0, n) for ref, n in more.items()}
        answer = call("promote", candidate, *at)
        ended = place.find(answer["run"])["content"]["figures"]["ended"]
        wanted = answer["metrics"].get("wanted") or {}
        if ended != "trials" or not any(wanted.values()) or min(counts.values()) >= most:
            break
        step = {ref: min(20, n) for ref, n in zip(counts, wanted.values(), strict=True)}  # a look each twenty
        more = step
    figures = place.find(answer["run"])["content"]["figures"]
    about = {key: figures[key] for key in ("success", "e", "needed", "gain_ci", "ended")}
    return {"candidate": candidate, "over": standing, "promoted": answer["status"] == "done", "trials": counts, **about}


def row(seed: int, again: bool) -> dict:
    """A week of lift from a folder of its own."""
    from flywheel_datasets import robomimic_hdf5

    from flywheel.runs.run import Store

    folder = ROOT / "stores" / "robot" / str(seed)
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    place = Store(folder / "store")
    read = robomimic_hdf5.read(ROOT / "datasets" / "lift_demos.hdf5")
    good = [episode for episode in read if episode.success]
    order = np.random.default_rng(seed).permutation(len(good))
    lab = Lab({"name": "lift"}, [good[k] for k in order], folder, seed)
    words = [f"seed={seed}", "policy=flow"]
    told = week(lab, place, words, DAYS, flywheel)
    questions = [line for line in told if "candidate" in line]
    made = list(dict.fromkeys(ref for line in questions for ref in (line["over"], line["candidate"])))
    at = [f"store={place.root}", "task=robot", "task.id=robot"]
    last = f"{made[0].partition('@')[0]}@{place.names.production(made[0].partition('@')[0])}"
    if last != made[0]:
        questions.append(asked(lab, place, at, made[0], last, flywheel, MOST))
    truth = {ref: lab.truth(place.load(ref)) for ref in made}
    for line in questions:
        line["truth"] = [truth[line["candidate"]], truth[line["over"]]]
        line["right"] = line["promoted"] is (truth[line["candidate"]] > truth[line["over"]])
    lab.env.close()
    found = flywheel("fsck", at[0])["findings"]
    return {"seed": seed, "days": list(DAYS), "nights": told, "questions": questions, "truth": truth, "fsck": found}


def power(weeks: int = 200, most: int = 200) -> None:
    """Print how many trials of each the gate takes on average to its first rank, looked at every second."""
    from flywheel import evalues, unpaired

    needed, looks, rng = np.log(evalues.needed(0.05, 1, 0)), np.arange(2, most + 1, 2), np.random.default_rng(0)

    def counted(mine, its, n1, n0):
        x, y = mine[:, : min(n1, n0)], its[:, : min(n1, n0)]
        parts = (mine[:, :n1], None, its[:, :n0], None, x & ~y, y & ~x, x & y)
        return unpaired.Counts(
            *(n if part is None else part.sum(1) for part, n in zip(parts, (0, n1, 0, n0, 0, 0, 0), strict=True))
        )

    for rates in ((0.3, 0.9), (0.6, 0.9), (0.5, 0.8), (0.8, 0.95)):
        its, mine = (rng.random((weeks, most)) < rate for rate in rates)
        turn = np.stack([unpaired.log_e(counted(mine, its, n, n)) for n in looks], 1)
        before = np.stack([unpaired.log_e(counted(mine, its, n, max(n, 40))) for n in looks], 1)
        pairs = evalues.log_e((mine & ~its).cumsum(1), (its & ~mine).cumsum(1))[:, 1::2]
        told = [
            np.where((e >= needed).any(1), looks[(e >= needed).argmax(1)], most).mean() for e in (turn, before, pairs)
        ]
        print(rates, "in turn {:.1f}, the incumbent has 40 {:.1f}, pairs {:.1f}".format(*told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--power", action="store_true", help="how many trials the gate takes, simulated")
    options = parser.parse_args()
    if options.power:
        return power()
    rows = {one["seed"]: one for one in json.loads(ROWS.read_text())} if ROWS.exists() else {}
    if options.again or options.seed not in rows:
        rows[options.seed] = row(options.seed, options.again)
        ROWS.write_text(json.dumps([rows[key] for key in sorted(rows)], indent=1) + "\n")
    for one in rows.values():
        print(f"robot of seed {one['seed']}: true success by policy {[round(t, 3) for t in one['truth'].values()]}")
        for line in one["questions"]:
            word = "promoted" if line["promoted"] else f"not promoted ({line['ended']})"
            (k1, n1), (k0, n0) = (line["success"][kind] for kind in ("candidate", "incumbent"))
            print(
                f"  {line['candidate']} {k1} of {n1} against {k0} of {n0}: {word}, E = {line['e']:g}; true "
                f"{line['truth'][0]:.3f} against {line['truth'][1]:.3f}: {'right' if line['right'] else 'WRONG'}"
            )


if __name__ == "__main__":
    main()
