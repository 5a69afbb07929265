"""The commands that look things up or keep house: each `name(words, place) -> result`, printing for people as it
goes."""

from __future__ import annotations

import inspect
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from flywheel import store
from flywheel.cli import config
from flywheel.cli.config import UsageError

GRACE = 24 * 3600  # s: younger leftovers may belong to somebody at work


def _result(**more: Any) -> dict[str, Any]:
    return {"status": "done", "run": None, "inputs": {}, "outputs": {}, "metrics": {}, "seconds": 0, **more}


def _words(words: list[str], count: int, usage: str) -> tuple[list[str], dict[str, str]]:
    """Positional words and key=value ones; UsageError unless there are `count` positional ones."""
    plain = [w for w in words if "=" not in w]
    if len(plain) != count:
        raise UsageError(f"usage: flywheel {usage}")
    return plain, dict(w.split("=", 1) for w in words if "=" in w)


def tasks(words, place) -> dict[str, Any]:
    """The tasks there are."""
    import flywheel_sim

    for name in flywheel_sim.tasks():
        print(f"{name:10} {_summary(Path(flywheel_sim.__file__).parent / f'{name}.py')}")
    print(f"{'gym':10} any registered Gymnasium environment: task=gym task.id=AdroitHandDoor-v1 task.max_steps=200")
    print(f"{'robot':10} a robot without a simulator: task=robot task.id=NAME (docs/robot.md)")
    return _result(tasks=[*flywheel_sim.tasks(), "gym", "robot"])


def formats(words, place) -> dict[str, Any]:
    """The formats that ingest reads."""
    import flywheel_datasets

    from flywheel.intake import recordings

    names = recordings.formats()
    for name in names:
        print(f"{name:18} {_summary(Path(next(iter(flywheel_datasets.__path__))) / f'{name}.py')}")
    return _result(formats=names)


def _summary(path: Path) -> str:
    """The first sentence of a module's docstring, without importing it."""
    import ast

    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0]


def algorithms(words, place) -> dict[str, Any]:
    """The map: where the data comes from x how often the policy is updated, each algorithm in its cell; out=map.svg
    draws it."""
    from flywheel.cli import algorithms as atlas

    known = atlas.tables()
    out = _words(words, 0, "algorithms [out=map.svg]")[1].get("out")
    if out:
        store.write_atomic(Path(out), atlas.svg(known).encode())
    else:
        print(atlas.text(known))
    return _result(algorithms=list(known), cells={name: [atlas.cadence(t), t["source"]] for name, t in known.items()})


def show(words, place) -> dict[str, Any]:
    """One algorithm on one page: the loop, its table, the source of each loss that it names."""
    from flywheel.cli import algorithms as atlas

    name = next((w.partition("=")[2] for w in words if w.startswith("algorithm=")), None)
    tables = atlas.tables()
    if name not in tables:
        raise UsageError(f"no algorithm {name!r}. There are: {', '.join(tables)}. Usage: flywheel show algorithm=NAME")
    from flywheel.rl import fit as loop
    from flywheel.rl.learner import PARTS, resolve

    print(inspect.getsource(loop.fit))
    print(config.options("algorithm")[name].read_text())
    table, printed = tables[name], {}
    for act in ("advantage", "evaluate", "improve", "gate"):
        rows = table.get(act) or {}
        for losses in [rows] if act in ("advantage", "gate") else rows.values():
            for loss, args in losses.items():
                function, filled = resolve(act, loss, args)
                for used in (function, *(filled[part] for part in PARTS if part in filled)):
                    printed[getattr(used, "func", used)] = None  # a function, or one with arguments filled in
    for function in printed:
        print(inspect.getsource(function))
    return _result(algorithm=table)


def runs(words, place) -> dict[str, Any]:
    """The finished runs, oldest first."""
    rows = place.runs()
    for done in rows:
        result = done["result"]
        success = result["metrics"].get("success")
        figure = f"success {success:.3f}" if isinstance(success, float) else ""
        print(
            f"{done['finished']}  {done['stage'] + '/' + done['key']:28} {result['status']:8} {result['seconds']:>8} s "
            f" {figure}"
        )
    if not rows:
        print(f"no finished runs in {place}")
    return _result(runs=[f"{d['stage']}/{d['key']}" for d in rows])


def status(words, place) -> dict[str, Any]:
    """What is at work: which run, how far, since when, where; and runs that were begun and wait for their command."""
    from flywheel.runs import status as working

    _words(words, 0, "status")
    rows, left = working.at_work(place), working.unfinished(place)
    for row in rows:
        print(working.line(row))
    if not rows:
        print(f"nothing is at work in {place}")
    for run in left:
        print(f"{run:28} begun, nobody is at it: its command goes on with it")
    return _result(working=rows, unfinished=left)


