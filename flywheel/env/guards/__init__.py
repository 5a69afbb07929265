"""Guards between policy and environment, a file each: `guard(action, step, **args)` ([N, Da], which it changed [N])."""
