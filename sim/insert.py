"""Insert: take a square peg that stands on the table, turn it straight, and put it into a socket 2.5 mm wider on each
side.

Success: the peg stands in the socket, its lower end at most 1.5 cm above the table.
"""

from __future__ import annotations

import math

import numpy as np
from flywheel_sim._demonstrator import hold, quarter, towards

FPS = 20
MAX_STEPS = 120
SUCCESS = "held:10"  # steps in a row: half a second
WORKSPACE = ((0.34, 0.66), (-0.24, 0.24), (0.02, 0.30))  # m, where the controller's goal may go
ACTION = ("dx", "dy", "dz", "dyaw", "gripper")
OBS = {
    "robot0_eef_pos": (3, "m"),
    "robot0_eef_yaw": (2, "cos, sin"),
    "robot0_eef_lag": (3, "m, controller goal less position"),
    "robot0_gripper_qpos": (2, "m a finger"),
    "peg_pos": (3, "m"),
    "peg_yaw": (2, "cos, sin of four times the angle"),
    "peg_tilt": (2, "x and y of the peg's axis"),
    "peg_to_eef": (3, "m"),
    "hole_to_peg": (3, "m, hole at table height to the peg's lower end"),
}
START = {"peg_x": "m", "peg_y": "m", "peg_yaw": "rad", "hole_x": "m", "hole_y": "m"}  # units
FLAWS = ("misses_peg", "lets_go", "misjudges_hole")
DEMOS = 100  # episodes in datasets/
HALF = 0.045  # m, half the peg's length
GRASP = 0.02  # m, where the hand takes the peg, above its centre


def start(rng: np.random.Generator) -> dict[str, float]:
    """Initial conditions in m and rad."""
    return {
        "peg_x": float(rng.uniform(0.40, 0.56)),
        "peg_y": float(rng.uniform(-0.17, -0.05)),
        "peg_yaw": float(rng.uniform(-0.7, 0.7)),
        "hole_x": float(rng.uniform(0.42, 0.56)),
        "hole_y": float(rng.uniform(0.06, 0.16)),
    }


def place(data, init: dict[str, float]) -> None:
    """Write the initial conditions into mujoco's `data`."""
    data.qpos[7:9] = 0.04
    half = init["peg_yaw"] / 2
    data.joint("peg").qpos[:] = init["peg_x"], init["peg_y"], HALF, math.cos(half), 0, 0, math.sin(half)
    data.mocap_pos[0] = init["hole_x"], init["hole_y"], 0.0


def _lower_end(s: dict[str, np.ndarray]) -> np.ndarray:
    return s["peg_pos"] - HALF * s["peg_z"]


def observe(s: dict[str, np.ndarray], goal: np.ndarray) -> list[np.ndarray]:
    """The values of OBS in its order, each [k, N]."""
    c, i = s["peg_x"][:1], s["peg_x"][1:2]
    c2, i2 = c * c - i * i, 2 * c * i
    return [
        s["eef_pos"],
        s["eef_x"][:2],
        goal[:3] - s["eef_pos"],
        s["finger1"],
        s["finger2"],
        s["peg_pos"],
        c2 * c2 - i2 * i2,
        2 * c2 * i2,
        s["peg_z"][:2],
        s["peg_pos"] - s["eef_pos"],
        s["hole_pos"] - _lower_end(s),
    ]


def terms(s: dict[str, np.ndarray], won: np.ndarray) -> dict[str, np.ndarray]:
    """The shaped reward, term by term, each [N], where `won` [N] is success: come close, bring the peg's lower end
    to the hole, succeed."""
    x, y, z = s["peg_pos"] - s["eef_pos"]
    reach = np.sqrt(x * x + y * y + z * z)
    x, y, z = s["hole_pos"] - _lower_end(s)
    away = np.sqrt(x * x + y * y + z * z)
    return {"reach": 0.2 / (1.0 + 10.0 * reach), "insert": 0.3 / (1.0 + 10.0 * away), "success": 0.5 * won}


def success(s: dict[str, np.ndarray]) -> np.ndarray:
    """[N] bool."""
    x, y, z = s["hole_pos"] - _lower_end(s)
    return (np.maximum(np.abs(x), np.abs(y)) < 0.012) & (z > -0.015) & (s["peg_z"][2] > 0.95)


def demonstrate(see: dict[str, np.ndarray], rng: np.random.Generator, flaw: str | None):
    """Above the peg, down, close, up, above the hole, down, open. Yields actions; `see` is the newest observation."""
    speed = rng.uniform(0.55, 0.85)
    miss = (
        np.array([rng.choice([-1, 1]) * rng.uniform(0.024, 0.032), 0.0])
        if flaw == "misses_peg"
        else rng.normal(0, 0.002, 2)
    )
    off = rng.choice([-1, 1], 2) * rng.uniform(0.008, 0.016, 2) if flaw == "misjudges_hole" else np.zeros(2)

    for height, near in ((0.10, 0.015), (GRASP, 0.008)):
        for _ in range(35):
            point = see["peg_pos"] + [*miss, height]
            yield towards(see, point, yaw=quarter(see["peg_yaw"]), speed=speed, grip=-1.0)
            if np.abs(point - see["robot0_eef_pos"]).max() < near:
                break
    for _ in range(rng.integers(5, 8)):
        yield hold(see, grip=1.0)
    drop_at = rng.integers(6, 22) if flaw == "lets_go" else 10**6
    raised, entering = see["robot0_eef_pos"] + [0, 0, 0.075], False
    for step in range(80):
        to_hole = see["hole_to_peg"][:2] + off
        height = -see["hole_to_peg"][2]  # of the peg's lower end
        grip = -1.0 if step > drop_at else 1.0
        if step < 5 or (step < 20 and height < 0.04 and not entering):
            yield towards(see, raised, speed=speed, grip=grip)
            continue
        entering = np.abs(to_hole).max() < 0.003 or (entering and height < 0.033)
        point = see["robot0_eef_pos"] + [*to_hole, (0.005 if entering else 0.05) - height]
        yield towards(see, point, yaw=0.0, speed=0.4 if entering else speed, grip=grip)
        if entering and height < 0.01:
            break
    while True:
        yield hold(see, grip=-1.0)