def doctor(words, place) -> dict[str, Any]:
    """What this machine has and lacks: versions, GPU, OpenGL, disk, locks, clock. Exit code 1: something is bad."""
    from flywheel.cli.doctor import examine

    _words(words, 0, "doctor")
    rows = examine(place)
    for row in rows:
        print(f"{row['state']:5} {row['check']:28} {row['words']}")
    bad = [f"{row['check']}: {row['words']}" for row in rows if row["state"] == "bad"]
    more = {"status": "failed", "error": "; ".join(bad)} if bad else {}
    return _result(checks=rows, **more)


def lineage(words, place) -> dict[str, Any]:
    """From a checkpoint back to the demonstrations."""
    from flywheel.runs.lineage import lineage as walk

    (ref,), _ = _words(words, 1, "lineage NAME[@ID]")
    lines = walk(ref, place)
    for line in lines:
        print(f"{'  ' * line['depth']}{line['what']}  {line['run']}  {line['detail']}".rstrip())
    for entry in place.names.log(ref.partition("@")[0]):
        if entry["op"] != "make":
            print(f"{entry['time']}  {entry['op']} {entry['id']}: {entry['reason']}")
    return _result(lineage=lines)


def rollback(words, place) -> dict[str, Any]:
    """Production moves back to what it was before."""
    (name,), more = _words(words, 1, "rollback NAME [reason=TEXT]")
    id_ = place.names.rollback(name, more.get("reason") or more.get("message") or "rolled back by hand")
    print(f"{name}@production is {id_} again")
    return _result(outputs={"checkpoint": f"{name}@{id_}"})


def report(words, place) -> dict[str, Any]:
    """The HTML page of a store."""
    from flywheel.report import build

    page = build(place)
    print(page)
    return _result(outputs={"report": str(page)})


def view(words, place) -> dict[str, Any]:
    """Episodes for rerun's viewer: view EPISODE, or view "SQL CONDITION" [first=5] [out=DIR] [open=false]."""
    from flywheel.cli import curation
    from flywheel.report import viewing

    more = dict(word.split("=", 1) for word in words if word.split("=")[0] in VIEW)
    asked = [word for word in words if word.split("=")[0] not in VIEW]
    if len(asked) != 1:
        raise UsageError(
            'usage: flywheel view EPISODE | "SQL CONDITION" [first=5] [out=DIR] [checkpoint=NAME@ID] [at=V]'
        )
    chosen = curation.wanted(asked[0], place.corpus().at(more.get("at", "latest")), place)
    first = _number([f"first={more.get('first', '5')}"], "first", "how many of them are written")
    made = []
    for episode in chosen.select(list(range(min(first, len(chosen))))):
        path = Path(more.get("out") or place.root / "report" / "view") / f"{episode.hash[:12]}.rrd"
        names = list(episode.meta.get("action_names") or [])
        entities = viewing.write(episode, path, viewing.maker(place, episode, more.get("checkpoint")), names)
        print(f"{path}  {', '.join(entities)}")
        made.append(str(path))
    if len(chosen) > first:
        print(f"and {len(chosen) - first} more episodes; first={len(chosen)} writes them too")
    if more.get("open") != "false" and not viewing.show([Path(path) for path in made]):
        print(f"no screen, or no rerun here; `rerun {made[0]}` shows it where there is one")
    return _result(outputs={"view": made}, metrics={"episodes": len(made), "of": len(chosen)})


VIEW = ("out", "first", "open", "checkpoint", "at")
CORPUS = {
    "log [last=N]": "the versions, or the newest N: when, what was done, how many episodes came, went and are there",
    "show [VERSION] [episodes=true]": "what a version holds",
    "stats [field=action] [at=VERSION]": "counts, outcomes, lengths, quality by task and origin; or of a stream",
    "diff A B": "what came and went, what that changed, ranked by size, and the policies trained on A and on B",
    'query "SELECT ..." [at=VERSION]': "SQL over the table `episodes`: its columns, and quality (docs/corpus.md)",
    'view NAME "CONDITION" [at=VERSION]': "a name for the episodes that pass, for good; use it as corpus=NAME",
    "export out=DIR format=lerobot_v3": "episodes as files for others; the same as `flywheel export`, see its --help",
    "tag TAG VERSION": "a name for a version, for good",
    "tombstone EPISODE message=...": "a new version without an episode (6 digits of its hash are enough)",
    "fsck": "compare every file with what was written; exit code 1 where something is not",
    "compact": "a new version with the same episodes in few large segments",
    "expire keep=N": "let go what only versions before the newest N show; tagged ones stay",
    "gc [apply=true]": "what expire let go and killed writers left behind, after a day; with apply=true, delete it",
}


