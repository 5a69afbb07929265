#!/usr/bin/env bash
# README's commands as printed, from the first to the last, in a fresh clone in a fresh folder; what README promises of them is checked.
# `make soak` runs it; NEWCOMER_SKIP="make test" leaves out blocks with these words.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone -q "$here" "$work/flywheel"
cd "$work/flywheel"
unset FLYWHEEL_STORE FLYWHEEL_CORPUS FLYWHEEL_CONF VIRTUAL_ENV
export CI=1
exec python3 - <<'EOF'
"""Run the blocks; fail at the first promise that does not hold."""
import json, os, re, subprocess, sys, time
from pathlib import Path

skip = os.environ.get("NEWCOMER_SKIP")
blocks = re.findall(r"^```(bash|python)\n(.*?)^```", Path("README.md").read_text(), re.M | re.S)
env = {**os.environ, "PATH": f"{Path('.venv/bin').absolute()}:{os.environ['PATH']}", "HOME": str(Path("home").absolute())}
Path("home").mkdir()
promised = {"make nightly": 600, "budget=4m": 255}  # seconds; of the second, 15 to write the page


def fail(text):
    sys.exit(f"README: {text}")


def run(words, code=0):
    began = time.monotonic()
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", words], env=env, text=True, stdout=subprocess.PIPE)
    seconds = time.monotonic() - began
    print(f"[{seconds:6.1f} s, exit {done.returncode}] {words.strip().splitlines()[0][:100]}", flush=True)
    if done.returncode != code:
        fail(f"exit code {done.returncode}, not {code}, of:\n{words}\n{done.stdout[-3000:]}")
    for key, most in promised.items():
        if key in words and seconds > most:
            fail(f"{seconds:.0f} s, more than {most}, for: {words}")
    return done.stdout, seconds


for kind, block in blocks:
    if "systemctl" in block or "git clone" in block:  # needs a user session; this is a clone
        continue
    if kind == "python":
        Path("snippet.py").write_text(block.replace("policy.act(obs)", "policy.act(__import__('numpy').zeros(policy.obs_dim, 'float32'))"))
        run("python snippet.py")
        continue
    for part in re.split(r"\n(?=make )", block):
        part = re.sub(r"#.*", "", part) if part.startswith("make ") else part
        if skip and skip in part:
            continue
        run(re.sub(r"xdg-open (\S+)", r"test -s \1 && grep -q '<h1>' \1", part))
        if part.startswith("make nightly"):
            if not Path("store/report/index.html").exists():
                fail("make nightly left no store/report/index.html")
            out, seconds = run("flywheel nightly --json")
            if json.loads(out.splitlines()[-1])["status"] != "noop" or seconds > 2:
                fail(f"the same command again: {out} after {seconds:.1f} s; promised noop at once")
for words, code in [("flywheel nightli", 2), ("flywheel evaluate checkpoint=policy/nobody", 1), ("flywheel fsck", 0), ("flywheel lineage policy/lift", 0),
                    ("flywheel runs", 0), ("flywheel tasks", 0), ("flywheel formats", 0), ("flywheel algorithms", 0), ("flywheel gc", 0),
                    ("flywheel export out=exported format=lerobot_v3 task=lift", 0), ("flywheel corpus stats", 0), ("flywheel nightly --dry-run", 0)]:
    run(words, code)
print("README's promises hold")
EOF
