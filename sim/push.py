"""Push: slide a puck along the table onto a target, between open fingers.

Success: the puck's centre is within 1 cm of the target's and slower than 0.1 m/s: sliding across it does not count.
"""

from __future__ import annotations

import math

import numpy as np
from flywheel_sim._demonstrator import towards

FPS = 20
MAX_STEPS = 90
SUCCESS = "held:10"  # steps in a row: half a second
WORKSPACE = ((0.30, 0.72), (-0.30, 0.30), (0.015, 0.30))  # m, where the controller's goal may go
ACTION = ("dx", "dy", "dz", "gripper")
OBS = {
    "robot0_eef_pos": (3, "m"),
    "robot0_eef_lag": (3, "m, controller goal less position"),
    "puck_pos": (3, "m"),
    "puck_to_eef": (3, "m"),
    "target_to_puck": (2, "m"),
}
START = {"puck_x": "m", "puck_y": "m", "target_x": "m", "target_y": "m"}  # units
FLAWS = ("overshoots", "stops_short", "glances")
DEMOS = 80  # episodes in datasets/
RADIUS = 0.05  # m, of the puck: wider than the open gripper, so that both fingers touch it
TOLERANCE = 0.010  # m
STILL = 0.1  # m/s


def start(rng: np.random.Generator) -> dict[str, float]:
    """Initial conditions in m: the target lies 10 to 22 cm from the puck, up to 34 degrees to either side."""
    x, y = rng.uniform(0.42, 0.50), rng.uniform(-0.14, 0.14)
    angle, distance = rng.uniform(-0.6, 0.6), rng.uniform(0.10, 0.22)
    return {
        "puck_x": float(x),
        "puck_y": float(y),
        "target_x": float(x + distance * math.cos(angle)),
        "target_y": float(y + distance * math.sin(angle)),
    }


def place(data, init: dict[str, float]) -> None:
    """Write the initial conditions into mujoco's `data`."""
    data.qpos[7:9] = 0.04
    data.joint("puck").qpos[:3] = init["puck_x"], init["puck_y"], 0.02
    data.mocap_pos[0] = init["target_x"], init["target_y"], 0.0


def observe(s: dict[str, np.ndarray], goal: np.ndarray) -> list[np.ndarray]:
    """The values of OBS in its order, each [k, N]."""
    return [
        s["eef_pos"],
        goal[:3] - s["eef_pos"],
        s["puck_pos"],
        s["puck_pos"] - s["eef_pos"],
        s["target_pos"][:2] - s["puck_pos"][:2],
    ]


def terms(s: dict[str, np.ndarray], won: np.ndarray) -> dict[str, np.ndarray]:
    """The shaped reward, term by term, each [N], where `won` [N] is success: come close, bring the puck to the
    target, succeed."""
    x, y, z = s["puck_pos"] - s["eef_pos"]
    reach = np.sqrt(x * x + y * y + z * z)
    x, y, _ = s["target_pos"] - s["puck_pos"]
    away = np.sqrt(x * x + y * y)
    return {"reach": 0.2 / (1.0 + 10.0 * reach), "push": 0.3 / (1.0 + 10.0 * away), "success": 0.5 * won}


def success(s: dict[str, np.ndarray]) -> np.ndarray:
    """[N] bool."""
    x, y, z = s["target_pos"] - s["puck_pos"]
    u, v, w = s["puck_vel"]
    return (x * x + y * y + z * z < TOLERANCE**2 + 0.02**2) & (u * u + v * v + w * w < STILL * STILL)


def demonstrate(see: dict[str, np.ndarray], rng: np.random.Generator, flaw: str | None):
    """Go to the near side of the puck, come down, push towards the target. Yields actions; `see` is the newest
    observation."""
    speed = rng.uniform(0.55, 0.85)
    aside = rng.choice([-1, 1]) * rng.uniform(0.045, 0.055) if flaw == "glances" else rng.normal(0, 0.002)
    past = 0.004
    if flaw == "overshoots":
        past = -rng.uniform(0.05, 0.09)
    elif flaw == "stops_short":
        past = rng.uniform(0.04, 0.08)

    for height in (0.09, 0.02):
        for _ in range(30):
            x, y, _ = see["puck_pos"]
            point = np.array([x - RADIUS - 0.02, y + aside, height])
            yield towards(see, point, speed=speed, grip=-1.0)
            if np.abs(point - see["robot0_eef_pos"]).max() < 0.012:
                break
    course = see["target_to_puck"] / np.hypot(*see["target_to_puck"])
    while True:
        way = see["target_to_puck"]
        along = course if flaw in ("glances", "overshoots") else way / max(float(np.hypot(*way)), 1e-6)
        left = float(way @ along) - past
        if left < 0:
            break
        pace = 0.018 if flaw == "overshoots" else min(speed * 0.02, 0.002 + 0.15 * left)
        slip = see["puck_to_eef"][1] + aside
        goal = see["robot0_eef_pos"] + see["robot0_eef_lag"]
        point = np.array([*(goal[:2] + along * pace + [0.0, np.clip(0.3 * slip, -0.005, 0.005)]), 0.02])
        yield towards(see, point, speed=1.0, grip=-1.0)
    there = see["robot0_eef_pos"].copy()
    while True:  # a hand that only rests drifts, and takes the puck with it
        yield towards(see, there, speed=0.4, grip=-1.0)
