"""What a policy sees: small pictures of a state, drawn without anything that is only for people.

A second model, with the cameras of CAMERAS in it, is only drawn: the one that is stepped stays as it is, to the last
bit. Shadows, reflections, sky, haze and multisampling are off: they cost many times what the picture does. An OpenGL
context belongs to a thread, so each painter is a thread with renderers of its own; what is drawn does not depend on how
many there are."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mujoco
import numpy as np
from flywheel_sim._render import opened
from flywheel_sim._task import PHYSICS, Task

CAMERAS = {  # body (None: the world), position in m, x and y axis of the picture, field of view in degrees
    "wrist": ("hand", (0.1, 0.0, 0.03), (0, 1, 0, 0.87, 0, 0.5), 80.0),
    "top": (None, (0.48, 0.0, 0.95), (0, -1, 0, 1, 0, 0), 38.0),
}
SIDES = (16, 512)  # pixels a side, from and to
OFF = ("SHADOW", "REFLECTION", "SKYBOX", "HAZE")


def shapes(cameras: Mapping[str, int], task: str) -> dict[str, tuple[int, int, int]]:
    """{camera: (H, W, 3)} of {camera: side in pixels}; ValueError with what there is."""
    for name, side in cameras.items():
        if name not in CAMERAS:
            raise ValueError(f"task {task} has no camera {name!r}. There are: {', '.join(CAMERAS)}")
        if isinstance(side, bool) or not isinstance(side, int) or not SIDES[0] <= side <= SIDES[1]:
            raise ValueError(f"cameras.{name}={side!r}; expected a side of {SIDES[0]} to {SIDES[1]} pixels, such as 64")
    return {name: (side, side, 3) for name, side in cameras.items()}


def _model(task: Task) -> mujoco.MjModel:
    """The task's model with cameras, and without what costs time."""
    spec = mujoco.MjSpec.from_file(str(Path(__file__).with_name(f"{task.name}.xml")))
    for name, (body, pos, axes, fovy) in CAMERAS.items():
        camera = (spec.body(body) if body else spec.worldbody).add_camera(name=name, pos=pos, fovy=fovy)
        camera.alt.type, camera.alt.xyaxes = mujoco.mjtOrientation.mjORIENTATION_XYAXES, axes
    spec.visual.quality.shadowsize = spec.visual.quality.offsamples = 0
    return spec.compile()


class _Painter:
    """A thread's own renderers, one a size."""

    def __init__(self, task: Task, sides: set[int]):
        model = _model(task)
        self.data, self.nmocap = mujoco.MjData(model), model.nmocap
        self.model, self.renderers = model, {}
        for side in sides:
            renderer = self.renderers[side] = opened(model, side, side)
            for flag in OFF:
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0

    def draw(self, rows: range, physics: np.ndarray, mocap: np.ndarray, out: dict[str, np.ndarray]) -> None:
        """Draw these rows of physics [N, nx] and mocap [N, nm] into out {camera: [N, H, W, 3]}."""
        model, data, split = self.model, self.data, 3 * self.nmocap
        for row in rows:
            mujoco.mj_setState(model, data, physics[row], PHYSICS)
            data.mocap_pos[:] = mocap[row, :split].reshape(-1, 3)
            data.mocap_quat[:] = mocap[row, split:].reshape(-1, 4)
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_camlight(model, data)
            for name, frames in out.items():
                renderer = self.renderers[frames.shape[1]]
                renderer.update_scene(data, camera=name)
                renderer.render(out=frames[row])

    def close(self) -> None:
        for renderer in self.renderers.values():
            renderer.close()


class Cameras:
    """Draws states of a task: `shapes` {camera: (H, W, 3)}, by at most `threads` painters, opened at the first
    frame."""

    def __init__(self, task: Task, cameras: Mapping[str, int], threads: int = 1):
        self.shapes = shapes(cameras, task.name)
        self._task, self._pools = task, [ThreadPoolExecutor(1, "painter") for _ in range(max(1, threads))]
        self._painters: list[_Painter] = []

    def draw(self, physics: np.ndarray, mocap: np.ndarray) -> dict[str, np.ndarray]:
        """physics [N, nx], mocap [N, nm] -> {camera: [N, H, W, 3] uint8}; RuntimeError with what to do where there is
        no OpenGL."""
        if not self._painters:
            sides = {shape[0] for shape in self.shapes.values()}
            self._painters = [pool.submit(_Painter, self._task, sides).result() for pool in self._pools]
        out = {name: np.empty((len(physics), *shape), np.uint8) for name, shape in self.shapes.items()}
        count = len(self._painters)
        parts = [range(k * len(physics) // count, (k + 1) * len(physics) // count) for k in range(count)]
        going = [
            pool.submit(painter.draw, rows, physics, mocap, out)
            for pool, painter, rows in zip(self._pools, self._painters, parts, strict=True)
            if len(rows)
        ]
        for one in going:
            one.result()
        return out

    def close(self) -> None:
        """Free the renderers, each in its own thread."""
        for pool, painter in zip(self._pools, self._painters, strict=False):
            pool.submit(painter.close).result()
        for pool in self._pools:
            pool.shutdown()
        self._painters = []