def corpus(words, place) -> dict[str, Any]:
    """The corpus and its versions; `CORPUS` lists what there is."""
    usage = "corpus " + " | ".join(CORPUS)
    if not words:
        raise UsageError(f"usage: flywheel {usage}")
    act, *rest = words
    held = place.corpus()
    if act in ("log", "show"):
        return {"log": _versions, "show": _version}[act](rest, held)
    if act in ("stats", "diff", "query", "view"):
        from flywheel.cli import curation

        return _result(**getattr(curation, act)(rest, held, place))
    if act == "tag":
        (tag, version), _ = _words(rest, 2, "corpus tag TAG VERSION")
        number = held.tag(tag, version)
        print(f"{tag} is corpus@{number}")
        return _result(outputs={"corpus": number})
    if act == "tombstone":
        (episode,), more = _words(rest, 1, "corpus tombstone EPISODE message=...")
        if not more.get("message"):
            raise UsageError("a tombstone needs message=...: the next person wants to know why")
        number = held.tombstone([episode], more["message"])
        print(f"corpus@{number} no longer holds {episode}; corpus@{number - 1} still does")
        return _result(outputs={"corpus": number})
    if act == "gc":
        wasted = _corpus_gc(place, _apply(rest))
        print(f"{sum(w.bytes for w in wasted) / 1e6:.1f} MB in {len(wasted)} places")
        return _result(metrics={"bytes": sum(w.bytes for w in wasted), "places": len(wasted), "applied": _apply(rest)})
    if act in ("fsck", "compact", "expire"):
        return _upkeep(act, rest, held)
    raise UsageError(f"usage: flywheel {usage}")


def _versions(rest: list[str], held) -> dict[str, Any]:
    """corpus log [last=N]: a line a version."""
    from flywheel.log import progress

    last = _number(rest, "last", "how many of the newest versions") if rest else None
    lines = held.log(last, progress)
    for e in lines:
        tags = f" ({', '.join(e['tags'])})" if e["tags"] else ""
        print(
            f"{e['version']:6} {e['time']} {e['op']:9} +{e['added']} -{e['removed']} = {e['live']}{tags}  "
            f"{e['message']}"
        )
    return _result(log=lines)


def _version(rest: list[str], held) -> dict[str, Any]:
    """corpus show [VERSION] [episodes=true]: what a version holds."""
    plain = [w for w in rest if "=" not in w]
    version = held.at(plain[0] if plain else "latest")
    if "episodes=true" in rest:
        table = version.table
        for row in zip(
            table["hash"],
            table["task"],
            table["origin"],
            table["length"],
            table["success"],
            table["seed"],
            table["flagged"],
            strict=True,
        ):
            print(
                f"{row[0][:12]}  {row[1]:20} {row[2]:24} {row[3]:5} steps  "
                f"{('success', 'unknown', 'failure')[1 - row[4]]:8} seed {row[5]}"
                f"{f'  flagged: {row[6]}' if row[6] else ''}"
            )
    summary = version.summary()
    if cameras := version.cameras():
        summary["cameras"] = cameras
    print(f"corpus@{version.ref}  {version.id[:12]}")
    for key, value in summary.items():
        print(f"  {key}: {value}")
    return _result(outputs={"corpus": version.ref}, metrics=summary)


def _upkeep(act: str, words: list[str], held) -> dict[str, Any]:
    """fsck | compact | expire keep=N: is everything there, fewer segments, old versions let go (gc then frees them)."""
    from flywheel.corpus import maintenance
    from flywheel.log import progress

    if act == "fsck":
        findings = maintenance.fsck(held, progress)
        for finding in findings:
            print(finding)
        print(f"{len(findings)} findings in {held.head} versions")
        found = [str(f) for f in findings]
        return _result(
            metrics={"findings": len(found)}, **({"status": "failed", "error": "; ".join(found)} if found else {})
        )
    if act == "compact":
        done = maintenance.compact(held, progress=progress)
        print(f"corpus@{done.version}: {done.episodes} episodes moved from {done.merged} segments into {done.segments}")
        return _result(outputs={"corpus": done.version}, metrics={"merged": done.merged, "segments": done.segments})
    keep = _number(words, "keep", "how many of the newest versions stay readable (tagged ones always do)")
    version, let_go = maintenance.expire(held, keep)
    print(f"corpus@{version}: {len(let_go)} segments let go; `flywheel gc apply=true` frees them after a day")
    return _result(outputs={"corpus": version}, metrics={"expired": len(let_go)})


