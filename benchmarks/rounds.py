"""What a round of practice costs beside rollouts and updates, as episodes pile up: what retrain and online do with each
round.

    a round    its episodes remembered, logged, made into transitions, and the first batch drawn
    a save     the episodes since the last one appended to the corpus, and the run's state written; every --every rounds here, every
               20 seconds at most in a run

Held: --held episodes from before, all in the source. Then --rounds rounds of --episodes episodes. The last tenth of
them is measured in turn with the first rounds of another run on as many held episodes, so that a busy machine slows
both alike.

The second part measures, for 200 steps of SAC a round (three episodes) and 200 updates, what share of the time is
neither; rollouts are left out, so that the share is an upper bound. As many rounds as take 20 seconds with their
updates share a save.

    python benchmarks/rounds.py                                                 # about ten minutes
    python benchmarks/rounds.py --held 2000 --rounds 300 --updates 20           # half a minute
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

OBS, ACTION = 17, 6
SECONDS = 20.0  # between two saves of a run (flywheel.run.Run.due)
TARGETS = {"a round: late / early": 1.3, "share": 0.02}


def episodes(random: np.random.Generator, count: int, steps: int) -> list:
    from flywheel.episode import Episode

    rows = random.standard_normal((count, steps + 1, OBS + ACTION), np.float32)
    return [
        Episode(
            task="bench", obs={"state": one[:, :OBS]}, action=one[:-1, OBS:], reward=np.zeros(steps, np.float32),
            terminated=False, success=False, origin="policy:bench", fps=20.0,
        )
        for one in rows
    ]  # fmt: skip


def practice(folder: Path, held: int, each: int, steps: int, every: int) -> Iterator[tuple[float, float]]:
    """Round after round: seconds of it, and of the save after it (else 0)."""
    import torch

    from flywheel.rl.practice import Practice
    from flywheel.rl.source import OffPolicy
    from flywheel.runs import run as runs
    from flywheel.stages.online import Args

    torch.set_num_threads(1)
    random, store = np.random.default_rng(0), runs.Store(folder)
    corpus, run = store.corpus(create=True), runs.Run("online", "0" * 16, Args(), store, {})
    run.begin()
    known: list[str] = []
    for first in range(0, held, 5000):
        known += corpus.append(episodes(random, min(5000, held - first), steps)).added
    rounds = Practice(run.args, run, None, None, known, {})
    shares, size = {"improve": {"rollouts": 1.0}}, {"obs_steps": 1, "action_steps": 1}
    source = OffPolicy(shares, play=lambda learner: rounds.keep(fresh, {}, {}), held=rounds.held, **size)
    yield 0.0, 0.0
    for number in itertools.count(1):
        fresh = episodes(random, each, steps)
        began = time.perf_counter()
        source.collect(None)
        source.batch("improve")
        done = time.perf_counter()
        if number % every == 0:
            run.save({"weights": torch.zeros(200_000)}, {"watch": rounds.state(), "source": source.state()})
        yield done - began, time.perf_counter() - done if number % every == 0 else 0.0


def compared(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Late rounds beside early ones of another run, in turn."""
    late, early = (practice(folder / name, args.held, args.episodes, args.steps, args.every) for name in ("a", "b"))
    measured = max(args.every, args.rounds // 10)
    for _ in range(args.rounds - measured):
        next(late)
    next(early)
    spent = np.asarray([(next(early), next(late)) for _ in range(measured)])  # [rounds, early or late, round or save]
    found: dict[str, float] = {}
    for column, what in enumerate(("a round", "a save")):
        values = [part[part > 0] for part in spent[:, :, column].T]
        found |= {
            f"{what}, {when}: ms": 1e3 * float(v.mean()) for when, v in zip(("early", "late"), values, strict=True)
        }
        found[f"{what}: late / early"] = float(values[1].mean() / values[0].mean())
        found[f"{what}: late / early, medians"] = float(np.median(values[1]) / np.median(values[0]))
    found["a save, late: share of the 20 s between two"] = found["a save, late: ms"] / 1e3 / SECONDS
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held", type=int, default=100_000, help="episodes from before (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=8, help="in a round (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of an episode (default %(default)s)")
    parser.add_argument("--every", type=int, default=20, help="rounds between two saves (default %(default)s)")
    parser.add_argument(
        "--updates", type=int, default=200, help="of SAC, to know how long 200 take (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="the last line on stdout is one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compared(Path(folder), args)
    sys.path.insert(0, str(Path(__file__).parent))
    import learning

    update = learning.ours("sac")
    for _ in range(5):
        update()
    began = time.perf_counter()
    for _ in range(args.updates):
        update()
    learns = 200 * (time.perf_counter() - began) / args.updates
    with tempfile.TemporaryDirectory() as folder:
        every = max(1, round(SECONDS / learns))
        made = np.asarray(list(itertools.islice(practice(Path(folder), 0, 3, 67, every), 1, 1 + 4 * every)))
    beside = float(made.sum(1)[every:].mean())
    found["SAC, 200 updates: ms"], found["SAC, beside them and the rollouts: ms a round"] = 1e3 * learns, 1e3 * beside
    found["SAC, share of the time that is neither"] = beside / (beside + learns)
    for name, value in found.items():
        bound = next((f"   target <= {t}" for what, t in TARGETS.items() if what in name), "")
        print(f"{name:56} {value:10.3g}{bound}")
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
