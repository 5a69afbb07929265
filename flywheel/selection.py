"""What a stage reads of a store: the demonstrations of a task in a corpus version, in pools; checkpoints; names."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import executors
from flywheel.args import Task, plain
from flywheel.corpus.rows import RESIDENT
from flywheel.env import ids as gym_names
from flywheel.log import progress, say
from flywheel.runs import names
from flywheel.store import sha256_file

MASKS = ("obs.state.mask", "action.mask")
FIELDS = {  # of the window cache, by what is learnt from
    "success": ("obs.state", "action", "reward"),
    "env": ("obs.state", "action", "extras.env_reward"),
}
SEEN = "seen"  # an episode's extras, in training: what frozen eyes made of its frames
MADE = ("policy:*", "hindsight:*")  # origins of what policies did, and of what that would have reached
LEARNS = {
    "pretrain": "learns offline",
    "distil": "learns offline",
    "retrain": "collects in rounds and keeps what it saw",
    "online": "collects as the table's `collect` says",
}


def belongs(stage: str, algorithm) -> None:
    """ValueError, with what would do, where an algorithm's data is not what `stage` learns from, or nothing is there
    to improve."""
    source, act = algorithm.source, algorithm.act
    if algorithm.cadence.improve and not algorithm.improve:
        raise ValueError(
            f"algorithm.cadence.improve={algorithm.cadence.improve}: the table of algorithm {algorithm.name} improves "
            "nothing, for its policy is the argmax of its critic; take 0"
        )
    home = "pretrain" if source == "offline" else "retrain" if act and not algorithm.collect else "online"
    if LEARNS[stage] != LEARNS[home]:
        raise ValueError(
            f"{stage} {LEARNS[stage]}; algorithm {algorithm.name} asks for source {source}"
            f"{f', act {act}' if act else ''}: that is `flywheel {home}`"
        )


def title(task: Task) -> str:
    """The task's name as episodes carry it: another one for other options of its environment."""
    return gym_names.of_task(plain(task))


def name_of(args) -> str:
    """The name that checkpoints of this task get: `name=`, or policy/TASK, without the module and the namespace of
    an id."""
    return names.checked(args.name) if args.name else f"policy/{gym_names.short(title(args.task))}"


def kept_name(args, store) -> str | None:
    """The name that a store of an older flywheel (policy/MODULE-ID) knows this task by, where it has none by
    today's: it is gone on with."""
    if args.name or args.task.name != "gym" or title(args.task) != args.task.id:
        return None
    known, old = store.names.names(), f"policy/{args.task.id.replace(':', '-')}"
    return old if old in known and name_of(args) not in known else None


def demonstrations(args, store):
    """The episodes to imitate: of this task, at `corpus=`, by `demos.origin` (default: all that no policy made),
    with failed ones only if `demos.failures`; in an order that does not depend on when they came. ValueError that
    says which of these filters left nothing."""
    corpus = store.corpus()
    version, demos, task = corpus.at(args.corpus), args.demos, title(args.task)
    left = [f"{len(version)} episodes"]

    def keep(chosen, what: str):
        left.append(f"{len(chosen)} {what}")
        return chosen

    chosen = keep(sound(version.select(task=task)), f"of {task}")
    if demos.origin:
        chosen = keep(chosen.select(origin=demos.origin), f"of origin {demos.origin}")
    else:
        origin = chosen.table["origin"].astype(str)
        made = np.any([np.char.startswith(origin, by.rstrip("*")) for by in MADE], axis=0)
        chosen = keep(chosen.select(~made), "that no policy made")
    if not demos.failures:
        chosen = keep(
            chosen.select(success=[True, None]),
            "that are not known to have failed (demos.failures=true takes those too)",
        )
    if not len(chosen):
        here = ", ".join(f"{t} ({n})" for t, n in version.summary()["task"].items()) or "nothing"
        raise ValueError(
            f"no demonstrations to learn from: corpus@{version.number} has {', of these '.join(left)}. By task it "
            f"holds: {here}. Add some with `flywheel ingest source=... format=... task=...`"
        )
    chosen = chosen.canonical()  # by hash
    return chosen.select(np.arange(min(demos.first, len(chosen)))) if demos.first else chosen


