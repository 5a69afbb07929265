#!/usr/bin/env bash
# Every Python that pyproject.toml promises and that is found here: set up, what LeRobot's own reader says of the formats, a tiny nightly.
# `make test-pythons`; the environments are .venv-3.X (--setup: these alone). Where the libraries are of equal versions the checkpoints have to be equal.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

find_python() { # 3.12 -> a python of that version, or nothing
    local one
    for one in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if [ -x "$one" ] && "$one" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            echo "$one"
            return
        fi
    done
}

if [ "${1:-}" = --setup ]; then # beside other work: the environments alone, of those that `make setup` does not make
    for version in 3.11 3.12 3.13; do
        python=$(find_python $version)
        [ -n "$python" ] && [ "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != $version ] || continue
        make --no-print-directory setup VENV=".venv-$version" PYTHON="$python"
    done
    exit
fi

try() { # 3.12 PYTHON
    local venv=.venv-$1 began=$SECONDS
    [ ! -x .venv/bin/python ] || [ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$1" ] || venv=.venv
    make --no-print-directory setup VENV="$venv" PYTHON="$2"
    "$venv/bin/python" -c "import flywheel.cli.app, flywheel_sim, flywheel_datasets, torch, mujoco, lerobot"
    if [ "$venv" != .venv ]; then # there `make test` has done it
        "$venv/bin/pytest" -q -p no:cacheprovider tests/test_python.py tests/test_names.py tests/test_losses.py
        "$venv/bin/pytest" -q -p no:cacheprovider tests/test_formats.py -k lerobot
    fi
    "$venv/bin/flywheel" nightly debug=tiny policy=flow policy.width=32 num_envs=8 threads=1 store="$work/$1" >"$work/$1.log" 2>&1 || {
        cat "$work/$1.log"
        exit 1
    }
    if grep -E '^  report: .*Error' "$work/$1.log"; then # a card of the page that is broken
        exit 1
    fi
    "$venv/bin/python" - "$work/$1" >"$work/$1.ids" <<'EOF'
import sys
from importlib import metadata
from flywheel.runs.run import Store

print(*(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "mujoco")), sep=", ")
(night,) = Store(sys.argv[1]).runs("nightly")
print(*(row["checkpoint"] for row in night["content"]["table"]))
EOF
    echo "Python $1: $((SECONDS - began)) s; $(paste -sd: "$work/$1.ids")"
}

tried=()
for version in 3.11 3.12 3.13; do
    python=$(find_python $version)
    [ -n "$python" ] || { echo "Python $version: not here"; continue; }
    try $version "$python" >"$work/$version.out" 2>&1 &
    tried+=("$version:$!")
done
[ ${#tried[@]} -gt 0 ] || { echo "none of Python 3.11, 3.12, 3.13 is here"; exit 1; }
failed=0
for one in "${tried[@]}"; do
    wait "${one#*:}" || failed=1
    tail -n 40 "$work/${one%%:*}.out"
done
[ $failed = 0 ] || exit 1
for one in "$work"/*.ids; do
    for other in "$work"/*.ids; do
        if [ "$(head -1 "$one")" = "$(head -1 "$other")" ] && ! cmp -s "$one" "$other"; then
            echo "equal libraries, other checkpoints: $(paste -sd: "$one") and $(paste -sd: "$other")"
            exit 1
        fi
    done
done
echo "${#tried[@]} Pythons: all equal where the libraries are"
