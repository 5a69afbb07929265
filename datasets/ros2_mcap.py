"""ROS 2 bags in MCAP, one file an episode: messages of any rate, resampled to the control rate by a card that says what
is what.

The card is a YAML file beside the recordings, FILE.yaml or ros2_mcap.yaml (or `card=`):

    rate_hz: 20
    obs:                                                     # side by side, in this order, as `state`
      - {topic: /joint_states, field: position, size: 7, unit: rad}
      - {topic: /tool, field: pose.position, size: 3, unit: m}           # fields of a message: x, y, z
    action:
      - {topic: /command, field: data, size: 4, unit: rad/s}
    success: {topic: /success, field: data}                  # optional: true from the moment of success on
    reward: {topic: /reward, field: data}                    # optional: for outcome={success_when: "reward > 0.9"}
    cameras: {wrist: /camera/compressed}                     # optional: all of them, or those that `cameras=` names
    stale_s: 0.25                                            # a value older than this is a gap

Time is that of the log. At each tick a stream has its newest message so far; an action is the one in force until the
next tick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _mcap, _units

from flywheel import bounds
from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt
from flywheel.frames import Frames, pictures

KEYS = {"rate_hz", "obs", "action", "success", "reward", "cameras", "stale_s", "origin", "about"}
FASTEST, LONGEST = 10_000.0, 10_000_000  # Hz; ticks an episode


def read(
    path: Path,
    card: str | None = None,
    origin: str | None = None,
    cameras: list[str] | None = None,
    outcome: Any = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield the file's episode; EpisodeError says what is missing, where, and what there is."""
    try:
        import mcap_ros2  # noqa: F401
    except ImportError as error:
        raise EpisodeError(
            f"{path}: reading MCAP needs two packages: pip install mcap mcap-ros2-support (the extra [ros])"
        ) from error
    told, rule = _card(Path(path), card), outcomes.rule(outcome)
    judges = [told[key] for key in ("success", "reward") if told.get(key)]
    streams = [*told["obs"], *told["action"], *judges]
    carded = told.get("cameras") or {}
    if unknown := [name for name in cameras or [] if name not in carded]:
        raise EpisodeError(f"{path}: the card has no camera {', '.join(unknown)}; it has {list(carded)}")
    views = {name: topic for name, topic in carded.items() if cameras is None or name in cameras}
    topics = {stream["topic"] for stream in streams} | set(views.values())
    seen: dict[str, list[tuple[int, Any]]] = {topic: [] for topic in topics}
    try:
        for time, topic, message in _mcap.messages(path, topics):
            seen[topic].append((time, message))
    except EpisodeError as error:
        raise EpisodeError(f"{path}: not an MCAP file that can be read: {error}") from error
    except Exception as error:  # what damaged records raise
        raise EpisodeError(f"{path}: not an MCAP file that can be read: {error!r}") from error
    if silent := sorted(topic for topic in topics if not seen[topic]):
        raise EpisodeError(f"{path}: no message on {', '.join(silent)}; look at the card's topics and at `mcap info`")
    yield attempt(lambda: _episode(str(path), told, seen, views, origin, rule), str(path))


def parts(path: Path, card: str | None = None) -> list[Path]:
    """The files that decide what is read."""
    places = (place for place in _places(Path(path), card) if place.is_file())
    return [Path(path), *(place for place in places if card or bounds.within(Path(path).parent, place))]


def _places(path: Path, named: str | None) -> list[Path]:
    return [Path(named)] if named else [path.with_suffix(".yaml"), path.parent / "ros2_mcap.yaml"]


def _card(path: Path, named: str | None) -> dict[str, Any]:
    """The card for a recording, checked."""
    places = _places(path, named)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise EpisodeError(f"{path}: no card; expected {' or '.join(map(str, places))} with rate_hz, obs and action")
    told = _units.card(found if named else bounds.inside(path.parent, found.name, str(path)))
    if wrong := [key for key in ("rate_hz", "obs", "action") if not told.get(key)] + sorted(set(told) - KEYS):
        raise EpisodeError(
            f"{found}: missing or unknown: {', '.join(wrong)}; expected rate_hz, obs, action, and "
            f"{', '.join(sorted(KEYS))}"
        )
    for stream in [*told["obs"], *told["action"]]:
        if not {"topic", "field", "size", "unit"} <= set(stream):
            raise EpisodeError(f"{found}: {stream}; expected topic, field, size and unit of each stream")
        _units.unit(stream["unit"], f"{found}: {stream['topic']} {stream['field']}")
    if wrong := {k: v for k, v in (told.get("cameras") or {}).items() if not str(v).startswith("/")}:
        raise EpisodeError(f"{found}: cameras {wrong}; expected a name and the topic of its images for each")
    return told