def pools(args, store):
    """What is imitated: (episodes, {pool: positions among them}, {pool: share}).

    One pool "demos" of `demonstrations`, or with `data={VIEW: share, ...}` one of each view's episodes as they are: of
    this task or, with `align`, of all tasks and robots. An episode in two views is in both pools. ValueError for a view
    without any."""
    if not args.data:
        if getattr(args, "align", None):
            raise ValueError("align= joins the robots of several views; name them: data={so100: 0.5, panda: 0.5}")
        demos = demonstrations(args, store)
        if share := getattr(args, "corrections", 0.0):
            return _corrected(args, store, demos, share)
        return demos, {"demos": np.arange(len(demos))}, {"demos": 1.0}
    corpus, shares = store.corpus(), {f"view {name}": float(share) for name, share in args.data.items()}
    parts = {pool: _view(args, corpus, str(name)) for pool, name in zip(shares, args.data, strict=True)}
    rows = np.unique(np.concatenate([part.rows for part in parts.values()]))
    ref = " + ".join(f"{share:g} {name}" for name, share in args.data.items())
    whole = corpus.at(max(part.number for part in parts.values()))
    whole = type(whole)(corpus, whole.number, rows, ref).canonical()
    return whole, {name: np.flatnonzero(np.isin(whole.rows, part.rows)) for name, part in parts.items()}, shares


def _corrected(args, store, demos, share: float):
    """`demos`, and what people did where they took over from a policy (extras["intervention"]) as a pool of its own:
    `share` of a batch, as in intervention weighted regression (Mandlekar et al., arXiv:2012.06733)."""
    known = sound(store.corpus().at(args.corpus).select(task=title(args.task)))
    helped = known.select(np.array([bool(meta.get("interventions")) for meta in known.table["meta"]], bool))
    helped = helped.select(success=[True, None])
    if not len(helped):
        return demos, {"demos": np.arange(len(demos))}, {"demos": 1.0}
    rows = np.unique(np.concatenate([demos.rows, helped.rows]))
    whole = type(demos)(demos.corpus, demos.number, rows, demos.ref).canonical()
    spans = []
    for place in np.flatnonzero(np.isin(whole.rows, helped.rows)).tolist():
        edges = np.flatnonzero(np.diff(np.pad(whole.read(place).extras["intervention"].astype(np.int8), 1)))
        spans += [(place, begin, end - begin) for begin, end in edges.reshape(-1, 2).tolist()]
    pools = {"demos": np.flatnonzero(np.isin(whole.rows, demos.rows)), "corrections": np.array(spans, np.int64)}
    return whole, pools, {"demos": 1.0 - share, "corrections": share}


def _view(args, corpus, name: str):
    """The episodes of a view that this stage may learn from."""
    part = whole = sound(corpus.at(name))
    if not getattr(args, "align", None):
        part = whole.select(task=title(args.task))
    if not len(part):
        here = ", ".join(f"{task} ({n})" for task, n in whole.summary()["task"].items()) or "nothing"
        raise ValueError(
            f"data: {name} has no episode of {title(args.task)}, it holds {here}; leave it out or name another view. "
            "(`flywheel pretrain` learns from several tasks and robots with align=pad)"
        )
    return part


def mixed(table: dict[str, dict[str, float]], shares: dict[str, float], batch_size: int) -> dict[str, dict[str, float]]:
    """A mixture {act: {pool: share}} with the pools of `shares` in the place of "demos".

    ValueError where a pool would give nothing to a batch.
    """
    total = sum(shares.values()) or 1
    parts = {pool: share / total for pool, share in shares.items()}
    out: dict[str, dict[str, float]] = {act: {} for act in table}
    for act, row in table.items():
        for pool, share in row.items():
            out[act] |= {one: share * part for one, part in parts.items()} if pool == "demos" else {pool: share}
        drawn = {one: out[act][one] * batch_size / (sum(row.values()) or 1) for one in parts if one in out[act]}
        for one, rows in drawn.items() if len(parts) > 1 else ():
            if rows < len(parts):  # what is rounded off goes to the last
                raise ValueError(
                    f"data: the share of {one} in {shares} is {rows:.3g} of a batch of {batch_size}; expected at least "
                    f"{len(parts)}: give it a larger share, or a larger batch_size"
                )
    return out


def describe(version) -> dict[str, Any]:
    """How inputs.json names a selection of episodes: by content, with a word on where it came from."""
    table = version.table
    origins = {str(o): int((table["origin"] == o).sum()) for o in np.unique(table["origin"])}
    files = sorted({str(m["file"]) for m in table["meta"] if "file" in m})
    entry = version.corpus.history.entry
    by = sorted({entry(int(added))["author"] for added in np.unique(table["added"])})  # the runs that added them
    return {
        "id": version.id, "version": version.ref, "ref": version.ref,
        "episodes": len(version), "origins": origins, "files": files, "by": by,
    }  # fmt: skip


def checkpoint(ref: str, store) -> dict[str, Any]:
    """How inputs.json names a checkpoint: by the sha256 of its weights."""
    record = store.checkpoint(ref)
    return {"id": record["sha256"], "ref": f"{record['name']}@{record['id']}", "run": record["run"]}


