"""From an action to joint servo targets: a goal pose that moves by small steps, followed by damped least squares.

    goal  <- goal + action * scale                     kept within the workspace and within LEASH of the hand
    e     = [p_goal - p, 1/2 sum_k r_k x r_goal,k]     position and rotation error, the hand pointing down
    dq    = dq0 + J^T (J J^T + lambda^2 I)^-1 (e - J dq0)         dq0 pulls the elbow home
    target = q + dq, each joint within its velocity limit

The Jacobian comes from the sensors of joint positions and axes: column j is [z_j x (p - p_j), z_j]. Buss, "Introduction
to inverse kinematics with Jacobian transpose, pseudoinverse and damped least squares methods", 2004."""

from __future__ import annotations

import numpy as np
from flywheel_sim._task import HOME, Task

STEP = 0.025  # m a control step at full action
TURN = 0.075  # tangent of half the yaw step at full action: 8.6 degrees
LEASH = 0.05  # m, the most that the goal runs ahead of the hand along each axis
DAMPING = 0.03
VELOCITY = np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61])  # rad/s, the maker's limits
MIN_COS = 0.55  # the goal's yaw stays within 56 degrees of straight ahead


class Controller:
    """Owns the lookups of one task's model; the goal [5, N] (x, y, z in m, cos and sin of yaw) belongs to the
    caller."""

    def __init__(self, task: Task):
        rows = task.sensor_slices

        def index(names):
            return np.concatenate([np.arange(rows[name].start, rows[name].stop) for name in names])

        anchors, axes = ([rows[f"{kind}{j}"].start for j in range(1, 8)] for kind in ("anchor", "axis"))
        # rows of anchors [3, 7] and axes [3, 7] in the order x y z, and turned once and twice for the cross product
        self._axes = np.array([[row + k for row in axes] for k in range(3)])
        self._turn, self._back = [1, 2, 0], [2, 0, 1]
        self._anchors = np.array([[row + k for row in anchors] for k in range(3)])
        self._eef = np.arange(3)[:, None] + rows["eef_pos"].start
        self._hand = index(["eef_pos", "eef_x", "eef_y", "eef_z"])
        self._joints = index(f"arm_q{j}" for j in range(1, 8))
        self._home = np.array(HOME)[:, None]
        self._step = (VELOCITY / task.fps)[:, None]
        limits = task.model.jnt_range[:7]
        self._low, self._high = limits[:, :1] + 0.02, limits[:, 1:] - 0.02
        workspace = np.array(task.module.WORKSPACE)  # [3, 2]
        self._bottom, self._top = workspace[:, :1], workspace[:, 1:]
        self._turns = "dyaw" in task.action_names
        self._eye = DAMPING**2 * np.eye(6)

    def __call__(self, readings: np.ndarray, goal: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Servo targets [N, 9] (7 joints in rad, 2 fingers in m) and the new goal [5, N], from readings [ns, N],
        goal [5, N] and action [N, Da] within -1..1."""
        act = np.minimum(np.maximum(action.T.astype(np.float64), -1.0), 1.0)
        if not np.isfinite(act).all():
            row = int(np.argwhere(~np.isfinite(act).all(axis=0))[0, 0])
            raise ValueError(
                f"action {row} is {act[:, row]}; expected finite numbers in -1..1. Look at the policy's output"
            )
        hand = readings.take(self._hand, axis=0).reshape(4, 3, -1)
        position = hand[0]
        count = readings.shape[1]

        moved = goal[:3] + STEP * act[:3]
        moved = np.minimum(np.maximum(moved, position - LEASH), position + LEASH)
        moved = np.minimum(np.maximum(moved, self._bottom), self._top)
        cos, sin = goal[3], goal[4]
        if self._turns:
            half = TURN * act[3]
            square = half * half
            scale = 1.0 / (1.0 + square)
            new_cos = ((1.0 - square) * cos - 2.0 * half * sin) * scale
            new_sin = ((1.0 - square) * sin + 2.0 * half * cos) * scale
            inside = new_cos >= MIN_COS
            cos, sin = np.where(inside, new_cos, cos), np.where(inside, new_sin, sin)
        new_goal = np.concatenate([moved, cos[None], sin[None]])

        # rotation error: the hand's x, y, z axes should be (cos, sin, 0), (sin, -cos, 0), (0, 0, -1)
        (_, (xx, xy, xz), (yx, yy, yz), (zx, zy, _)) = hand
        error = np.empty((6, count))
        error[:3] = moved - position
        error[3] = 0.5 * (-xz * sin + yz * cos - zy)
        error[4] = 0.5 * (xz * cos + yz * sin + zx)
        error[5] = 0.5 * (xx * sin - xy * cos - yx * cos - yy * sin)

        joints = readings.take(self._joints, axis=0)
        z = readings.take(self._axes, axis=0)
        arm = readings.take(self._eef, axis=0) - readings.take(self._anchors, axis=0)
        jacobian = np.empty((6, 7, count))
        np.subtract(
            z.take(self._turn, axis=0) * arm.take(self._back, axis=0),
            z.take(self._back, axis=0) * arm.take(self._turn, axis=0),
            out=jacobian[:3],
        )
        jacobian[3:] = z
        jac = np.ascontiguousarray(jacobian.transpose(2, 0, 1))  # [N, 6, 7]
        jac_t = jac.transpose(0, 2, 1)
        pull = 0.1 * (self._home - joints).T[..., None]  # [N, 7, 1]
        left = error.T[..., None] - jac @ pull
        dq = pull + jac_t @ np.linalg.solve(jac @ jac_t + self._eye, left)

        targets = np.empty((9, count))
        step = np.minimum(np.maximum(dq[..., 0].T, -self._step), self._step)
        targets[:7] = np.minimum(np.maximum(joints + step, self._low), self._high)
        targets[7:] = 0.02 - 0.02 * act[-1]  # +1 closes, -1 opens to 4 cm a finger
        return targets.T, new_goal
