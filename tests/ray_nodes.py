"""A real Ray cluster of three nodes, processes on loopback: what it computes with 1, 2 and 5 workers, with workers
killed and a node lost, is compared to this process. Prints "equal". Usage: ray_nodes.py FOLDER"""

import os
import signal
import sys
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # loopback only

from ray.cluster_utils import Cluster
from test_executors import dies, doomed, drawn, wrong

from flywheel import executors


def node_dies(marks: str, task: int, raylet: int) -> int:
    """The square; the first time task 2 takes a node with it, that of pid `raylet`."""
    mark = Path(marks) / f"node-{task}"
    if task == 2 and not mark.exists():
        mark.touch()
        os.kill(raylet, signal.SIGKILL)
    return task * task


def refused(error: type, words: str, call, *told, **more) -> None:
    """The call raises this error with these words."""
    try:
        call(*told, **more)
    except error as found:
        assert words in str(found), found
    else:
        raise AssertionError(f"nothing raised: {words}")


def main(folder: str) -> None:
    """All of it, in half a minute."""
    size = {"num_cpus": 2, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **size})
    nodes = [cluster.add_node(**size) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    on_ray, tasks = executors.named("ray"), [(seed, 1000 - 150 * seed) for seed in range(6)]
    here = executors.named("local")(drawn, tasks)
    for workers in (1, 2, 5):
        there = on_ray(drawn, tasks, workers)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(here, there, strict=True)), workers
    assert on_ray(dies, [(folder, task, 3) for task in range(6)], 2) == [task * task for task in range(6)]
    shared = bytes(range(256)) * 300
    assert on_ray(len_of, [(shared, k) for k in range(4)], 2) == [len(shared) + k for k in range(4)]
    refused(ValueError, "task 1 has no answer", on_ray, wrong, [(0,), (1,), (2,)])
    refused(RuntimeError, "executor=ray: a task asks for CPU 1, GPU 3", on_ray, wrong, [(0,)], gpus=3)
    refused(RuntimeError, "executor=ray: workers died", on_ray, doomed, [(0,)])
    raylet = nodes[1].all_processes["raylet"][0].process.pid
    assert on_ray(node_dies, [(folder, task, raylet) for task in range(8)], 5) == [task * task for task in range(8)]
    import ray

    ray.shutdown()
    cluster.shutdown()
    print("equal")


def len_of(shared: bytes, more: int) -> int:
    return len(shared) + more


if __name__ == "__main__":
    main(sys.argv[1])
