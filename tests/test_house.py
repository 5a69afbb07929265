"""The house keeps its shape: imports go down, no folder shadows another, every config can be composed."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import flywheel
from flywheel.args import Task
from flywheel.cli import config

ROOT = Path(flywheel.__file__).parent
FLOORS = [  # a folder stands for all of its files that are not named themselves
    {"episode", "frames", "log", "stats", "evalues", "success", "bounds", "outcome", "args", "seeds", "obs",
     "env.faults", "regret", "unpaired", "sinks"},
    {"store", "ending", "executors", "parallel", "corpus", "policy.nets", "env.ids", "env.spaces", "runs.chain", "runs.names", "runs.ledger",
     "runs.mirror", "runs.lease"},
    {"policy", "env", "selection", "exports"},
    {"rl", "intake"},
    {"stages"},
    {"runs.identity", "cli.config"},
    {"runs.run", "cli.algorithms"},
    {"runs", "report", "cli"},
    {"cli.app"},
]  # fmt: skip
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def floor(module: str) -> int:
    """The floor of a module of flywheel, by its own name or its folder's."""
    return FLOOR[module] if module in FLOOR else FLOOR[module.split(".")[0]]


def named(path: Path) -> str:
    """rl/fit.py -> rl.fit; a folder's __init__.py -> the folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path):
    """(line, module) for each import of a module of flywheel in a file, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flywheel":
            base = node.module.split(".")[1:]
            for alias in node.names:
                inside = ROOT.joinpath(*base, alias.name)
                module = [*base, alias.name] if inside.with_suffix(".py").exists() or inside.is_dir() else base
                if module:
                    yield node.lineno, ".".join(module)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_from_lower_floors(path):
    own = named(path)
    if own == "__init__":
        return
    for line, name in imports(path):
        assert floor(name) <= floor(own), (
            f"{path}:{line}: {own} (floor {floor(own)}) imports {name} (floor {floor(name)})"
        )


BOUND = 5  # names that a function may take from the one around it
BARE = {"batch", "drawn", "nets", "state", "record", "info", "args", "kwargs", "options", "more", "line", "scored",
        "told", "policies", "where", "before", "asked", "figures"}  # fmt: skip


