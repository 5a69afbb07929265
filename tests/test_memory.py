"""How much memory training takes as the corpus grows: measured on the command itself, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flywheel import selection
from flywheel.corpus.rows import RESIDENT
from flywheel.corpus.windows import Steps
from flywheel.episode import Episode
from flywheel.policy.nets import Normaliser
from flywheel.runs.run import Store

CODE = """
import resource, sys
from flywheel.cli import app
code = app.main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""
WIDTH, STEPS = 500, 200


def episode(seed):
    random = np.random.default_rng(seed)
    reward = np.zeros(STEPS, np.float32)
    reward[-1] = 1
    return Episode(
        task="toy:Wide-v0", obs={"state": random.standard_normal((STEPS + 1, WIDTH), np.float32)}, reward=reward,
        action=random.uniform(-1, 1, (STEPS, 2)).astype(np.float32), terminated=True, success=True, origin="scripted:test", fps=10.0,
    )  # fmt: skip


def pretrained(folder, episodes, resident):
    """Bytes of rows in the corpus, and the most that `flywheel pretrain` on it had in memory."""
    corpus = Store(folder).corpus(create=True)
    for first in range(0, episodes, 10):
        corpus.append([episode(seed) for seed in range(first, first + 10)])
    words = ["task=gym", "task.id=toy:Wide-v0", "task.max_steps=20", "policy=flow", "policy.width=16", "policy.depth=1", "batch_size=32",
             "algorithm=bc", "algorithm.cadence.improve=300", "score_every=300", "score_episodes=0", "num_envs=1", "threads=1",
             f"resident={resident}", f"store={folder}"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CODE, "pretrain", *words], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = sum(path.stat().st_size for path in (folder / "cache").glob("windows-*/rows-*.f32"))
    return rows, 1024 * int(re.search(r"peak (\d+)", done.stdout)[1])


@pytest.mark.slow
def test_pretraining_on_ten_times_what_may_be_in_memory_takes_hardly_more(tmp_path):
    """The rows of the large corpus take 160 MB, their transitions more than 320; 16 MB of them may be in memory."""
    few, small = pretrained(tmp_path / "small", 40, "16MB")
    many, large = pretrained(tmp_path / "large", 400, "16MB")
    assert few > 16e6 and many > 10 * 16e6
    assert large - small < 48e6, f"{(large - small) / 1e6:.0f} MB more for {(many - few) / 1e6:.0f} MB of rows"


def test_a_normaliser_is_fitted_in_pieces_to_what_it_is_on_all_rows_at_once(monkeypatch, tmp_path):
    # 1 2 3 | 10 in pieces of one row of two numbers: mean 4, deviations -3 -2 -1 6: variance 50 / 4; the other column
    # is 0
    monkeypatch.setattr("flywheel.policy.nets.PIECE", 2)
    one = Normaliser(2)
    rows = np.asarray([[1.0, 0], [2, 0], [3, 0], [10, 0]])
    assert one.fit(rows) == {} and one.mean.tolist() == [4, 0]
    assert one.std.tolist() == pytest.approx([12.5**0.5, 0.005])
    one.fit(rows, rows < 5)  # 1 2 3: mean 2, variance 2 / 3; all of the other
    assert one.mean.tolist() == pytest.approx([2, 0]) and one.std.tolist() == pytest.approx([(2 / 3) ** 0.5, 0.005])
    corpus = Store(tmp_path).corpus(create=True)
    corpus.append([episode(seed) for seed in range(3)])
    windows = corpus.windows(corpus.at("latest").select([2, 0]), cache=tmp_path / "cache")
    steps, whole = Steps(windows, "obs.state"), np.concatenate([episode(seed).obs["state"][:-1] for seed in (2, 0)])
    assert (
        len(steps) == 2 * STEPS
        and np.array_equal(steps[150:390], whole[150:390])
        and np.array_equal(steps[0:1000], whole)
    )
    monkeypatch.setattr("flywheel.policy.nets.PIECE", 37 * WIDTH)
    one = Normaliser(WIDTH)
    one.fit(steps)
    assert np.allclose(one.mean, whole.mean(0), atol=1e-6) and np.allclose(one.std, whole.std(0), atol=1e-6)


def test_sizes_have_a_unit():
    assert (selection.size("500MB"), selection.size("1.5GB"), selection.size(None)) == (
        500_000_000,
        1_500_000_000,
        RESIDENT,
    )
    for wrong in ("4", "0GB", "4 GB", "lots"):
        with pytest.raises(ValueError, match=f"resident={wrong}; expected a size with its unit"):
            selection.size(wrong)
