"""SQL over the episodes of a version: one Arrow table of their columns and quality, asked through DuckDB.

Columns: hash task origin seed success terminated fps length return_ added cameras flagged meta (JSON text) of
Version.table, NULL where unknown; schema jerk sparc idle saturation tracking skew near near_group of corpus.quality;
bucket of corpus.splits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from flywheel.corpus.segment import CorpusError
from flywheel.corpus.splits import bucket

if TYPE_CHECKING:
    import pyarrow as pa

    from flywheel.corpus.version import Version


def table(version: Version, quality: dict[str, np.ndarray]) -> pa.Table:
    """The Arrow table `episodes`, a row an episode in the version's order; `quality` is quality.measured(version,
    ...)."""
    import pyarrow as pa

    columns = {}
    for name, column in version.table.items():
        unknown = column == -1 if name in ("seed", "success") else None
        if name == "flagged":
            columns[name] = pa.array([why or None for why in column], pa.string())
        elif name == "meta":
            columns[name] = pa.array([json.dumps(value) for value in column], pa.string())
        else:
            columns[name] = pa.array(column.astype(bool) if name == "success" else column, mask=unknown)
    for name, column in quality.items():
        text = column.dtype.kind == "S"
        columns[name] = pa.array(column.astype(str)) if text else pa.array(column, from_pandas=True)
    columns["bucket"] = pa.array(bucket(version.hashes))
    return pa.table(columns)


def ask(episodes: pa.Table, sql: str) -> pa.Table:
    """The answer to an SQL query over `episodes`; it can reach no file. CorpusError with DuckDB's reason."""
    import pyarrow as pa

    try:
        import duckdb
    except ModuleNotFoundError:
        raise CorpusError("queries need DuckDB: pip install duckdb (the extra [query])") from None

    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as database:
        database.register("episodes", episodes)
        try:
            answer = database.sql(sql)
            return answer.to_arrow_table() if answer is not None else pa.table({})
        except duckdb.Error as error:
            raise CorpusError(
                f"query {sql!r}: {error}\nColumns of episodes: {', '.join(episodes.schema.names)}"
            ) from None


def passing(episodes: pa.Table, where: str) -> np.ndarray:
    """[E] bool: which rows of `episodes` pass an SQL condition such as "success and idle < 0.2"."""
    found = ask(episodes, f"SELECT hash FROM episodes WHERE ({where}\n)")
    return np.isin(np.asarray(episodes["hash"].to_pylist(), str), np.asarray(found["hash"].to_pylist(), str))
