import os
import re
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest

TOGETHER = ("test_fault_stages", "test_seeing", "test_shared", "test_parallel")  # modules whose fixture is dear


def pytest_itemcollected(item):
    """A test whose docstring names a finding ("findings A1") is selected by `-k findings`, and by `-k findings_a1`. Of
    a module whose fixture is dear, and of those that look at the night, all tests run in one process."""
    words = re.findall(r"findings ([A-F]\d+)", getattr(item.obj, "__doc__", None) or "")
    if (module := item.path.stem) in TOGETHER:
        item.add_marker(pytest.mark.xdist_group(module))
    elif "night" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("night"))
    item.extra_keyword_matches.update(["findings", *(f"findings_{word.lower()}_" for word in words)] if words else [])


@pytest.fixture(scope="session")
def demos() -> Path:
    """The folder of real demonstrations, or a skip that says why."""
    folder = os.environ.get("FLYWHEEL_DEMOS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FLYWHEEL_DEMOS names no folder of demonstrations (see CONTRIBUTING.md)")
    return Path(folder)


@pytest.fixture(scope="session")
def night(tmp_path_factory):
    """A store after one nightly: (folder, Store, its finished record)."""
    import small
    import toy

    from flywheel.cli import app
    from flywheel.runs.run import Store

    folder = tmp_path_factory.mktemp("night")
    toy.demonstrations(folder / "demos.hdf5")
    assert app.main(small.words(folder)) == 0
    place = Store(folder / "store")
    (done,) = place.runs("nightly")
    return folder, place, done


@pytest.fixture
def copied(night, tmp_path):
    """A store to change: (its Store, words that every stage on it needs)."""
    _, place, _ = night
    import toy

    from flywheel.runs import lineage

    copy = lineage.scratch(place, tmp_path / "store", set())
    return copy, [*toy.TASK, f"store={copy.root}", "num_envs=8", "threads=1"]


@pytest.fixture(scope="session")
def s3_server():
    """(URL of a bucket, the environment that reaches it)."""
    import servers

    with servers.s3() as running:
        yield running


@pytest.fixture(scope="session")
def az_server():
    """(URL of a container, the environment that reaches it), or a skip that says how to get azurite."""
    import servers

    if not servers.azurite():
        pytest.skip("azurite is not installed: `make azurite`, or set AZURITE to its azurite-blob")
    with servers.azure() as running:
        yield running


@pytest.fixture(params=["folder", "s3", "az"])
def place(request, tmp_path, monkeypatch):
    """Where a new corpus may be made: a folder, and a URL of each kind of object store."""
    if request.param == "folder":
        return tmp_path / "corpus"
    url, environment = request.getfixturevalue(f"{request.param}_server")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLYWHEEL_CACHE", str(tmp_path / "objects"))
    return f"{url}/{request.node.name}-{os.urandom(4).hex()}".replace("[", "-").replace("]", "")
