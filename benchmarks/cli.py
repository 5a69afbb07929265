"""How long a person waits: `flywheel --help`, and a nightly that has nothing to do, beside starting Python and
importing torch.

python benchmarks/cli.py [--store DIR] [--json]      DIR: a store whose default nightly is done (else one is run in small)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

PEERS = {"python -c pass": ["-c", "pass"], "import torch": ["-c", "import torch"]}


def seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "flywheel.cli.app", "nightly", f"store={args.store or folder}"]
        if not args.store:
            words.append("debug=tiny")
            seconds(words)
        cases = {**PEERS, "flywheel --help": ["-m", "flywheel.cli.app", "--help"], "flywheel nightly (noop)": words}
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(args.repeat):  # interleaved: a busy neighbour slows all alike
            for name, command in cases.items():
                times[name].append(seconds(command))
    middle = {name: statistics.median(values) for name, values in times.items()}
    if args.json:
        print(json.dumps(middle))
    else:
        for name, value in middle.items():
            print(f"{name:26} {value:6.2f} s   {value / middle['import torch']:5.2f} of importing torch")


if __name__ == "__main__":
    main()
