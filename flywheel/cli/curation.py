"""flywheel corpus stats | diff | query | view: what is in the corpus, what changed, and names for parts of it."""

from __future__ import annotations

from typing import Any

from flywheel.cli.config import UsageError
from flywheel.corpus import compare, quality, sketch, views
from flywheel.log import progress

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
SHOWN = 20  # changes that `diff` prints; --json has all


def measured(version, place):
    """The quality of a version's episodes, out of the store's cache where it is known."""
    return quality.measured(version, place.cache, progress)


def stats(words: list[str], held, place) -> dict[str, Any]:
    """Counts, outcomes, lengths and quality by task and origin; with field=, the numbers of a stream."""
    fields = [word.removeprefix("field=") for word in words if word.startswith("field=")]
    words = [word for word in words if not word.startswith("field=")]
    _, version = _at(words, 0, held, "corpus stats [field=obs.state] [at=VERSION]")
    if fields:
        rows = columns(version, fields[-1], place)
        _grid(rows)
        return {"outputs": {"corpus": version.ref}, "field": fields[-1], "columns": rows}
    rows = compare.stats(version, measured(version, place))
    _grid([{**row, "length": "{} {:g} {}".format(*row["length"])} for row in rows])
    return {"outputs": {"corpus": version.ref}, "metrics": rows[-1], "stats": rows}


def columns(version, field: str, place) -> list[dict[str, Any]]:
    """A row for each number in a row of a stream: count, mean, std, min, max, and quantiles to 1 % (corpus.sketch)."""
    kept = sketch.of(version, field, place.cache)
    exact = version.statistics(field)
    names = {f"q{100 * q:02.0f}": column for q, column in zip(QUANTILES, kept.quantiles(QUANTILES), strict=True)}
    names = {name: exact[name] for name in ("mean", "std", "min", "max")} | names
    rows = [{name: float(column[number]) for name, column in names.items()} for number in range(kept.width)]
    return [{"column": number, "count": exact["count"], **row} for number, row in enumerate(rows)]


def query(words: list[str], held, place) -> dict[str, Any]:
    """An SQL query over the table `episodes` of a version."""
    from flywheel.corpus import query as asking

    (sql,), version = _at(words, 1, held, 'corpus query "SELECT ... FROM episodes" [at=VERSION]')
    found = asking.ask(asking.table(version, measured(version, place)), sql)
    rows = found.to_pylist()
    _grid(rows, found.schema.names)
    return {"outputs": {"corpus": version.ref}, "metrics": {"rows": len(rows)}, "rows": rows}


def view(words: list[str], held, place) -> dict[str, Any]:
    """A name for the episodes of a version that pass an SQL condition."""
    from flywheel.corpus import query as asking

    (name, where), version = _at(words, 2, held, 'corpus view NAME "SQL CONDITION" [at=VERSION]')
    flagged = "" if "flagged" in where else " AND flagged IS NULL"  # unless the condition itself asks for them
    keep = asking.passing(asking.table(version, measured(version, place)), f"({where}\n){flagged}")
    named = views.name(held, name, version, keep, where)
    print(f"{name} is {len(named)} of the {len(version)} episodes of corpus@{version.ref}; use it as corpus={name}")
    return {"outputs": {"corpus": name}, "metrics": {"episodes": len(named), "of": len(version)}, "id": named.id}


def wanted(asked: str, version, place):
    """The episodes that a beginning of a hash, or an SQL condition, names; UsageError where there is none."""
    from flywheel.corpus import query as asking

    if len(asked) >= 6 and set(asked) <= set("0123456789abcdef"):
        return version.select([version._position(asked)])
    found = version.select(asking.passing(asking.table(version, measured(version, place)), asked))
    if not len(found):
        raise UsageError(f"none of the {len(version)} episodes of corpus@{version.ref} passes {asked!r}")
    return found


def diff(words: list[str], held, place) -> dict[str, Any]:
    """What changed between two versions, ranked by size, and how the policies trained on each of them did."""
    if len(words) != 2:
        raise UsageError("usage: flywheel corpus diff A B")
    a, b = (held.at(word) for word in words)
    found = held.diff(a, b)
    for way in ("added", "removed"):
        print(f"{way}: {len(found[way])} episodes  {found['counts'][way]}")
    changed = compare.changes((a, measured(a, place)), (b, measured(b, place)))
    _grid(changed[:SHOWN])
    if len(changed) > SHOWN:
        print(f"and {len(changed) - SHOWN} smaller changes (--json has them)")
    policies = {name: trained(version, place) for name, version in (("a", a), ("b", b))}
    for version, rows in ((a, policies["a"]), (b, policies["b"])):
        print(f"policies trained on corpus@{version.ref}:{'' if rows else ' none in this store'}")
        _grid(rows)
    return {"diff": {**found, "changes": changed, "policies": policies}}


def trained(version, place) -> list[dict[str, Any]]:
    """{"checkpoint", "run", "success", "n", "scored"}: each score of each policy whose run names this version."""
    rows, runs = [], place.runs()
    for done in runs:
        checkpoint = done["result"]["outputs"].get("checkpoint")
        if checkpoint and done["inputs"].get("corpus", {}).get("version") == version.ref:
            scores = [done, *(r for r in runs if r["inputs"].get("checkpoint", {}).get("ref") == checkpoint)]
            for run in scores:
                metrics = run["result"]["metrics"]
                if run is done or run["stage"] == "evaluate":
                    score = {"success": metrics.get("success"), "n": metrics.get("n"), "scored": run["stage"]}
                    rows.append({"checkpoint": checkpoint, "run": f"{done['stage']}/{done['key']}", **score})
    return rows


def _at(words: list[str], count: int, held, usage: str) -> tuple[list[str], Any]:
    """The words before at=VERSION, which may have "=" in them, and that version."""
    plain = [word for word in words if not word.startswith("at=")]
    named = [word.removeprefix("at=") for word in words if word.startswith("at=")]
    if len(plain) != count or len(named) > 1:
        raise UsageError(f"usage: flywheel {usage}")
    return plain, held.at(named[0] if named else "latest")


def _grid(rows: list[dict[str, Any]], names: list[str] | None = None) -> None:
    """Rows of equal keys as columns of text."""
    names = names or list(rows[0] if rows else ())
    lines = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(names))]
    for line in lines if names else ():
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
