"""Data cards: every shipped card and a card for every format are compared with what is read; each lie is named."""

import inspect
from pathlib import Path

import flywheel_datasets
import numpy as np
import pytest
import test_formats as written
import toy
import yaml

from flywheel.args import Task
from flywheel.cli import config
from flywheel.episode import Episode, EpisodeError
from flywheel.intake import accept, recordings
from flywheel.stages.ingest import Args

FOLDER = Path(next(iter(flywheel_datasets.__path__)))
CARD = {"rate_hz": 10, "obs_keys": {}, "action": {"left": "-1..1", "right": "-1..1"}}


def taken(path, format_, task="gym", **options):
    """What ingest takes of a recording beside its card; errors as they come."""
    args, read, found = (
        Args(source="x", format=format_, task=Task(name=task, **({"id": "x"} if task == "gym" else {}))),
        recordings.reader(format_),
        [],
    )
    for episode, card in accept.carded(read, path, options, args):
        try:
            found.append(
                card.check(episode, options.get("obs_keys"), "here")
                if card and isinstance(episode, Episode)
                else episode
            )
        except EpisodeError as error:
            found.append(error)
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_card_says_what_is_read(path):
    card = yaml.safe_load(path.read_text())
    file = path.with_name(card["file"])
    episodes = taken(file, card["format"], card["task"])
    assert len(episodes) == card["episodes"] and all(isinstance(e, Episode) for e in episodes)
    assert sum(map(len, episodes)) == card["steps"] and {e.fps for e in episodes} == {card["rate_hz"]}
    assert {key: about["unit"] for key, about in card["obs_keys"].items()} == accept.units(card["task"])


def robomimic(folder):
    toy.demonstrations(folder / "a.hdf5", 2)
    return folder / "a.hdf5", {"position": 2, "goal": 2}


def aloha(folder):
    written.aloha(folder / "a.hdf5", written.rows(lengths=[5])[0])
    return folder / "a.hdf5", {"qpos": 2, "qvel": 1}


def d4rl(folder):
    written.d4rl(folder / "a.hdf5", written.rows())
    return folder / "a.hdf5", {"observations": 3}


def minari(folder):
    recordings = written.rows()
    return written.minari(folder / "m", recordings), {"observations": 3}


def buffer(folder):
    written.buffer(folder / "b", written.rows())
    return folder / "b" / "meta" / "episode_ends" / ".zarray", {"state": 3}


def lerobot_v21(folder):
    return written.lerobot_v21(folder / "l", written.rows()), {"observation.state": 3}


def lerobot_v3(folder):
    return written.lerobot_v3(folder / "l", written.rows()), {"observation.state": 3}


MADE = {
    "robomimic_hdf5": robomimic, "aloha_hdf5": aloha, "d4rl_hdf5": d4rl, "minari_hdf5": minari, "replay_buffer_zarr": buffer,
    "lerobot_v21": lerobot_v21, "lerobot_v3": lerobot_v3,
}  # fmt: skip
OTHERS = {
    "ros2_mcap",
    "hand_dapg",
    "hand_dapg_policy",
    "trials_csv",
}  # its own card (test_formats_mcap); a layout with no choice


def test_every_format_is_tried_with_a_card():
    assert set(MADE) | OTHERS == set(recordings.formats())


