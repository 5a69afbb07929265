"""The house keeps its shape: imports go down, no folder shadows another, every config can be composed."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import flywheel
from flywheel import config

ROOT = Path(flywheel.__file__).parent
FLOORS = [
    {"episode", "frames", "log", "stats", "success", "faults", "bounds", "outcome"},
    {"store", "corpus", "nets", "chain", "names", "ledger", "ending"},
    {"policy", "critic", "env", "gym_task", "gym_names", "gym_spaces", "apart", "trust", "guard", "replay"},
    {"rl"},
    {"stages"},
    {"identity", "config", "limits"},
    {"run", "algorithms"},
    {"lineage", "nightly", "curation", "integrity", "commands", "complete"},
    {"app"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(path: Path):
    """(line, module of flywheel, whether inside a function) for each import of flywheel in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flywheel":
            parts = node.module.split(".")
            for name in [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]:
                yield node.lineno, name


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_from_lower_floors(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for line, name in imports(path):
        if name == own or name.startswith("__") or name not in FLOOR:
            continue
        assert FLOOR[name] <= FLOOR[own], (
            f"{path}:{line}: {own} (floor {FLOOR[own]}) imports {name} (floor {FLOOR[name]})"
        )


def test_every_module_has_a_floor():
    names = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert names - {"__init__", "__pycache__"} == set(FLOOR)


def test_datasets_is_never_a_package():
    assert not (ROOT.parent / "datasets" / "__init__.py").exists(), "it would shadow Hugging Face's datasets"


def test_simulation_imports_nothing_of_flywheel():
    for path in (ROOT.parent / "sim").glob("*.py"):
        assert not list(imports(path)), path


@pytest.mark.parametrize("words", [["--help"], ["algorithms"], ["tasks"], ["nightly", "--help"]])
def test_help_imports_neither_hydra_nor_torch(words):
    code = f"import sys; from flywheel.app import main; main({words!r}); print(sorted(set(sys.modules) & {{'hydra', 'torch', 'mujoco', 'lerobot', 'wandb', 'zarr'}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


STAGES = sorted(p.stem for p in (config.folder() / "stage").glob("*.yaml"))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_composes(stage):
    needed = {
        "ingest": ["source=x"],
        "evaluate": ["checkpoint=x"],
        "promote": ["checkpoint=x"],
        "export": ["out=x"],
        "choose": ["checkpoints=[x]"],
    }.get(stage, [])
    cfg = config.compose(stage, *config.split(needed))
    assert cfg["task"] == {"name": "lift", "kwargs": {}, **dict.fromkeys(config.TASK)}
    assert cfg["seed"] == 1


@pytest.mark.parametrize("stage", STAGES)
def test_help_lists_every_stage_and_command(stage, capsys):
    """findings E1: the help is made from what there is; each stage has its own page, with each of its keys."""
    from flywheel import app, commands

    assert app.main(["--help"]) == 0
    out = capsys.readouterr().out
    made = [
        n
        for n, f in vars(commands).items()
        if inspect.isfunction(f) and f.__module__ == commands.__name__ and n[0] != "_"
    ]
    assert all(f"    {name} " in out for name in [stage, "replay", *made])
    assert app.main([stage, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"flywheel {stage} ") and all(f"  {key}:" in out for key in config.own_keys(stage))


@pytest.mark.parametrize("group", ["algorithm", "policy", "log"])
def test_every_option_composes(group):
    for option in config.choices(group):
        cfg = config.compose("pretrain", {}, [f"{group}={option}"])
        assert group in cfg


@pytest.mark.parametrize("path", sorted((config.folder() / "algorithm").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_algorithm_is_a_short_table_of_known_losses(path):
    import yaml

    from flywheel.rl.learner import resolve

    assert len([line for line in path.read_text().splitlines() if line and line[0] != "#"]) <= 10
    table = yaml.safe_load(path.read_text())
    for act in ("evaluate", "improve"):
        for losses in (table.get(act) or {}).values():
            for name, args in losses.items():
                resolve(act, name, args)


@pytest.mark.parametrize("path", sorted((config.folder() / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes(path, monkeypatch):
    monkeypatch.setenv("FLYWHEEL_DEMOS", "/somewhere")
    cfg = config.compose("nightly", {}, [f"experiment={path.stem}", "debug=tiny"])
    assert cfg["retrain"]["algorithm"]["cadence"]["rounds"] == 2
    assert cfg["retrain"]["task"] == cfg["task"]


@pytest.mark.parametrize("path", sorted((ROOT.parent / "benchmarks").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_every_benchmark_has_help(path):
    out = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=True).stdout
    assert "usage" in out


def test_results_fail_where_the_demonstrations_are_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("FLYWHEEL_DEMOS", raising=False)
    script = ROOT.parent / "benchmarks" / "results.py"
    done = subprocess.run([sys.executable, script, "door-human-1", "--again"], capture_output=True, text=True)
    assert done.returncode == 1 and "FLYWHEEL_DEMOS names no folder" in done.stderr


def test_the_picture_of_the_map_is_of_the_tables_as_they_are():
    from flywheel import algorithms

    known = algorithms.tables()
    assert (ROOT.parent / "docs" / "algorithms.svg").read_text() == algorithms.svg(known)
    grid = algorithms.cells(known)
    assert sorted(name for names in grid.values() for name in names) == sorted(known)
