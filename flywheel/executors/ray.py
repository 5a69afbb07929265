"""On Ray: the cluster that RAY_ADDRESS or `resources.address` names, else one of this machine's cores on loopback.

Ray does the task of a worker or a node that was lost again."""

from __future__ import annotations

import functools
import os
import sys

from flywheel.ending import check
from flywheel.executors import TRIES, elsewhere, lost, needed, whose

PUT = 2**16  # bytes that are sent to a node once, not with each task
STAY = True  # workers are there from one call to the next: what takes seconds may be done by them, too


def map(function, tasks, workers=0, *, cpus=1, gpus=0, mem_gb=0, address=None):
    """The result of each task; `workers` of them at once, 0: as many as there is room for. A task takes `cpus`, `gpus`
    and `mem_gb` of its node. RuntimeError where workers die again and again, or no node has so much."""
    ray = _begin(address)
    asked = {"num_cpus": cpus, "num_gpus": gpus, **({"memory": int(mem_gb * 2**30)} if mem_gb else {})}
    _refuse(ray, asked)
    send = _remote().options(max_retries=TRIES, **asked)
    once, path, named = functools.cache(ray.put), ray.put(list(sys.path)), whose(function)
    waiting, going, done = iter(enumerate(tasks)), {}, {}
    most = workers or len(tasks)
    while len(done) < len(tasks):
        while len(going) < most and (one := next(waiting, None)):
            parts = [once(part) if isinstance(part, bytes) and len(part) >= PUT else part for part in one[1]]
            going[send.remote(path, *named, *parts)] = one[0]
        ready, _ = ray.wait(list(going), num_returns=1, timeout=1.0)
        try:
            for ref in ready:
                done[going.pop(ref)] = ray.get(ref)
            check()
        except BaseException as error:
            for ref in going:
                ray.cancel(ref, force=True)
            if isinstance(error, ray.exceptions.RayTaskError):  # of the function itself
                raise error.cause from None
            if isinstance(error, ray.exceptions.RayError):
                advice = f"Memory? Ask for resources.mem_gb, or take fewer workers= ({str(error).splitlines()[0]})"
                raise lost("ray", len(done), len(tasks), advice) from error
            raise
    return [done[i] for i in range(len(tasks))]


def _begin(address: str | None):
    """Join the cluster, once a process; Ray's module."""
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not address:  # a cluster of one's own listens on loopback only, as Ray does by itself on macOS
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = needed("ray", "ray")
    if ray.is_initialized():
        return ray
    try:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address=address or "local", **quiet, **({} if address else {"include_dashboard": False}))
    except ConnectionError as error:
        raise ValueError(
            f"executor=ray: no cluster at {address} ({error}). Start one (`ray start --head`), or name none: then one "
            "of this machine's cores is made"
        ) from error
    return ray


def _refuse(ray, asked: dict[str, float]) -> None:
    """RuntimeError where no node could ever take such a task: Ray would wait for one."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(names[key], 0) >= wanted for key, wanted in asked.items()) for node in nodes):
        told = "; ".join(", ".join(f"{k} {node.get(k, 0):g}" for k in names.values()) for node in nodes)
        raise RuntimeError(
            f"executor=ray: a task asks for {', '.join(f'{names[k]} {v:g}' for k, v in asked.items())}, the nodes have "
            f"{told}. Ask for less with resources=, or join a larger node"
        )


@functools.cache
def _remote():
    import ray

    return ray.remote(_do)


def _do(path, module, name, *task):
    return elsewhere(path, module, name, task)