@pytest.mark.parametrize("name", MADE)
def test_what_a_card_says_wrongly_is_named(tmp_path, name):
    path, keys = MADE[name](tmp_path)
    place = path.with_suffix(".yaml")

    def carded(**changes):
        card = {**CARD, "obs_keys": {key: {"size": size, "unit": "m"} for key, size in keys.items()}, "format": name}
        place.write_text(yaml.safe_dump({**card, **changes}, sort_keys=False))
        return taken(path, name)

    good = carded()
    assert good and all(isinstance(e, Episode) and e.fps == 10.0 for e in good), good
    first, rest = next(iter(keys)), dict(list(keys.items())[1:])
    known = {key: {"size": size, "unit": "m"} for key, size in rest.items()}
    lies = {
        "recorded at 10 Hz; expected 25, the rate_hz": {"rate_hz": 25},
        r"the state has \d numbers; expected \d": {"obs_keys": {first: {"size": 9, "unit": "m"}, **known}},
        "unit 'parsecs'; expected one of m, cm": {
            "obs_keys": {first: {"size": keys[first], "unit": "parsecs"}, **known}
        },
        "action has 2 numbers; expected 3": {"action": {"a": "", "b": "", "c": ""}},
        "a card of format other": {"format": "other"},
        "no data card": {"obs_keys": {first: {"unit": "m"}}},
    }
    for told, lie in lies.items():
        found = carded(**lie)
        if "rate_hz" in lie and all(isinstance(e, Episode) for e in found):  # a layout without a rate takes the card's
            assert name not in ("lerobot_v21", "lerobot_v3") and {e.fps for e in found} == {25.0}
            continue
        assert found and all(isinstance(e, EpisodeError) for e in found), (name, lie)
        assert any(str(place) in str(e) for e in found)
        with pytest.raises(EpisodeError, match=told):
            raise found[0]
    if "obs_keys" in inspect.signature(recordings.reader(name)).parameters:
        (error, *_) = carded(obs_keys={"absent": {"size": 3, "unit": "m"}})
        assert isinstance(error, EpisodeError) and "absent" in str(error) and first in str(error)


def test_a_card_names_the_cameras_to_read_and_their_size(tmp_path):
    path, _ = aloha(tmp_path)
    for told, cameras, expected in [
        ({}, ["top"], None),
        ({"top": {"height": 2, "width": 2}}, ["top"], None),
        ({"top": {"height": 2, "width": 3}}, [], "camera top is .2, 2. .height, width.; expected .2, 3., as "),
        ({"wrist": {"height": 2, "width": 2}}, [], "no camera 'wrist'; there is top"),
        ({"top": {"size": 2}}, [], "no data card"),
    ]:
        path.with_suffix(".yaml").write_text(yaml.safe_dump({"cameras": told}))
        (found,) = taken(path, "aloha_hdf5")
        if expected is None:
            assert [key for key in found.obs if key != "state"] == cameras
        else:
            with pytest.raises(EpisodeError, match=expected):
                raise found
    (found,) = taken(path, "aloha_hdf5", cameras=[])
    assert isinstance(found, EpisodeError) or list(found.obs) == ["state"]


def test_units_of_the_task_are_those_of_the_card(tmp_path):
    path = FOLDER / "lift_demos.hdf5"
    (tmp_path / path.name).write_bytes(path.read_bytes())
    card = yaml.safe_load(path.with_suffix(".yaml").read_text())
    card["obs_keys"]["cube_pos"]["unit"] = "mm"
    (tmp_path / "lift_demos.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    (error,) = taken(tmp_path / path.name, "robomimic_hdf5", "lift")
    assert "obs_keys.cube_pos is in 'mm' and the task observes it in 'm'" in str(error)


def test_ingest_quarantines_by_the_card_and_knows_a_run_by_it(tmp_path):
    from test_ingest import execute

    toy.demonstrations(tmp_path / "a.hdf5", 3)
    card = {**CARD, "rate_hz": 20, "obs_keys": {k: {"size": 2, "unit": "m"} for k in ("position", "goal")}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    first = execute(tmp_path / "store", source=tmp_path / "a.hdf5")  # the keys are the card's
    assert (first["metrics"]["added"], first["metrics"]["quarantined"]) == (3, 0)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**card, "action": {"one": ""}}))
    second = execute(tmp_path / "store", source=tmp_path / "a.hdf5")
    assert (second["status"], second["metrics"]["quarantined"]) == ("failed", 3)
    kept = next((tmp_path / "store" / "runs" / second["run"] / "out" / "quarantine").glob("*.npz"))
    assert np.load(kept)["action"].shape[1] == 2
    with pytest.raises(ValueError, match="there is no such file"):
        execute(tmp_path / "store", source=tmp_path / "a.hdf5", card=tmp_path / "none.yaml")
    assert "card" in config.fields("ingest")
