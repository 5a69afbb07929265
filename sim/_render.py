"""Pictures of a scene from its camera "view". OpenGL is opened at the first frame, so that everything else runs
without it."""

from __future__ import annotations

import mujoco
import numpy as np

_failed: list[str] = []  # why OpenGL could not be opened in this process


def opened(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    """A renderer of this thread; RuntimeError with what to do where there is no OpenGL. A process in which it failed
    once does not try again: a second try with GLFW ends the whole process (abort in its library)."""
    if _failed:
        raise RuntimeError(_failed[0])
    try:
        return mujoco.Renderer(model, height=height, width=width)
    except (ValueError, TypeError):
        raise  # larger than the off-screen buffer, or no model: mujoco says so itself
    except Exception as error:
        _failed.append(
            f"no picture: OpenGL could not be opened ({type(error).__name__}: {error}). Install libEGL "
            "(Debian: libegl1) and set MUJOCO_GL=egl, or libosmesa6 and MUJOCO_GL=osmesa, before Python "
            "starts; stepping needs neither"
        )
        raise RuntimeError(_failed[0]) from error


class Camera:
    """Renders states of `model`; one OpenGL context, made when first needed and again when the size changes."""

    def __init__(self, model: mujoco.MjModel):
        self._model = model
        self._renderer = None
        self._size = None

    def frame(self, data: mujoco.MjData, width: int, height: int) -> np.ndarray:
        """uint8 [height, width, 3]; `data` must have been through mj_forward or mj_step."""
        if self._size != (width, height):
            self.close()
            self._renderer = opened(self._model, width, height)
            self._size = (width, height)
        self._renderer.update_scene(data, camera="view")
        return self._renderer.render().copy()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = self._size = None
