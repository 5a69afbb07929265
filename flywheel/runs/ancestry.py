"""Where a checkpoint comes from: the runs, checkpoints, corpus versions and files behind it. The report draws it, the
command lists it.

A corpus version is traced to the very ingests that added its episodes (the authors of those versions of the corpus),
and to the files that they read."""

from __future__ import annotations

from typing import Any


def graph(place, runs: list[dict], ref: str) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Nodes {"node", "kind", "title", "detail"} in an order in which each comes before what it was made from, and
    {node: made from}."""
    by_name = {f"{r['stage']}/{r['key']}": r for r in runs}
    nodes: dict[str, dict[str, Any]] = {}
    parents: dict[str, list[str]] = {}
    done: list[str] = []

    def add(kind: str, title: str, detail: str, made_from: list[tuple]) -> str:
        node = f"{kind} {title}"
        if node not in nodes:
            nodes[node] = {"kind": kind, "title": title, "detail": detail}
            parents[node] = []
            for visit in made_from:
                parents[node].append(visit[0](*visit[1:]))
            done.append(node)
        return node

    def checkpoint(name: str) -> str:
        try:
            record = place.names.resolve(name)
        except ValueError:
            return add("checkpoint", name, "no longer in the store", [])
        title = f"{record['name']}@{record['id']}"
        detail = ", ".join(
            [str(record.get("kind") or "checkpoint"), *(["in production"] if record["production"] else [])]
            + ([f"{record['updates']} updates"] if record.get("updates") else [])
        )
        return add("checkpoint", title, detail, [(run, record["run"])])

    def run(name: str) -> str:
        record = by_name.get(name)
        if record is None:
            return add("run", name, "not finished, or pruned", [])
        made: list[tuple] = []
        for kind, value in record["inputs"].items():
            if kind in ("checkpoint", "against"):
                made.append((checkpoint, value["ref"]))
            elif kind == "checkpoints":
                made += [(checkpoint, ref) for ref in value["refs"]]
            elif kind == "corpus":
                made.append((corpus, value))
            elif kind == "source":
                made += [(file, name) for name in value.get("files", [])]
        told = record["result"].get("metrics", {})
        words = [f"{told[k]} {k}" for k in ("rounds", "added", "demonstrations") if k in told]
        return add("run", name, ", ".join([*words, str(record.get("finished", ""))]), made)

    def corpus(value: dict[str, Any]) -> str:
        origins = ", ".join(f"{n} {origin}" for origin, n in value.get("origins", {}).items())
        by = [name for name in value.get("by", []) if name in by_name and by_name[name]["stage"] == "ingest"]
        filled = {name for one in by for name in by_name[one]["inputs"].get("source", {}).get("files", [])}
        made = [(run, name) for name in by] + [(file, name) for name in sorted({*value.get("files", [])} - filled)]
        return add("corpus", f"corpus@{value.get('version')} ({str(value['id'])[:12]})", origins, made)

    def file(name: str) -> str:
        return add("file", name, "demonstrations", [])

    checkpoint(ref)
    return [{"node": n, **nodes[n]} for n in reversed(done)], parents
