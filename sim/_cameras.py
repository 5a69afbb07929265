"""What a policy sees: small pictures of a state, drawn without anything that is only for people.

A second model, with the cameras of CAMERAS in it, is only drawn: the one that is stepped stays as it is, to the last
bit. Shadows, reflections, sky, haze and multisampling are off: they cost many times what the picture does. An OpenGL
context belongs to a thread, so the painter is one; and it is one alone, since Mesa's software rasteriser ends the whole
process, sooner or later, where contexts of several threads draw at once (a segmentation fault; measured with 22.3)."""

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
    """The thread's renderers, one a size."""

    def __init__(self, task: Task, sides: set[int]):
        model = _model(task)
        self.data, self.nmocap = mujoco.MjData(model), model.nmocap
        self.model, self.renderers = model, {}
        for side in sides:
            renderer = self.renderers[side] = opened(model, side, side)
            for flag in OFF:
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0

    def draw(self, physics: np.ndarray, mocap: np.ndarray, out: dict[str, np.ndarray]) -> None:
        """Draw physics [N, nx] and mocap [N, nm] into out {camera: [N, H, W, 3]}."""
        model, data, split = self.model, self.data, 3 * self.nmocap
        for row in range(len(physics)):
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
    """Draws states of a task: `shapes` {camera: (H, W, 3)}, by a thread of its own, opened at the first frame."""

    def __init__(self, task: Task, cameras: Mapping[str, int]):
        self.shapes = shapes(cameras, task.name)
        self._task, self._pool = task, ThreadPoolExecutor(1, "painter")
        self._painter: _Painter | None = None

    def draw(self, physics: np.ndarray, mocap: np.ndarray) -> dict[str, np.ndarray]:
        """physics [N, nx], mocap [N, nm] -> {camera: [N, H, W, 3] uint8}; RuntimeError with what to do where there is
        no OpenGL."""
        if self._painter is None:
            sides = {shape[0] for shape in self.shapes.values()}
            self._painter = self._pool.submit(_Painter, self._task, sides).result()
        out = {name: np.empty((len(physics), *shape), np.uint8) for name, shape in self.shapes.items()}
        self._pool.submit(self._painter.draw, physics, mocap, out).result()
        return out

    def close(self) -> None:
        """Free the renderers, in the thread that has them."""
        if self._painter is not None:
            self._pool.submit(self._painter.close).result()
        self._pool.shutdown()
        self._painter = None
