"""Parquet files that nobody vouches for: what their pages declare is compared with what the file can hold, before it is
read.

Numbers are bounded by the count of values; texts and pictures, of which one stored copy may stand for any number of
rows, are read 64 rows at a time and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from flywheel_datasets import _thrift

from flywheel import bounds
from flywheel.episode import EpisodeError

ROWS, WIDEST = 64, 16  # rows that are read at once where a row may be of any size; bytes of the widest number
TYPE, PATH, VALUES, PACKED, FIRST, DICTIONARY = 1, 3, 5, 7, 9, 11  # fields of ColumnMetaData
TEXTS = (6, 7)  # its types of bytes


def names(path: Path) -> list[str]:
    """The columns of a file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.schema_arrow.names


def table(path: Path, columns: Sequence[str] | None = None):
    """The columns of a file as a pyarrow table; EpisodeError for one that declares more than it can hold."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    stored = path.stat().st_size
    with pq.ParquetFile(path, memory_map=False) as file:
        wanted = [c for c in file.schema_arrow.names if columns is None or c in columns]
        if absent := [c for c in columns or () if c not in wanted]:
            raise EpisodeError(
                f"{path.name}: no column {', '.join(absent)}; there is {', '.join(file.schema_arrow.names)[:500]}"
            )
        if any(chunk < 0 for chunk in (file.metadata.num_rows, file.metadata.num_row_groups)):
            raise EpisodeError(f"{path.name}: {file.metadata.num_rows} rows; the file is damaged")
        texts = _declared(path, set(wanted), stored)
        plain = [c for c in wanted if c not in texts]
        out = {c: None for c in wanted}
        bounds.allow(WIDEST * file.metadata.num_rows, stored, f"{path.name}: {file.metadata.num_rows} rows")
        if plain:
            read = file.read(columns=plain)
            out |= {c: read.column(c) for c in plain}
        if texts:
            parts, total = [], 0
            for part in file.iter_batches(batch_size=ROWS, columns=sorted(texts)):
                total += part.nbytes
                bounds.allow(total, stored, f"{path.name}: column {', '.join(sorted(texts))}")
                parts.append(part)
            schema = (
                parts[0].schema
                if parts
                else pa.schema([file.schema_arrow.field(c) for c in file.schema_arrow.names if c in texts])
            )
            read = pa.Table.from_batches(parts, schema)
            out |= {c: read.column(c) for c in texts}
        return pa.table(out)


def _declared(path: Path, wanted: set[str], stored: int) -> set[str]:
    """The wanted columns whose rows are texts or bytes; EpisodeError where the others declare too much."""
    texts, values = set(), 0
    with open(path, "rb") as file:
        for chunk in _chunks(file, stored):
            name = b".".join(chunk[PATH]).decode("utf-8", "replace")
            names = {c for c in wanted if name == c or name.startswith(f"{c}.")}
            if names and chunk[TYPE] in TEXTS:
                texts |= names
            elif names:
                values += max(0, chunk[VALUES])
                bounds.allow(WIDEST * values, stored, f"{path.name}: column {name[:80]}")
            if names:
                _pages(file, chunk, f"{path.name}: column {name[:80]}", stored)
    return texts


def _chunks(file: BinaryIO, stored: int) -> Iterator[dict[int, Any]]:
    """What the footer says of each column of each row group (ColumnMetaData); EpisodeError for a damaged footer."""
    file.seek(max(0, stored - 8))
    length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
    if magic != b"PAR1" or length + 8 > stored:
        raise EpisodeError("no Parquet file: its end is not that of one")
    file.seek(stored - 8 - length)
    for group in _thrift.Compact(file.read(length)).struct().get(4) or []:
        for column in group.get(1) or []:
            chunk = column.get(3) or {}
            if 1 in column or not {TYPE, PATH, VALUES, PACKED, FIRST} <= set(chunk):
                raise EpisodeError("a column whose pages lie elsewhere, or nowhere; they are not opened")
            yield chunk


def _pages(file: BinaryIO, chunk: dict[int, Any], where: str, stored: int) -> None:
    """Walk the pages of a column: EpisodeError where one declares more than its bytes can hold, or lies outside of
    the file."""
    at = min(chunk[FIRST], chunk.get(DICTIONARY) or chunk[FIRST])
    end, packed = at + chunk[PACKED], 0
    if not 0 <= at <= end <= stored:
        raise EpisodeError(f"{where}: its pages lie outside of the file; it is damaged")
    while at < end:
        file.seek(at)
        head = _thrift.Compact(file.read(min(2**16, end - at)))
        found = head.struct()
        wide, size = found.get(2, -1), found.get(3, -1)
        if min(size, wide) < 0 or at + head.at + size > end:
            raise EpisodeError(f"{where}: a page that goes beyond its column; the file is damaged")
        bounds.allow(wide, packed + size, f"{where}: a page")
        at, packed = at + head.at + size, packed + size
