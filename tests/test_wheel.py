"""The benchmark of the whole wheel: the demonstrations that it records, and what it reads of a row."""

import importlib.util
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name: str, monkeypatch):
    """A module of benchmarks/, which import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["push", "pick"])
def test_fetch_records_the_same_episodes_again_most_of_which_succeed(name, tmp_path, monkeypatch):
    pytest.importorskip("gymnasium_robotics")
    fetch = script("fetch", monkeypatch)
    share = fetch.record(name, tmp_path / "a.hdf5", 8)
    assert share >= 0.5
    assert fetch.record(name, tmp_path / "b.hdf5", 2) in (0.0, 0.5, 1.0)
    with h5py.File(tmp_path / "a.hdf5") as a, h5py.File(tmp_path / "b.hdf5") as b:
        for k in range(2):
            one, other = a[f"data/demo_{k}"], b[f"data/demo_{k}"]
            np.testing.assert_array_equal(one["actions"], other["actions"])
            assert one["actions"].shape == (50, 4) and one["obs/observation"].shape == (51, 25)
            reached = np.linalg.norm(one["obs/achieved_goal"][-1] - one["obs/desired_goal"][-1]) < 0.05
            assert one.attrs["success"] == reached


def test_success_by_steps_goes_on_from_the_rounds_and_says_nothing_of_steps_that_were_not_taken(monkeypatch):
    wheel = script("wheel", monkeypatch)
    scored = {"success": 0.75, "n": 100}
    row = {
        "base": "flow",
        "tournament": [{"policy": "flow", "success": 0.5, "n": 200}],
        "history": [{"steps": 9000}, {"steps": 48000, "scored": scored}],
        "retrain": {"steps": 50000},
        "online_history": [{"steps": 10000, "scored": {"success": 0.9, "n": 100}}],
    }
    curve = wheel.by_steps(row)
    assert curve == [[0, 0.5, 200, "base"], [48000, 0.75, 100, "rounds"], [60000, 0.9, 100, "online"]]
    assert wheel.at(curve, 50_000) == [48000, 0.75, 100, "rounds"]
    assert wheel.at(curve, 100_000) is None


def test_a_job_that_is_run_again_begins_in_a_fresh_store_and_goes_on_in_it_once_killed(tmp_path, monkeypatch):
    """In the old store it would be a second night, that goes on from the first one's policy."""
    results = script("results", monkeypatch)
    row, place = tmp_path / "job.json", tmp_path / "stores" / "job"
    place.mkdir(parents=True)
    mark = results.begun(row, place)
    assert place.exists(), "killed before it had a row: it goes on"
    results.write(row, {"success": np.float64(0.5)}, mark)
    results.begun(row, place)
    assert not place.exists()
    place.mkdir()
    mark = results.begun(row, place)
    assert place.exists(), "begun again and killed"
    results.write(row, {"success": 1.0}, mark)
    results.begun(row, place)
    assert not place.exists()