def begun(ref: str, store) -> dict[str, Any]:
    """As `checkpoint`, or a folder that LeRobot wrote, by the hash of what is in it."""
    if not Path(ref).expanduser().is_dir():
        return checkpoint(ref, store)
    folder = Path(ref).expanduser().absolute()
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    if not {"config.json", "model.safetensors"} <= {path.name for path in files}:
        raise ValueError(
            f"checkpoint={ref}: a folder without config.json and model.safetensors; expected NAME, NAME@ID, or a "
            "policy that LeRobot wrote (.../checkpoints/last/pretrained_model)"
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return {"id": digest.hexdigest(), "ref": str(folder), "folder": True}


def windows(corpus, version, args, store, more: tuple[str, ...] = ()):
    """The rows of a version that this task is learnt from: with its success, or (task.reward=env) with the
    environment's reward, and `more` fields."""
    fields, align = FIELDS[args.task.learns], getattr(args, "align", None)
    fields, resident = (*fields, *more, *(MASKS if align else ())), size(getattr(args, "resident", None))
    how = {"cache": store.cache, "align": align, "progress": progress, "resident": resident, **_others(args)}
    return _seen(corpus.windows(version, fields, **how))


def _seen(windows):
    """The windows, and a word where others were to decode them and could not."""
    if windows.blind:
        say(
            f"  window cache: {windows.blind} parts decoded here: the executor's workers do not see "
            f"{windows.version.corpus.path}; share the folder, or take store=s3://..."
        )
    return windows


def _others(args) -> dict[str, Any]:
    """Who decodes a window cache: map(function, tasks) of the executor; workers of other machines need not see it."""
    name = getattr(args, "executor", "local")
    if name == "local":
        return {}
    return {"map": executors.bound(name, args.workers, args.resources), "apart": name != "processes"}


def cameras(corpus, version, policy, args, store) -> list:
    """The frames of each camera that the policy sees, decoded, in windows of the same version. ValueError where an
    episode has others."""
    there, found = version.cameras(), []
    for name, shape in policy.cameras.items():
        has = there.get(name, {})
        if has.get("episodes") != len(version) or tuple(has.get("shape", ())) != shape:
            said = f"{has['episodes']} of {len(version)} episodes, {has['shape']}" if has else "no episode"
            raise ValueError(
                f"camera {name!r} {list(shape)} is in {said}; ingest the recordings anew with task.cameras, or name "
                "other cameras"
            )
        how = {"cache": store.cache, "progress": progress, "resident": size(getattr(args, "resident", None))}
        found.append(_seen(corpus.windows(version, (f"obs.{name}",), **how, **_others(args))))
    return found


def size(text: str | None) -> int:
    """Bytes of a size with its unit, 500MB or 1.5GB; of None what corpus.windows keeps by itself."""
    if not text:
        return RESIDENT
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(MB|GB)", str(text))
    if not found or not float(found[1]):
        raise ValueError(f"resident={text}; expected a size with its unit, such as 500MB or 4GB")
    return int(float(found[1]) * {"MB": 1e6, "GB": 1e9}[found[2]])


def robot(task: Task, windows, env) -> dict[str, list[int]] | None:
    """Which columns of aligned rows are those of the task's own robot, for a policy; None where all are.

    ValueError where no episode is of the task, or it has other numbers than the task.
    """
    if not windows.layout:
        return None
    version = windows.version
    own = version.select(task=title(task))
    if not len(own):
        here = ", ".join(version.summary()["task"])
        raise ValueError(
            f"align: no episode is of {title(task)}, on which the policy is scored; there are {here}. Add a view of it"
        )
    corpus = version.corpus
    segment = corpus.reader.segment(int(corpus.history.state.parts(own.rows[:1])[0]))
    places = windows.layout.places[segment.robot]
    found = {"obs": places["obs.state"].tolist(), "action": places["action"].tolist()}
    if (len(found["obs"]), len(found["action"])) != (env.obs_dim, env.action_dim):
        raise ValueError(
            f"align: episodes of {title(task)} have {len(found['obs'])} observed numbers and {len(found['action'])} of "
            f"action; the task has {env.obs_dim} and {env.action_dim}"
        )
    return found


def one_robot(args, policy) -> None:
    """ValueError for a policy that learnt from several robots where rows are those of one."""
    if policy.robot and not getattr(args, "align", None):
        raise ValueError(
            "this policy learnt from several robots, in rows of their own (align=); it can be evaluated and promoted, "
            "and trained on with `flywheel pretrain checkpoint=... data={...} align=...`, not by other stages"
        )


def sound(version):
    """The episodes of a version to learn from: no environment spoilt them (flywheel.faults), they have rows, and nobody
    has flagged them in it."""
    keep = ["cause" not in meta and "trial_only" not in meta for meta in version.table["meta"]]
    return version.select(np.array(keep, bool) & (version.table["flagged"] == ""))
