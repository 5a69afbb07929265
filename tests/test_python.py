"""What must hold on every Python that the metadata promises; `make test-pythons` runs this on each."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_this_python_is_promised():
    """findings A14: the metadata promises 3.11 and later, and what is promised is tried."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = tuple(int(n) for n in re.fullmatch(r">=(\d+)\.(\d+)", told["requires-python"]).groups())
    assert sys.version_info[:2] >= least
    script = (ROOT / "tests" / "pythons.sh").read_text()
    tried = re.search(r"for version in ([\d. ]+);", script)[1].split()
    assert tried[0] == f"{least[0]}.{least[1]}" and len(tried) == 3


def test_lerobots_data_sets_can_be_read():
    """findings A14: from Python 3.12 on they are an extra of lerobot, which the lock has to bring."""
    from importlib.util import find_spec

    assert find_spec("lerobot") and find_spec("datasets").origin and "site-packages" in find_spec("datasets").origin


def test_every_module_imports():
    import importlib

    import flywheel_datasets
    import flywheel_sim

    import flywheel

    for package in (flywheel, flywheel_sim, flywheel_datasets):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                if path.parent.name == "lerobot_plugin":  # it has a name of its own, lerobot_policy_flywheel
                    continue
                name = ".".join([package.__name__, *path.relative_to(folder).with_suffix("").parts]).removesuffix(
                    ".__init__"
                )
                importlib.import_module(name)
