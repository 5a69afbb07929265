"""A task as data: what its module and its MJCF say, compiled, with sensors by name.

Arrays inside the simulation are component first, [k, N] for N environments: a sensor is then a view, and every formula
reads the same for one environment and for many. Formulas use + - * / and sqrt only, which are exact to the last bit
whatever the batch size; sin, exp and sums over an axis are not.
"""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import mujoco
import numpy as np

PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS
RESOLUTION = 2.0**-13  # 0.12 mm; a power of two, so that float32 holds every reading exactly
READING = 4.0  # readings stop here, in m or without unit: far outside anything but a thing thrown off the table
HOME = (
    0.0,
    -0.0066,
    0.0,
    -2.4436,
    0.0,
    2.437,
    0.7854,
)  # rad; the hand points down at (0.48, 0, 0.2) m, fingers along y


@dataclass(frozen=True)
class Start:
    """Where an episode begins: full physics state [nx], mocap poses [nm], sensor readings [ns], controller goal [5]."""

    physics: np.ndarray
    mocap: np.ndarray
    sensors: np.ndarray
    goal: np.ndarray


@dataclass(frozen=True, eq=False)
class Task:
    """One task, ready to be stepped. `obs_keys` is {key: (size, unit)} in the order in which they are concatenated."""

    name: str
    module: ModuleType
    model: mujoco.MjModel
    max_steps: int
    success: str  # which steps count: "any", "last" or "held:N"
    fps: float
    frame_skip: int
    action_names: tuple[str, ...]
    obs_keys: dict[str, tuple[int, str]]
    start_units: dict[str, str]  # {initial condition: unit}, as far as the module says
    sensor_slices: dict[str, slice] = field(repr=False)
    seen: tuple[tuple[str, slice], ...] = field(repr=False)

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def obs_dim(self) -> int:
        return sum(size for size, _ in self.obs_keys.values())

    @property
    def obs_names(self) -> list[str]:
        """What each number of the flat observation is: "cube_pos[2]"."""
        return [f"{key}[{i}]" if size > 1 else key for key, (size, _) in self.obs_keys.items() for i in range(size)]

    @property
    def obs_units(self) -> list[str]:
        """The unit of each number of the flat observation: the first word of what the module says, "m"."""
        return [re.split(r"[\s,]", unit)[0] for size, unit in self.obs_keys.values() for _ in range(size)]

    @property
    def proprio(self) -> np.ndarray:
        """The places [P] of what a robot knows without cameras: the keys of its own, robot0_*."""
        return np.flatnonzero([name.startswith("robot0_") for name in self.obs_names])

    def init(self, seed: int) -> dict[str, float]:
        """The initial conditions of this seed by name, in metres and radians: a pure function of `seed`."""
        return self.module.start(np.random.default_rng(seed))

    def start(self, data: mujoco.MjData, seed: int) -> Start:
        """Put `data` at the initial state of `seed` and return everything that an environment needs to go on from
        it."""
        rng = np.random.default_rng(seed)
        init = self.module.start(rng)
        mujoco.mj_resetData(self.model, data)
        joints = np.array(HOME) + rng.uniform(-0.05, 0.05, 7)
        data.qpos[:7] = joints
        self.module.place(data, init)
        mujoco.mj_forward(self.model, data)
        return self._start_here(data)

    def restore(self, data: mujoco.MjData, state: dict[str, np.ndarray]) -> Start:
        """Put `data` at `state` and return it as a Start; ValueError with both tables if it is not of this task.

        `state` comes from `get_state`. Without `sensors` and `goal` they are those of a hand that has just been put
        there, which is exact for the first state of an episode."""
        model = self.model
        sizes = {
            "physics": mujoco.mj_stateSize(model, PHYSICS),
            "mocap": 7 * model.nmocap,
            "sensors": model.nsensordata,
        }
        sizes["goal"] = 5
        state = {"mocap": np.zeros(0), **{key: np.asarray(value, np.float64).ravel() for key, value in state.items()}}
        found = {key: value.size for key, value in state.items()}
        if "physics" not in state or any(found[key] != sizes.get(key) for key in found):
            raise ValueError(
                f"{self.name}: the state has sizes {found}; expected {sizes}. It belongs to another task or model"
            )
        mujoco.mj_resetData(model, data)
        mujoco.mj_setState(model, data, state["physics"], PHYSICS)
        data.mocap_pos[:] = state["mocap"][: 3 * model.nmocap].reshape(-1, 3)
        data.mocap_quat[:] = state["mocap"][3 * model.nmocap :].reshape(-1, 4)
        mujoco.mj_forward(model, data)
        fresh = self._start_here(data)
        return Start(
            state["physics"], state["mocap"], state.get("sensors", fresh.sensors), state.get("goal", fresh.goal)
        )

    def _start_here(self, data: mujoco.MjData) -> Start:
        """`data` (after mj_forward) as the beginning of an episode: the controller's goal is where the hand is."""
        physics = np.empty(mujoco.mj_stateSize(self.model, PHYSICS))
        mujoco.mj_getState(self.model, data, physics, PHYSICS)
        eef, x = data.sensor("eef_pos").data, data.sensor("eef_x").data
        yaw = x[:2] / np.sqrt(x[0] * x[0] + x[1] * x[1])
        mocap = np.concatenate([data.mocap_pos.ravel(), data.mocap_quat.ravel()])
        return Start(physics, mocap, data.sensordata.copy(), np.concatenate([eef, yaw]))

    def sensors(self, readings: np.ndarray) -> dict[str, np.ndarray]:
        """Name the rows of readings [ns, N]; the arm's own, which only control needs, are left out."""
        return {name: readings[rows] for name, rows in self.seen}

    def observe(self, sensors: dict[str, np.ndarray], goal: np.ndarray) -> np.ndarray:
        """The flat observation [N, Do] float32: the module's keys, concatenated in the order of `obs_keys`, in whole
        steps of RESOLUTION, as real encoders and cameras have one (and recordings shrink to a third)."""
        values = np.concatenate(self.module.observe(sensors, goal)).T
        values = np.minimum(np.maximum(values, -READING), READING)
        return np.rint(values * (1 / RESOLUTION)).astype(np.float32, order="C") * np.float32(RESOLUTION)

    def split(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        """{key: [..., size]} views of a flat observation [..., Do]."""
        edges = np.cumsum([size for size, _ in self.obs_keys.values()])[:-1]
        return dict(zip(self.obs_keys, np.split(obs, edges, axis=-1), strict=True))


@functools.cache
def load_task(name: str) -> Task:
    """Compile the task's MJCF and check that module and model agree; `flywheel_sim.load` names what exists."""
    module = importlib.import_module(f"flywheel_sim.{name}")
    model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name(f"{name}.xml")))
    frame_skip = round(1 / (module.FPS * model.opt.timestep))
    if abs(frame_skip * model.opt.timestep * module.FPS - 1) > 1e-9:
        raise ValueError(
            f"{name}: FPS {module.FPS} is no whole number of {model.opt.timestep} s steps; change one of them"
        )
    slices = {}
    for index in range(model.nsensor):
        sensor = model.sensor(index)
        slices[sensor.name] = slice(int(sensor.adr[0]), int(sensor.adr[0] + sensor.dim[0]))
    return Task(
        name=name,
        module=module,
        model=model,
        max_steps=module.MAX_STEPS,
        success=getattr(module, "SUCCESS", "any"),
        fps=float(module.FPS),
        frame_skip=frame_skip,
        action_names=tuple(module.ACTION),
        obs_keys=dict(module.OBS),
        start_units=dict(getattr(module, "START", {})),
        sensor_slices=slices,
        seen=tuple(item for item in slices.items() if not item[0].startswith(("arm_", "anchor", "axis"))),
    )