def names_of(function) -> set[str]:
    """What a function binds itself, its arguments included."""
    nodes = list(ast.walk(function))
    found = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    found |= {n.arg for n in nodes if isinstance(n, ast.arg)} | {
        n.name for n in nodes if isinstance(n, ast.FunctionDef)
    }
    imported = [a for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    return found | {(a.asname or a.name).split(".")[0] for a in imported}


def closures(node, around: set[str]):
    """(name, what it takes from the functions around it) of each function inside a function."""
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef)
        if inside and around:
            used = {n.id for n in ast.walk(child) if isinstance(n, ast.Name)}
            yield child.name, (used - names_of(child)) & around
        yield from closures(child, around | names_of(child) if inside else around)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_closure_takes_few_names_and_nobody_below_a_stage_takes_a_config(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    long = {name: sorted(taken) for name, taken in closures(tree, set()) if len(taken) > BOUND}
    assert not long, f"{path}: {long}"
    if named(path).split(".")[0] not in ("rl", "policy", "env"):
        return
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        for argument in [*function.args.args, *function.args.kwonlyargs]:
            loose = argument.annotation is not None and ast.unparse(argument.annotation).startswith("dict[str, Any]")
            assert not loose or argument.arg in BARE, f"{path}: {function.name}({argument.arg}: dict[str, Any])"
            assert argument.arg not in ("cfg", "config", "conf"), f"{path}: {function.name} takes a config"


def test_every_floor_is_of_something():
    for name in FLOOR:
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").exists() or (ROOT / name).is_dir(), name


def test_every_folder_with_code_is_in_the_wheel():
    """An editable install hides a package that pyproject.toml does not name."""
    import tomllib

    told = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    named = {*told["packages"], *(folder.replace("/", ".") for folder in told["package-dir"].values())}
    folders = {path.parent.relative_to(ROOT.parent).as_posix().replace("/", ".") for path in ROOT.rglob("__init__.py")}
    assert folders <= named


def test_every_stage_is_short_and_imports_no_other():
    for path in (ROOT / "stages").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 150, path
        assert "flywheel.stages" not in text.replace("`flywheel.stages", ""), path
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        assert all(n.end_lineno - n.lineno < 60 for n in functions), path


def test_no_function_is_longer_than_a_page():
    for path in (path for folder in ("flywheel", "datasets", "sim") for path in (ROOT.parent / folder).rglob("*.py")):
        functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
        long = [f"{n.name}: {n.end_lineno - n.lineno + 1}" for n in functions if n.end_lineno - n.lineno >= 60]
        assert not long, f"{path}: {long}"


def test_datasets_is_never_a_package():
    assert not (ROOT.parent / "datasets" / "__init__.py").exists(), "it would shadow Hugging Face's datasets"


def test_simulation_imports_nothing_of_flywheel():
    for path in (ROOT.parent / "sim").glob("*.py"):
        assert not list(imports(path)), path


@pytest.mark.parametrize("words", [["--help"], ["algorithms"], ["tasks"], ["nightly", "--help"]])
def test_help_imports_neither_hydra_nor_torch(words):
    code = f"import sys; from flywheel.cli.app import main; main({words!r}); print(sorted(set(sys.modules) & {{'hydra', 'torch', 'mujoco', 'lerobot', 'wandb', 'zarr'}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


STAGES = list(config.stages())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_composes(stage):
    needed = {
        "ingest": ["source=x"],
        "evaluate": ["checkpoint=x"],
        "drive": ["checkpoint=x"],
        "promote": ["checkpoint=x"],
        "export": ["out=x"],
        "choose": ["checkpoints=[x]"],
        "sweep": ["of=pretrain", "trials=[[seed=1],[seed=2]]"],
    }.get(stage, [])
    args = config.compose(stage, needed)
    assert args.task == Task() and args.seed == 1


@pytest.mark.parametrize("stage", STAGES)
def test_help_lists_every_stage_and_command(stage, capsys):
    """findings E1: the help is made from what there is; each stage has its own page, with each of its keys."""
    from flywheel.cli import app, commands

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
    assert out.startswith(f"flywheel {stage} ") and all(f"  {key}: " in out for key in config.fields(stage))


@pytest.mark.parametrize("group", ["algorithm", "policy", "log"])
def test_every_option_composes(group):
    for option in config.choices(group):
        assert config.compose("pretrain", [f"{group}={option}"])


@pytest.mark.parametrize("path", sorted((config.folder() / "algorithm").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_algorithm_is_a_short_table_of_known_losses(path):
    import yaml

    from flywheel.rl.learner import resolve

    assert len([line for line in path.read_text().splitlines() if line and line[0] != "#"]) <= 12
    table = yaml.safe_load(path.read_text())
    for act in ("evaluate", "improve"):
        for losses in (table.get(act) or {}).values():
            for name, args in losses.items():
                resolve(act, name, args)


@pytest.mark.parametrize("path", sorted((config.folder() / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes(path, monkeypatch):
    monkeypatch.setenv("FLYWHEEL_DEMOS", "/somewhere")
    args = config.compose("nightly", [f"experiment={path.stem}", "debug=tiny"])
    assert args.retrain.algorithm.cadence.rounds == 2
    assert args.retrain.task == args.task


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
    from flywheel.cli import algorithms

    known = algorithms.tables()
    assert (ROOT.parent / "docs" / "algorithms.svg").read_text() == algorithms.svg(known)
    grid = algorithms.cells(known)
    assert sorted(name for names in grid.values() for name in names) == sorted(known)
