"""What people look at: an episode in rerun, an episode that is flagged, and what the last gate turned on."""

import base64
import io

import numpy as np
import pytest
from small import call

from flywheel import selection
from flywheel.cli import config
from flywheel.corpus import Corpus, CorpusError
from flywheel.episode import Episode
from flywheel.report import clips, flips, viewing
from flywheel.runs.run import Store


def episode(seed=0, **more):
    rng = np.random.default_rng(seed)
    told = {"task": "robot", "origin": "human", "fps": 10.0, "success": True, "terminated": True} | more
    obs = {"state": rng.normal(size=(13, 2)).astype(np.float32), **told.pop("obs", {})}
    return Episode(
        obs=obs, action=rng.normal(size=(12, 2)).astype(np.float32), reward=np.float32(np.arange(12) == 11), **told
    )


# -- rerun ---------------------------------------------------------------------------------------------------------------


def test_an_episode_is_a_recording_with_cameras_actions_values_and_events(tmp_path):
    pytest.importorskip("rerun")
    import rerun.dataframe as frames

    one = episode(obs={"wrist": np.zeros((13, 24, 32, 3), np.uint8)}, meta={"guard": {"rate": [2, 3]}})
    proposed = one.action.copy()
    proposed[3:5] += 1.0
    helped = np.arange(12) >= 9
    one = one.replace(extras={"proposed": proposed, "intervention": helped})

    class Critics:
        """Two members: the sum of the chunk, and twice that."""

        obs_steps, action_steps, k, device, cameras = 1, 2, 1.0, "cpu", {}

        def _seen(self, stack, frames):
            return stack

        def critic(self, obs, action):
            import torch

            return torch.stack([action.sum((1, 2)), 2 * action.sum((1, 2))])

    viewing.write(one, tmp_path / "one.rrd", Critics(), ["pan", "lift"])
    held = frames.load_recording(tmp_path / "one.rrd")
    paths = {column.entity_path for column in held.schema().component_columns()}
    wanted = {
        "/camera/wrist",
        "/state",
        "/action/executed",
        "/action/proposed",
        "/reward",
        "/intervention",
        "/value",
        "/events",
        "/about",
    }
    assert wanted <= paths and held.recording_id() == one.hash[:12]
    table = held.view(index="step", contents="/value").select().read_all()
    first = table.column("/value:Scalars:scalars")[0].as_py()
    whole = one.action[0].sum() + one.action[1].sum()
    low = 1.5 * whole - np.std([whole, 2 * whole], ddof=1)
    assert first == pytest.approx([1.5 * whole, low], rel=1e-5)
    words = held.view(index="step", contents="/events").select().read_all()
    text = [row[0] for row in words.column("/events:TextLog:text").to_pylist() if row]
    assert text[0].startswith("guard rate: 2 steps") and "a person takes over" in text and text[-1] == "success"


def test_view_takes_an_episode_or_a_condition(night, tmp_path, capsys):
    pytest.importorskip("rerun")
    _, place, _ = night
    at = [f"store={place.root}", "open=false", f"out={tmp_path}"]
    code, out = call("view", "origin LIKE 'policy:%'", "first=1", *at, capsys=capsys)
    assert code == 0 and out["metrics"]["episodes"] == 1 < out["metrics"]["of"]
    (file,) = tmp_path.glob("*.rrd")
    one = place.corpus().at("latest").read(file.stem)
    assert call("view", one.hash[:8], *at, capsys=capsys)[1]["outputs"]["view"] == [str(file)]
    assert "passes" in call("view", "length > 1000", *at, capsys=capsys)[1]["error"]
    assert call("view", *at, capsys=capsys)[0] == 2


# -- flags ---------------------------------------------------------------------------------------------------------------