def _number(words: list[str], key: str, what: str) -> int:
    """The number in key=N; UsageError where there is none."""
    value = dict(w.split("=", 1) for w in words if "=" in w).get(key, "")
    if not value.isdecimal():
        raise UsageError(f"expected {key}=N: {what}; found {' '.join(words) or 'nothing'}")
    return int(value)


def _apply(words: list[str]) -> bool:
    _, more = _words(words, 0, "gc [apply=true]")
    return more.get("apply", "false").lower() in ("true", "1", "yes")


def _corpus_gc(place, apply: bool) -> list:
    """What the corpus can do without, told and, with `apply`, deleted."""
    from flywheel.corpus import maintenance
    from flywheel.log import progress

    wasted = maintenance.gc(place.corpus(), GRACE, dry_run=not apply, progress=progress)
    for waste in wasted:
        print(f"{'removed' if apply else 'would remove'} corpus/{waste.name} ({waste.why})")
    return wasted


def flag(words, place) -> dict[str, Any]:
    """Leave an episode out of training and of new views, from a new version on: flag EPISODE why=..."""
    (episode,), more = _words(words, 1, "flag EPISODE why=...")
    if not more.get("why"):
        raise UsageError("a flag needs why=...: the next who looks at the episode will read it")
    number = place.corpus().flag([episode], more["why"])
    print(f"corpus@{number} leaves {episode} out of training; corpus@{number - 1} and its views do not")
    return _result(outputs={"corpus": number})


def unflag(words, place) -> dict[str, Any]:
    """Take a flag back, in a new version: unflag EPISODE."""
    (episode,), _ = _words(words, 1, "unflag EPISODE")
    number = place.corpus().flag([episode], None)
    print(f"corpus@{number} learns from {episode} again")
    return _result(outputs={"corpus": number})


def completion(words, place) -> dict[str, Any]:
    """Completion for a shell: `source <(flywheel completion bash)`, also zsh; `flywheel completion fish | source`."""
    from flywheel.cli.complete import SCRIPTS

    (shell,), _ = _words(words, 1, f"completion {' | '.join(SCRIPTS)}")
    if shell not in SCRIPTS:
        raise UsageError(f"no completion for {shell!r}. There is: {', '.join(SCRIPTS)}")
    print(SCRIPTS[shell], end="")
    return _result(shell=shell)


def fsck(words, place) -> dict[str, Any]:
    """Is everything as it was written: runs, names, weights, corpus? Exit code 1 where something is not."""
    from flywheel.log import progress
    from flywheel.runs.integrity import fsck as check

    _words(words, 0, "fsck")
    found = []
    for finding in check(place, progress):
        print(finding)
        found.append(finding)
    print(f"{len(found)} findings in {place}")
    more = {"status": "failed", "error": f"{len(found)} findings, the first: {found[0]}"} if found else {}
    return _result(metrics={"findings": len(found)}, findings=found, **more)


def gc(words, place) -> dict[str, Any]:
    """Leftovers that nothing names: runs never finished, orphaned segments, composed commands. `apply=true` removes."""
    apply = _apply(words)
    with store.Lock(place.root, "gc") if apply else nullcontext():
        return _gc(place, apply)


def _gc(place, apply: bool) -> dict[str, Any]:
    old = time.time() - GRACE
    commands = [p for p in (place.cache / "commands").glob("*.json") if p.stat().st_mtime < old]
    found = {f"runs/{run}": (size, run) for run, size in place.mirror.abandoned(old).items()}
    found |= {path.relative_to(place.root).as_posix(): (path.stat().st_size, path) for path in commands}
    wasted = _corpus_gc(place, apply) if place.has_corpus else []
    freed, places = sum(waste.bytes for waste in wasted), len(wasted)
    for name, (size, what) in found.items():
        freed += size
        print(f"{'removed' if apply else 'would remove'} {name} ({size / 1e6:.1f} MB)")
        if apply:
            what.unlink() if isinstance(what, Path) else place.mirror.drop(what)
    print(
        f"{freed / 1e6:.1f} MB in {places + len(found)} "
        f"places{'' if apply or not places + len(found) else '; apply=true removes them'}"
    )
    return _result(metrics={"bytes": freed, "places": places + len(found), "applied": apply})
