"""ingest: recordings of any format in datasets/ into the corpus; each episode is committed or quarantined with a
reason.

A bad file never stops the good ones; the same file twice adds nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections import Counter
from typing import Any

from flywheel import env as envs
from flywheel import outcome
from flywheel import store as files
from flywheel.args import Acting, UsageError, arg
from flywheel.episode import EpisodeError
from flywheel.intake import open_loop
from flywheel.intake.accept import accepted, aside, carded, failure, tell
from flywheel.intake.recordings import ASKED, card_of, content, layout, lerobot, matches, title
from flywheel.intake.recordings import options as options_of
from flywheel.intake.screen import Far


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Acting):
    """Recordings into the corpus."""

    source: str = arg(help="a file, a folder, or a quoted glob of these", typed=True)
    format: str = arg("robomimic_hdf5", "a reader of datasets/; docs/formats.md has them all")
    check: str | None = arg(
        None, "replay: run the recordings open-loop and say how closely they come back", choices=(None, "replay")
    )
    obs_keys: list[Any] | None = arg(None, "order and concatenate these observation keys")
    filter_key: str | None = arg(None, "robomimic: only the demos that mask/FILTER_KEY lists")
    action_key: str | None = arg(None, "robomimic: other actions, such as actions_abs")
    outcome: Any = arg(
        None, 'who succeeded, where the recording does not say: last_reward, KEY or {success_when: "reward > 0.99"}'
    )
    cameras: list[Any] | None = arg(None, "only these of the recording's cameras; [] for none")
    origin: str | None = arg(None, "who acted, if the file does not say")
    fps: float | None = arg(None, "control rate in Hz, if the file does not say", least=1e-3, most=1e6)
    card: str | None = arg(
        None, "the data card of the recordings, if not FILE.yaml beside each: keys, units and rate, checked"
    )
    rollouts: int | None = arg(None, "formats that roll a policy out: how many episodes", least=1)
    restore: bool = arg(False, "bring back episodes that were tombstoned")

    def __post_init__(self) -> None:
        if kind := lerobot(self.source, self.format):  # the folder is enough
            object.__setattr__(self, "format", kind)
        if self.origin and self.origin.startswith("policy:"):  # policy:NAME@ID is the same as policy:ID
            id_ = self.origin[7:].rpartition("@")[2][:12]
            if len(id_) < 12:
                raise UsageError(
                    f"origin={self.origin}; expected policy:ID with 12 digits, as `flywheel lineage` has it"
                )
            object.__setattr__(self, "origin", f"policy:{id_}")


def inputs(args: Args, store) -> dict[str, Any]:
    module = layout(args.format)
    outcome.rule(args.outcome)
    known = inspect.signature(module.read).parameters
    if unknown := [key for key in ASKED if getattr(args, key) is not None and key not in known]:
        raise ValueError(f"format={args.format} takes no {', '.join(unknown)}; it takes {', '.join(list(known)[1:])}")
    paths = matches(args.source, module)
    parts = {
        p
        for path in paths
        for p in ([path] if not hasattr(module, "parts") else module.parts(path, **options_of(module.parts, args)))
    } | {card for card in (card_of(module.read, path, args) for path in paths) if card}
    digest = hashlib.sha256("\n".join(content(p) for p in sorted(parts)).encode()).hexdigest()
    return {"source": {"id": digest, "ref": args.source, "files": [p.name for p in paths]}}


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    module = layout(args.format)
    options = options_of(module.read, args)
    corpus = run.store.corpus(create=True)
    env = envs.opened(args, 1, corpus.at("latest") if corpus.head else None)
    rows, quarantined, added, duplicates, refused = [], [], [], [], []
    replayed: list[dict[str, Any]] = []
    tally, far = Counter(), Far()
    for path in matches(args.source, module):
        before, name = Counter(tally), title(path, module)
        episodes = accepted(carded(module.read, path, options, args), name, options, env, run, quarantined, tally, far)
        try:
            if args.check == "replay":
                episodes = list(episodes)
                replayed += open_loop.back(env, episodes, args.task)
            message, restore = f"ingest {name}", args.restore
            done = corpus.append(episodes, message=message, author=run.name, restore=restore)
        except EpisodeError as error:  # a video that changed or went away while its episodes were written
            tally["good"] = before["good"]
            aside(error, name, None, quarantined, tally)
            continue
        added += done.added
        duplicates += done.duplicates
        refused += done.refused
        good, bad = (tally[key] - before[key] for key in ("good", "bad"))
        rows.append((name, good + bad, len(done.added), len(done.duplicates), len(done.refused), bad))
    env.close()
    strange = far.found()
    metrics: dict[str, Any] = {"added": len(added), "duplicates": len(duplicates), "quarantined": tally["bad"]}
    metrics |= {"refused": len(refused), "clipped_values": tally["clipped"], "far_values": len(strange)}
    metrics |= {"dropped": tally["dropped"]}
    tell(rows, refused, tally, strange)
    if replayed:
        metrics["replay"] = open_loop.told(replayed)
        files.write_json(run.out / "replay.json", replayed, indent=1)
    files.write_json(run.out / "quarantine.json", quarantined, indent=1)
    if strange:
        files.write_json(run.out / "far.json", strange, indent=1)
    run.log("ingest", **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
    made = {
        "outputs": {"corpus": corpus.head},
        "metrics": metrics,
        "content": {"episodes": added + duplicates, "quarantined": quarantined},
    }
    error = failure(tally, quarantined, args.source)
    return {"status": "failed", "error": error, **made} if error else made
