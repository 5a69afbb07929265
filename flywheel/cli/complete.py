"""Completion in a shell: what may stand next on a command line of flywheel. `flywheel completion bash` prints the
script that asks here."""

from __future__ import annotations

from pathlib import Path

from flywheel.cli import config

SCRIPTS = {
    "bash": """_flywheel() {
    local IFS=$'\\n'
    COMPREPLY=($(flywheel complete -- "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    COMP_WORDBREAKS=${COMP_WORDBREAKS//[=:@]/}
}
complete -o default -F _flywheel flywheel
""",
    "zsh": """#compdef flywheel
_flywheel() {
    local -a found
    found=("${(@f)$(flywheel complete -- "$LBUFFER" 2>/dev/null)}")
    compadd -S '' -- $found || _files
}
compdef _flywheel flywheel
""",
    "fish": """complete -c flywheel -f -a '(flywheel complete -- (commandline -cp))'
""",
}


def candidates(line: str, root: Path) -> list[str]:
    """The words that may stand at the end of `line` ("flywheel pretrain pol"): commands, keys=, choices of a group,
    names of checkpoints."""
    stages = config.stages()
    words = line.split(" ")[1:]
    last, before = words[-1] if words else "", words[:-1]
    root = next((Path(w[6:]).expanduser() for w in before if w.startswith("store=") and w[6:]), root)
    if not before:
        return _starting(last, [*stages, *config.commands()])
    command = before[0]
    if "=" in last:
        key, _, begun = last.partition("=")
        return [f"{key}={value}" for value in _starting(begun, values(key, root))]
    if command in stages:
        keys = [f"{key}=" for key in config.fields(command)]
        return _starting(last, keys if command != "promote" or len(before) > 1 else [*names(root), *keys])
    if command in ("lineage", "rollback"):
        return _starting(last, names(root))
    if command == "replay":
        return _starting(last, [f"{p.parent.parent.name}/{p.parent.name}" for p in root.glob("runs/*/*/_DONE.json")])
    return _starting(last, ["store="])


def _starting(begun: str, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(begun)]


def values(key: str, root: Path) -> list[str]:
    """What may stand after key=."""
    if key in ("task", "policy", "algorithm", "log", "experiment", "debug"):
        return config.choices(key)
    if key in ("checkpoint", "against"):
        return names(root)
    if key == "format":
        import flywheel_datasets

        return sorted(p.stem for d in flywheel_datasets.__path__ for p in Path(d).glob("*.py") if p.stem[0] != "_")
    return []


def names(root: Path) -> list[str]:
    """Names of checkpoints, alone and with each id."""
    from flywheel.runs.names import Names

    known = Names(root)
    found = known.names() if known.path.exists() else []
    return [
        ref
        for name in found
        for ref in (name, *(f"{name}@{i}" for i in dict.fromkeys(e["id"] for e in known.log(name))))
    ]
