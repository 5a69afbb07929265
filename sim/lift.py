"""Lift: grasp a cube that lies anywhere on a patch of the table, at any angle, and raise it.

Success: the cube is at least 10 cm above the table and moves slower than 0.3 m/s.
"""

from __future__ import annotations

import math

import numpy as np
from flywheel_sim._demonstrator import hold, quarter, towards

FPS = 20
MAX_STEPS = 80
SUCCESS = "held:10"  # steps in a row: half a second
WORKSPACE = ((0.32, 0.66), (-0.22, 0.22), (0.012, 0.35))  # m, where the controller's goal may go
ACTION = ("dx", "dy", "dz", "dyaw", "gripper")
OBS = {
    "robot0_eef_pos": (3, "m"),
    "robot0_eef_yaw": (2, "cos, sin"),
    "robot0_eef_lag": (3, "m, controller goal less position"),
    "robot0_gripper_qpos": (2, "m a finger"),
    "cube_pos": (3, "m"),
    "cube_yaw": (2, "cos, sin of four times the angle"),
    "cube_to_eef": (3, "m"),
}
START = {"cube_x": "m", "cube_y": "m", "cube_yaw": "rad"}  # units
FLAWS = ("misjudges", "closes_early", "lets_go")
DEMOS = 120  # episodes in datasets/
HALF = 0.033  # m, half the cube's edge
HEIGHT = 0.10  # m


def start(rng: np.random.Generator) -> dict[str, float]:
    """Initial conditions in m and rad."""
    return {
        "cube_x": float(rng.uniform(0.38, 0.58)),
        "cube_y": float(rng.uniform(-0.18, 0.18)),
        "cube_yaw": float(rng.uniform(-math.pi / 4, math.pi / 4)),
    }


def place(data, init: dict[str, float]) -> None:
    """Write the initial conditions into mujoco's `data`."""
    data.qpos[7:9] = 0.04
    half = init["cube_yaw"] / 2
    data.joint("cube").qpos[:] = init["cube_x"], init["cube_y"], HALF, math.cos(half), 0, 0, math.sin(half)


def observe(s: dict[str, np.ndarray], goal: np.ndarray) -> list[np.ndarray]:
    """The values of OBS in its order, each [k, N]."""
    c, i = s["cube_x"][:1], s["cube_x"][1:2]
    c2, i2 = c * c - i * i, 2 * c * i
    return [
        s["eef_pos"],
        s["eef_x"][:2],
        goal[:3] - s["eef_pos"],
        s["finger1"],
        s["finger2"],
        s["cube_pos"],
        c2 * c2 - i2 * i2,
        2 * c2 * i2,
        s["cube_pos"] - s["eef_pos"],
    ]


def terms(s: dict[str, np.ndarray], won: np.ndarray) -> dict[str, np.ndarray]:
    """The shaped reward, term by term, each [N], where `won` [N] is success: come close, raise, succeed."""
    x, y, z = s["cube_pos"] - s["eef_pos"]
    distance = np.sqrt(x * x + y * y + z * z)
    raised = np.minimum(np.maximum((s["cube_pos"][2] - HALF) / HEIGHT, 0.0), 1.0)
    return {"reach": 0.2 / (1.0 + 10.0 * distance), "raise": 0.3 * raised, "success": 0.5 * won}


def success(s: dict[str, np.ndarray]) -> np.ndarray:
    """[N] bool."""
    x, y, z = s["cube_vel"]
    return (s["cube_pos"][2] > HALF + HEIGHT) & (x * x + y * y + z * z < 0.3 * 0.3)


def demonstrate(see: dict[str, np.ndarray], rng: np.random.Generator, flaw: str | None):
    """Above the cube, down, close, up. Yields actions; `see` is the newest observation."""
    speed = rng.uniform(0.55, 0.85)
    miss = rng.normal(0, 0.003, 2)
    if flaw == "misjudges":
        miss = rng.choice([-1, 1], 2) * rng.uniform(0.022, 0.04, 2)
    depth = rng.uniform(0.042, 0.055) if flaw == "closes_early" else rng.uniform(-0.004, 0.004)
    lets_go = rng.integers(2, 5) if flaw == "lets_go" else 10**6

    for height, near in ((0.09, 0.015), (depth, 0.008)):
        for _ in range(35):
            point = see["cube_pos"] + [*miss, height]
            yield towards(see, point, yaw=quarter(see["cube_yaw"]), speed=speed, grip=-1.0)
            if np.abs(point - see["robot0_eef_pos"]).max() < near:
                break
    for _ in range(rng.integers(5, 8)):
        yield hold(see, grip=1.0)
    top = see["robot0_eef_pos"] + [0, 0, 0.17]
    for step in range(30):
        yield towards(see, top, speed=0.8 * speed, grip=-1.0 if step > lets_go else 1.0)
    while True:
        yield hold(see, grip=-1.0)
