"""distil: a policy that needs K passes of its net for an action becomes one that needs one, taught on the demonstrations' states."""

from __future__ import annotations

from typing import Any

from flywheel.stages import _inputs, pretrain


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    _inputs.belongs("distil", cfg["algorithm"])
    cfg = {**cfg, "checkpoint": cfg["checkpoint"] or _inputs.name_of({**cfg, "name": None})}
    return pretrain.inputs(cfg, store)


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    from flywheel.policy import base

    teacher = run.store.load(run.inputs["checkpoint"]["ref"]).requires_grad_(False)
    _inputs.one_robot(cfg, teacher)
    if not hasattr(teacher, "step_mean"):
        raise ValueError(
            f"distil: {run.inputs['checkpoint']['ref']} is a {teacher.spec['kind']} policy, not a chain of steps to shorten; expected "
            "diffusion or flow (of a best-of-N, name the `policy` that its retrain published)"
        )

    def begin(env, windows):
        shape = {k: teacher.spec[k] for k in (*base.SHAPE, "obs_keys", "ahead") if k in teacher.spec}
        return base.build({**cfg["policy"], **shape, "condition": teacher.condition}).like(teacher)

    return pretrain.train(cfg, run, begin, teacher=teacher)
