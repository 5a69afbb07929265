"""teacher: a flow policy beside the policy (FQL), where no checkpoint is one (distil)."""

from flywheel.policy import base


def make(policy, algorithm, reward: str) -> base.Policy:
    spec = {key: policy.spec[key] for key in (*base.SHAPE, "width", "depth", "ahead") if key in policy.spec}
    return base.build({"kind": "flow", **spec}).like(policy)