def _episode(
    where: str, told: dict[str, Any], seen: dict[str, list], views: dict[str, str], origin: str | None, rule
) -> Episode:
    rate, stale = _columns.rate(told["rate_hz"], f"{where}: the card"), float(told.get("stale_s", 0.25))
    if not 0 < rate <= FASTEST:
        raise EpisodeError(f"{where}: the card says rate_hz {rate}; expected more than 0 and at most {FASTEST:g}")
    judged = {told[key]["topic"] for key in ("success", "reward") if told.get(key)}
    ticks = _ticks(where, [messages for topic, messages in seen.items() if topic not in judged], rate, stale)
    skew: dict[str, list[float]] = {}

    def at_ticks(topic: str) -> list[Any]:
        times = np.array([t for t, _ in seen[topic]])
        index = np.searchsorted(times, ticks, side="right") - 1
        if topic not in judged:
            age = (ticks - times[index]) / 1e9
            skew[topic] = _columns.skew(age)
            if age.max() > stale:
                at = (ticks[age.argmax()] - ticks[0]) / 1e9
                raise EpisodeError(
                    f"{where}: {topic} says nothing for {age.max():.2f} s at {at:.2f} s; the card allows "
                    f"stale_s={stale}"
                )
        return [seen[topic][i][1] if i >= 0 else None for i in index]

    def values(streams: list[dict[str, Any]]) -> np.ndarray:
        return np.concatenate([np.stack([_field(m, s, where) for m in at_ticks(s["topic"])]) for s in streams], axis=1)

    def said(key: str) -> np.ndarray | None:
        """[T] of a stream that judges, NaN before its first message; what a tick brought about is told by the next
        one."""
        field = (told.get(key) or {}).get("field")
        found = (
            [np.nan if m is None else float(_walk(m, field, where)) for m in at_ticks(told[key]["topic"])]
            if field
            else None
        )
        return None if found is None else np.array(found)[1:]

    steps = len(ticks) - 1
    flags = said("success")
    flags = None if flags is None else np.nan_to_num(flags)  # silence before the first word is no success
    result = outcomes.decide(
        outcomes.Said(flags=flags, reward=said("reward"), done=True), steps, rule=rule, where=where
    )
    frames = _columns.frames(lambda name: _camera(at_ticks(views[name])), views, where)
    return Episode(
        task="",
        obs={"state": values(told["obs"]).astype(np.float32), **frames},
        action=_columns.actions(values(told["action"]), where)[:steps],
        reward=result.reward,
        terminated=result.terminated,
        success=result.success,
        origin=origin or told.get("origin", "human:teleoperation"),
        fps=rate,
        extras=result.extras,
        meta={"file": Path(where).name, "skew_s": dict(sorted(skew.items()))},
    )


def _ticks(where: str, streams: list[list], rate: float, stale: float) -> np.ndarray:
    """The times [T+1], in ns, at which all streams of messages [(time, message)] are read: from when each has spoken to
    when the first is silent."""
    period, fewest = 1e9 / rate, min(map(len, streams))
    begin, end = max(messages[0][0] for messages in streams), min(messages[-1][0] for messages in streams)
    if (end - begin) / period > min(LONGEST, fewest * (max(stale, 0.0) * rate + 2)):
        raise EpisodeError(
            f"{where}: {(end - begin) / 1e9:.0f} s with {fewest} messages on a topic; the card allows gaps of "
            f"stale_s={stale} s"
        )
    ticks = begin + np.arange(int(max(0, end - begin) // period) + 1) * period
    if len(ticks) < 2:
        raise EpisodeError(
            f"{where}: the streams share {(end - begin) / 1e9:.2f} s; expected at least two ticks of "
            f"{period / 1e9:.3f} s"
        )
    return ticks


def _walk(message: Any, field: str, where: str) -> Any:
    """The value of a dotted field."""
    for name in field.split("."):
        if not hasattr(message, name):
            raise EpisodeError(
                f"{where}: {type(message).__name__} has no {field}; it has "
                f"{', '.join(getattr(message, '__slots__', ())) or 'nothing'}"
            )
        message = getattr(message, name)
    return message


def _field(message: Any, stream: dict[str, Any], where: str) -> np.ndarray:
    """The `size` numbers of a stream in a message: an array, or the numbers of a message such as a point."""
    value = _walk(message, stream["field"], where)
    if hasattr(value, "__slots__"):
        value = [getattr(value, name) for name in value.__slots__]
    row = np.atleast_1d(np.asarray(value)).ravel()
    row = row.astype(np.int64 if row.dtype.kind in "biu" else np.float32)
    if len(row) != int(stream["size"]):
        raise EpisodeError(
            f"{where}: {stream['topic']} {stream['field']} has {len(row)} numbers; the card says {stream['size']}"
        )
    return row


def _camera(messages: list[Any]) -> Frames | np.ndarray:
    """sensor_msgs/CompressedImage: the bytes as they came; Image in rgb8 or bgr8: [N, H, W, 3] uint8."""
    if hasattr(messages[0], "format"):
        return pictures(bytes(message.data) for message in messages)
    return np.stack([_image(message) for message in messages])


def _image(message: Any) -> np.ndarray:
    if message.encoding not in ("rgb8", "bgr8"):
        raise EpisodeError(f"an image in {message.encoding}; expected rgb8, bgr8 or a compressed one")
    rows = np.frombuffer(bytes(message.data), np.uint8).reshape(message.height, message.step)[:, : 3 * message.width]
    frame = rows.reshape(message.height, message.width, 3)
    return frame if message.encoding == "rgb8" else frame[..., ::-1]
