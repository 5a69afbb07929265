"""A few of the damaged and hostile inputs of tests/fuzz.py; `make soak` tries thousands."""

import json
import subprocess
import sys
from pathlib import Path

import fuzz_inputs

from flywheel.intake import recordings

COUNT = 40


def test_every_format_is_tried():
    assert set(fuzz_inputs.GOOD) == set(fuzz_inputs.DAMAGE) == set(recordings.formats())


def test_damaged_and_hostile_recordings_are_read_right_or_quarantined_and_open_nothing():
    """findings B1, findings D1: whatever an input is, the good ones beside it are taken, no file of others is
    opened, and memory stays below what it can hold."""
    script = Path(fuzz_inputs.__file__).with_name("fuzz.py")
    done = subprocess.run([sys.executable, script, "--count", str(COUNT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (
        seen["inputs"] >= COUNT and min(seen[key] for key in ("read right", "quarantined", "quarantined in part")) > 3
    )
