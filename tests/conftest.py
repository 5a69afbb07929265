import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest


@pytest.fixture(scope="session")
def demos() -> Path:
    """The folder of real demonstrations, or a skip that says why."""
    folder = os.environ.get("FLYWHEEL_DEMOS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FLYWHEEL_DEMOS names no folder of demonstrations (see CONTRIBUTING.md)")
    return Path(folder)