def test_a_flag_is_a_version_that_training_and_new_views_obey(tmp_path, capsys):
    place = Store(tmp_path)
    corpus = place.corpus(create=True)
    corpus.append([episode(k) for k in range(4)])
    bad, other = corpus.at(1).hashes[:2]
    assert call("flag", bad[:8], "why=the cup slips", f"store={tmp_path}", capsys=capsys)[1]["outputs"]["corpus"] == 2
    corpus = Corpus(corpus.path)
    assert corpus.at(2).select(hash=bad).table["flagged"].tolist() == ["the cup slips"]
    assert (corpus.at(1).table["flagged"] == "").all() and len(corpus.at(2)) == 4

    def learnt(version):
        return selection.demonstrations(config.compose("pretrain", ["task=robot", f"corpus={version}"]), place)

    assert [len(learnt(version)) for version in (1, 2)] == [4, 3] and bad not in learnt(2).hashes
    pytest.importorskip("duckdb")
    assert call("corpus", "view", "good", "success", f"store={tmp_path}", capsys=capsys)[1]["metrics"]["episodes"] == 3
    asked = call("corpus", "view", "odd", "flagged LIKE '%slips'", f"store={tmp_path}", capsys=capsys)
    assert asked[1]["metrics"]["episodes"] == 1
    assert call("unflag", bad[:8], f"store={tmp_path}", capsys=capsys)[0] == 0
    assert len(learnt(2)) == 3 and len(learnt("latest")) == 4
    assert call("flag", other[:8], f"store={tmp_path}", capsys=capsys)[0] == 2, "without a reason"
    assert call("corpus", "fsck", f"store={tmp_path}", capsys=capsys)[1]["metrics"]["findings"] == 0
    with pytest.raises(CorpusError, match="is in no version"):
        corpus.flag(["123456"], "x")


def test_flags_outlive_a_checkpoint_of_the_log_and_a_compact(tmp_path):
    """The versions that a block stands for keep their flags, and an episode keeps its own where it is moved."""
    from flywheel.corpus import maintenance

    corpus = Corpus(tmp_path, create=True)
    for k in range(3):
        corpus.append([episode(k)])
    first, second = corpus.at(3).hashes[:2]
    corpus.flag([first, second], "blurred")
    corpus.flag([second], None)
    for k in range(3, 150):  # four blocks of 32 versions become one
        corpus.append([episode(k)])
    moved = maintenance.compact(corpus).version
    for held in (corpus, Corpus(tmp_path)):
        for version, flagged in ((3, []), (4, [first, second]), (5, [first]), (120, [first]), (moved, [first])):
            found = held.at(version)
            assert sorted(np.array(found.hashes)[found.table["flagged"] == "blurred"]) == sorted(flagged), version


# -- the report ----------------------------------------------------------------------------------------------------------


def test_what_the_gate_turned_on_is_played_again(copied, monkeypatch):
    place, _ = copied
    done = [run for run in place.runs("promote") if "figures" in run["content"]]
    made = [entry["id"] for entry in place.names.log("policy/Reach-v0") if entry["op"] == "make"]
    task = dict(zip(("name", "id", "max_steps"), ("gym", "toy:Reach-v0", 20), strict=True)) | {"step_seconds": 0}
    asked = {"candidate": f"policy/Reach-v0@{made[0]}", "incumbent": f"policy/Reach-v0@{made[-1]}", "task": task}
    seeds = np.arange(5, 11)
    mine, its = np.array([1, 1, 0, 1, 0, 0], bool), np.array([0, 1, 1, 0, 1, 0], bool)
    found = flips._played(place, asked, {"seed": seeds, "success": mine}, {"seed": seeds, "success": its})
    assert [(flip.kind, flip.title) for flip in found] == [
        ("won", "seed 5"),
        ("won", "seed 8"),
        ("lost", "seed 7"),
        ("lost", "seed 9"),
    ]
    assert all([strip.who for strip in flip.strips] == ["candidate", "incumbent"] for flip in found)
    assert "dashed: incumbent" in str(found[0].chart.body)
    last = flips.last(place, place.runs(), "policy/Reach-v0")
    assert (last is None) == (not [run for run in done if run["content"].get("over")])


def test_a_clip_is_neither_a_flash_nor_a_film():
    from PIL import Image

    frames = list(np.random.default_rng(0).integers(0, 255, (1000, 24, 32, 3), np.uint8))
    moving, _ = clips.encode(frames, 25.0)  # 40 s
    image = Image.open(io.BytesIO(base64.b64decode(str(moving).partition(",")[2])))
    assert image.n_frames == 25 * clips.MOST
    picture = flips.picture(np.zeros((480, 640, 3), np.uint8))
    assert str(picture).startswith("data:image/webp") and len(flips.spread(frames)) == flips.FRAMES
