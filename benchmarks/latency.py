"""How long does a policy take to act, and what is it worth? Teacher, student, best of N, each as flywheel runs it and as
its exported files; docs/guard.md shows the table.

    python benchmarks/latency.py store=stores/student flow=policy/flow best_of_n=policy/rounds student=policy/student
    ... --episodes 300 --calls 2000 --formats torchscript onnx

`policy.act` on one observation after the other, as a robot calls it: one thread, warm-up apart. A call in Ta makes a
chunk, the others hand out the rest of it; both are told. Success is on gate seeds, by the same arithmetic."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent


def timed(policy, obs, calls: int) -> dict[str, float]:
    """Seconds of `act`, call by call: {"p50", "p99", "chunk_p50", "chunk_p99"} in ms, and "hz" of all calls."""
    import numpy as np

    took = np.zeros(calls)
    policy.reset([0], [0])
    for k in range(-50 * policy.action_steps, calls):
        row = obs[k % len(obs)]
        begun = time.perf_counter()
        policy.act(row)
        took[max(k, 0)] = time.perf_counter() - begun
    chunks = 1e3 * took[:: policy.action_steps]
    own = 1e3 * took
    told = {
        f"{name}p{q}": float(np.percentile(values, q))
        for name, values in (("", own), ("chunk_", chunks))
        for q in (50, 99)
    }
    return told | {"hz": 1e3 * calls / own.sum()}


def forms(policy, formats: list[str], folder: Path):
    """(form, policy) for the policy itself and for each of its exports."""
    from flywheel import exports
    from flywheel.exports import _write

    yield "flywheel", policy
    for format in formats:
        folder.mkdir(exist_ok=True)
        path = folder / f"policy{exports.named(format).SUFFIX}"
        _write.write(policy, format, path)
        yield format, _write.played(policy, exports.named(format).load(path))


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("policies", nargs="+", help="store=DIR and LABEL=NAME[@ID] ...")
    parse.add_argument("--task", default="lift")
    parse.add_argument("--cameras", type=int, default=0, help="pixels a side of the wrist's and the upper camera")
    parse.add_argument("--calls", type=int, default=2000)
    parse.add_argument("--episodes", type=int, default=300)
    parse.add_argument("--formats", nargs="*", default=["torchscript", "onnx"])
    asked = parse.parse_args()

    import torch

    from flywheel import env as envs
    from flywheel import stats
    from flywheel.args import Acting, Task
    from flywheel.env.scoring import score
    from flywheel.runs.run import Store
    from flywheel.seeds import seeds

    torch.set_num_threads(1)
    words = dict(word.split("=", 1) for word in asked.policies)
    eyes = dict.fromkeys(("wrist", "top"), asked.cameras) if asked.cameras else {}
    place, env = Store(words.pop("store")), envs.make(Task(name=asked.task, cameras=eyes), 32, 1)
    chosen, obs = seeds("gate", Acting(), 0, asked.episodes), []
    for seed in seeds("gate", Acting(), 0, 64):
        state = env.reset_at(0, seed)
        obs.append({"state": state, **{key: frames[0] for key, frames in env.look([0]).items()}} if eyes else state)
    about = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in about if line.startswith("model name")), platform.machine())
    print(f"{cpu}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, {_onnx()}")
    print("| policy | form | p50 ms | p99 ms | a chunk: p50 | p99 | Hz | success | 95 % interval |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        made = [
            (label, *form)
            for label, ref in words.items()
            for form in forms(place.load(ref), asked.formats, Path(folder) / label)
        ]
        times = [timed(policy, obs, asked.calls) for *_, policy in made]  # all of them before anything else is done
        print("timed", file=sys.stderr, flush=True)
        for (label, form, policy), t in zip(made, times, strict=True):
            told = " | ".join(f"{t[key]:.3f}" for key in ("p50", "p99", "chunk_p50", "chunk_p99"))
            worth = "|"
            if chosen:
                won = score(policy, env, chosen, what=f"{label} {form}", stop_at_success=True)["success"]
                low, high = stats.wilson(int(won.sum()), len(won))
                worth = f"{won.mean():.3f} | [{low:.3f}, {high:.3f}]"
            print(f"| {label} | {form} | {told} | {t['hz']:,.0f} | {worth} |", flush=True)


def _onnx() -> str:
    try:
        import onnxruntime
    except ImportError:
        return "no onnxruntime"
    return f"onnxruntime {onnxruntime.__version__}"


if __name__ == "__main__":
    sys.exit(main())
