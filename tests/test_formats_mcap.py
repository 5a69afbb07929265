"""ROS 2 bags: written by mcap's own writer, resampled, and refused in words."""

import io
import math

import numpy as np
import pytest
import yaml
from test_formats import read, refusal

pytest.importorskip("mcap_ros2")
from mcap_ros2.writer import Writer
from PIL import Image

from flywheel.corpus import quality

JOINTS = "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort\n" + (
    "=" * 80 + "\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n"
    + "=" * 80 + "\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
)  # fmt: skip
POSE = "Point position\nQuaternion orientation\n" + (
    "=" * 80 + "\nMSG: geometry_msgs/Point\nfloat64 x\nfloat64 y\nfloat64 z\n"
    + "=" * 80 + "\nMSG: geometry_msgs/Quaternion\nfloat64 x\nfloat64 y\nfloat64 z\nfloat64 w\n"
)  # fmt: skip
NUMBERS, FLAG = "float64[] data\n", "bool data\n"
PICTURE = "string format\nuint8[] data\n"

CARD = {
    "rate_hz": 10,
    "obs": [
        {"topic": "/joints", "field": "position", "size": 2, "unit": "rad"},
        {"topic": "/tool", "field": "position", "size": 3, "unit": "m"},
    ],
    "action": [{"topic": "/command", "field": "data", "size": 2, "unit": "rad/s"}],
    "success": {"topic": "/won", "field": "data"},
    "cameras": {"wrist": "/camera"},
}
STAMP = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""}


def joint(t):
    return [math.sin(t), t]


def record(path, seconds=1.0, hole=None, won=0.55):
    """Joints at 100 Hz, the tool's pose at 50 Hz from 0.05 s on, commands at 10 Hz, 4 ms after each tick; success at
    `won`."""
    with open(path, "wb") as file:
        writer = Writer(file)
        types = {
            "/joints": ("sensor_msgs/JointState", JOINTS), "/tool": ("geometry_msgs/Pose", POSE), "/command": ("std_msgs/Float64MultiArray", NUMBERS),
            "/won": ("std_msgs/Bool", FLAG), "/camera": ("sensor_msgs/CompressedImage", PICTURE),
        }  # fmt: skip
        schemas = {topic: writer.register_msgdef(name, text) for topic, (name, text) in types.items()}

        def say(topic, t, message):
            ns = round(t * 1e9)
            writer.write_message(topic, schemas[topic], message, log_time=ns, publish_time=ns)

        for k in range(round(seconds * 100) + 1):
            t = k / 100
            if not (hole and hole[0] < t < hole[1]):
                say(
                    "/joints",
                    t,
                    {"header": STAMP, "name": ["a", "b"], "position": joint(t), "velocity": [], "effort": []},
                )
            if k % 2 == 1 and k >= 5:
                say(
                    "/tool",
                    t,
                    {
                        "position": {"x": t, "y": 2 * t, "z": 0.5},
                        "orientation": {"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0},
                    },
                )
            if k % 10 == 0:
                say("/command", t + 0.004, {"data": [t, -t]})
                picture = io.BytesIO()
                Image.fromarray(np.full((4, 6, 3), k, np.uint8)).save(picture, "png")
                say("/camera", t, {"format": "png", "data": picture.getvalue()})
            if k == round(won * 100):
                say("/won", t, {"data": True})
        writer.finish()


def carded(folder, **changes):
    (folder / "ros2_mcap.yaml").write_text(yaml.safe_dump({**CARD, **changes}))


def test_streams_of_different_rates_meet_at_the_ticks(tmp_path):
    record(tmp_path / "a.mcap")
    carded(tmp_path)
    (episode,) = read("ros2_mcap", tmp_path / "a.mcap")
    # the tool begins at 0.05 s; the newest joints, pose and command at 0.05, 0.15, ... are those of 0.05, 0.05 and 0.00
    ticks = 0.05 + 0.1 * np.arange(10)
    assert len(episode) == 9 and episode.fps == 10.0
    np.testing.assert_allclose(episode.obs["state"][:, :2], [joint(t) for t in ticks], atol=1e-6)
    np.testing.assert_allclose(episode.obs["state"][:, 2], ticks, atol=1e-6)
    np.testing.assert_allclose(episode.action[:, 0], ticks[:-1] - 0.05, atol=1e-6)
    # success at 0.55 s is seen at the sixth tick, which the fifth step led to
    assert episode.success and episode.reward.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    # by log time: the newest command is 46 ms old at each tick, the picture 50, joints and tool are there at the tick
    assert episode.meta["skew_s"] == {
        "/camera": [0.05, 0.05],
        "/command": [0.046, 0.046],
        "/joints": [0.0, 0.0],
        "/tool": [0.0, 0.0],
    }
    assert quality.skew(episode.meta) == 0.05 and np.isnan(quality.skew({}))
    (seen,) = read("ros2_mcap", tmp_path / "a.mcap", cameras=["wrist"])
    assert seen.obs["wrist"].shape == (10, 4, 6, 3) and seen.obs["wrist"][:, 0, 0, 0].tolist() == [
        10 * k for k in range(10)
    ]


def test_nobody_judged_is_not_failure_and_the_origin_is_the_cards(tmp_path):
    record(tmp_path / "a.mcap")
    carded(tmp_path, success=None, origin="human:glove")
    (episode,) = read("ros2_mcap", tmp_path / "a.mcap")
    assert episode.success is None and episode.origin == "human:glove"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"obs": [{"topic": "/nothing", "field": "x", "size": 1, "unit": "m"}]}, "no message on /nothing"),
        (
            {"action": [{"topic": "/command", "field": "data", "size": 3, "unit": "m"}]},
            "/command data has 2 numbers; the card says 3",
        ),
        ({"action": [{"topic": "/command", "field": "speed", "size": 2, "unit": "m"}]}, "has no speed; it has"),
        ({"rate_hz": 0.5}, "the streams share 0.9"),
        ({"speed": 3}, "missing or unknown: speed"),
        ({"action": [{"topic": "/command", "field": "data", "size": 2}]}, "expected topic, field, size and unit"),
    ],
)
def test_what_the_card_gets_wrong_is_said(tmp_path, changes, told):
    record(tmp_path / "a.mcap")
    carded(tmp_path, **changes)
    (error,) = read("ros2_mcap", tmp_path / "a.mcap")
    assert told in str(error)


