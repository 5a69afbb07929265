"""Assemble: take a square nut by its handle, turn it straight, and slip it over a square post 2.5 mm narrower on each
side.

Success: the nut lies around the post, at most 1 cm above the table.
"""

from __future__ import annotations

import math

import numpy as np
from flywheel_sim._demonstrator import hold, towards

FPS = 20
MAX_STEPS = 120
SUCCESS = "held:10"  # steps in a row: half a second
WORKSPACE = ((0.32, 0.66), (-0.24, 0.24), (0.012, 0.30))  # m, where the controller's goal may go
ACTION = ("dx", "dy", "dz", "dyaw", "gripper")
OBS = {
    "robot0_eef_pos": (3, "m"),
    "robot0_eef_yaw": (2, "cos, sin"),
    "robot0_eef_lag": (3, "m, controller goal less position"),
    "robot0_gripper_qpos": (2, "m a finger"),
    "nut_pos": (3, "m, the middle of its hole"),
    "nut_yaw": (2, "cos, sin"),
    "nut_tilt": (2, "x and y of the nut's axis"),
    "nut_to_eef": (3, "m"),
    "post_to_nut": (3, "m, the post's foot from the middle of the hole"),
}
START = {"nut_x": "m", "nut_y": "m", "nut_yaw": "rad", "post_x": "m", "post_y": "m"}  # units
FLAWS = ("misses_handle", "lets_go", "misjudges_post")
DEMOS = 80  # episodes in datasets/
HALF = 0.01  # m, half the nut's height
HANDLE = 0.055  # m, where the hand takes the handle, from the middle of the hole
POST = 0.04  # m, the post's height


def start(rng: np.random.Generator) -> dict[str, float]:
    """Initial conditions in m and rad."""
    return {
        "nut_x": float(rng.uniform(0.44, 0.58)),
        "nut_y": float(rng.uniform(-0.17, -0.05)),
        "nut_yaw": float(rng.uniform(-0.7, 0.7)),
        "post_x": float(rng.uniform(0.46, 0.58)),
        "post_y": float(rng.uniform(0.06, 0.16)),
    }


def place(data, init: dict[str, float]) -> None:
    """Write the initial conditions into mujoco's `data`."""
    data.qpos[7:9] = 0.04
    half = init["nut_yaw"] / 2
    data.joint("nut").qpos[:] = init["nut_x"], init["nut_y"], HALF, math.cos(half), 0, 0, math.sin(half)
    data.mocap_pos[0] = init["post_x"], init["post_y"], 0.0


def observe(s: dict[str, np.ndarray], goal: np.ndarray) -> list[np.ndarray]:
    """The values of OBS in its order, each [k, N]."""
    return [
        s["eef_pos"],
        s["eef_x"][:2],
        goal[:3] - s["eef_pos"],
        s["finger1"],
        s["finger2"],
        s["nut_pos"],
        s["nut_x"][:2],
        s["nut_z"][:2],
        s["nut_pos"] - s["eef_pos"],
        s["post_pos"] - s["nut_pos"],
    ]


def terms(s: dict[str, np.ndarray], won: np.ndarray) -> dict[str, np.ndarray]:
    """The shaped reward, term by term, each [N], where `won` [N] is success: come close, bring the nut to the post's
    foot, succeed."""
    x, y, z = s["nut_pos"] - HANDLE * s["nut_x"] - s["eef_pos"]
    reach = np.sqrt(x * x + y * y + z * z)
    x, y, z = s["post_pos"] - s["nut_pos"]
    away = np.sqrt(x * x + y * y + z * z)
    return {"reach": 0.2 / (1.0 + 10.0 * reach), "assemble": 0.3 / (1.0 + 10.0 * away), "success": 0.5 * won}


def success(s: dict[str, np.ndarray]) -> np.ndarray:
    """[N] bool."""
    x, y, z = s["post_pos"] - s["nut_pos"]
    return (np.maximum(np.abs(x), np.abs(y)) < 0.01) & (z > -HALF - 0.01) & (s["nut_z"][2] > 0.95)


def demonstrate(see: dict[str, np.ndarray], rng: np.random.Generator, flaw: str | None):
    """Above the handle, down, close, up, above the post, down, open. Yields actions; `see` is the newest
    observation."""
    speed = rng.uniform(0.55, 0.85)
    miss = rng.normal(0, 0.002, 2)
    if flaw == "misses_handle":
        miss = -rng.uniform(0.028, 0.04) * see["nut_yaw"]  # beyond the handle's end
    off = rng.choice([-1, 1], 2) * rng.uniform(0.008, 0.016, 2) if flaw == "misjudges_post" else np.zeros(2)

    for height, near in ((0.08, 0.015), (0.006, 0.008)):
        for _ in range(35):
            point = see["nut_pos"] + [*(miss - HANDLE * see["nut_yaw"]), height]
            yield towards(see, point, yaw=_angle(see["nut_yaw"]), speed=speed, grip=-1.0)
            if np.abs(point - see["robot0_eef_pos"]).max() < near:
                break
    for _ in range(rng.integers(5, 8)):
        yield hold(see, grip=1.0)
    drop_at = rng.integers(6, 22) if flaw == "lets_go" else 10**6
    raised, entering = see["robot0_eef_pos"] + [0, 0, POST + 0.03], False
    for step in range(80):
        to_post = see["post_to_nut"][:2] + off
        height = -see["post_to_nut"][2]  # of the middle of the hole
        grip = -1.0 if step > drop_at else 1.0
        if step < 5 or (step < 20 and height < POST and not entering):
            yield towards(see, raised, speed=speed, grip=grip)
            continue
        straight = abs(see["nut_yaw"][1]) < 0.05
        entering = (straight and np.abs(to_post).max() < 0.002) or (entering and height < POST + 0.008)
        point = see["robot0_eef_pos"] + [*to_post, (HALF if entering else POST + 0.025) - height]
        turn = _angle(see["robot0_eef_yaw"]) - _angle(see["nut_yaw"])  # the nut may have turned within the hand
        yield towards(see, point, yaw=turn, speed=0.4 if entering else speed, grip=grip)
        if entering and height < HALF + 0.005:
            break
    while True:
        yield hold(see, grip=-1.0)


def _angle(direction: np.ndarray) -> float:
    """The angle (rad) of a cosine and a sine."""
    return float(np.arctan2(direction[1], direction[0]))