def test_a_stream_that_falls_silent_is_refused_with_the_time(tmp_path):
    record(tmp_path / "a.mcap", hole=(0.3, 0.8))
    carded(tmp_path)
    assert "/joints says nothing for 0.45 s at 0.70 s; the card allows stale_s=0.25" in refusal(
        "ros2_mcap", tmp_path / "a.mcap"
    )


def test_no_card_and_no_bag(tmp_path):
    record(tmp_path / "a.mcap")
    assert "no card; expected" in refusal("ros2_mcap", tmp_path / "a.mcap")
    carded(tmp_path)
    (tmp_path / "b.mcap").write_bytes(b"not a bag")
    assert "not an MCAP file that can be read" in refusal("ros2_mcap", tmp_path / "b.mcap")
    whole = (tmp_path / "a.mcap").read_bytes()
    (tmp_path / "c.mcap").write_bytes(whole[: len(whole) // 2])
    assert "c.mcap" in refusal("ros2_mcap", tmp_path / "c.mcap")


def test_whole_numbers_stay_choices_and_a_reward_may_judge(tmp_path):
    """findings C5, findings C1: an int32 command comes as whole numbers; the card's reward is what outcome=
    compares."""
    with open(tmp_path / "a.mcap", "wb") as file:
        writer = Writer(file)
        kinds = {"/seen": ("std_msgs/Float64MultiArray", NUMBERS), "/choice": ("std_msgs/Int32", "int32 data\n"), "/r": ("std_msgs/Float64", "float64 data\n")}  # fmt: skip
        known = {topic: writer.register_msgdef(*kind) for topic, kind in kinds.items()}
        for k in range(6):
            for topic, value in (("/seen", [float(k)]), ("/choice", 1 + k % 2), ("/r", k / 10)):
                ns = round(k * 1e8)
                writer.write_message(topic, known[topic], {"data": value}, log_time=ns, publish_time=ns)
        writer.finish()
    card = {"rate_hz": 10, "reward": {"topic": "/r", "field": "data"}}
    card["obs"] = [{"topic": "/seen", "field": "data", "size": 1, "unit": "1"}]
    card["action"] = [{"topic": "/choice", "field": "data", "size": 1, "unit": "1"}]
    (tmp_path / "ros2_mcap.yaml").write_text(yaml.safe_dump(card))
    (plain,) = read("ros2_mcap", tmp_path / "a.mcap")
    assert plain.action.dtype == np.int64 and plain.action[:, 0].tolist() == [1, 2, 1, 2, 1] and plain.success is None
    (told,) = read("ros2_mcap", tmp_path / "a.mcap", outcome={"success_when": "reward >= 0.3"})
    assert told.success and told.reward.tolist() == [0, 0, 1, 0, 0], "the third step led to 0.3"
